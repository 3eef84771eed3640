"""The check-up of a pool: duplicates against naive twins, planted faults, and a clean pool without any."""

import json
import random
from collections import Counter

import datasets
import numpy as np
import pool_forms
import pytest
from PIL import Image, ImageDraw

from vlmsel import cli, runs
from vlmsel.data.check_up import FAULTS, check_up
from vlmsel.data.contamination import asked, contaminated
from vlmsel.data.duplicates import LIKE, Look, plain_text, similar_pictures, similar_texts
from vlmsel.data.formats import read_samples

WORDS = [f"word{i}" for i in range(400)]


def said(rng, count):
    return " ".join(rng.choice(WORDS) for _ in range(count))


def jaccard(one, other):
    sets = [{tuple(text.split()[i : i + 3]) for i in range(len(text.split()) - 2)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_near_duplicates_are_those_of_all_pairs():
    rng = random.Random(0)
    texts = [said(rng, 40) for _ in range(60)]
    for place in range(0, 60, 4):
        words = texts[place].split()
        words[rng.randrange(40)] = "changed"
        texts.append(" ".join(words))
        texts.append(" ".join(words[:15]) + " " + said(rng, 25))
    expected = {
        other
        for other in range(len(texts))
        for one in range(other)
        if jaccard(texts[one], texts[other]) >= LIKE and texts[one] != texts[other]
    }
    pairs = similar_texts(texts, [()] * len(texts))
    assert {other for _, other in pairs} == expected and len(expected) == 15
    assert similar_texts(texts, list(range(len(texts)))) == []  # about other pictures


def picture(seed, noise=0):
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (64, 48), tuple(rng.integers(0, 255, 3).tolist()))
    for _ in range(6):
        x, y, w, h = rng.integers(4, 30, 4).tolist()
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), tuple(rng.integers(0, 255, 3).tolist()))
    pixels = np.asarray(image, np.int16) + np.random.default_rng(seed + 1).integers(-noise, noise + 1, (48, 64, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_pictures_that_look_alike_are_found_and_no_others():
    looks = [Look(picture(seed)) for seed in range(40)]
    assert similar_pictures(looks) == []
    looks += [Look(picture(seed, noise=6).resize((128, 96))) for seed in range(0, 40, 5)]
    assert similar_pictures(looks) == [(seed, 40 + i) for i, seed in enumerate(range(0, 40, 5))]


def clean(folder, count, rng):
    """Write a pool without faults and return its records."""
    records = []
    for i in range(count):
        turns = [{"from": "human", "value": f"<image>\n{said(rng, 12)}"}, {"from": "gpt", "value": said(rng, 12)}]
        records.append({"id": i, "image": f"image{i:04}.png", "conversations": turns})
        picture(i).save(folder / f"image{i:04}.png")
    return records


def planted(folder, records):
    """Plant faults of every kind; return the uids that must be found, by kind."""
    (folder / "image0000.png").unlink()
    (folder / "image0001.png").write_bytes(b"\x89PNG no picture")
    records[2]["conversations"][1]["value"] = "  "
    records[3]["conversations"] = []
    records.append(json.loads(json.dumps(records[4])))
    near = json.loads(json.dumps(records[5]))
    near["conversations"][1]["value"] += " more"
    records.append(near)
    with Image.open(folder / "image0006.png") as image:
        image.save(folder / "image0006.jpg.tmp", "JPEG")
    (folder / "image0006.jpg.tmp").rename(folder / "image0006.png")
    (folder / "image0007.png").write_bytes((folder / "image0008.png").read_bytes())
    picture(9, noise=5).save(folder / "image0010.png")
    count = len(records)
    return {
        "missing picture": {0},
        "broken picture": {1},
        "empty answer": {2},
        "unreadable record": {3},
        "exact duplicate": {count - 2},
        "near-duplicate text": {count - 1},
        "extension disagrees": {6},
        "same picture twice": {8},
        "near-duplicate picture": {10},
        "contaminated": {11},
    }


def test_planted_faults_are_found_and_a_clean_pool_has_none(tmp_path):
    records = clean(tmp_path, 40, random.Random(1))
    runs.write_json(tmp_path / "pool.json", records)
    texts = [records[i]["conversations"][0]["value"].removeprefix("<image>\n") for i in (11, 12)]
    asked_of = [{"image_id": f"image{n}", "question": text} for n, text in zip(("0011", "9999"), texts, strict=True)]
    questions = {"questions": asked_of}
    runs.write_json(tmp_path / "eval.json", questions)
    found = check_up(read_samples(tmp_path / "pool.json"), tmp_path)
    assert {kind: own for kind, own in found.faults.items() if own} == {}
    assert found.counts["turns"] == {"2": 40} and found.lengths["median"] == 12
    expected = planted(tmp_path, records)
    runs.write_json(tmp_path / "pool.json", records)
    found = check_up(read_samples(tmp_path / "pool.json"), tmp_path, [str(tmp_path / "eval.json")])
    assert {kind: set(own) for kind, own in found.faults.items() if own} == expected
    assert set(expected) == set(FAULTS) - {"loses tokens"}


def test_the_command_writes_numbers_and_a_clean_pool(tmp_path, capsys):
    records = clean(tmp_path, 14, random.Random(2))
    planted(tmp_path, records)
    runs.write_json(tmp_path / "pool.json", records)
    words = ["inspect", f"{tmp_path}/pool.json", "--images", str(tmp_path), "--json", f"{tmp_path}/found.json"]
    assert cli.main([*words, "--write_clean", f"{tmp_path}/clean.json"]) == 0
    shown, told = capsys.readouterr().out, runs.read_json(tmp_path / "found.json")
    assert "16 records" in shown and "clean.json: 11 of 16 records" in shown and "missing picture" in shown
    assert Counter(one["id"] for one in runs.read_json(tmp_path / "clean.json")) == Counter([*range(4, 14), 5])
    assert told["faults"]["exact duplicate"] == {"14": "the same as sample 4"} and told["records"] == 16
    assert cli.main([*words[:2], "--write_clean", f"{tmp_path}/pool.json"]) == 2
    assert "would replace the pool" in capsys.readouterr().err


@pytest.mark.parametrize("content", [
    [{"question": "Is it red here or not then", "image": "coco/COCO_val2014_000000033471.jpg"}],
    {"33471": {"question": "is it RED here, or not then?", "imageId": 33471}},
    '{"text": "Is it red here or not then", "image": "000000033471.jpg"}\n{"text": "x", "image": "y.jpg"}\n',
])  # fmt: skip
def test_evaluation_files_of_every_shape(tmp_path, content):
    path = tmp_path / "eval.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    value = "<image>\nIs it red here or not then?\nAnswer with one word."
    turns = [{"from": "human", "value": value}, {"from": "gpt", "value": "yes"}]
    pool = [{"image": f"train2017/{number:012}.jpg", "conversations": turns} for number in (33471, 33472)]
    runs.write_json(tmp_path / "pool.json", pool)
    assert contaminated(read_samples(tmp_path / "pool.json").samples, asked(path)) == [0]


def test_a_file_without_questions_is_refused(tmp_path):
    (tmp_path / "e.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="no questions found in it"):
        asked(tmp_path / "e.json")


def test_plain_text_keeps_words_alone():
    assert plain_text("<image>\nIs  it, Red?") == "is it red"


def test_pictures_in_the_pool_are_looked_at_without_an_image_folder(tmp_path, capfd):
    rows = pool_forms.rows(pool_forms.with_bytes)
    rows[2]["images"][1]["bytes"] = b"no picture"
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "pool.parquet"))
    capfd.readouterr()
    words = ["inspect", str(tmp_path / "pool.parquet"), "--json", str(tmp_path / "found.json")]
    assert cli.main([*words, "--write_clean", str(tmp_path / "clean.parquet")]) == 0
    shown = capfd.readouterr()
    assert "not looked at" not in shown.out and "Creating parquet" not in shown.err
    faults = runs.read_json(tmp_path / "found.json")["faults"]
    assert faults["broken picture"].keys() == {"2"} and "pool.parquet#2.1" in faults["broken picture"]["2"]
    assert faults["same picture twice"].keys() == {"3"}
    assert len(datasets.Dataset.from_parquet(str(tmp_path / "clean.parquet"))) == 3


def test_pictures_that_need_a_folder_are_counted_where_none_is_given(tmp_path, capsys):
    pool = pool_forms.write_json(tmp_path / "pool.json", pool_forms.llava())
    assert cli.main(["inspect", str(pool)]) == 0
    assert "pictures that were not looked at: 4 (--images DIR)" in capsys.readouterr().out
    pool_forms.write_images(tmp_path / "images")
    assert cli.main(["inspect", str(pool), "--images", f"{tmp_path}/images"]) == 0
    assert f"vlmsel choose --model MODEL --pool {pool} --images {tmp_path}/images " in capsys.readouterr().out
    assert cli.main(["inspect", str(pool_forms.write_internvl(tmp_path)), "--json", str(tmp_path / "found.json")]) == 0
    assert "not looked at" not in capsys.readouterr().out
    (tmp_path / "images/b/blue.png").write_bytes(b"no picture")
    assert cli.main(["inspect", str(tmp_path / "meta.json"), "--json", str(tmp_path / "found.json")]) == 0
    assert runs.read_json(tmp_path / "found.json")["faults"]["broken picture"].keys() == {"2"}
