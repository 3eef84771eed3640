"""One pool in several forms through the commands: the same scores, and choices in the form that the pool has."""

import json

import datasets
import pool_forms
import pytest
from score_words import table, words

from vlmsel import cli, runs
from vlmsel.data.formats import read_records

ROLES = {"human": "user", "gpt": "assistant"}


def chat(record):
    """Write a record of the world as messages of typed parts."""
    turns = []
    for turn in record["conversations"]:
        head, *rest = turn["value"].split("<image>")
        parts = [{"type": "text", "text": head}]
        for text in rest:
            parts += [{"type": "image", "text": None}, {"type": "text", "text": text}]
        turns.append({"role": ROLES[turn["from"]], "content": parts})
    return {"messages": turns, "images": [record["image"]] if "image" in record else [], "source": record["source"]}


def embedded(record, images):
    """Put a record's picture into it."""
    found = [{"bytes": (images / path).read_bytes(), "path": path} for path in chat(record)["images"]]
    return {"conversations": record["conversations"], "images": found, "source": record["source"]}


@pytest.fixture(scope="module")
def pools(world, tmp_path_factory):
    folder, records = tmp_path_factory.mktemp("pools"), runs.read_json(world / "pool.json")
    (folder / "chat.jsonl").write_text("".join(json.dumps(chat(record)) + "\n" for record in records))
    rows = datasets.Dataset.from_list([embedded(record, world / "images") for record in records])
    rows.to_parquet(str(folder / "rows.parquet"))
    rows.save_to_disk(str(folder / "saved"))
    return {"json": world / "pool.json", **{name: folder / name for name in ("chat.jsonl", "rows.parquet", "saved")}}


def test_the_same_pool_has_the_same_scores_in_every_form(world, aligned, pools, tmp_path):
    found = {}
    for name, pool in pools.items():
        given = {
            "model": aligned,
            "pool": pool,
            "targets.gqa": f"{world}/targets/gqa.json",
            "images": f"{world}/images",
        }
        how = {"scorers": "[TracIn]", "blocks": "projector", "device": "cpu", "each_target": "false", "check": "none"}
        assert cli.main(words("score", {**given, **how, "out": tmp_path / name})) == 0
        found[name] = table(tmp_path / name, pool)
    for name in pools:
        for column in ("source", "tokens", "loss", "TracIn/gqa"):
            assert found[name][column] == found["json"][column], (name, column)
    given = {"scores": tmp_path / "rows.parquet", "pool": pools["rows.parquet"], "rule": "top", "scorer": "TracIn"}
    chosen = {"count": 3, "out": tmp_path / "chosen.parquet"}
    assert cli.main(words("select", {**given, **chosen})) == 0
    assert cli.main(words("select", {**given, "count": 3, "out": tmp_path / "u.json", "write": "uids"})) == 0
    uids = runs.read_json(tmp_path / "u.json")
    assert uids == runs.read_json(tmp_path / "chosen.parquet.manifest.json")["uids"]
    rows = datasets.Dataset.from_parquet(str(tmp_path / "chosen.parquet"))
    whole = datasets.load_from_disk(str(pools["saved"]))
    assert list(rows) == [whole[uid] for uid in sorted(uids)]


QUICK = ("FineVision lines", "InternVL", "LLaVA-NeXT")  # whose records and pictures lie otherwise than those above


@pytest.fixture(scope="module")
def scored(world, aligned, tmp_path_factory):
    """Score the small pool in a form; give its path, its records and the columns of the table."""

    def score(name):
        folder = tmp_path_factory.mktemp("form")
        pool_forms.write_images(folder / "images")
        pool = pool_forms.FORMS[name](folder)
        images = {
            "images": folder / "images",
            "target_images": f"{world}/images",
            "targets.gqa": f"{world}/targets/gqa.json",
        }
        how = {"scorers": "[TracIn]", "blocks": "projector", "device": "cpu", "each_target": "false", "check": "none"}
        assert cli.main(words("score", {"model": aligned, "pool": pool, **images, **how, "out": folder / "run"})) == 0
        return pool, [dict(record) for record in read_records(pool)], table(folder / "run", pool)

    return score


@pytest.fixture(scope="module")
def first(scored):
    return scored("LLaVA JSON")[2]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in pool_forms.FORMS]
)
def test_read_scored_selected_written_and_read_again(name, scored, first, tmp_path):
    pool, records, found = scored(name)
    for column in ("uid", "source", "tokens", "loss", "TracIn/gqa"):
        assert found[column] == first[column], column
    out = tmp_path / ("chosen.parquet" if name == "parquet shards" else f"chosen{pool.suffix}")
    given = {"scores": pool.parent / "run", "pool": pool, "scorer": "TracIn", "rule": "top", "count": 2, "out": out}
    assert cli.main(words("select", given)) == 0
    best = sorted(sorted(range(4), key=found["TracIn/gqa"].__getitem__)[:2])
    assert pool_forms.alone(out) == [records[uid] for uid in best]
    assert [dict(record) for record in read_records(out)] == [records[uid] for uid in best]
