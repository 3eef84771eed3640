"""Every form of pool: the same samples and pictures in all of them, and choices that other libraries read back."""

import json
import os
import pickle
from pathlib import Path

import datasets
import numpy as np
import pool_forms as pools
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from vlmsel.data.formats import form_of, pool_digest, read_records, read_samples, write_part
from vlmsel.data.formats.choice import write_choice
from vlmsel.data.formats.json_file import JsonFile
from vlmsel.data.images import Photos, image_digest, load_image

BYTES = ("parquet of bytes", "parquet shards", "datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pools")
    pools.write_images(place / "images")
    return place


@pytest.fixture(params=pools.FORMS)
def form(request, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    place = tmp_path / "pool"
    place.mkdir()
    os.symlink(folder / "images", place / "images")
    return request.param, pools.FORMS[request.param](place)


def test_the_same_samples_and_pictures_in_every_form(form, folder):
    name, path = form
    found, expected = read_samples(path), [JsonFile().parse(uid, one) for uid, one in enumerate(pools.llava())]
    assert found.problems == [] and len(found.records) == len(expected)
    for sample, twin in zip(found.samples, expected, strict=True):
        assert (sample.uid, sample.turns, sample.source) == (twin.uid, twin.turns, twin.source)
        assert len(sample.images) == len(twin.images)
        for image, plain in zip(pickle.loads(pickle.dumps(sample.images)), twin.images, strict=True):
            place = "/nowhere" if name in (*BYTES, "InternVL") else folder / "images"
            assert np.array(load_image(place, image))[0, 0].tolist() == list(pools.COLOURS[plain])
            assert image_digest(place, image) == image_digest(folder / "images", plain) != ""
            assert Photos(Path(place)).size(image) == (8, 6)  # as models with a processor of their own read them
    own = [str(record["id"]) for record in found.records if "id" in record]
    assert found.samples.ids.to_pylist() == own
    assert found.samples.placeless == (0 if name in (*BYTES, "InternVL") else 3)


def test_a_choice_is_read_back_by_others_and_by_itself(form, tmp_path):
    name, path = form
    records = [dict(record) for record in read_records(path)]
    out = tmp_path / ("chosen.parquet" if name == "parquet shards" else f"chosen{path.suffix}")
    write_part(out, path, [0, 2, 3])
    assert pools.alone(out) == [records[0], records[2], records[3]]
    again, first = read_samples(out), read_samples(path)
    assert again.problems == [] and list(again.records) == pools.alone(out)
    assert [sample.turns for sample in again.samples] == [first.samples[uid].turns for uid in (0, 2, 3)]
    pairs = zip(again.samples, (first.samples[uid] for uid in (0, 2, 3)), strict=True)
    for one, other in [pair for a, b in pairs for pair in zip(a.images, b.images, strict=True)]:
        assert image_digest("images", one) == image_digest("images", other) != ""
    if name in BYTES:
        decoded = datasets.load_from_disk(str(out)) if out.is_dir() else datasets.Dataset.from_parquet(str(out))
        assert decoded[1]["images"][1].getpixel((0, 0)) == (0, 0, 255)


def test_a_digest_follows_the_content(form):
    _, path = form
    first = pool_digest(path)
    assert first == pool_digest(path)
    file = next(file for file in sorted(path.parent.rglob("*")) if file.suffix in (".json", ".jsonl", ".parquet"))
    file.write_bytes(file.read_bytes() + b" \n")
    assert pool_digest(path) != first


def test_a_choice_that_copies_no_record(folder, tmp_path):
    pool = pools.FORMS["parquet of bytes"](tmp_path)
    write_choice(tmp_path / "uids.json", pool, [3, 0], 4, "uids", {})
    write_choice(tmp_path / "weights.json", pool, [3, 0], 4, "weights", {})
    assert json.loads((tmp_path / "uids.json").read_text()) == [3, 0]
    assert json.loads((tmp_path / "weights.json").read_text()) == [1, 0, 0, 1]
    with pytest.raises(ValueError, match=r"uids.txt: --write uids gives a JSON list; let the name end in .json"):
        write_choice(tmp_path / "uids.txt", pool, [3, 0], 4, "uids", {})
    assert not list(tmp_path.glob("uids.txt*"))


@pytest.mark.parametrize(
    ("form_name", "out"),
    [
        ("LLaVA JSON", "a.parquet"), ("LLaVA JSON", "a.yaml"), ("parquet of bytes", "a.json"), ("datasets", "a.json"),
        ("datasets", "images"), ("InternVL", "a.jsonl"), ("LLaVA-NeXT", "a.json"),
    ],
)  # fmt: skip
def test_a_choice_keeps_the_pools_form(form_name, out, tmp_path):
    pools.write_images(tmp_path / "images")
    pool = pools.FORMS[form_name](tmp_path)
    with pytest.raises(ValueError, match="let it end as the pool's"):
        write_part(tmp_path / out, pool, [0])


def test_parquet_without_columns_of_turns_says_which_there_are(tmp_path):
    datasets.Dataset.from_list([{"question": "a", "picture": "b"}]).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"a.parquet: no column that holds turns .*it has question, picture$"):
        read_samples(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"b.parquet: `datasets` cannot read it"):
        read_samples(tmp_path / "b.parquet")
    with pytest.raises(FileNotFoundError, match=r"c.parquet: no such file"):
        read_samples(tmp_path / "c.parquet")
    datasets.DatasetDict({"train": pools.finevision()}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(ValueError, match=r"splits: has several splits; name the folder of one, .*splits/train"):
        read_samples(tmp_path / "splits")
    assert len(read_samples(tmp_path / "splits/train").samples) == 4


def test_bytes_that_are_no_image_and_placeholders_that_differ(tmp_path):
    rows = pools.rows(pools.with_bytes)
    rows[0]["images"][0]["bytes"] = b"no picture"
    rows[2]["texts"][0]["user"] = "<image>Which?"
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    found = read_samples(tmp_path / "a.parquet")
    assert [(one.uid, one.reason.split(";")[0]) for one in found.problems] == [(2, "1 <image> markers for 2 images")]
    with pytest.raises(
        ValueError, match=r"image 'a.parquet#0.0' cannot be read: cannot identify image file 'a.parquet#0.0'$"
    ):
        load_image(".", found.samples[0].images[0])


def test_a_plain_binary_column_holds_pictures(tmp_path):
    rows = [{"image": pools.png("a/red.png"), "instruction": "What?", "output": "red"}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    (sample,) = read_samples(tmp_path / "a.parquet").samples
    assert sample.source == "images" and load_image(".", *sample.images).getpixel((0, 0)) == (255, 0, 0)
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 1


def test_texts_cannot_name_what_lies_in_a_pool(tmp_path):
    pool = pools.FORMS["parquet of bytes"](tmp_path)
    name = str(read_samples(pool).samples[0].images[0])
    with pytest.raises(FileNotFoundError, match="is missing in"):
        load_image(tmp_path, name)


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ("all", [0, 1, 2, 3, 4]), ("first:2", [0, 1]), ("first:30%", [0, 1]), ("end:1", [4]),
        ("end:9", [0, 1, 2, 3, 4]), ("first:0", []),
    ],
)  # fmt: skip
def test_sampling_strategies(strategy, kept, tmp_path):
    pools.write_lines(tmp_path / "a.jsonl", [{"n": n} for n in range(5)])
    mix = tmp_path / "mix.yaml"
    mix.write_text(yaml.safe_dump({"datasets": [{"json_path": "a.jsonl", "sampling_strategy": strategy}]}))
    assert [record["n"] for record in read_records(mix)] == kept


def test_a_random_part_is_the_same_each_time(tmp_path):
    pools.write_lines(tmp_path / "a.jsonl", [{"n": n} for n in range(50)])
    mix = tmp_path / "mix.yaml"
    mix.write_text(yaml.safe_dump({"datasets": [{"json_path": "a.jsonl", "sampling_strategy": "random:20%"}]}))
    drawn = [record["n"] for record in read_records(mix)]
    assert len(set(drawn)) == 10 and drawn == sorted(drawn) != list(range(10))
    assert drawn == [record["n"] for record in read_records(mix)]


@pytest.mark.parametrize(("times", "count"), [(1, 3), (2, 6), (0.5, 1), (2.0, 6)])
def test_parts_are_repeated_as_the_meta_file_says(times, count, tmp_path):
    pools.write_lines(tmp_path / "a.jsonl", [{"n": n} for n in range(3)])
    meta = {"x": {"root": "", "annotation": "a.jsonl", "repeat_time": times}, "y": {"annotation": "a.jsonl"}}
    found = read_records(pools.write_json(tmp_path / "meta.json", meta))
    assert [record["n"] for record in found] == [*([0, 1, 2] * 2)[:count], 0, 1, 2]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "datasets: 3", "a.yaml: expected a mix in YAML"),
        ("a.yaml", "datasets: [{json_path: none.json}]", "none.json: no such file"),
        ("a.yaml", "datasets: [{json_path: a.jsonl, sampling_strategy: half}]", "a: sampling_strategy must be all"),
        ("a.json", '{"x": {"annotation": "a.jsonl", "repeat_time": 1.5}}', "x: repeat_time must be a share below 1"),
        ("a.json", '{"x": {"annotation": "none.jsonl"}}', "none.jsonl: no such file"),
    ],
)
def test_mixes_that_cannot_be_read(name, content, words, tmp_path):
    pools.write_lines(tmp_path / "a.jsonl", [{"n": 1}])
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_samples(tmp_path / name)


def test_images_of_a_mix_do_not_leave_their_root(tmp_path):
    pools.write_lines(tmp_path / "a.jsonl", [{**pools.llava()[0], "image": "../secret.png"}])
    meta = pools.write_json(tmp_path / "meta.json", {"x": {"root": "images", "annotation": "a.jsonl"}})
    (problem,) = read_samples(meta).problems
    assert "leaves the image folder" in problem.reason


def test_a_name_on_the_hub_that_cannot_be_had_is_told_soon(monkeypatch):
    def nobody(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr("vlmsel.data.hub.socket.create_connection", nobody)
    assert form_of("nobody/nothing").name == "a data set of the hub"
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing: no such file, nor .*the hub does not answer.*; mend"):
        read_samples("nobody/nothing")


def test_pictures_of_the_test_are_what_they_say(tmp_path):
    folder = pools.write_images(tmp_path)
    assert Image.open(folder / "b/blue.png").getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"question,answer\nWhat?,red\n", "a.csv: a pool is JSON, .*; write the table as one of them"),
        ("a.jsonl.gz", b"\x1f\x8b\x08\x00zzz", "a.jsonl.gz: a pool is JSON, .*; unpack it"),
        ("a.jsonl", b'{"messages": "text"}\n', "list of turns under 'messages', got a string"),
        ("folder/a.json", b"[]", "folder: a folder without parquet files .*; name a file in it"),
        ("folder/a.yaml", b"datasets: [{json_path: none.json}]", "folder/a.yaml: none: .*none.json: no such file"),
    ],
)
def test_files_that_are_no_pool_say_what_to_do(name, content, words, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    path = tmp_path / "folder" if name == "folder/a.json" else tmp_path / name
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        found = read_samples(path)
        raise ValueError(found.problems[0].reason)


def test_parquet_without_rows_and_one_that_was_cut_say_so_in_one_line(tmp_path, capfd):
    datasets.Dataset.from_dict({"conversations": []}).to_parquet(str(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    capfd.readouterr()
    with pytest.raises(ValueError, match=r"a.parquet: no usable sample: it has no rows$"):
        read_samples(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"b.parquet: `datasets` cannot read it \(.*magic bytes not found"):
        read_samples(tmp_path / "b.parquet")
    assert capfd.readouterr().err == ""
