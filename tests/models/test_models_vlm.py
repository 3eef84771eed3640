"""The assembled model: each sample's loss is what the sample alone gives, and every part runs as often as it should."""

import pytest
import torch
from tiny_models import (
    one_sample,
    random_batch,
    sample_losses,
    tiny_clip,
    tiny_language,
    tiny_tokenizer,
    tiny_vlm,
    wake_lora,
)
from torch.nn.functional import cross_entropy

from vlmsel.models.assembly import assemble
from vlmsel.models.config import VLMConfig
from vlmsel.models.lora import adapted_modules
from vlmsel.models.vision import VisionTower


@pytest.fixture(scope="module")
def model():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    return model


def naive_loss(model, batch):
    """Concatenate one sample's embeddings piece by piece and take all logits of the Hugging Face model."""
    embed = model.language_model.get_input_embeddings()
    pieces, labels, image = [], [], 0
    for token, label in zip(batch.input_ids[0], batch.labels[0], strict=True):
        if token == -200:
            features = model.vision(batch.pixel_values[batch.image_index[image]][None])
            pieces.append(model.projector(features)[0])
            labels += [-100] * model.vision.patches
            image += 1
        else:
            pieces.append(embed(token[None]))
            labels.append(int(label))
    logits = model.language_model(inputs_embeds=torch.cat(pieces)[None]).logits
    return cross_entropy(logits[0, :-1], torch.tensor(labels[1:]))


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("images", [[1, 0, 2, 1], [0, 0, 0], [3]])
def test_losses_are_those_of_each_sample_alone(model, images, left):
    batch = random_batch(model, images, left=left)
    losses = sample_losses(model, batch)
    assert losses.dtype == torch.float64
    for row in range(len(images)):
        assert losses[row].item() == pytest.approx(naive_loss(model, one_sample(batch, row)).item(), abs=1e-12)


def test_gradients_are_those_of_each_sample_alone(model):
    batch = random_batch(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for row in range(4):
        together = torch.autograd.grad(sample_losses(model, batch)[row], parameters, allow_unused=True)
        alone = torch.autograd.grad(naive_loss(model, one_sample(batch, row)), parameters, allow_unused=True)
        for a, b in zip(together, alone, strict=True):
            b = torch.zeros_like(a) if a is not None and b is None else b
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_order_of_samples_does_not_matter(model):
    batch = random_batch(model)
    order = torch.tensor([2, 0, 3, 1])
    rows = torch.cat([(batch.image_samples == i).nonzero()[:, 0] for i in order])
    shuffled = type(batch)(
        *(field[order] for field in (batch.input_ids, batch.labels, batch.attention_mask)),
        batch.pixel_values,
        batch.image_index[rows],
        order.argsort()[batch.image_samples[rows]],
        batch.uids[order],
    )
    torch.testing.assert_close(sample_losses(model, shuffled), sample_losses(model, batch)[order])


def calls_of(module, model, batch):
    shapes = []
    handle = module.register_forward_hook(lambda m, args, out: shapes.append(tuple(args[0].shape)))
    sample_losses(model, batch)
    handle.remove()
    return shapes


def test_tower_runs_once_per_image_and_projector_once_per_image_row(model):
    batch = random_batch(model)
    assert len(batch.image_index) == 4 and len(batch.pixel_values) == 3
    assert calls_of(model.vision, model, batch) == [(3, 3, 16, 16)]
    assert calls_of(model.projector, model, batch) == [(4, 4, 16)]


def test_text_only_batch_touches_neither_tower_nor_projector(model):
    batch = random_batch(model, [0, 0])
    assert calls_of(model.vision, model, batch) == calls_of(model.projector, model, batch) == []


def test_missing_pixels_and_cut_placeholders_are_refused(model):
    batch = random_batch(model, [1, 1])
    batch.pixel_values = None
    with pytest.raises(ValueError, match="2 image rows and no pixel_values"):
        sample_losses(model, batch)
    batch = random_batch(model, [1, 1])
    batch.input_ids[1][batch.input_ids[1] == -200] = 5
    with pytest.raises(ValueError, match="row 1 of the batch has 0 image placeholders .* and 1 images"):
        sample_losses(model, batch)


def test_tower_is_frozen_and_in_eval_mode_even_in_training():
    model = tiny_vlm().train()
    assert model.projector.training and model.language_model.training
    assert not any(module.training for module in model.vision.modules())
    batch = random_batch(model)
    sample_losses(model, batch).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.vision.parameters())
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained
    assert all(name.startswith("projector.") or ".lora_" in name for name in trained)


def test_adapters_are_in_the_language_model_only():
    names = adapted_modules(tiny_vlm())
    assert len(names) == 2 * 7
    assert all(name.startswith("language_model.") for name in names)


def test_assembling_leaves_the_global_random_state_alone_and_prints_nothing(capsys):
    config = VLMConfig("memory", "memory", lora=tiny_vlm().vlm_config.lora)
    parts = VisionTower(tiny_clip().visual), tiny_language(), tiny_tokenizer()
    state = torch.random.get_rng_state()
    first = assemble(config, *parts)
    assert torch.equal(state, torch.random.get_rng_state())
    second = assemble(config, VisionTower(tiny_clip().visual), tiny_language(), tiny_tokenizer())
    assert capsys.readouterr() == ("", "")
    for a, b in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])


def test_a_projector_is_refused_until_it_is_trained():
    model = assemble(VLMConfig("memory", "memory"), VisionTower(tiny_clip().visual), tiny_language(), None)
    with pytest.raises(ValueError, match="projector of this model was never trained.*vlmsel align"):
        model.require_ready()
    model.mark_trained(["projector"])
    model.require_ready()


def test_half_precision_backbones_keep_float32_trainable_parts(tmp_path):
    model = tiny_vlm(tmp_path, dtype=torch.bfloat16)
    kinds = {name.split(".")[0]: p.dtype for name, p in model.named_parameters() if not p.requires_grad}
    assert kinds == {"vision": torch.bfloat16, "language_model": torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    full = tiny_vlm(tmp_path)
    losses = sample_losses(model, random_batch(model))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, sample_losses(full, random_batch(full)), rtol=0.05, atol=0.05)
