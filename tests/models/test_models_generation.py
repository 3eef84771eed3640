"""Greedy generation against a loop that recomputes everything for every token."""

from dataclasses import replace

import pytest
import torch
from tiny_models import one_sample, pad, random_batch, tiny_tokenizer, tiny_vlm, wake_lora

from vlmsel.models.generation import answer_text, generate, next_token_logits, shared_start
from vlmsel.models.language import decoder_and_head
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


def questions_about(model, images, lengths, start=(256, 7)):
    """Rows that begin alike and show image `images[i]`, followed by `lengths[i]` tokens; padded on the right."""
    generator = torch.Generator().manual_seed(3)
    rows = [[*start, -200, *torch.randint(0, 256, (n,), generator=generator).tolist()] for n in lengths]
    batch = random_batch(model, [1] * len(rows))
    ids = pad(rows, 258, left=False)
    distinct = sorted(set(images))
    pixels = torch.randn(len(distinct), 3, 16, 16, generator=generator).double()
    return replace(
        batch,
        input_ids=ids,
        labels=torch.full_like(ids, -100),
        attention_mask=pad([[1] * len(row) for row in rows], 0, left=False),
        pixel_values=pixels,
        image_index=torch.tensor([distinct.index(image) for image in images]),
    )


@pytest.mark.parametrize("images", [[0, 0, 0, 1, 1], [0, 1, 0, 2, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]])
def test_questions_that_share_an_image_answer_as_they_would_alone(model, images):
    batch = questions_about(model, images, [3, 9, 1, 6, 4])
    assert shared_start(batch) == (3 if len(set(images)) < 5 else 0)
    answers = generate(model, batch, tiny_tokenizer(), 10)
    assert answers == [naive_answer(model, one_sample(batch, row), 10) for row in range(5)]
    assert len(set(answers)) == 5
    logits = next_token_logits(model, batch)
    for row in range(5):
        _, embeddings = model.embed(one_sample(batch, row))
        torch.testing.assert_close(logits[row], model.language_model(inputs_embeds=embeddings).logits[0, -1])


def test_a_shared_image_is_read_once(model):
    batch, seen = questions_about(model, [0, 0, 0, 1, 1], [3, 9, 1, 6, 4]), []
    decoder, _ = decoder_and_head(model.language_model)
    hook = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    generate(model, batch, tiny_tokenizer(), 1)
    hook.remove()
    assert seen == [(2, 6), (5, 9)]  # two images behind two tokens, then the longest question


def test_what_cannot_be_shared(model):
    images = [0, 0, 1]
    batch = questions_about(model, images, [3, 2, 4])
    other = batch.input_ids.clone()
    other[1, 0] = 9
    assert shared_start(replace(batch, input_ids=other)) == 0  # another beginning
    assert shared_start(random_batch(model, [1, 0, 2, 1])) == 0  # other numbers of images
    assert shared_start(random_batch(model, [0, 0])) == 0
    assert shared_start(questions_about(model, images, [3, 0, 4])) == 0  # nothing behind the image
    left = pad([[256, 7, -200, 1], [256, 7, -200, 1, 2], [256, 7, -200, 1, 2]], 258, left=True)
    mask = pad([[1] * 4, [1] * 5, [1] * 5], 0, left=True)
    assert shared_start(replace(batch, input_ids=left, attention_mask=mask)) == 0


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
