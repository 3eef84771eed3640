"""Fingerprints: what tells one model's weights from any other's.

`weights_digest` hashes every byte of every tensor, and so tells a model in the dtype that it was loaded in.

A saved model names its backbones. Should the files behind a name change, every weight would still load and every
answer be wrong. `fingerprint` hashes all weights rounded to bfloat16, so that the dtype that a backbone is loaded in
does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from multiprocessing.pool import ThreadPool
from os import cpu_count
from typing import Any

import torch
from torch import Tensor

ELSEWHERE = ("_name_or_path", "transformers_version", "dtype")  # not what a model computes, or in its weights


def weights_digest(state: Mapping[str, Tensor], about: str = "", dtype: torch.dtype | None = None) -> str:
    """Hash named tensors, wherever they lie, and what else is said `about` them.

    With `dtype` they are rounded to it first. Tensors are hashed in threads: 7B parameters take seconds.
    """
    with ThreadPool(min(8, cpu_count() or 1)) as pool:
        parts = pool.map(lambda item: (item[0], _tensor_digest(item[1], dtype)), sorted(state.items()))
    return hashlib.sha256(repr((about, parts)).encode()).hexdigest()


def _tensor_digest(tensor: Tensor, dtype: torch.dtype | None) -> tuple[str, list[int], str]:
    """Return a tensor's dtype, its shape and the hash of its bytes."""
    chosen = tensor.detach() if dtype is None else tensor.detach().to(dtype)
    content = chosen.cpu().contiguous().flatten().view(torch.uint8).numpy()
    return str(chosen.dtype), list(chosen.shape), hashlib.sha256(content.data).hexdigest()


def tokenizer_settings(tokenizer: Any) -> Any:
    """Return what a tokenizer's ids depend on: its vocabulary and rules, not how it was last asked to cut or pad."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    return sorted({**rules, "truncation": None, "padding": None}.items()), tokenizer.special_tokens_map


def model_settings(model: Any) -> Any:
    """Return what a model computes from its weights, as its configuration says, not where they came from."""
    settings = model.config.to_dict()
    return sorted((name, repr(value)) for name, value in settings.items() if name not in ELSEWHERE)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Hash all weights of a backbone, rounded to bfloat16; "" (no statement) for float16, whose rounding differs."""
    if any(tensor.dtype == torch.float16 for tensor in state.values()):
        return ""
    return weights_digest(state, dtype=torch.bfloat16)[:16]
