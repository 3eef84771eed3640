"""The data set: what a model gets of a sample, which samples are left out and why, and that no other one shifts."""

import pickle
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import sample_losses, tiny_language, tiny_tokenizer, tiny_vlm
from torch.utils.data import DataLoader

from vlmsel.data import images
from vlmsel.data.batches import Collator
from vlmsel.data.dataset import PromptEncoder, Reading, SampleDataset
from vlmsel.data.images import Pictures, square
from vlmsel.data.sample import Sample, Turn
from vlmsel.models.assembly import assemble
from vlmsel.models.config import VLMConfig
from vlmsel.models.splice import plan_splice

EOS = 257


def sample(uid, question, answer, *images):
    text = "<image>\n" * len(images) + question
    return Sample(uid, "mine", images, (Turn("human", text), Turn("gpt", answer)))


SAMPLES = [
    sample(4, "What?", "A red cat", "a.png"),
    sample(5, "Two plus two?", "Four"),
    sample(6, "Which?", "left", "a.png", "b.jpg"),
    sample(9, "Who?", "Anna", "b.jpg"),
]


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(["a.png", "b.jpg"]):
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 14, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no image")
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return tiny_vlm()


@pytest.fixture
def make(folder, model):
    def make_dataset(samples=SAMPLES, **changes):
        subject = copy(model)
        subject.vlm_config = replace(model.vlm_config, **changes)
        return SampleDataset(samples, subject, Reading(folder, 512))

    return make_dataset


def test_items_are_the_samples_at_their_positions(make, folder, model):
    data = make()
    assert len(data) == 4 and data.uids == [4, 5, 6, 9]
    items = [data[position] for position in range(4)]
    assert [item.uid for item in items] == [4, 5, 6, 9]
    assert [item.images for item in items] == [("a.png",), (), ("a.png", "b.jpg"), ("b.jpg",)]
    assert [item.input_ids.count(-200) for item in items] == [1, 0, 2, 1]
    expected = square(Image.open(folder / "a.png"), model.vision.image_size, "pad")
    assert torch.equal(items[2].pixels[0], expected)


@pytest.mark.parametrize("template", ["vicuna_v1", "pure", "llava_llama_2"])
def test_only_answers_and_their_eos_are_supervised(make, template):
    for item, expected in zip(make(template=template), ["A red cat", "Four", "left", "Anna"], strict=False):
        learnt = [label for label in item.labels if label != -100]
        assert learnt[-1] == EOS and tiny_tokenizer().decode(learnt[:-1]).strip() == expected
        assert all(label in (-100, token) for label, token in zip(item.labels, item.input_ids, strict=True))


def test_lengths_are_those_of_the_spliced_sequences(make, model):
    data = make()
    batch = Collator(0)([data[position] for position in range(4)])
    plan = plan_splice(batch.input_ids, batch.attention_mask, batch.image_samples, model.vision.patches)
    assert data.lengths() == plan.attention_mask.sum(dim=1).tolist()
    assert data.signed_lengths() == [n * sign for n, sign in zip(data.lengths(), [1, -1, 1, 1], strict=True)]


def test_a_sample_has_the_same_loss_alone_and_in_a_batch(make, model):
    data = make()
    losses = sample_losses(model, Collator(0)([data[position] for position in range(4)]))
    alone = [sample_losses(model, Collator(0)([data[position]]))[0] for position in range(4)]
    torch.testing.assert_close(losses, torch.stack(alone), atol=1e-4, rtol=1e-4)


def bad_samples():
    return [
        SAMPLES[0],
        sample(11, "What?", "x", "none.png"),
        SAMPLES[1],
        sample(12, "What?", "x", "a.png", "broken.png"),
        sample(13, "w" * 600, "x"),
        SAMPLES[3],
    ]


def test_check_reports_what_cannot_be_used_and_shifts_nothing(make):
    data = make(bad_samples())
    problems = data.check()
    assert list(problems) == [11, 12, 13]
    words = [
        "'none.png' is missing",
        "'broken.png' cannot be read",
        "no supervised token is left within 512 positions",
    ]
    for reason, expected in zip(problems.values(), words, strict=True):
        assert expected in reason and "\n" not in reason
    assert data.usable() == [0, 2, 5]
    alone = make([SAMPLES[0], SAMPLES[1], SAMPLES[3]])
    for position, other in zip(data.usable(), range(3), strict=True):
        assert data[position].uid == alone[other].uid and data[position].input_ids == alone[other].input_ids
        assert data.lengths()[position] == alone.lengths()[other]


@pytest.mark.parametrize(("position", "words"), [(1, "sample 11: .*none.png"), (3, "sample 12: "), (4, "sample 13: ")])
def test_a_sample_that_cannot_be_used_is_named(make, position, words):
    with pytest.raises(ValueError, match=words):
        make(bad_samples())[position]


def test_usable_and_lengths_need_no_check_before(make):
    assert make(bad_samples()).usable() == [0, 2, 5]
    lengths = make(bad_samples()).lengths()
    assert lengths[4] == 0 and lengths[0] > 0


def test_check_decodes_every_picture_once(make, monkeypatch):
    seen = []
    load = images.load_image
    monkeypatch.setattr(images, "load_image", lambda folder, name, _: seen.append(name) or load(folder, name))
    make(SAMPLES * 3).check()
    assert sorted(seen) == ["a.png", "b.jpg"]


def test_two_records_of_one_uid_would_be_two_positions(make):
    again = sample(4, "What?", "x", "none.png")
    assert make([SAMPLES[0], again]).usable() == [0]


def test_worker_processes_give_the_same_batches(make):
    data = make()
    assert pickle.loads(pickle.dumps(data))[2].input_ids == data[2].input_ids
    here, there = (next(iter(DataLoader(data, batch_size=4, collate_fn=Collator(0), num_workers=n))) for n in (0, 2))
    assert torch.equal(here.input_ids, there.input_ids) and torch.equal(here.pixel_values, there.pixel_values)


def test_a_missing_image_folder_is_one_error_and_text_needs_none(model, tmp_path):
    nowhere = Reading(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere: no such image folder"):
        SampleDataset(SAMPLES, model, nowhere)
    with pytest.raises(ValueError, match="3 of 4 samples have images; name their folder"):
        SampleDataset(SAMPLES, model, Reading())
    assert SampleDataset(SAMPLES[1:2], model, nowhere).check() == {}


def test_unknown_templates_and_modes_are_refused(make):
    with pytest.raises(ValueError, match="'chatty'.*vicuna_v1"):
        assemble(VLMConfig(None, "memory", template="chatty"), None, tiny_language())
    with pytest.raises(ValueError, match="got 'stretch'"):
        make(image_mode="stretch")


@pytest.mark.parametrize("template", ["vicuna_v1", "pure", "llava_llama_2"])
def test_prompts_are_where_training_sequences_begin(make, folder, model, template):
    pictures = Pictures(folder, model.vision.image_size, "pad")
    prompts = PromptEncoder(tiny_tokenizer(), template, pictures)
    for one, item in zip(SAMPLES, make(template=template), strict=False):
        prompt = prompts(one.uid, one.turns[:1], one.images)
        assert item.input_ids[: len(prompt.input_ids)] == prompt.input_ids
        assert item.labels[len(prompt.input_ids)] != -100 and set(prompt.labels) == {-100}
        assert len(prompt.pixels) == len(one.images) and prompt.uid == one.uid
