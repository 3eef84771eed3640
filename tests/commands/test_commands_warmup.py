"""vlmsel warmup: a part of every source, the ordinary training on it, and what the targets gained."""

import json
from collections import Counter

import pytest

from vlmsel import cli, runs
from vlmsel.models.open import open_subject
from vlmsel.training.warmup import draw_part


def words(world, aligned, out, *more):
    own = ["warmup", "--model", str(aligned), "--pool", f"{world}/pool.json", "--images", f"{world}/images"]
    own += ["--targets.gqa", f"{world}/targets/gqa.json", "--least", "6", "--settings.max_steps", "2"]
    return [*own, "--out", str(out), "--device", "cpu", *map(str, more)]


def test_the_model_is_tuned_on_the_part_and_the_targets_losses_are_told(world, aligned, tmp_path, capsys):
    assert cli.main(words(world, aligned, tmp_path / "run")) == 0
    about = runs.read_json(tmp_path / "run/warmup.json")
    records = runs.read_json(world / "pool.json")
    assert len(about["uids"]) == 6 and about["uids"] == sorted(set(about["uids"]))
    assert runs.read_json(tmp_path / "run/part.json") == [records[uid] for uid in about["uids"]]
    before, after = about["loss_before"]["gqa"], about["loss_after"]["gqa"]
    assert f"target gqa: mean loss {before:.3f} before, {after:.3f} after" in capsys.readouterr().out
    assert before != after and about["steps"] == 2
    subject = open_subject(str(tmp_path / "run"), "cpu")
    assert subject.digest() != open_subject(str(aligned), "cpu").digest()
    assert cli.main(words(world, aligned, tmp_path / "run")) == 0  # finds it done
    assert runs.read_json(tmp_path / "run/warmup.json") == about


@pytest.mark.slow
def test_another_seed_draws_another_part(world, aligned, tmp_path):
    for seed in (0, 1):
        assert cli.main(words(world, aligned, tmp_path / str(seed), "--seed", seed)) == 0
    first, second = (json.loads((tmp_path / f"{seed}/warmup.json").read_text())["uids"] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--fraction", "0", "fraction must lie in (0, 1], got 0"),
    ("--fraction", "20", "fraction must lie in (0, 1], got 20"),
    ("--least", "0", "least must be at least 1, got 0"),
    ("--targets.gqa", "nowhere.json", "nowhere.json: no such file"),
])  # fmt: skip
def test_wrong_options_are_refused(world, aligned, tmp_path, capsys, option, value, message):
    assert cli.main(words(world, aligned, tmp_path / "run", option, value)) == 2
    assert message in capsys.readouterr().err


def test_every_source_gives_its_share():
    sources = ["a"] * 600 + ["b"] * 300 + ["c"] * 95 + ["d"] * 5
    for count in (10, 37, 200, 1000):
        drawn = draw_part(sources, count, seed=3)
        shares = Counter(sources[position] for position in drawn)
        assert len(drawn) == len(set(drawn)) == count and drawn == sorted(drawn)
        assert all(abs(shares[name] - sources.count(name) * count / 1000) < 1 for name in "abcd")
