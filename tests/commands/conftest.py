"""A world of a few samples and a model aligned on it for one step, shared by the tests of the commands."""

import random

import pytest

from vlmsel import cli
from vlmsel.data.world.files import write_captions, write_pool, write_target


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Files of a tiny world: captions.json, pool.json with 12 samples, targets/{gqa,pope}.json and images/."""
    folder = tmp_path_factory.mktemp("world")
    write_captions(folder, 4, random.Random(0))
    write_pool(folder, 12, random.Random(1))
    for task in ("gqa", "pope"):
        write_target(folder, task, 2, random.Random(task))
    return folder


@pytest.fixture(scope="session")
def aligned(world, tmp_path_factory):
    """The run folder of `vlmsel align`."""
    out = tmp_path_factory.mktemp("runs") / "align"
    arguments = ["align", "--data", f"{world}/captions.json", "--images", f"{world}/images", "--out", str(out)]
    assert cli.main([*arguments, "--settings.max_steps", "1", "--settings.batch_size", "4"]) == 0
    return out
