"""`vlmsel select` on a score table and an affinity file that no model made."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from score_words import refused, words

from vlmsel import cli, runs
from vlmsel.data.formats import choice
from vlmsel.scoring.affinity import Columns, write_affinities
from vlmsel.scoring.table import write_table

COUNT = 60
CONFIG = "model: a\nseed: 0\n"
LEFT_OUT = 7


def write_run(folder, pool, config=CONFIG, losses=(2.0, 0.5, 1.0), **more):
    """A run folder: one record was left out, target files a, b, c with five samples each."""
    rng = np.random.default_rng(0)
    uids = np.delete(np.arange(COUNT), LEFT_OUT)
    sources = np.array([record.get("source", "") for record in json.loads(pool.read_text())])
    about = {"pool": str(pool), "pool_sha256": runs.file_hash(pool), "config": config}
    loss = rng.random(COUNT)
    loss[LEFT_OUT] = np.nan
    columns = {"uid": np.arange(COUNT), "source": sources, "tokens": rng.integers(5, 50, COUNT), "loss": loss}
    write_table(folder / "scores.parquet", {**columns, "S/a": loss - 1, "S/b": -loss, "Random/a": loss}, about)
    c, u = rng.normal(size=(COUNT - 1, 8)), rng.normal(size=(15, 8))
    targets = [{"file": "abc"[t // 5], "uid": t % 5, "weight": None, "loss": losses[t // 5]} for t in range(15)]
    one = Columns(c, u, np.linalg.norm(c, axis=1), np.linalg.norm(u, axis=1))
    write_affinities(folder / "affinity.safetensors", uids, targets, {"S": one}, {**about, **more})
    return columns, (u @ c.T) / np.linalg.norm(u, axis=1)[:, None] / np.linalg.norm(c, axis=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pool and a run of it."""
    folder = tmp_path_factory.mktemp("select")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    records = [{"id": i, "source": "xyz"[i % 6 // 3 + (i % 11 == 0)], "conversations": turns} for i in range(COUNT)]
    (folder / "pool.json").write_text(json.dumps(records))
    (folder / "run").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(home):
    """The table's columns and the unit affinities of the run in `home`."""
    return write_run(home / "run", home / "pool.json")


def select(home, out, **options):
    given = {"scores": home / "run", "pool": home / "pool.json", "scorer": "S", "out": out, **options}
    return words("select", {name: value for name, value in given.items() if value is not None})


def chosen(home, out, **options):
    """The manifest of a choice; its records are those of the pool."""
    assert cli.main(select(home, out, **options)) == 0
    manifest, pool = runs.read_json(f"{out}.manifest.json"), runs.read_json(home / "pool.json")
    assert runs.read_json(out) == [pool[uid] for uid in sorted(manifest["uids"])]
    return manifest


def test_a_choice_that_was_killed_while_it_was_written_is_made_again(home, run, tmp_path, monkeypatch):
    def killed(path, *more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(choice, "write_part", killed)
        assert cli.main(select(home, tmp_path / "a.json", count=14)) == 130
    assert chosen(home, tmp_path / "a.json", count=14)["uids"]


def test_target_samples_choose_in_turn(home, run, tmp_path, capsys):
    assert chosen(home, tmp_path / "b.json", count=14)["weights"] == pytest.approx({"a": 2**0.5, "b": 0.5**0.5, "c": 1})
    capsys.readouterr()
    manifest = chosen(home, tmp_path / "a.json", count=14, turns="loss")
    uids = np.delete(np.arange(COUNT), LEFT_OUT)
    assert manifest["weights"] == {"a": 2.0, "b": 0.5, "c": 1.0}
    assert [manifest["target_file"].count(name) for name in "abc"] == [8, 2, 4]
    left = list(range(COUNT - 1))
    for uid, value, file, t in zip(
        *(manifest[key] for key in ("uids", "affinity", "target_file", "target_uid")), strict=True
    ):
        row = run[1][5 * "abc".index(file) + t]
        best = max(left, key=row.__getitem__)
        left.remove(best)
        assert uids[best] == uid and value == pytest.approx(row[best], abs=1e-5)
    takers = list(zip(manifest["target_file"], manifest["target_uid"], strict=True))
    ranks = [takers[: place + 1].count(taker) for place, taker in enumerate(takers)]
    assert manifest["rank"] == ranks and manifest["unusable"] == 1
    assert manifest["reason"] == [f"choice {r} of {file} {t}" for r, (file, t) in zip(ranks, takers, strict=True)]
    said = capsys.readouterr().out.splitlines()
    assert "1 of the pool's 60 records cannot be chosen; fractions are of all 60" in said
    assert (
        "a.json: 14 of 60 samples by S, round_robin over 15 target samples (turns: a 57 %, b 14 %, c 29 %)" in said[0]
    )
    assert said[1].startswith("sources: ") and said[2].startswith("mean of the choice (pool): tokens ")
    assert "loss" in said[2] and "norm" in said[2] and len(said) <= 6


def test_the_same_twice_and_as_its_configuration_says(home, run, tmp_path):
    options = {"fraction": 0.25, "rule": "strata", "weights.a": 1, "weights.c": 3, "keep": "b"}
    one = chosen(home, tmp_path / "a.json", **options)
    (tmp_path / "a.yaml").write_text(one["config"])
    again = ["select", "--config", f"{tmp_path}/a.yaml", "--out", f"{tmp_path}/b.json"]
    assert cli.main(again) == 0 and runs.read_json(tmp_path / "b.json.manifest.json") == one
    assert len(one["uids"]) == 15 and "b" not in one["target_file"]


def test_tokens_are_a_budget(home, run, tmp_path):
    tokens = run[0]["tokens"]
    for rule in ("round_robin", "herding", "strata", "top"):
        uids = chosen(home, tmp_path / f"{rule}.json", tokens=400, rule=rule)["uids"]
        slack = 3 if rule == "strata" else 1  # sources
        assert 0 <= 400 - tokens[uids].sum() < slack * 50
    quota = chosen(home, tmp_path / "q.json", tokens=400, **{"quota.x": 0.25})["uids"]
    assert sum(tokens[uid] for uid in quota if run[0]["source"][uid] == "x") <= 100


def test_top_is_what_it_was(home, run, tmp_path):
    manifest = chosen(home, tmp_path / "a.json", count=5, rule="top", target="a")
    order = np.argsort(run[0]["loss"])  # the left out is last
    assert manifest["uids"] == order[:5].tolist() and manifest["columns"] == ["S/a"]
    assert manifest["influence"]["S/a"] == (run[0]["loss"][order[:5]] - 1).tolist()
    assert manifest["rank"] == [1, 2, 3, 4, 5] and manifest["reason"][1] == "2 of 59, by S/a"
    both = chosen(home, tmp_path / "b.json", count=4, rule="top")
    assert [reason.split(", by ")[1] for reason in both["reason"]].count("S/b") == 2  # each target has its half
    mean = chosen(home, tmp_path / "c.json", count=4, rule="top", combine="mean")
    assert mean["reason"][3] == "4 of 59, by the mean of S/a, S/b" and mean["score"] == pytest.approx([-0.5] * 4)


def test_a_table_that_pandas_saved_again_is_chosen_from(home, run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(home / "run", again)
    frame = pd.read_parquet(again / "scores.parquet").sample(frac=1, random_state=0)
    frame.to_parquet(again / "scores.parquet")
    frame.to_csv(again / "scores.csv", index=False)
    wanted = chosen(home, tmp_path / "a.json", count=9)["uids"]
    assert chosen(home, tmp_path / "b.json", count=9, scores=again)["uids"] == wanted
    assert chosen(home, tmp_path / "c.json", count=9, scores=again / "scores.csv")["uids"] == wanted


def test_random_needs_the_pool_alone_and_smaller_draws_are_parts_of_larger_ones(home, tmp_path):
    draws = [chosen(home, tmp_path / f"{n}.json", scores=None, scorer="Random", count=n)["uids"] for n in (10, 20)]
    assert draws[0] == draws[1][:10] and len(set(draws[1])) == 20
    other = chosen(home, tmp_path / "s.json", scores=None, scorer="Random", count=20, seed=1)["uids"]
    assert other != draws[1]
    scored = chosen(home, tmp_path / "t.json", scorer="Random", count=59)["uids"]
    assert LEFT_OUT not in scored and scored[:5] == [uid for uid in draws[1] if uid != LEFT_OUT][:5]


def test_random_with_the_shares_of_the_pool_or_of_another_choice(home, run, tmp_path):
    sources = run[0]["source"]
    even = chosen(home, tmp_path / "a.json", scores=None, scorer="Random", count=30, stratified=True)
    assert all(abs(even["sources"][name] - 30 * np.mean(sources == name)) < 1 for name in "xyz")
    model = chosen(home, tmp_path / "b.json", count=21)
    for like in (tmp_path / "b.json", tmp_path / "b.json.manifest.json"):
        for seed in (0, 1):
            out = tmp_path / f"{like.name}-{seed}.json"
            same = chosen(home, out, scores=None, scorer="Random", like=like, seed=seed)
            assert same["sources"] == model["sources"] and same["uids"] != model["uids"]
    (tmp_path / "b.json.manifest.json").rename(tmp_path / "kept.manifest.json")
    same = chosen(home, tmp_path / "c.json", scores=None, scorer="Random", like=tmp_path / "b.json")
    assert same["sources"] == model["sources"]
    tokens = run[0]["tokens"]
    spent = chosen(home, tmp_path / "d.json", scorer="Random", like=tmp_path / "kept.manifest.json", tokens=600)["uids"]
    for name in "xyz":
        share = 600 * tokens[[u for u in model["uids"] if sources[u] == name]].sum() / tokens[model["uids"]].sum()
        assert share - 50 < tokens[[uid for uid in spent if sources[uid] == name]].sum() <= share + 1


def test_loss_and_length_come_from_the_table(home, run, tmp_path):
    loss, tokens = run[0]["loss"], run[0]["tokens"]
    high = chosen(home, tmp_path / "a.json", scorer="Loss", count=9)["uids"]
    low = chosen(home, tmp_path / "b.json", scorer="Loss", count=9, lowest=True)["uids"]
    order = np.argsort(loss)[: COUNT - 1].tolist()
    manifest = runs.read_json(tmp_path / "a.json.manifest.json")
    assert manifest["score"] == loss[high].tolist() and manifest["reason"][2] == "3 of 59, by Loss, highest first"
    assert high == order[::-1][:9] and low == order[:9]
    long = chosen(home, tmp_path / "c.json", scorer="Length", count=9)["uids"]
    assert min(tokens[long]) >= max(tokens[[u for u in range(COUNT) if u not in long and u != LEFT_OUT]])


BAD = {
    "no affinities": ({"scores": "{tmp}/bare"}, "no affinity.safetensors beside it, by which target samples choose; "),
    "herding without": ({"scores": "{tmp}/bare", "rule": "herding"}, "no affinity.safetensors beside it"),
    "another model": ({"scores": "{tmp}/model"}, "of another run than the score table beside it (model: b here, a th"),
    "another pool": ({"scores": "{tmp}/pool"}, "these affinities belong to another pool"),
    "damaged": ({"scores": "{tmp}/damaged"}, "affinity.safetensors: not an affinity file, or damaged"),
    "another scorer": ({"scorer": "HyperINF"}, "affinity.safetensors: no affinities by 'HyperINF'; it has S"),
    "target": ({"target": "z"}, "no target file 'z' in the affinity file; it has a, b, c"),
    "few tokens": ({"count": None, "tokens": 4}, "a budget of 4 tokens is less than the shortest sample, which has 5"),
    "many tokens": ({"count": None, "tokens": 99999}, "99999 tokens were asked for, only "),
    "percent": ({"count": None, "fraction": 20}, "fraction must lie in (0, 1], got 20.0 (20 % is 0.2)"),
    "negative": ({"weights.a": -1, "weights.b": 1, "weights.c": 1}, "the weight of target a must be 0 or more, got"),
    "all zero": ({"weights.a": 0, "weights.b": 0, "weights.c": 0}, "the weights of all targets are 0"),
    "keep a target": ({"keep": "b", "target": "[a,b]"}, "target b can either choose or be kept"),
    "keep all": ({"keep": "[a,b,c]"}, "all target files, a, b, c, are to be kept: none is left that chooses"),
    "top keeps": ({"rule": "top", "keep": "b"}, "--keep: no meaning for --rule top; leave it out"),
    "seeded": ({"seed": 1}, "--seed: no meaning for rules on affinities; leave it out"),
    "combine": ({"combine": "mean"}, "--combine: no meaning without --rule top"),
    "random by affinity": ({"scorer": "Random", "rule": "round_robin"}, "no affinities by 'Random'; it has S"),
    "random for a target": ({"scorer": "Random", "target": "a"}, "--target: no meaning for --scorer Random"),
    "random turns": ({"scorer": "Random", "turns": "equal"}, "--turns: no meaning for --scorer Random; leave it out"),
    "random lowest": ({"scorer": "Random", "lowest": "true"}, "--lowest has no meaning for a random choice"),
    "no table": ({"scores": None}, "--scorer S needs --scores, the run folder of `vlmsel score`; Random needs none"),
    "loss unknown": ({"scores": None, "scorer": "Loss"}, "each sample's loss stands in the score table; give --scores"),
    "tokens unknown": (
        {"scores": None, "scorer": "Random", "count": None, "tokens": 9},
        "how long samples are stands in the score table; give --scores too",
    ),
    "like nothing": ({"scorer": "Random", "count": None, "like": "{tmp}/none.json"}, "{tmp}/none.json: no such file"),
    "like and even": ({"scorer": "Random", "like": "{home}/pool.json", "stratified": "true"}, "not both"),
    "like other": ({"scorer": "Random", "count": None, "like": "{tmp}/other.json"}, "the source 'w', which the pool"),
    "like more": (
        {"scorer": "Random", "count": None, "like": "{tmp}/more.json"},
        " with the sources' shares of {tmp}/more.json; ask for fewer",
    ),
    "like in tokens": (
        {"scorer": "Random", "count": None, "tokens": 99, "like": "{tmp}/other.json"},
        "its tokens per source are known of choices from the same pool only",
    ),
}


@pytest.fixture(scope="module")
def wrong(home, run, tmp_path_factory):
    """Runs that do not fit together, and choices of other pools."""
    folder = tmp_path_factory.mktemp("wrong")
    for name in ("bare", "model", "pool", "damaged"):
        (folder / name).mkdir()
        write_run(folder / name, home / "pool.json", CONFIG, **({"pool_sha256": "0"} if name == "pool" else {}))
    (folder / "bare/affinity.safetensors").unlink()
    (folder / "damaged/affinity.safetensors").write_bytes(b"12")
    (folder / "b").mkdir()
    write_run(folder / "b", home / "pool.json", CONFIG.replace("model: a", "model: b"))
    (folder / "b/affinity.safetensors").replace(folder / "model/affinity.safetensors")
    pool = runs.read_json(home / "pool.json")
    (folder / "other.json").write_text(json.dumps([{**record, "source": "w"} for record in pool[:3]]))
    (folder / "more.json").write_text(json.dumps([{**pool[0], "source": "z"}] * 20))
    return folder


@pytest.mark.parametrize("case", BAD)
def test_wrong_input_is_one_line_and_nothing_is_written(case, home, wrong, tmp_path, capsys):
    options, expected = BAD[case]
    names = {"tmp": wrong, "home": home}
    given = {key: value.format(**names) if isinstance(value, str) else value for key, value in options.items()}
    line = refused(select(home, tmp_path / "a.json", **{"count": 5, **given}), capsys)
    assert expected.format(**names) in line
    assert not list(tmp_path.iterdir())
