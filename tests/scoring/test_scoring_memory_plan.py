"""Where curvature is gathered: decisions and their words for made-up machines, and the files of the place on disk."""

import errno
import gc
import os
from dataclasses import dataclass

import pytest
import torch

from vlmsel.scorers import BlockTargets, DataInf, Exact, GradientScorer, HyperINF, LiSSA, Solved, Statistic, TracIn
from vlmsel.scoring import memory as places
from vlmsel.scoring.memory import DiskZeros, Memory, host_free, measure_memory, zeros_at
from vlmsel.scoring.memory_plan import RESERVE, plan_curvature

pytestmark = pytest.mark.usefixtures("unchecked")  # plans look at thousands of shapes and at no number

GB = 10**9
LLAMA = {f"layers.{i}.q": (64, 4096) for i in range(128)}  # 128 matrices of 4096²
HYPERINF = (HyperINF(),)
MATRICES = 128 * 4 * 4096**2


def memory(device, host, disk, cpu=False):
    return Memory(int(device * GB), int(host * GB), int(disk * GB), cpu)


def plan(machine, scorers=HYPERINF, blocks=LLAMA, samples=1000, prefer="auto", targets=1):
    return plan_curvature(scorers, blocks, targets, samples, machine, prefer)


@pytest.mark.parametrize(
    "machine, place, words",
    [
        (
            memory(80, 100, 1000),
            "device",
            "curvature: 128 GFIM matrices, 8.6 GB on the device (device has 80 GB free, host 100 GB)",
        ),
        (
            memory(3.1, 41, 1000),
            "host",
            "curvature: 128 GFIM matrices, 8.6 GB in host memory (device has 3.1 GB free, host 41 GB)",
        ),
        (
            memory(3.1, 8, 1000),
            "disk",
            "curvature: 128 GFIM matrices, 8.6 GB on disk (device has 3.1 GB free, host 8.0 GB)",
        ),
        (
            memory(16, 16, 1000, cpu=True),
            "device",
            "curvature: 128 GFIM matrices, 8.6 GB in memory (memory has 16 GB free, disk 1000 GB)",
        ),
        (
            memory(8, 8, 20, cpu=True),
            "disk",
            "curvature: 128 GFIM matrices, 8.6 GB on disk (memory has 8.0 GB free, disk 20 GB)",
        ),
    ],
)
def test_the_first_place_with_room_is_taken_and_told(machine, place, words):
    found = plan(machine)
    assert (found.place, found.describe(), found.gathered) == (place, words, MATRICES)
    assert found.needs[place] >= MATRICES and all(found.needs[other] < GB for other in found.needs if other != place)


def test_a_place_is_taken_up_to_its_reserve_and_no_further():
    needs = plan(memory(80, 0, 0)).needs["device"]
    enough = int(needs / (1 - RESERVE["device"])) + 2
    assert plan(Memory(enough, 0, 0, False)).place == "device"
    assert plan(Memory(enough - 10, 10**11, 0, False)).place == "host"


def test_on_the_device_stay_three_matrices_at_a_time_and_the_solutions():
    """Off the device: one matrix brought, two of the iteration with an eighth, the right-hand sides, and all h."""
    needs = plan(memory(1, 100, 0), samples=10**9).needs
    one, v = 4 * 4096**2, 4 * 64 * 4096
    assert needs == {"device": int(3.125 * one) + 8 * v + 128 * v, "host": MATRICES + one, "disk": 0}


def test_a_preferred_place_is_taken_or_refused_with_another_named():
    assert plan(memory(80, 100, 1000), prefer="disk").place == "disk"
    with pytest.raises(
        ValueError, match=r"no room on the device: .* what would fit: another place, 'host'; "
    ) as refused:
        plan(memory(3, 100, 1000), prefer="device")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="curvature is placed on 'gpu'; expected 'auto', 'device', 'host' or 'disk'"):
        plan(memory(3, 100, 1000), prefer="gpu")


def test_a_refusal_has_the_numbers_and_what_would_fit():
    machine = memory(3, 4, 2)
    with pytest.raises(ValueError) as refused:
        plan(machine, blocks=LLAMA | {"down": (4096, 11008)})
    message = str(refused.value)
    assert message.startswith(
        "what the scorers gather has no room at any place: HyperINF 9.1 GB (129 GFIM matrices, the largest 485 MB for "
        "down [4096, 11008]); gathered on disk it takes "
    )
    assert "there are 2.7 GB on the device, 3.2 GB in host memory, 1.9 GB on disk to take" in message
    assert "HyperINF with side='short' (69 MB); fewer blocks, such as the 46 smallest of 129; scorers that" in message
    assert plan(machine, blocks=dict(list(LLAMA.items())[:46])).place == "host"
    with pytest.raises(ValueError):
        plan(machine, blocks=dict(list(LLAMA.items())[:47]))
    assert plan(machine, scorers=[HyperINF(side="short")], blocks=LLAMA | {"down": (4096, 11008)}).place == "device"


def test_fewer_fit_samples_are_suggested_where_gradients_are_kept_and_they_fit():
    machine, scorers = memory(20, 20, 1, cpu=True), [HyperINF(side="short"), Exact()]
    with pytest.raises(ValueError, match=r"Exact 134 GB \(128 sets of kept gradients, .* fit_samples=(\d+) or f") as no:
        plan(machine, scorers)
    most = int(str(no.value).partition("fit_samples=")[2].split()[0])
    assert plan(machine, scorers, samples=most).place == "device"
    with pytest.raises(ValueError):
        plan(machine, scorers, samples=most + 1)
    with pytest.raises(ValueError) as refused:
        plan(memory(20, 20, 1, cpu=True), [HyperINF(dtype="float64")], samples=10)
    assert "fit_samples" not in str(refused.value)


def test_the_fim_of_large_blocks_is_refused_for_the_gfim():
    with pytest.raises(ValueError, match=r"HyperINF 35184 GB .*would fit: HyperINF with curvature='gfim' \(8.6 GB\)"):
        plan(memory(80, 100, 1000), [HyperINF(curvature="fim")])


def test_scorers_that_hold_no_more_than_the_targets_stay_on_the_device():
    found = plan(memory(3, 4, 0), [TracIn(), DataInf(), LiSSA(batch="stream")])
    assert found.place == "device" and found.gathered == 0 and found.needs["host"] == 0
    assert found.describe().startswith("curvature: no matrices, 6")
    with pytest.raises(ValueError, match="TracIn nothing, DataInf 134 MB .* would fit: fewer blocks"):
        plan(memory(0.3, 40, 100), [TracIn(), DataInf()])


def test_fewer_targets_are_suggested_where_a_hundred_have_no_room():
    machine, scorers = memory(20, 20, 1, cpu=True), [TracIn(), DataInf(), HyperINF(side="short")]
    with pytest.raises(ValueError, match=r"DataInf 13 GB .* (\d+) or fewer targets at a time") as refused:
        plan(machine, scorers, targets=100)
    most = int(str(refused.value).partition(" or fewer targets")[0].split()[-1])
    assert plan(machine, scorers, targets=most).place == "device"
    with pytest.raises(ValueError):
        plan(machine, scorers, targets=most + 1)
    with pytest.raises(ValueError) as one:
        plan(memory(0.3, 40, 100), [TracIn(), DataInf()])
    assert "fewer targets" not in str(one.value)


class Sum(Statistic):
    """The sum of the targets' shape that a plug-in gathers."""

    def __init__(self, block):
        super().__init__(block)
        self.total = torch.zeros_like(block.targets)

    def gather(self, factor):
        raise NotImplementedError

    def tensors(self):
        return {"total": self.total}


@dataclass(frozen=True)
class Plug(GradientScorer):
    name: str = "Plug"

    def statistic(self, block):
        return Sum(block)

    def solve(self, statistic, v):
        return Solved(v)


def test_a_plug_in_that_says_nothing_is_counted_by_its_tensors_and_the_targets_and_stays():
    block = BlockTargets(torch.empty(2, 3, 5, device="meta"))
    assert Plug().statistic(block).bytes(100) == Plug().solve_bytes(block, 100) == 2 * 3 * 5 * 4
    assert plan(memory(80, 1, 1), [Plug()]).needs["device"] == 4 * 64 * 4096 * (128 + 128 + 1)


# Places


def test_this_machine_is_measured(tmp_path):
    found = measure_memory("cpu", tmp_path / "not" / "yet", processes=1)
    assert found.device_is_cpu and found.device_free == found.host_free > 10**8 and found.disk_free > 10**6
    shared = measure_memory("cpu", tmp_path, processes=1000)
    assert shared.host_free < found.host_free / 500 and shared.disk_free < found.disk_free / 500


def test_host_memory_is_what_is_available_within_the_container_s_limit(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n")
    assert host_free(meminfo, tmp_path) == 5000 * 1024
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 250000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert host_free(meminfo, tmp_path) == 5000 * 1024
    (tmp_path / "memory.max").write_text("4000000\n")
    assert host_free(meminfo, tmp_path) == 1_250_000
    assert host_free(tmp_path / "none", tmp_path / "none") > 10**8


def test_zeros_on_disk_lie_apart_in_files_without_a_name(tmp_path):
    zeros = zeros_at("disk", "cpu", tmp_path / "run")
    shapes = [(3, 5), (0, 7), (1,), (2, 2), (5000, 2000)]
    tensors = [zeros(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.float64)]
    assert not any(bool(tensor.any()) for tensor in tensors)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))
    assert [tuple(tensor.shape) for tensor in tensors[::2]] == shapes and tensors[1].dtype == torch.float64
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="Linux only")
def test_the_room_on_disk_returns_when_the_tensors_are_dropped(tmp_path):
    def mapped():
        gc.collect()
        with open("/proc/self/maps") as maps:
            return sum(str(tmp_path) in line for line in maps)

    zeros = DiskZeros(tmp_path)
    tensors = [zeros((100,), torch.float32) for _ in range(50)] + [zeros((2**24,), torch.float32)]
    assert mapped() == 2  # the small ones share a file
    del tensors[-1]
    assert mapped() == 1
    del tensors, zeros
    assert mapped() == 0


def test_a_full_disk_is_an_error_when_room_is_asked_for(tmp_path, monkeypatch):
    def full(number, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(places, "_reserve", full)
    with pytest.raises(
        OSError, match=r"curvature\..*\.map: cannot be written \(No space left on device\); its disk has .* GB free"
    ):
        DiskZeros(tmp_path)((4,), torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_disk_needs_a_folder():
    with pytest.raises(ValueError, match="need a folder"):
        zeros_at("disk", "cpu")
