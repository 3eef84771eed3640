"""`vlmsel score --store` and `--from_store`: the table from stored gradients is that of a pass over the pool."""

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

from vlmsel import cli, runs
from vlmsel.commands import score_store
from vlmsel.gradients.store import format as store_format
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.scoring import pool_pass as run
from vlmsel.scoring.table import read_table

SCORERS = (
    "[HyperINF(damping=10.0,dtype='float64'),HyperINF(damping=10.0,name='single'),DataInf,LiSSA,"
    "Exact(damping=10.0),TracIn,TracIn(cosine=True,name='cosine'),Random(seed=3)]"
)
CLOSE = {"single": 5e-4, "Exact": 5e-5}  # inverses in float32 multiply the rounding of their matrices; others 1e-5
FIXED = ("uid", "source", "tokens", "loss")
BROKEN = 13  # the record without conversations in the pool of `pool`


def words(command, options):
    return [command, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]


def streaming(world, aligned, pool, out, **more):
    options = {
        "model": aligned,
        "pool": pool,
        "images": f"{world}/images",
        "targets.gqa": f"{world}/targets/gqa.json",
        "targets.pope": f"{world}/targets/pope.json",
        "blocks": r"projector|layers\.3\..*q_proj\.lora",
        "scorers": SCORERS,
        "batch_size": 2,
        "device": "cpu",
        "out": out,
        **more,
    }
    return words("score", options)


def stored(folder, out, **more):
    return words("score", {"from_store": folder, "scorers": SCORERS, "device": "cpu", "out": out, **more})


def refused(arguments, capsys):
    capsys.readouterr()
    assert cli.main([str(word) for word in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "CHUNK", 2)
        assert cli.main(streaming(world, aligned, pool, out / "run", store=out / "store")) == 0
    return out


def largest_of(column):
    return max(abs(value) for value in column if not math.isnan(value))


def assert_same_table(found, expected, names=None):
    (one, about_one), (other, about_other) = found, expected
    assert about_one["pool_sha256"] == about_other["pool_sha256"] and about_one["pool"] == about_other["pool"]
    assert list(one) == (list(other) if names is None else [*FIXED, *names])
    for name in one:
        if name in ("uid", "source", "tokens"):
            assert one[name] == other[name]
            continue
        nans = [math.isnan(value) for value in other[name]]
        assert [math.isnan(value) for value in one[name]] == nans
        near = CLOSE.get(name.partition("/")[0], 1e-5) * largest_of(other[name])
        for value, wanted, nan in zip(one[name], other[name], nans, strict=True):
            assert nan or abs(value - wanted) <= near, name


def test_the_table_from_the_store_is_the_streamed_one(written, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run")) == 0
    streamed = read_table(written / "run/scores.parquet")
    table = read_table(tmp_path / "run/scores.parquet")
    assert_same_table(table, streamed)
    assert math.isnan(table[0]["TracIn/gqa"][5]) and math.isnan(table[0]["TracIn/gqa"][BROKEN])
    assert runs.read_json(tmp_path / "run/skipped.json") == runs.read_json(written / "run/skipped.json")
    assert set(table[1]["details"]) == set(streamed[1]["details"])


def test_scores_do_not_depend_on_whether_gradients_are_stored(world, aligned, pool, written, tmp_path):
    assert cli.main(streaming(world, aligned, pool, tmp_path / "run")) == 0
    assert_same_table(read_table(tmp_path / "run/scores.parquet"), read_table(written / "run/scores.parquet"))


def test_fit_samples_are_drawn_as_in_a_pass_over_the_pool(world, aligned, pool, written, tmp_path):
    more = {"fit_samples": 6, "scale_samples": 3, "seed": 4}
    assert cli.main(streaming(world, aligned, pool, tmp_path / "streamed", **more)) == 0
    assert cli.main(stored(written / "store", tmp_path / "stored", **more)) == 0
    streamed = read_table(tmp_path / "streamed/scores.parquet")
    assert_same_table(read_table(tmp_path / "stored/scores.parquet"), streamed)
    whole = read_table(written / "run/scores.parquet")[0]
    assert whole["HyperINF/gqa"][0] != pytest.approx(streamed[0]["HyperINF/gqa"][0], rel=1e-3)


def test_some_targets_only(written, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run", targets_of="[pope]", scorers="[TracIn]")) == 0
    whole = read_table(written / "run/scores.parquet")
    assert_same_table(read_table(tmp_path / "run/scores.parquet"), whole, ["TracIn/pope"])


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
    found, expected = (read_table(tmp_path / name / "scores.parquet")[0] for name in ("run", "streamed"))
    for name in (f"{scorer}/gqa" for scorer in ("HyperINF", "DataInf", "Exact", "TracIn", "Random")):
        assert [uid for uid in range(14) if math.isnan(found[name][uid])] == [2, 5, 7, BROKEN]
        near = 1e-5 * largest_of(expected[name])
        assert found[name] == pytest.approx(expected[name], rel=0, abs=near, nan_ok=True)
    reasons = {each["uid"]: each["reason"] for each in runs.read_json(tmp_path / "run/skipped.json")}
    assert reasons[2] == f"left out by {tmp_path}/uids.json" and sorted(reasons) == [2, 5, 7, BROKEN]


def test_select_takes_the_table(written, pool, tmp_path):
    assert cli.main(stored(written / "store", tmp_path / "run")) == 0
    for name, folder in (("one", tmp_path / "run"), ("other", written / "run")):
        options = {"scores": f"{folder}/scores.parquet", "pool": pool, "fraction": 0.25, "out": tmp_path / name}
        assert cli.main(words("select", options)) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert len(runs.read_json(tmp_path / "one")) == 4  # a quarter of 14 records, rounded up


def test_the_store_says_where_it_comes_from(written, aligned, pool):
    about = GradientStore.open(written / "store").about
    assert about["pool"] == str(pool) and about["pool_sha256"] == runs.file_hash(pool) and about["records"] == 14
    assert about["blocks"].startswith("projector|") and len(about["plan"]) == len(about["model"]) == 64
    assert sorted(path.name for path in (written / "store").iterdir()) == [
        "records.parquet",
        "shards",
        "store.json",
        "targets.safetensors",
        "targets_from.json",
    ]


def test_a_killed_run_goes_on_to_the_same_store(world, aligned, pool, written, tmp_path, monkeypatch):
    from vlmsel.commands import score

    monkeypatch.setattr(run, "CHUNK", 2)
    calls, losses = [], score.OBJECTIVE.losses

    def failing(model, batch):
        calls.append(batch)
        if len(calls) == 2 + 3:  # a batch of each target, then in the second shard
            raise KeyboardInterrupt
        return losses(model, batch)

    arguments = streaming(world, aligned, pool, tmp_path / "run", store=tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(score, "OBJECTIVE", score.OBJECTIVE._replace(losses=failing))
        assert cli.main(arguments) == 130
    assert [path.name for path in (tmp_path / "store/shards").iterdir()] == ["00000000.safetensors"]
    assert cli.main(arguments) == 0
    for path in (written / "store").rglob("*"):
        if path.is_file():
            assert (tmp_path / "store" / path.relative_to(written / "store")).read_bytes() == path.read_bytes()
    assert_same_table(read_table(tmp_path / "run/scores.parquet"), read_table(written / "run/scores.parquet"))


PROGRAM = """
import sys
from vlmsel import cli
from vlmsel.scoring import pool_pass as run

run.CHUNK = 2
sys.exit(cli.main(sys.argv[1:]))
"""


def test_two_processes_write_one_store(world, aligned, pool, written, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    more = {"store": tmp_path / "store", "scorers": "[TracIn]"}
    arguments = streaming(world, aligned, pool, tmp_path / "run", **more)
    ended = subprocess.run(
        [*launch, str(tmp_path / "program.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"{tmp_path}/store: gradients of 12 samples on ") == 1
    one, two = (GradientStore.open(folder / "store") for folder in (written, tmp_path))
    assert torch.equal(one.uids, two.uids) and one.settings == two.settings and len(two.shards) == len(one.shards) > 1
    for block in one.blocks:
        for found, expected in (
            (two.gradients(block.name), one.gradients(block.name)),
            (two.target_gradients([block.name])[block.name], one.target_gradients([block.name])[block.name]),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1e-9, expected.abs().max().item()))


def test_dtype_and_projection_are_recorded(world, aligned, pool, tmp_path):
    more = {"store": tmp_path / "store", "store_dtype": "bfloat16", "store_projection": 4, "scorers": "[TracIn]"}
    assert cli.main(streaming(world, aligned, pool, tmp_path / "run", **more)) == 0
    content = runs.read_json(tmp_path / "store/store.json")
    assert content["dtype"] == "bfloat16" and content["projection"] == {"rows": 4, "cols": 4, "seed": 0}
    with safe_open(next((tmp_path / "store/shards").iterdir()), framework="pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys() if name not in ("uids", "losses")]  # noqa: SIM118
    assert all(tensor.dtype == torch.bfloat16 and max(tensor.shape[1:]) <= 4 for tensor in tensors)
    assert cli.main(stored(tmp_path / "store", tmp_path / "again", scorers="[TracIn]")) == 0
    about = read_table(tmp_path / "again/scores.parquet")[1]
    assert about["store"]["dtype"] == "bfloat16" and about["store"]["folder"] == str(tmp_path / "store")


def test_a_disk_that_is_too_small_is_refused_with_numbers(world, aligned, pool, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "free total used")
    monkeypatch.setattr(store_format.shutil, "disk_usage", lambda path: usage(1000, 1000, 0))
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
        ({"model": "tiny", "pool": "p"}, "--model, --pool: no meaning for --from_store (the gradient store decides)"),
        ({"targets.gqa": "g.json"}, "--targets: no meaning for --from_store"),
        ({"blocks": "projector"}, "--blocks: no meaning for --from_store"),
        ({"store": "s", "store_dtype": "float16"}, "--store, --store_dtype: no meaning for --from_store"),
        ({"shard": "1/2"}, "--shard: no meaning for --from_store"),
        ({"fit_samples": 0}, "fit_samples must be at least 1, got 0"),
        ({"targets_of": "[vqav2]"}, "no target 'vqav2'; the gradient store has gqa, pope"),
        ({"scorers": "[]"}, "no scorer given"),
    ],
)
def test_options_that_make_no_sense_with_a_store(more, line, written, tmp_path, capsys):
    assert line in refused(stored(written / "store", tmp_path / "run", **more), capsys)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"leave_out": "u.json"}, "--leave_out: no meaning for a pass over the pool (without --from_store)"),
        ({"targets_of": "[gqa]"}, "--targets_of: no meaning for a pass over the pool"),
        ({"store_projection": 4}, "--store_projection: no meaning for a pass over the pool (without --store DIR)"),
        ({"store": "s", "store_dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16'; got"),
        ({"store": "s", "store_projection": 0}, "rows must be"),
    ],
)
def test_options_that_make_no_sense_without_a_store(more, line, world, aligned, pool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert line in refused(streaming(world, aligned, pool, tmp_path / "run", **more), capsys)
    assert not (tmp_path / "s").exists()


def test_what_is_missing_is_named(tmp_path, capsys):
    line = refused(words("score", {"pool": "p.json", "out": tmp_path / "run"}), capsys)
    assert line.startswith("error: --model and --targets missing; score needs --model, --pool and a target")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"uids": [1]}', "expected a JSON list of uids, such as [3, 17], got dict"),
        ('[1, "2", 99, true]', "3 of 4 entries are no uids of the pool, the first: entry 2, '2'; uids are whole"),
        ("[1", "not a JSON file"),
        (json.dumps(list(range(14))), "leaves none of the 12 samples of"),
    ],
)
def test_a_list_of_uids_that_is_none(text, words, written, tmp_path, capsys):
    (tmp_path / "uids.json").write_text(text)
    line = refused(stored(written / "store", tmp_path / "run", leave_out=tmp_path / "uids.json"), capsys)
    assert f"{tmp_path}/uids.json: " in line and words in line
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_store(written, tmp_path, capsys, monkeypatch):
    assert f"{tmp_path}: no gradient store" in refused(stored(tmp_path, tmp_path / "run"), capsys)
    monkeypatch.setattr(score_store.processes, "count", lambda: 2)
    assert "--from_store runs in one process" in refused(stored(written / "store", tmp_path / "run"), capsys)
