"""Several processes and several jobs give one table; a job that is killed again and again gives the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import job, tiny_items, tiny_plan, tiny_streams

from vlmsel.gradients import select_blocks
from vlmsel.scorers import HyperINF, TracIn
from vlmsel.scoring import pool_pass as run
from vlmsel.scoring.pool_pass import Share, score_pool

TESTS = Path(__file__).parents[1]
PROGRAM = """
    import sys
    import time
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    import torch
    from tiny_models import tiny_vlm, wake_lora
    from tiny_pool import OBJECTIVE, job, tiny_items, tiny_plan
    from vlmsel import processes
    from vlmsel.gradients import select_blocks
    from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
    from vlmsel.scoring import progress
    from vlmsel.scoring import pool_pass as run
    from vlmsel.scoring.curvature import Streams
    from vlmsel.scoring.pool_pass import score_pool
    from vlmsel.scoring.targets import Targets

    torch.set_num_threads(1)
    run.CHUNK, progress.EVERY, progress.SHARE = 2, 0.0, 0
    pause, images = {pause}, {images}

    def losses(model, batch):
        time.sleep(pause)
        return OBJECTIVE.losses(model, batch)

    model = tiny_vlm(dtype=torch.{dtype})
    wake_lora(model)
    items, goal = tiny_items(images, torch.{dtype}), tiny_items([1, 0, 2], torch.{dtype}, seed=1)
    work = job(model, select_blocks(model, "projector+lora"), OBJECTIVE._replace(losses=losses))
    scorers = [TracIn(block_scale=True), DataInf(), HyperINF(damping=10.0), LiSSA(),
               LiSSA(batch="stream", depth=5, name="stream"), Exact()]
    print("begun", flush=True)
    plan = tiny_plan(items, 2)
    targets = Targets(("one", "two"), tiny_plan(goal, 2), {{0: 0, 1: 1, 2: 0}})  # a batch holds samples of both
    found = score_pool(work, plan, Streams(plan, plan, targets), scorers, Path({out!r}))
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


def test_any_number_of_processes_gives_the_same_scores(tmp_path):
    one, out = write_program(tmp_path, "one")
    subprocess.run([sys.executable, str(one)], check=True, timeout=120, env=environment(), capture_output=True)
    expected = result(out)
    for count in (2, 3):
        many, out = write_program(tmp_path, f"many{count}")
        launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", str(many)]
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


def score(model, out, share=None):
    work = job(model, select_blocks(model, "projector+lora"))
    streams = tiny_streams(tiny_items(), {"a": tiny_items([1, 0], seed=1)}, 1)
    return score_pool(
        work, tiny_plan(tiny_items(), 1), streams, [TracIn(), HyperINF(damping=10.0)], out, share or Share()
    )


def test_shards_make_one_table(model, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 2)
    assert score(model, tmp_path / "a", Share.read("2/3")) is None
    assert sorted(path.name for path in (tmp_path / "a/parts").iterdir()) == ["00000002.safetensors"]
    assert score(model, tmp_path / "a", Share.read("1/3")) is None
    found, expected = score(model, tmp_path / "a", Share.read("3/3")), score(model, tmp_path / "b")
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.uids, expected.uids)


def test_a_job_without_a_shard_does_what_the_others_left(model, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 2)
    score(model, tmp_path / "a", Share.read("2/3"))
    assert torch.equal(score(model, tmp_path / "a").scores, score(model, tmp_path / "b").scores)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_other_shards_are_refused(text):
    with pytest.raises(ValueError, match=f"shard must be i/n .*; got '{text}'"):
        Share.read(text)


def test_every_chunk_is_somebodys_once():
    for of in (1, 2, 5):
        owners = [[share for share in range(of) if Share(share, of).has(chunk)] for chunk in range(20)]
        assert all(len(own) == 1 for own in owners)
    assert json.dumps(Share.read("2/4").__dict__) == '{"index": 1, "of": 4}'
