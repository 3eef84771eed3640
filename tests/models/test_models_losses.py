"""Per-sample losses against Hugging Face's own, one sample at a time."""

import pytest
import torch
from tiny_models import one_sample, random_batch, row_samples, sample_losses, tiny_language, tiny_tokenizer, tiny_vlm
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from vlmsel.models.assembly import assemble
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.language import decoder_and_head
from vlmsel.models.lora import attach_lora
from vlmsel.models.losses import supervised_counts


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300, n_positions=64)).eval()


def adapted():
    return attach_lora(tiny_language(), LoraSpec(r=2, alpha=4))


def naive_loss(model, alone):
    return cross_entropy(model(input_ids=alone.input_ids).logits[0, :-1], alone.labels[0, 1:]).item()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("build", [tiny_language, gpt2, adapted])
def test_plain_language_models(build, left):
    model = build().double()
    batch = random_batch(images_per_sample=[0, 0, 0], left=left)
    losses = sample_losses(model, batch)
    for row in range(3):
        alone = one_sample(batch, row)
        assert losses[row].item() == pytest.approx(naive_loss(model, alone), abs=1e-12)
        rounded = model(input_ids=alone.input_ids, labels=alone.labels).loss  # Hugging Face takes it in float32
        assert losses[row].item() == pytest.approx(rounded.item(), abs=1e-6)


def test_the_head_sees_supervised_positions_only():
    model = tiny_vlm()
    batch = random_batch(model)
    _, head = decoder_and_head(model.language_model)
    seen = []
    head.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape)))
    tokens = model.token_losses(batch)
    count = int((batch.labels != -100).sum())
    assert seen == [(count, 24)] and tokens.losses.shape == tokens.rows.shape == (count,)
    counts = supervised_counts(batch.labels, batch.attention_mask)
    assert torch.equal(torch.bincount(tokens.rows), counts) and int(counts.sum()) == count


def test_half_precision_losses_are_float32():
    batch = random_batch(images_per_sample=[0, 0])
    assert sample_losses(tiny_language().bfloat16(), batch).dtype == torch.float32


def test_a_sample_without_supervised_tokens_is_nan_and_harms_no_other():
    model = tiny_vlm()
    batch = random_batch(model)
    expected = sample_losses(model, batch)
    batch.labels[2] = -100
    losses = sample_losses(model, batch)
    assert torch.isnan(losses).tolist() == [False, False, True, False]
    keep = torch.tensor([0, 1, 3])
    torch.testing.assert_close(losses[keep], expected[keep])  # fewer rows reach the head, which may round otherwise
    torch.where(torch.isnan(losses), 0, losses).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_the_first_token_of_a_left_padded_row_is_not_predicted_from_padding():
    batch = random_batch(images_per_sample=[0, 0], left=True)
    batch.labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    lengths = batch.attention_mask.sum(dim=1)
    assert torch.equal(supervised_counts(batch.labels, batch.attention_mask), lengths - 1)
    model = tiny_language().double()
    for row, loss in enumerate(sample_losses(model, batch)):
        alone = one_sample(batch, row)
        assert loss.item() == pytest.approx(naive_loss(model, alone), abs=1e-12)


def test_images_need_a_model_that_sees():
    model = assemble(VLMConfig(None, "memory"), None, tiny_language(), tiny_tokenizer())
    with pytest.raises(ValueError, match="this model reads text only; give it no images"):
        model.losses(random_batch(images_per_sample=[1]))


@pytest.mark.parametrize("left", [False, True])
def test_rows_of_projector_and_head_are_told_apart_by_sample(left):
    model = tiny_vlm()
    batch = random_batch(model, left=left)
    maps = row_samples(model, batch)
    assert list(maps) == ["projector", "language_model.base_model.model.lm_head"]
    assert torch.equal(maps["projector"], batch.image_samples)
    assert torch.equal(maps["language_model.base_model.model.lm_head"], model.token_losses(batch).rows)
    assert list(row_samples(tiny_language(), random_batch(images_per_sample=[0]))) == ["lm_head"]
