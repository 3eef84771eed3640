"""Greedy generation against a loop that recomputes everything for every token."""

import pytest
import torch
from tiny_models import one_sample, random_batch, tiny_tokenizer, tiny_vlm, wake_lora

from vlmsel.models.generation import answer_text, generate, next_token_logits
from vlmsel.models.splice import splice_embeddings


@pytest.fixture(scope="module")
def model():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    return model


def naive_answer(model, batch, steps):
    """One sample, no cache, no padding: append the best next token until EOS."""
    plan, embeddings = model.embed(batch)
    assert torch.equal(splice_embeddings(plan, *parts(model, batch)), embeddings)
    ids = []
    for _ in range(steps):
        token = int(model.language_model(inputs_embeds=embeddings).logits[0, -1].argmax())
        if token == 257:
            break
        ids.append(token)
        added = model.language_model.get_input_embeddings()(torch.tensor([[token]]))
        embeddings = torch.cat([embeddings, added], dim=1)
    return answer_text(ids, tiny_tokenizer())


def parts(model, batch):
    text = model.language_model.get_input_embeddings()(batch.input_ids.clamp(min=0))
    patches = model.project(batch.pixel_values, batch.image_index) if len(batch.image_samples) else None
    return text, patches


@pytest.mark.parametrize("left", [False, True])
def test_a_batch_answers_as_its_samples_alone(model, left):
    batch = random_batch(model, [1, 0, 2, 1, 0], left=left)
    answers = generate(model, batch, tiny_tokenizer(), 12)
    for row, answer in enumerate(answers):
        alone = one_sample(batch, row)
        assert generate(model, alone, tiny_tokenizer(), 12) == [answer]
        assert naive_answer(model, alone, 12) == answer


def test_rows_of_one_text_length_and_different_numbers_of_images(model):
    batch = random_batch(model, [0, 1])
    length = int(batch.attention_mask[0].sum())
    for field in ("input_ids", "labels", "attention_mask"):
        setattr(batch, field, getattr(batch, field)[:, :length])
    if not (batch.input_ids[1] == -200).any():
        batch.input_ids[1, 1] = -200
    answers = generate(model, batch, tiny_tokenizer(), 6)
    assert answers == [generate(model, one_sample(batch, row), tiny_tokenizer(), 6)[0] for row in range(2)]


def test_stops_at_eos():
    model = tiny_vlm()
    calls = []

    def favour_eos(module, args, logits):
        calls.append(len(logits))
        return logits.index_fill(-1, torch.tensor([257]), 1e6)

    model.language_model.get_output_embeddings().register_forward_hook(favour_eos)
    assert generate(model, random_batch(model), tiny_tokenizer(), 50) == [""] * 4
    assert len(calls) == 1


def test_answer_text_cuts_at_eos_and_leaves_special_tokens_out():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(" hi there ", add_special_tokens=False)
    assert answer_text([256, *ids, 257, *ids], tokenizer) == "hi there"
    assert answer_text([*ids, 258, 258], tokenizer) == "hi there"


def test_next_token_logits_are_those_of_the_full_model(model):
    batch = random_batch(model)
    logits = next_token_logits(model, batch)
    assert logits.shape == (4, 300)
    for row in range(4):
        _, embeddings = model.embed(one_sample(batch, row))
        torch.testing.assert_close(logits[row], model.language_model(inputs_embeds=embeddings).logits[0, -1])


def test_the_models_own_settings_are_ignored_and_it_is_left_as_it_was(capfd):
    model = tiny_vlm().train()
    settings = model.language_model.get_base_model().generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.repetition_penalty = True, 5.0, 0.5, 9.0
    batch = random_batch(model)
    assert generate(model, batch, tiny_tokenizer(), 8) == generate(tiny_vlm(), batch, tiny_tokenizer(), 8)
    assert model.training and not model.vision.training
    assert model.language_model.get_base_model().generation_config is settings
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_eos_is_refused(model):
    tokenizer = type("NoEnd", (), {"eos_token_id": None})()
    with pytest.raises(ValueError, match="no eos_token"):
        generate(model, random_batch(model), tokenizer, 3)
