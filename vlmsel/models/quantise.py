"""A language model whose frozen linear layers hold 4 or 8 bits per weight, through bitsandbytes: for scoring adapters.

    4bit    NF4 with products in bfloat16 (QLoRA, arXiv 2305.14314), about 0.5 bytes per weight
    8bit    int8 with outliers apart (LLM.int8, arXiv 2208.07339), 1 byte per weight; inputs are rounded to int8 as well

Embedding, head, norms, adapters, projector and vision tower stay as they are. Layers are packed when the model moves to
its device, a GPU or the CPU. Gradients of adapters are exact for the packed weights (and the rounded inputs of 8bit);
those of packed weights themselves there are none.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from vlmsel.models.language import decoder_and_head
from vlmsel.models.subject import Subject

CPU = (0, 50)  # the first version whose layers were seen to compute on one
Pack = Callable[[nn.Linear], nn.Module]


def packer(dtype: str, device: torch.device) -> Pack:
    """Return what makes a packed layer of a linear one.

    Raises:
        ValueError: bitsandbytes is missing, or too old for a CPU.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"--dtype {dtype} needs bitsandbytes, which is not installed: pip install bitsandbytes")
    bits: Any = import_module("bitsandbytes")
    if device.type == "cpu" and tuple(map(int, bits.__version__.split(".")[:2])) < CPU:
        raise ValueError(
            f"--dtype {dtype} on a CPU needs bitsandbytes 0.50 or later, got {bits.__version__}; update it"
        )
    return (lambda layer: _four(bits, layer)) if dtype == "4bit" else (lambda layer: _eight(bits, layer))


def _four(bits: Any, layer: nn.Linear) -> nn.Module:
    how = {"compute_dtype": torch.bfloat16, "quant_type": "nf4"}
    packed = bits.nn.Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None, **how)
    packed.weight = bits.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=packed)
    packed.bias = layer.bias
    return packed


def _eight(bits: Any, layer: nn.Linear) -> nn.Module:
    how = {"has_fp16_weights": False, "threshold": 6.0}
    packed = bits.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=layer.bias is not None, **how)
    packed.weight = bits.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    packed.bias = layer.bias
    return packed


def quantise(subject: Subject, pack: Pack) -> int:
    """Put packed layers in the place of the plain linear ones of a language model's decoder; return how many.

    Raises:
        ValueError: the model is no language model with adapters, so that nothing would be left to look at.
    """
    if not any(".lora_A." in name for name, _ in subject.module.named_parameters()):
        raise ValueError("4 and 8 bits are for scoring adapters, and the model has none; take --dtype bfloat16")
    getattr(subject, "fingerprints", None)  # of the weights as they were, which are taken once: packed ones have others
    decoder, head = decoder_and_head(subject.backbone)
    chosen = [
        (name, module)
        for name, module in decoder.named_modules()
        if type(module) is nn.Linear and module is not head and ".lora_" not in f".{name}"
    ]
    for name, layer in chosen:
        above, _, leaf = name.rpartition(".")
        setattr(decoder.get_submodule(above), leaf, pack(layer))
    return len(chosen)
