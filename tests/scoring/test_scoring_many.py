"""Several processes and several jobs give one table; a job that is killed again and again gives the same bits."""

import os
import random
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, tiny_items

from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import progress
from vlmsel.scoring.pool_pass import Share

TESTS = Path(__file__).parents[1]
PROGRAM = """
    import sys
    import time
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    import torch
    from tiny_models import tiny_vlm, wake_lora
    from tiny_pool import Items, Run, tiny_items, tiny_plan
    from vlmsel import processes
    from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
    from vlmsel.scoring import progress
    from vlmsel.scoring.pool_pass import Share
    from vlmsel.scoring.targets import TargetPlan

    torch.set_num_threads(1)
    progress.EVERY, progress.SHARE = 0.0, 0
    pause, images = {pause}, {images}

    def losses(subject, batch):
        time.sleep(pause)
        return subject.losses(batch)

    model = tiny_vlm(dtype=torch.{dtype})
    wake_lora(model)
    items, goal = tiny_items(images, torch.{dtype}), tiny_items([1, 0, 2], torch.{dtype}, seed=1)
    scorers = [TracIn(block_scale=True), DataInf(), HyperINF(damping=10.0), LiSSA(),
               LiSSA(batch="stream", depth=5, name="stream"), Exact()]
    print("begun", flush=True)
    # a batch of the targets holds samples of both
    plan = TargetPlan(("one", "two"), (Items(goal),), tiny_plan(goal, 2), {{0: 0, 1: 1, 2: 0}})
    run = Run(model, items, {{}}, batch_size=2, losses=losses, plan=plan)
    found = run.score(scorers, Path({out!r}), Share(chunk=2))
    if processes.is_main():
        order = found.uids.argsort()
        torch.save({{"scores": found.scores[:, order], "details": found.details}}, {out!r} + ".pt")
"""
IMAGES = [1, 0, 2, 1, 0, 3, 1, 2, 0, 1, 2]


def write_program(folder, name, pause=0.0, dtype="float64", images=IMAGES):
    path, out = folder / f"{name}.py", folder / name
    text = textwrap.dedent(PROGRAM).format(tests=str(TESTS), out=str(out), pause=pause, dtype=dtype, images=images)
    path.write_text(text)
    return path, out


def result(out):
    return torch.load(f"{out}.pt", weights_only=True)


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_scores(tmp_path, monkeypatch, count):
    one, out = write_program(tmp_path, "one")
    with monkeypatch.context() as patch:
        patch.setattr(progress, "EVERY", progress.EVERY)  # the program sets them
        patch.setattr(progress, "SHARE", progress.SHARE)
        runpy.run_path(str(one))
    expected = result(out)
    many, out = write_program(tmp_path, f"many{count}")
    launch = [sys.executable, str(TESTS / "together.py"), str(count), str(many)]
    ended = subprocess.run(launch, capture_output=True, text=True, timeout=180, env=environment())
    assert ended.returncode == 0, ended.stderr
    found = result(out)
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-9, atol=1e-12)
    samples = {scorer: {own["samples"] for own in each.values()} for scorer, each in found["details"].items()}
    # LiSSA's stream takes five batches of two, and one of them is short
    assert {k: v for k, v in samples.items() if k != "stream"} == dict.fromkeys(
        ["TracIn", "DataInf", "HyperINF", "LiSSA", "Exact"], {len(IMAGES)}
    )


@pytest.mark.slow
def test_a_job_killed_at_ten_random_moments_gives_the_same_bits(tmp_path):
    whole, out = write_program(tmp_path, "whole", dtype="float32")
    subprocess.run([sys.executable, str(whole)], check=True, timeout=120, env=environment(), capture_output=True)
    expected = result(out)
    program, out = write_program(tmp_path, "killed", pause=0.15, dtype="float32")
    rng, kills = random.Random(0), 0
    while kills < 10:
        child = subprocess.Popen(
            [sys.executable, str(program)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment()
        )
        assert child.stdout.readline() == b"begun\n"
        time.sleep(rng.uniform(0.05, 1.6))
        if child.poll() is not None:
            child.communicate()
            break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
    assert kills == 10 or Path(f"{out}.pt").is_file()
    subprocess.run([sys.executable, str(program)], check=True, timeout=300, env=environment(), capture_output=True)
    assert torch.equal(result(out)["scores"], expected["scores"])
    print(f"killed {kills} times")


# Jobs that know nothing of each other


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


def score(model, out, index=0, of=1):
    run = Run(model, tiny_items(), {"a": tiny_items([1, 0], seed=1)}, batch_size=1)
    return run.score([TracIn(), HyperINF(damping=10.0)], out, Share(index, of, chunk=2))


def test_shards_make_one_table(model, tmp_path):
    assert score(model, tmp_path / "a", 1, 3) is None
    assert sorted(path.name for path in (tmp_path / "a/parts").iterdir()) == ["00000002.safetensors"]
    assert score(model, tmp_path / "a", 0, 3) is None
    found, expected = score(model, tmp_path / "a", 2, 3), score(model, tmp_path / "b")
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.uids, expected.uids)


def test_a_job_without_a_shard_does_what_the_others_left(model, tmp_path):
    score(model, tmp_path / "a", 1, 3)
    assert torch.equal(score(model, tmp_path / "a").scores, score(model, tmp_path / "b").scores)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_other_shards_are_refused(text):
    with pytest.raises(ValueError, match=f"shard must be i/n .*; got '{text}'"):
        Share.read(text)


def test_every_batch_is_somebodys_once():
    for of in (1, 2, 5):
        owners = [[share for share in range(of) if Share(share, of, 3).has(batch)] for batch in range(20)]
        assert all(len(own) == 1 for own in owners)
        assert all(owners[batch] == owners[batch - batch % 3] for batch in range(20))
    assert Share.read("2/4") == Share(1, 4) and Share.read(None) == Share()
    assert Share(chunk=8).chunks(20) == [range(0, 8), range(8, 16), range(16, 20)]


JOB = """
    import sys
    import time
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    import torch
    from test_scoring_many import score
    from tiny_models import tiny_vlm, wake_lora
    from vlmsel.scoring import pool_pass

    torch.set_num_threads(1)
    out, index, of = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    make = pool_pass.precondition

    def slow(*args):
        print("curvature", flush=True)
        time.sleep({pause})
        return make(*args)

    pool_pass.precondition, pool_pass.POLL = slow, 0.05
    model = tiny_vlm()
    wake_lora(model)
    score(model, out, index, of)
"""


def start_job(program, *words):
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, words)], stdout=subprocess.PIPE, text=True, env=environment()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True], ids=["all live", "the first dies"])
def test_of_jobs_at_once_one_runs_the_curvature_pass(model, tmp_path, kill):
    program = tmp_path / "job.py"
    program.write_text(textwrap.dedent(JOB).format(tests=str(Path(__file__).parent), pause=25.0).replace(
        "sys.path.insert(0,", f"sys.path.insert(0, {str(TESTS)!r}); sys.path.insert(0,"
    ))  # fmt: skip
    first = start_job(program, tmp_path / "a", 0, 3)
    assert first.stdout.readline() == "curvature\n"
    others = [start_job(program, tmp_path / "a", index, 3) for index in (1, 2)]
    if kill:
        time.sleep(1.0)
        first.kill()
    said = [job.communicate(timeout=120)[0] for job in [first, *others]]
    assert [job.returncode for job in others] == [0, 0] and first.returncode == (-signal.SIGKILL if kill else 0)
    assert sum(text.count("curvature\n") for text in said[1:]) == kill
    assert kill or all("another job runs the curvature pass" in text for text in said[1:])
    assert torch.equal(score(model, tmp_path / "a").scores, score(model, tmp_path / "b").scores)


SIZES = (1, 2, 3, 7, 101)
EVERY_SIZE = """
    import sys
    from pathlib import Path

    sys.path[:0] = [{folder!r}, {tests!r}]
    import torch
    from test_scoring_many import SIZES, every_scorer
    from tiny_models import tiny_vlm, wake_lora

    torch.set_num_threads(1)
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    for size in SIZES:
        every_scorer(model, size, Path(sys.argv[1]) / str(size), *map(int, sys.argv[2:]))
"""


def every_scorer(model, size, out, index=0, of=1):
    """Score a pool of so many samples, or a share of it."""
    scorers = [TracIn(block_scale=True), DataInf(), HyperINF(damping=10.0), LiSSA(), Exact()]
    items = tiny_items(([1, 0, 2] * size)[:size], torch.float64)
    run = Run(model, items, {"a": tiny_items([1, 0], torch.float64, seed=1)}, batch_size=2)
    out.mkdir(parents=True, exist_ok=True)
    return run.score(scorers, out, Share(index, of, chunk=2))


@pytest.fixture(scope="module")
def by_size(tmp_path_factory):
    """Scores of each pool by one process."""
    torch.set_num_threads(1)
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    folder = tmp_path_factory.mktemp("alone")
    return model, {size: every_scorer(model, size, folder / str(size)) for size in SIZES}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["2 processes", "3 processes", "3 shards at once"])
def test_pools_smaller_and_larger_than_the_jobs_have_the_scores_of_one(by_size, how, tmp_path):
    model, expected = by_size
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(EVERY_SIZE).format(folder=str(Path(__file__).parent), tests=str(TESTS)))
    count, kind = how.split(" ", 1)
    if kind == "processes":
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
        ended = subprocess.run(
            [*launch, str(program), str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment()
        )
        assert ended.returncode == 0, ended.stderr
    else:
        jobs = [start_job(program, tmp_path, index, count) for index in range(int(count))]
        for job in jobs:
            job.communicate(timeout=300)
        assert [job.returncode for job in jobs] == [0] * int(count)
    for size, own in expected.items():
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / str(size)).rglob("*.safetensors")}
        found = every_scorer(model, size, tmp_path / str(size))  # reads what is there
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / str(size)).rglob("*.safetensors")} == before
        assert torch.equal(found.uids, own.uids)
        torch.testing.assert_close(found.scores, own.scores, rtol=1e-5, atol=1e-9)
