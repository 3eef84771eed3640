"""A phase in several processes: the losses and weights of one process, whatever the number of samples, and no hang."""

import json
import multiprocessing
import os
import socket
import time
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from tiny_models import tiny_vlm
from tiny_phase import Pool, collate, weights
from torch.distributed.tensor import DTensor

from vlmsel import processes
from vlmsel.training import loop
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import train_phase

LIMIT = 300.0  # seconds, for all cases on a busy machine
BOTH = PhaseSettings(learning_rate=1e-2, batch_size=4, epochs=2, weight_decay=0.1, warmup_ratio=0)
PROJECTOR = replace(BOTH, train="projector", batch_size=2, epochs=3)
CUT = "cut short"  # in the second epoch, and gone on with
CASES = {
    **{f"{n} samples": (BOTH, [1, 0, 2, 1, 1, 0, 1, 1, 1, 2][:n]) for n in (1, 2, 3, 7, 10)},
    "101 samples": (replace(BOTH, epochs=1), [1, 0] * 50 + [1]),
    "micro-batches": (replace(BOTH, gradient_accumulation=2), [1] * 7),
    "text beside images": (PROJECTOR, [1, 0, 1, 0, 0]),  # dealt so that a process has text alone
    "steps of text": (PROJECTOR, [1, 1, 0, 0, 0, 1]),
    CUT: (replace(BOTH, save_every=1), [1, 0, 2, 1, 1]),
}


def work(folder, name, settings, images):
    """Train on samples in their order, and leave the weights beside the losses."""

    def cut(epoch):
        if epoch:
            raise RuntimeError("cut")
        return range(len(images))

    if name == CUT:
        with pytest.raises(RuntimeError, match="cut"):
            train_phase(fresh(folder), Pool(images), settings, folder / name, order=cut)
        processes.wait()
    model = fresh(folder)
    result = train_phase(model, Pool(images), settings, folder / name, order=lambda epoch: range(len(images)))
    (folder / f"{name}.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result.losses))
    save_file(weights(model), folder / f"{name}.{os.environ.get('RANK', '0')}.safetensors")
    return model


def fresh(folder):
    model = tiny_vlm(folder / f"backbones{os.environ.get('RANK', '')}")
    model.collate = collate
    return model


def held(model, count, shards):
    """In shards a process holds its part of the layers' base weights, and all else as a whole."""
    parameters = dict(model.named_parameters())
    parts = {name: p for name, p in parameters.items() if isinstance(p, DTensor)}
    base = {n for n in parameters if n.startswith("language_model.") and ".layers." in n and ".lora_" not in n}
    assert set(parts) == (base if shards else set())
    assert all(len(p.to_local()) <= -(-len(p) // count) for p in parts.values())
    return True


def among(rank, count, port, folder, shards):
    torch.set_num_threads(1)  # a fork that waits for the threads of the process before it waits for ever
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"ACCELERATE_USE_FSDP": str(shards).lower(), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    for name, case in CASES.items():
        assert held(work(folder, name, *case), count, shards)


def together(count, folder, shards=False):
    """Run `among` in so many processes, which must end within the limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=among, args=(rank, count, port, folder, shards)) for rank in range(count)]
    for process in started:
        process.start()
    try:
        end = time.monotonic() + LIMIT
        for process in started:
            process.join(max(0, end - time.monotonic()))
        assert [process.exitcode for process in started] == [0] * count
    finally:
        for process in started:
            process.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    for name, case in CASES.items():
        work(folder, name, *case)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "bucket", "shards"), [(2, 100, False), (3, loop.BUCKET, False), (2, 100, True), (3, loop.BUCKET, True)]
)
def test_any_number_of_processes_trains_as_one(count, bucket, shards, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "BUCKET", bucket)
    together(count, tmp_path, shards)
    for name in CASES:
        expected, state = json.loads((alone / f"{name}.0.json").read_text()), load_file(alone / f"{name}.0.safetensors")
        for rank in range(count):
            losses = json.loads((tmp_path / f"{name}.{rank}.json").read_text())
            assert losses == pytest.approx(expected, rel=1e-5), name
            found = load_file(tmp_path / f"{name}.{rank}.safetensors")
            for key, tensor in state.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=2e-5)
