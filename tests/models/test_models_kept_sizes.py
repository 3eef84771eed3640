"""Sizes of a large pool: found once, and again only where pictures, template or processor change."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_vlm as own_vlm
from tiny_vlms import save_vlm

from vlmsel.data import images, kept
from vlmsel.data.dataset import Reading
from vlmsel.models.image_text_reader import ProcessorReader
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool


@pytest.fixture(autouse=True)
def large(monkeypatch, tmp_path):
    """Small pools count as large ones; one process reads them, so that what it reads is seen here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "MANY", 4)
    monkeypatch.setattr(kept.os, "sched_getaffinity", lambda pid: {0})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_vlm(tmp_path_factory.mktemp("model") / "qwen", "qwen2_5_vl")


@pytest.fixture
def pool(tmp_path):
    """Six samples with pictures and two without; one picture is missing and one sample has a marker too many."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        picture(tmp_path, number, (16 + 8 * number, 24))
    records = [
        {
            "image": f"{n}.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}],
        }
        for n in range(6)
    ]
    records += [
        {"conversations": [{"from": "human", "value": f"Q{n}"}, {"from": "gpt", "value": "B."}]} for n in range(2)
    ]
    (tmp_path / "pool.json").write_text(json.dumps(records))
    return tmp_path / "pool.json"


def picture(folder, number, size, colour=100):
    Image.fromarray(np.full((size[1], size[0], 3), colour, np.uint8)).save(folder / f"images/{number}.png")


@pytest.fixture
def counts(monkeypatch):
    """How many samples were measured, and how many pictures opened."""
    found = {"samples": 0, "pictures": 0}
    size, load = ProcessorReader.size, images.load_image

    def measured(self, *args):
        found["samples"] += 1
        return size(self, *args)

    def opened(*args, **kwargs):
        found["pictures"] += 1
        return load(*args, **kwargs)

    monkeypatch.setattr(ProcessorReader, "size", measured)
    monkeypatch.setattr(images, "load_image", opened)
    return found


def start(model, pool, counts, template=None, **reading):
    """Open the pool as a fresh run does: what it found, how many samples it measured, how many pictures it opened."""
    counts.update(samples=0, pictures=0)
    subject = open_subject(str(model), "cpu", template=template)
    found = open_pool(subject, pool, Reading(pool.parent / "images", allow_missing=True, **reading))
    return (
        (found.samples.sizes().tolist(), found.problems, found.samples.pictures_digest()),
        counts["samples"],
        counts["pictures"],
    )


def test_a_second_start_reads_nothing_anew(model, pool, counts):
    first, samples, pictures = start(model, pool, counts)
    assert (samples, pictures) == (7, 6)  # the size of the sample without its picture is not asked for
    assert "image '5.png' is missing" in first[1][5] and len({tokens for tokens, _ in first[0]}) > 3
    assert start(model, pool, counts) == (first, 0, 0)
    assert start(model, pool, counts, max_length=60)[1:] == (7, 0)
    assert start(model, pool, counts, template="vicuna_v1")[1:] == (7, 0)
    assert start(model, pool, counts) == (first, 0, 0)


def test_a_changed_picture_is_seen(model, pool, counts):
    first, *_ = start(model, pool, counts)
    stat = (pool.parent / "images/1.png").stat()
    picture(pool.parent, 1, (48, 40))
    second, samples, pictures = start(model, pool, counts)
    assert (samples, pictures) == (7, 6) and second[0][1][0] > first[0][1][0] and second[2] != first[2]
    picture(pool.parent, 1, (24, 24))
    os.utime(pool.parent / "images/1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # its time is set back
    assert start(model, pool, counts) == (first, 0, 6)  # the same bytes again: looked at, and known
    picture(pool.parent, 5, (16, 24))
    third, samples, _ = start(model, pool, counts)
    assert samples == 8 and third[1] == {}


def test_settings_of_processor_template_and_tokenizer_count(model, pool, counts, tmp_path):
    first, *_ = start(model, pool, counts)

    def changed(name, edit):
        copy = shutil.copytree(model, tmp_path / name.replace(".", "_"))
        (copy / name).write_text(edit((copy / name).read_text()))
        return start(copy, pool, counts)

    processor = changed(
        "processor_config.json", lambda text: text.replace('"longest_edge": 2304', '"longest_edge": 256')
    )
    assert processor[1:] == (7, 0) and processor[0][0][4][0] < first[0][4][0]
    template = changed("chat_template.jinja", lambda text: text.replace("<|im_start|>", "<|im_start|>so "))
    assert template[1:] == (7, 0) and template[0][0][0][0] > first[0][0][0]
    assert changed("tokenizer_config.json", lambda text: text + "\n")[1:] == (0, 0)


@pytest.mark.parametrize("name", ["smolvlm", "llava_onevision", "internvl"])
def test_what_is_said_is_the_same_in_another_process(name, tmp_path):
    """No address of an object, which the next process has elsewhere, is among the settings."""
    subject = open_subject(str(save_vlm(tmp_path / name, name)), "cpu")
    said = repr(subject.measures())
    assert " at 0x" not in said and said == repr(open_subject(str(tmp_path / name), "cpu").measures())


def test_pictures_of_our_own_models_are_opened_once(pool, counts, tmp_path):
    subject = own_vlm(tmp_path)
    for opened in (6, 0):
        counts.update(pictures=0)
        open_pool(subject, pool, Reading(pool.parent / "images", 512, allow_missing=True))
        assert counts["pictures"] == opened
