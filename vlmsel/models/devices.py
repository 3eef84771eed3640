"""Where a model lies and in which precision: names as users give them."""

from __future__ import annotations

import torch

from vlmsel import processes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKED = {"4bit": torch.bfloat16, "8bit": torch.bfloat16}  # loaded so, then packed


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is this process's GPU, the first where there is one, or else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if name == "auto":
        name = f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; give auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {name}: torch sees {torch.cuda.device_count()} GPUs; give auto or cpu")
    return device


def pick_dtype(name: str) -> torch.dtype:
    """Return the dtype called `name`, that of what is loaded and of all that is not packed into 4 or 8 bits later.

    Raises:
        ValueError: it is none that models are loaded in.
    """
    known = DTYPES | PACKED
    if name not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {name!r}")
    return known[name]
