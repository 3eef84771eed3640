"""`vlmsel score --store` and `vlmsel rescore`: the table from stored gradients is that of a pass over the pool."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from score_words import about, refused, score_words, table, words
from stored import stored_gradients

from vlmsel import cli, runs
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.models.vlm import VLM
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.source import Collect, StoreSource
from vlmsel.scoring.table import KNOWN

SCORERS = (
    "HyperINF(damping=10.0,dtype='float64')",
    "HyperINF(damping=10.0,name='single')",
    "DataInf",
    "LiSSA",
    "Exact(damping=10.0)",
    "TracIn",
    "TracIn(cosine=True,name='cosine')",
    "Random(seed=3)",
)
CLOSE = {"single": 5e-4, "Exact": 5e-5}  # inverses in float32 multiply the rounding of their matrices; others 1e-5
BROKEN = 13  # the record without conversations in the pool of `pool`


def streaming(world, aligned, pool, out, **more):
    return score_words(world, aligned, out, SCORERS, **{"pool": pool, "batch_size": 2, "allow_missing": "true", **more})


def stored(folder, out, **more):
    given = {"store": folder, "scorers": f"[{','.join(SCORERS)}]", "device": "cpu", "out": out, **more}
    return words("rescore", given)


@pytest.fixture(scope="module")
def pool(world, tmp_path_factory):
    """The world's 12 samples with one that cannot be read at its end, and one between that has no picture."""
    records = runs.read_json(world / "pool.json")
    path = tmp_path_factory.mktemp("pool") / "pool.json"
    missing = {**records[0], "image": "none.png"}
    path.write_text(json.dumps([*records[:5], missing, *records[5:], {"id": 1}]))
    return path


@pytest.fixture(scope="module")
def written(world, aligned, pool, tmp_path_factory):
    """A run folder of a pass over the pool, with its store in `store`."""
    out = tmp_path_factory.mktemp("written")
    assert cli.main(streaming(world, aligned, pool, out / "run", store=out / "store")) == 0
    return out


def largest_of(column):
    return max(abs(value) for value in column if not math.isnan(value))


def assert_same_table(found, expected, names=None):
    """The tables of two runs, the first of which may have some score columns only."""
    one, other = table(found), table(expected)
    assert all(about(found)[key] == about(expected)[key] for key in ("pool", "pool_sha256"))
    assert list(one) == (list(other) if names is None else [*KNOWN, *names])
    for name in one:
        if name in ("uid", "id", "source", "tokens"):
            assert one[name] == other[name]
            continue
        nans = [math.isnan(value) for value in other[name]]
        assert [math.isnan(value) for value in one[name]] == nans
        near = CLOSE.get(name.partition("/")[0], 1e-5) * largest_of(other[name])
        for value, wanted, nan in zip(one[name], other[name], nans, strict=True):
            assert nan or abs(value - wanted) <= near, name


def test_the_table_from_the_store_is_the_streamed_one(written, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run")) == 0
    assert_same_table(tmp_path / "run", written / "run")
    scores = table(tmp_path / "run")["TracIn/gqa"]
    assert [uid for uid in range(14) if math.isnan(scores[uid])] == [5, BROKEN]
    assert runs.read_json(tmp_path / "run/skipped.json") == runs.read_json(written / "run/skipped.json")
    assert set(about(tmp_path / "run")["details"]) == set(about(written / "run")["details"])


def test_scores_do_not_depend_on_whether_gradients_are_stored(world, aligned, pool, written, tmp_path):
    assert cli.main(streaming(world, aligned, pool, tmp_path / "run")) == 0
    assert_same_table(tmp_path / "run", written / "run")


def test_fit_samples_are_drawn_as_in_a_pass_over_the_pool(world, aligned, pool, written, tmp_path):
    more = {"fit_samples": 6, "scale_samples": 3, "seed": 4}
    assert cli.main(streaming(world, aligned, pool, tmp_path / "streamed", **more)) == 0
    assert cli.main(stored(written / "store", tmp_path / "stored", **more)) == 0
    assert_same_table(tmp_path / "stored", tmp_path / "streamed")
    whole, part = (table(run)["HyperINF/gqa"][0] for run in (written / "run", tmp_path / "streamed"))
    assert whole != pytest.approx(part, rel=1e-3)


def test_some_targets_only(written, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run", targets="[pope]", scorers="[TracIn]")) == 0
    assert_same_table(tmp_path / "run", written / "run", ["TracIn/pope"])


def test_samples_left_out_are_neither_fitted_on_nor_scored(world, aligned, pool, written, tmp_path):
    """As a pass over the pool in which they cannot be used."""
    records = runs.read_json(pool)
    for uid in (2, 7):
        records[uid] = {"id": "gone"}
    (tmp_path / "pool.json").write_text(json.dumps(records))
    (tmp_path / "uids.json").write_text("[7, 2, 5]")  # 5 could not be used anyway
    assert cli.main(streaming(world, aligned, tmp_path / "pool.json", tmp_path / "streamed", fit_samples=6)) == 0
    more = {"leave_out": tmp_path / "uids.json", "fit_samples": 6}
    assert cli.main(stored(written / "store", tmp_path / "run", **more)) == 0
    found, expected = table(tmp_path / "run"), table(tmp_path / "streamed")
    for name in (f"{scorer}/gqa" for scorer in ("HyperINF", "DataInf", "Exact", "TracIn", "Random")):
        assert [uid for uid in range(14) if math.isnan(found[name][uid])] == [2, 5, 7, BROKEN]
        near = CLOSE.get(name.partition("/")[0], 1e-5) * largest_of(expected[name])
        assert found[name] == pytest.approx(expected[name], rel=0, abs=near, nan_ok=True)
    reasons = {each["uid"]: each["reason"] for each in runs.read_json(tmp_path / "run/skipped.json")}
    assert reasons[2] == f"left out by {tmp_path}/uids.json" and sorted(reasons) == [2, 5, 7, BROKEN]


def test_select_takes_the_table(written, pool, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run")) == 0
    for name, folder in (("one", tmp_path / "run"), ("other", written / "run")):
        options = {"scores": f"{folder}/scores.parquet", "pool": pool, "fraction": 0.25, "rule": "top"}
        assert cli.main(words("select", {**options, "out": tmp_path / name})) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert len(runs.read_json(tmp_path / "one")) == 4  # a quarter of 14 records, rounded up


def test_the_store_says_where_it_comes_from(written, aligned, pool):
    kept = GradientStore.open(written / "store").about
    assert kept["pool"] == str(pool) and kept["pool_sha256"] == runs.file_hash(pool) and kept["records"] == 14
    assert kept["blocks"].startswith("projector|") and len(kept["plan"]) == len(kept["model"]) == 64
    assert sorted(path.name for path in (written / "store").iterdir()) == [
        "shards",
        "store.json",
        "targets.safetensors",
    ]


def many_words(world, aligned, many, out):
    """A pass over the pool of `many`, each sample a batch: more than the 64 batches of a chunk."""
    more = {"pool": many / "pool.json", "batch_size": 1, "blocks": "projector", "store": out / "store"}
    return score_words(world, aligned, out / "run", ["TracIn"], **more)


@pytest.fixture(scope="module")
def many(world, aligned, tmp_path_factory):
    """A pool of 72 samples, and a run folder and a store of two shards in `whole`."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "pool.json").write_text(json.dumps(6 * runs.read_json(world / "pool.json")))
    assert cli.main(many_words(world, aligned, folder, folder / "whole")) == 0
    assert len(GradientStore.open(folder / "whole/store").shards) == 2
    return folder


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_store(world, aligned, many, tmp_path, monkeypatch):
    calls, losses = [], VLM.losses

    def failing(model, batch):
        calls.append(batch)
        if len(calls) == 4 + 64 + 3:  # the samples of the targets, then in the second shard
            raise KeyboardInterrupt
        return losses(model, batch)

    arguments = many_words(world, aligned, many, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(VLM, "losses", failing)
        assert cli.main(arguments) == 130
    assert [path.name for path in (tmp_path / "store/shards").iterdir()] == ["00000000.safetensors"]
    assert cli.main(arguments) == 0
    files = [path for path in (many / "whole/store").rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"store.json", "00000000.safetensors", "00000064.safetensors"}
    for path in files:
        assert (tmp_path / "store" / path.relative_to(many / "whole/store")).read_bytes() == path.read_bytes()
    assert table(tmp_path / "run") == table(many / "whole/run")


@pytest.mark.slow
def test_two_processes_write_one_store(world, aligned, many, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "vlmsel"]
    ended = subprocess.run(
        [*launch, *many_words(world, aligned, many, tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"{tmp_path}/store: gradients of 72 samples on 4 blocks, ") == 1
    one, two = (GradientStore.open(folder / "store") for folder in (many / "whole", tmp_path))
    assert torch.equal(one.uids, two.uids) and one.settings == two.settings and len(two.shards) == len(one.shards)
    for block in one.blocks:
        for found, expected in (
            (stored_gradients(two, block.name), stored_gradients(one, block.name)),
            (two.target_gradients()[block.name], one.target_gradients()[block.name]),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1e-9, expected.abs().max().item()))
    assert_same_table(tmp_path / "run", many / "whole/run")


@pytest.mark.parametrize(("where", "left"), [(Collect, []), (ScoreReducer, ["directions.safetensors"])])
def test_a_killed_rescore_goes_on(written, tmp_path, monkeypatch, where, left):
    """In the curvature pass there is little to keep; in the score pass the preconditioned targets are there already."""
    passing = StoreSource.passing

    def killed(source, reducer):
        if isinstance(reducer, where):
            raise KeyboardInterrupt
        return passing(source, reducer)

    expected, out = tmp_path / "whole", tmp_path / "run"
    for folder, code in ((expected, 0), (out, 130)):
        with monkeypatch.context() as patch:
            if code:
                patch.setattr(StoreSource, "passing", killed)
            assert cli.main(stored(written / "store", folder)) == code
    assert [path.name for path in out.glob("*.safetensors")] == left and not (out / "scores.parquet").exists()
    before = [path.stat().st_mtime_ns for path in out.glob("*.safetensors")]
    assert cli.main(stored(written / "store", out)) == 0
    assert [(out / name).stat().st_mtime_ns for name in left] == before
    assert repr(table(out)) == repr(table(expected))  # bit for bit, nan included


def test_a_rescore_does_not_go_on_with_other_samples_or_another_store(written, tmp_path, capsys):
    shutil.copytree(written / "store", tmp_path / "store")
    (tmp_path / "uids.json").write_text("[2]")
    arguments = stored(tmp_path / "store", tmp_path / "run", scorers="[TracIn]", leave_out=tmp_path / "uids.json")
    assert cli.main(arguments) == 0
    (tmp_path / "uids.json").write_text("[3]")
    assert f"{tmp_path}/run: the samples left out changed since this run began" in refused(arguments, capsys)
    (tmp_path / "uids.json").write_text("[2]")
    assert cli.main(arguments) == 0
    targets = load_file(tmp_path / "store/targets.safetensors")
    with safe_open(tmp_path / "store/targets.safetensors", framework="pt") as file:
        names = file.metadata()
    save_file({name: 2 * v for name, v in targets.items()}, tmp_path / "store/targets.safetensors", names)
    assert f"{tmp_path}/run: the store changed since this run began" in refused(arguments, capsys)


PLUGINS = """
from dataclasses import dataclass

import torch
from vlmsel.scorers import SampleScorer


@dataclass(frozen=True)
class Longest(SampleScorer):
    name: str = "Longest"

    def score(self, samples, targets):
        return -samples.tokens.float().repeat(len(targets), 1)


@dataclass(frozen=True)
class Wordy(SampleScorer):
    name: str = "Wordy"

    def score(self, samples, targets):
        return -torch.tensor([float(len(text)) for text in samples.texts]).repeat(len(targets), 1)
"""


def test_scorers_of_samples_work_from_a_store_unless_they_read_texts(
    world, aligned, pool, written, tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_scorers.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(tmp_path)
    both = {"scorers": "[own_scorers:Longest,own_scorers:Wordy]"}
    assert cli.main(streaming(world, aligned, pool, tmp_path / "streamed", **both)) == 0
    assert cli.main(stored(written / "store", tmp_path / "run", scorers="[own_scorers:Longest]")) == 0
    assert_same_table(tmp_path / "run", tmp_path / "streamed", ["Longest/gqa", "Longest/pope"])
    found = table(tmp_path / "streamed")
    assert [-score for score in found["Longest/gqa"] if score == score] == [
        tokens for uid, tokens in enumerate(found["tokens"]) if uid not in (5, BROKEN)
    ]
    said = [turn["value"] for turn in runs.read_json(pool)[0]["conversations"]]
    assert found["Wordy/gqa"][0] == -len("\n".join(said))
    line = refused(stored(written / "store", tmp_path / "wordy", **both), capsys)
    assert line == "error: a gradient store keeps no texts; run scorers that read them with `vlmsel score`"
    line = refused(stored(written / "store", tmp_path / "hidden", scorers="[TracIn,Hidden]"), capsys)
    assert line.startswith("error: Hidden compares samples with those of the targets, of which only gradients are here")
    assert not list((tmp_path / "hidden").glob("parts/*"))  # before any pass


def test_dtype_and_projection_are_recorded(world, aligned, pool, tmp_path):
    more = {"store": tmp_path / "store", "store_dtype": "bfloat16", "store_projection": 4, "scorers": "[TracIn]"}
    assert cli.main(streaming(world, aligned, pool, tmp_path / "run", **more)) == 0
    content = runs.read_json(tmp_path / "store/store.json")
    assert content["dtype"] == "bfloat16" and content["projection"] == {"rows": 4, "cols": 4, "seed": 0}
    with safe_open(next((tmp_path / "store/shards").iterdir()), framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys() if name not in ("uids", "losses")]  # noqa: SIM118
    assert all(tensor.dtype == torch.bfloat16 and max(tensor.shape[1:]) <= 4 for tensor in tensors)
    assert cli.main(stored(tmp_path / "store", tmp_path / "again", scorers="[TracIn]")) == 0
    kept = about(tmp_path / "again")["store"]
    assert kept["dtype"] == "bfloat16" and kept["folder"] == str(tmp_path / "store")


def test_a_disk_that_is_too_small_is_refused_with_numbers(world, aligned, pool, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "free total used")
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda path: usage(1000, 1000, 0))
    line = refused(streaming(world, aligned, pool, tmp_path / "run", store=tmp_path / "store"), capsys)
    assert "the gradient store takes 0.0" in line and "has 1e-06 GB free; use a projection" in line
    assert not (tmp_path / "store").exists()


def test_a_store_of_another_model_is_refused(world, aligned, pool, written, tmp_path, capsys):
    shutil.copytree(aligned / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model/projector.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, tmp_path / "model/projector.safetensors")
    arguments = streaming(world, tmp_path / "model", pool, tmp_path / "run", store=written / "store")
    line = refused(arguments, capsys)
    assert line.startswith(f"error: {written}/store: holds a gradient store of other settings (about model: ")


def test_a_store_of_another_pool_is_refused(world, aligned, written, tmp_path, capsys):
    arguments = streaming(world, aligned, f"{world}/pool.json", tmp_path / "run", store=written / "store")
    assert "holds a gradient store of other settings (about pool" in refused(arguments, capsys)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"model": "tiny"}, "unrecognized arguments: --model tiny; `vlmsel rescore --help` lists the options"),
        ({"blocks": "projector"}, "unrecognized arguments: --blocks projector"),
        ({"shard": "1/2"}, "unrecognized arguments: --shard 1/2"),
        ({"fit_samples": 0}, "fit_samples must be at least 1, got 0"),
        ({"targets": "[vqav2]"}, "no target 'vqav2'; the gradient store has gqa, pope"),
        ({"targets": "[]"}, "no target asked for; the gradient store has gqa, pope"),
        ({"scorers": "[]"}, "no scorer given"),
    ],
)
def test_options_that_make_no_sense_with_a_store(more, line, written, tmp_path, capsys):
    assert line in refused(stored(written / "store", tmp_path / "run", **more), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"leave_out": "u.json"}, "it is an option of `vlmsel rescore --store DIR`; leave it out here"),
        ({"store_dtype": "float16"}, "--store_dtype: no meaning for a pass over the pool (without --store DIR)"),
        ({"store_projection": 4}, "--store_projection: no meaning for a pass over the pool (without --store DIR)"),
        ({"store": "s", "store_dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16'; got"),
        ({"store": "s", "store_projection": 0}, "rows must be"),
    ],
)
def test_options_that_make_no_sense_without_a_store(more, line, world, aligned, pool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert line in refused(streaming(world, aligned, pool, tmp_path / "run", **more), capsys)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"uids": [1]}', "expected a JSON list of uids, such as [3, 17], got dict"),
        ('[1, "2", 99, true]', "3 of 4 entries are no uids of the pool, the first: entry 2, '2'; uids are whole"),
        ("[1", "not a JSON file"),
        (json.dumps(list(range(14))), "leaves none of the 12 samples of"),
    ],
)
def test_a_list_of_uids_that_is_none(text, reason, written, tmp_path, capsys):
    (tmp_path / "uids.json").write_text(text)
    line = refused(stored(written / "store", tmp_path / "run", leave_out=tmp_path / "uids.json"), capsys)
    assert f"{tmp_path}/uids.json: " in line and reason in line
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_store(written, tmp_path, capsys, monkeypatch):
    assert f"{tmp_path}: no gradient store" in refused(stored(tmp_path, tmp_path / "run"), capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "rescore runs as one process" in refused(stored(written / "store", tmp_path / "run"), capsys)
    assert not (tmp_path / "run").exists()
