"""Which of several processes this one is, as `accelerate launch` and `torchrun` say, and what they do together.

Results are merged through files in the run folder, which all processes must see; sums that are large or needed at once
go through torch.distributed (gloo on CPUs, nccl on GPUs). Alone, a process does none of it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FSDP = "ACCELERATE_USE_FSDP"
GRACE = 10.0  # seconds; what starts several processes ends the others as soon as one has failed


def rank() -> int:
    """Return this process's number among all; 0 when it runs alone."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """Return how many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_main() -> bool:
    """Tell whether this is the process that opens the run folder, prints and writes results."""
    return rank() == 0


def wants_shards() -> bool:
    """Tell whether a launcher asks for frozen weights in shards, and there are several processes to hold them."""
    return count() > 1 and _asked(FSDP)


@contextmanager
def sharding() -> Iterator[bool]:
    """Tell whether weights are to be in shards, and keep accelerate, which would wrap the whole model, from asking.

    Raises:
        ValueError: the launcher asks for DeepSpeed; names the mend.
    """
    if _asked("ACCELERATE_USE_DEEPSPEED"):
        raise ValueError(
            "the launcher asks for DeepSpeed, which is not supported; take recipes/accelerate/fsdp.yaml, or ddp.yaml "
            "where a GPU holds the whole model"
        )
    wanted, said = wants_shards(), os.environ.pop(FSDP, None)
    try:
        yield wanted
    finally:
        if said is not None:
            os.environ[FSDP] = said


def _asked(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("true", "1")


@contextmanager
def first_speaks() -> Iterator[None]:
    """Let the first process tell a fault that all of them find; one that only another finds is told a bit later."""
    try:
        yield
    except (ValueError, OSError):
        if not is_main():
            time.sleep(GRACE)
        raise


def _join() -> Any:
    """Make the processes know each other, once; return accelerate's state."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())  # without it accelerate takes CPUs for one process
    assert state.num_processes == count(), f"{state.num_processes} processes found, {count()} announced"
    return state


def wait() -> None:
    """Go on when every process has come here; at once when there is only one."""
    if count() > 1:
        _join().wait_for_everyone()


def add_up(tensor: Tensor) -> None:
    """Replace a tensor by its sum over all processes, in place."""
    import torch.distributed as dist

    _in_place(tensor, dist.all_reduce)


def share(tensor: Tensor, owner: int) -> None:
    """Give every process the tensor of the process `owner`, in place."""
    import torch.distributed as dist

    _in_place(tensor, partial(dist.broadcast, src=owner))


def _in_place(tensor: Tensor, call: Callable[[Tensor], Any]) -> None:
    if count() > 1:
        here = tensor.to(_join().device)  # nccl moves what lies on the GPU only
        call(here)
        if here is not tensor:
            tensor.copy_(here)


def merge_into(owner: int, state: Callable[[], dict[str, Tensor]], merge: Callable[[dict[str, Tensor]], None]) -> None:
    """Merge what all processes hold into what the process `owner` holds, two states at a time.

    Args:
        owner: who shall have it all; what the others hold afterwards means nothing.
        state: gives the tensors that this process holds.
        merge: takes another process's in.
    """
    place, step = (rank() - owner) % count(), 1
    while step < count():
        if place % (2 * step) == step:
            _send(state(), (rank() - step) % count())
            return
        if place % (2 * step) == 0 and place + step < count():
            merge(_receive((rank() + step) % count()))
        step *= 2


def _send(tensors: dict[str, Tensor], to: int) -> None:
    import torch.distributed as dist

    device = _join().device
    dist.send_object_list([{name: (tuple(x.shape), x.dtype) for name, x in tensors.items()}], dst=to, device=device)
    for tensor in tensors.values():
        if tensor.numel():
            dist.send(tensor.to(device).contiguous(), dst=to)


def _receive(sender: int) -> dict[str, Tensor]:
    import torch
    import torch.distributed as dist

    device, about = _join().device, [None]
    dist.recv_object_list(about, src=sender, device=device)
    made = {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in about[0].items()}  # type: ignore[attr-defined]
    for tensor in made.values():
        if tensor.numel():
            dist.recv(tensor, src=sender)
    return made


def gather(value: Any) -> list[Any]:
    """Return every process's value, by rank; for small things and for tensors on the CPU."""
    if count() == 1:
        return [value]
    import torch.distributed as dist

    _join()
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found
