"""Features computed once: results are those from pictures, the tower runs once per picture, what changed is redone."""

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import sample_losses, tiny_clip, tiny_language, tiny_tokenizer, tiny_vlm, wake_lora
from torch.utils.data import DataLoader

from vlmsel import processes
from vlmsel.data import features as features_module
from vlmsel.data import images as images_module
from vlmsel.data.batches import Collator
from vlmsel.data.dataset import PromptEncoder, Reading, SampleDataset
from vlmsel.data.features import FeatureFolder
from vlmsel.data.images import Pictures
from vlmsel.data.sample import Sample, Turn
from vlmsel.models import features as computing
from vlmsel.models.assembly import assemble
from vlmsel.models.config import VLMConfig
from vlmsel.models.generation import generate
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.vision import VisionTower

NAMES = [f"{i}.png" for i in range(7)]


@pytest.fixture(scope="module")
def model():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    return model


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        paint(folder / name, seed)
    return folder


def paint(path, seed, size=(9, 14)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


def sample(uid, question, answer, *images):
    text = "<image>\n" * len(images) + question
    return Sample(uid, "mine", images, (Turn("human", text), Turn("gpt", answer)))


SAMPLES = [
    sample(4, "What?", "A red cat", "0.png"),
    sample(5, "Two plus two?", "Four"),
    sample(6, "Which?", "left", "0.png", "1.png"),
    sample(9, "Who?", "Anna", "1.png"),
]


def open_features(model, *arguments, **settings):
    """The features of a model's tower, of pictures as the model takes them."""
    return computing.open_features(model.vision, model.vlm_config.image_mode, *arguments, **settings)


def make(model, images, features=None, samples=SAMPLES):
    return SampleDataset(samples, model, Reading(images, 512, features=features))


def batch_of(data):
    return Collator(0)([data[position] for position in range(len(data))])


def counted(monkeypatch, model):
    """The number of pictures in each call of the tower."""
    seen, forward = [], model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda pixels: seen.append(len(pixels)) or forward(pixels))
    return seen


def kept_files(folder):
    """The files of features in a folder and when they were written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.bin")}


def forbidden(*args):
    raise AssertionError("no picture should be opened")


def test_losses_and_gradients_are_those_from_pictures(model, images, tmp_path, monkeypatch):
    pictures = batch_of(make(model, images))
    features = batch_of(make(model, images, open_features(model, images, NAMES, tmp_path / "f")))
    assert pictures.pixel_values.dim() == 4 and features.pixel_values.shape == (2, 4, 16)
    assert features.pixel_values.dtype == torch.float64
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = sample_losses(model, pictures)
    calls = counted(monkeypatch, model)
    found = sample_losses(model, features)
    assert calls == []
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for row in range(4):
        pairs = [
            torch.autograd.grad(losses[row], parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
            for losses in (found, expected)
        ]
        assert any(gradient.any() for gradient in pairs[0])
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_a_batch_of_text_has_no_features(model, images, tmp_path):
    reader = open_features(model, images, NAMES, tmp_path / "f")
    data = make(model, images, reader)
    batch = Collator(0)([data[1]])
    assert batch.pixel_values is None
    torch.testing.assert_close(sample_losses(model, batch)[0], sample_losses(model, batch_of(data))[1])


def test_features_of_another_shape_are_refused(model, images, tmp_path):
    batch = batch_of(make(model, images, open_features(model, images, NAMES, tmp_path / "f")))
    batch.pixel_values = batch.pixel_values[:, :3]
    with pytest.raises(ValueError, match=r"gives features \[m, \[4, 16\]\], got \[2, 3, 16\]"):
        sample_losses(model, batch)


def test_answers_are_those_from_pictures(model, images, tmp_path):
    reader, tower = open_features(model, images, NAMES, tmp_path / "f"), model.vision
    answers = []
    for features in (None, reader):
        pictures = Pictures(images, tower.image_size, "pad", tower.image_mean, features)
        prompts = PromptEncoder(tiny_tokenizer(), "vicuna_v1", pictures)
        turns = [[Turn("human", f"<image>\n{text}")] for text in ("What?", "Where is it?")]
        batch = Collator(258)([prompts(i, turn, ["0.png"]) for i, turn in enumerate(turns)])
        assert len(batch.pixel_values) == 1 and batch.pixel_values.dim() == (4 if features is None else 3)
        answers.append(generate(model, batch, tiny_tokenizer(), 8))
    assert answers[0] == answers[1]


def test_the_second_time_neither_the_tower_runs_nor_a_picture_is_opened(model, images, tmp_path, monkeypatch):
    calls = counted(monkeypatch, model)
    first = open_features(model, images, [*NAMES, *NAMES], tmp_path / "f", batch_size=3)
    assert calls == [3, 3, 1]
    expected = batch_of(make(model, images, first))
    monkeypatch.setattr(images_module, "load_image", forbidden)
    before = kept_files(tmp_path / "f")
    data = make(model, images, open_features(model, images, NAMES, tmp_path / "f"))
    assert data.check() == {} and torch.equal(batch_of(data).pixel_values, expected.pixel_values)
    assert calls == [3, 3, 1] and kept_files(tmp_path / "f") == before


def test_a_changed_picture_is_computed_again_and_no_other(model, images, tmp_path, monkeypatch):
    folder = tmp_path / "f"
    old = open_features(model, images, NAMES, folder)
    calls, before = counted(monkeypatch, model), os.stat(images / "1.png")
    paint(images / "1.png", 99)
    os.utime(images / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(images / "1.png").st_size == before.st_size
    new = open_features(model, images, NAMES, folder)
    assert calls == [1]
    fresh = open_features(model, images, NAMES, tmp_path / "other")
    for name in NAMES:
        torch.testing.assert_close(new(name), fresh(name), atol=1e-12, rtol=0)
        assert torch.equal(new(name), old(name)) == (name != "1.png")


@pytest.mark.parametrize("batch_size", [5, 8])
def test_one_picture_under_two_names_is_stored_once(model, images, tmp_path, monkeypatch, batch_size):
    shutil.copy(images / "0.png", images / "copy.png")
    calls = counted(monkeypatch, model)
    reader = open_features(model, images, [*NAMES, "copy.png"], tmp_path / "f", batch_size=batch_size)
    assert sum(calls) == 7 and torch.equal(reader("copy.png"), reader("0.png"))
    again = open_features(model, images, ["copy.png"], tmp_path / "f")
    assert sum(calls) == 7 and again.digests == {"copy.png": reader.digests["0.png"]}


def test_pictures_that_were_moved_or_touched_are_compared_by_their_bytes(model, images, tmp_path, monkeypatch):
    old = open_features(model, images, NAMES, tmp_path / "f")
    os.utime(images / "2.png", ns=(1, 1))
    images.rename(tmp_path / "moved")
    calls, usage = counted(monkeypatch, model), namedtuple("usage", "free")
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda folder: usage(0))  # none is needed
    new = open_features(model, tmp_path / "moved", NAMES, tmp_path / "f")
    assert calls == [] and new.digests == old.digests
    monkeypatch.setattr("vlmsel.runs.file_hash", forbidden)
    assert open_features(model, tmp_path / "moved", NAMES, tmp_path / "f").digests == old.digests


def test_a_killed_builder_goes_on_after_its_last_picture(model, images, tmp_path, monkeypatch):
    save, folder = FeatureFolder.save, tmp_path / "f"

    def killed_at_the_fifth(kept, digest, features):
        if len(kept_files(folder)) == 4:
            raise KeyboardInterrupt
        save(kept, digest, features)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureFolder, "save", killed_at_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            open_features(model, images, NAMES, folder, batch_size=2)
    before = kept_files(folder)
    calls = counted(monkeypatch, model)
    reader = open_features(model, images, NAMES, folder, batch_size=2)
    assert calls == [2, 1] and list(reader.digests) == NAMES
    assert len(before) == 4 and before.items() <= kept_files(folder).items()
    whole = open_features(model, images, NAMES, tmp_path / "whole")
    for name in NAMES:
        torch.testing.assert_close(reader(name), whole(name), atol=1e-12, rtol=0)


def test_sizes_of_batches_do_not_matter(model, images, tmp_path):
    expected = open_features(model, images, NAMES, tmp_path / "whole")
    for batch_size in (1, 3, 7):
        found = open_features(model, images, NAMES, tmp_path / str(batch_size), batch_size=batch_size)
        for name in NAMES:
            torch.testing.assert_close(found(name), expected(name), atol=1e-12, rtol=0)


def test_a_picture_that_changes_while_it_is_read_is_refused(model, images, tmp_path, monkeypatch):
    load = images_module.load_image

    def painted_over(folder, name, exif):
        found = load(folder, name, exif)
        if name == "3.png" and (tmp_path / "f/stamps.json").exists():
            paint(images / name, 50)
        return found

    monkeypatch.setattr(images_module, "load_image", painted_over)
    with pytest.raises(ValueError, match="3.png changed while it was read; run again when nothing writes there"):
        open_features(model, images, NAMES, tmp_path / "f")


def test_pictures_that_cannot_be_read_are_left_to_the_check(model, images, tmp_path, monkeypatch):
    (images / "broken.png").write_bytes(b"no image")
    bad = [*SAMPLES, sample(11, "What?", "x", "none.png"), sample(12, "What?", "x", "0.png", "broken.png")]
    names = [name for one in bad for name in one.images]
    data = make(model, images, open_features(model, images, names, tmp_path / "f"), bad)
    assert data.check() == make(model, images, None, bad).check() != {}
    assert data.usable() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="sample 12: .*'broken.png' cannot be read"):
        data[5]
    monkeypatch.setattr(computing, "writing", forbidden)  # what cannot be read is no reason to write
    open_features(model, images, names, tmp_path / "f")


def test_a_picture_that_came_later_is_asked_for(model, images, tmp_path):
    data = make(model, images, open_features(model, images, ["1.png"], tmp_path / "f"))
    with pytest.raises(ValueError, match="sample 4: image '0.png' has no features in .*; run again, which adds them"):
        data[0]
    assert list(data.check()) == [4, 6]


def test_worker_processes_read_the_same_features(model, images, tmp_path):
    data = make(model, images, open_features(model, images, NAMES, tmp_path / "f"))
    here, there = (next(iter(DataLoader(data, batch_size=4, collate_fn=Collator(0), num_workers=n))) for n in (0, 2))
    assert torch.equal(here.pixel_values, there.pixel_values) and torch.equal(here.image_index, there.image_index)


def other_model(**changes):
    config = VLMConfig("memory", "memory", projector_trained=True, **changes)
    tower = VisionTower(tiny_clip(seed=0 if changes else 1).visual.double(), config.vision_layer)
    return assemble(config, tower, tiny_language().double(), tiny_tokenizer()).double()


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "tower"),
        ({"vision_layer": -1}, "layer -2 there, -1 now"),
        ({"image_mode": "crop"}, "mode pad there, crop now"),
        ({"exif": True}, "exif False there, True now"),
    ],
)
def test_another_tower_layer_or_mode_is_refused(model, images, tmp_path, changes, word):
    open_features(model, images, NAMES, tmp_path / "f")
    with pytest.raises(ValueError, match=f"features of another kind \\({word}") as caught:
        other_model(**changes).features(Reading(images), NAMES, tmp_path / "f")
    assert "\n" not in str(caught.value)


def test_smaller_dtypes_are_rounded_and_refuse_what_is_beyond_their_range(model, images, tmp_path, monkeypatch):
    exact = open_features(model, images, NAMES, tmp_path / "f")
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        small = open_features(model, images, NAMES, tmp_path / name, name)
        assert all(torch.equal(small(one), exact(one).to(dtype)) for one in NAMES)
    with pytest.raises(ValueError, match="another kind .dtype float16 there, float64 now"):
        open_features(model, images, NAMES, tmp_path / "float16")
    forward = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda pixels: forward(pixels) * 1e6)
    with pytest.raises(ValueError, match="0.png: a feature is beyond the range of float16; store bfloat16"):
        open_features(model, images, NAMES, tmp_path / "again", "float16")


def test_a_tower_without_a_fingerprint_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match="features of a float16 tower cannot be kept"):
        open_features(tiny_vlm().half(), images, NAMES, tmp_path / "f")


def test_too_little_room_is_refused_before_the_tower_runs(model, images, tmp_path, monkeypatch):
    calls, usage = counted(monkeypatch, model), namedtuple("usage", "free")
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda folder: usage(7 * 4 * 16 * 8 - 1))
    with pytest.raises(ValueError, match="7 pictures need 0.0 MB .4 patches x 16 x 8 bytes each"):
        open_features(model, images, NAMES, tmp_path / "f")
    assert calls == []
    assert len(open_features(model, images, NAMES[:6], tmp_path / "f").digests) == 6


def test_only_the_main_process_computes(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "is_main", lambda: False)
    monkeypatch.setattr(processes, "wait", lambda: None)
    calls = counted(monkeypatch, model)
    assert open_features(model, images, NAMES, tmp_path / "f").digests == {}
    assert calls == [] and not (tmp_path / "f").exists()
    monkeypatch.setattr(processes, "wait", lambda: build())

    def build():
        monkeypatch.setattr(processes, "is_main", lambda: True)
        monkeypatch.setattr(processes, "wait", lambda: None)
        open_features(model, images, NAMES, tmp_path / "f")

    assert list(open_features(model, images, NAMES, tmp_path / "f").digests) == NAMES


def test_data_for_a_model_hold_features_when_there_is_a_folder(world, aligned, tmp_path):
    model = open_subject(str(aligned), "cpu")
    arguments = (model, world / "pool.json", Reading(world / "images"))
    plain = open_pool(*arguments)
    exact, small = (open_pool(*arguments, tmp_path / name, name) for name in ("float32", "bfloat16"))
    assert exact.samples.usable() == plain.samples.usable() and exact.problems == plain.problems
    losses = []
    with torch.no_grad():
        for data in (plain, exact, small):
            batch = model.collate([data.samples[i] for i in plain.samples.usable()])
            losses.append(sample_losses(model, batch))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(losses[2], losses[0], atol=0.1, rtol=0.02)
    assert not torch.equal(losses[2], losses[0])
