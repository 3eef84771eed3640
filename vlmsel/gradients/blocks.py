"""Which parameters' per-sample gradients are looked at.

A block is one parameter seen as a matrix: a 2-D weight as torch stores it, a 1-D parameter as a single row. Blocks are
named by what they belong to ("projector", "lora", "last-block", joined by "+") or by a regular expression.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch
import torch.nn.functional as F
from peft.tuners.lora.dora import DoraLinearLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

SUPPORTED = "nn.Linear, transformers Conv1D, nn.Embedding, nn.LayerNorm, RMSNorm"
PROJECTORS = {
    "projector", "multi_modal_projector", "mm_projector", "merger", "deepstack_merger_list", "connector", "mlp1",
    "aligner",
}  # fmt: skip
LANGUAGE = {"language_model", "text_model", "llm"}  # path segments of the language model inside a larger model
VISION = re.compile(r"vision|visual|image|audio|clip", re.IGNORECASE)
LORA = re.compile(r"\.lora_((embedding_)?[AB]|magnitude_vector)\.")
MATRIX = "mm_input_projection_weight"  # Gemma 3's projector multiplies with it, outside of any layer
LEAVES = ("weight", "bias", MATRIX)
FROZEN_COPY = "original_module"  # PEFT's modules_to_save keeps the untrained copy there; it never runs


@dataclass(frozen=True)
class Block:
    """One parameter whose per-sample gradient is looked at.

    Attributes:
        name: the parameter's name in `model.named_parameters()`.
        module: the name of the module that owns it.
        rows, cols: its shape as a matrix; a 1-D parameter of length d is [1, d].
    """

    name: str
    module: str
    rows: int
    cols: int


def layer_kind(module: nn.Module) -> str | None:
    """Return linear, conv1d, embedding, layernorm, rmsnorm, magnitude (DoRA's) or matrix (Gemma 3's projector).

    None if the layer is not supported. A subclass with a forward of its own is not taken for its parent, for its
    gradient may differ, unless it proves to compute the same.
    """
    plain: dict[str, type[nn.Module]] = {
        "linear": nn.Linear,
        "conv1d": Conv1D,
        "embedding": nn.Embedding,
        "layernorm": nn.LayerNorm,
        "rmsnorm": nn.RMSNorm,
    }
    for kind, layer in plain.items():
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return kind if _is_regular(module) else None
    if isinstance(module, nn.Linear):
        if module not in _proven:
            _proven[module] = _computes_linear(module)
        return "linear" if _proven[module] else None
    if type(module) is DoraLinearLayer:
        return "magnitude"
    if list(module._parameters) == [MATRIX]:
        return "matrix"
    return "rmsnorm" if _is_rms_norm(module) else None


_proven: weakref.WeakKeyDictionary[nn.Linear, bool] = weakref.WeakKeyDictionary()


@torch.no_grad()
def _computes_linear(module: nn.Linear) -> bool:
    """Try whether a subclass computes x Wᵀ + b of its own weight and of another, for x of any size."""
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or weight.ndim != 2 or not weight.is_floating_point() or weight.is_meta:
        return False
    wave = torch.arange(3 * weight.shape[1], device=weight.device).double().sin().reshape(3, 1, -1)
    x = (wave * wave.new_tensor([1e-2, 1.0, 1e2])[:, None, None]).to(weight.dtype)
    twin = copy.copy(module)
    twin._parameters = {**module._parameters, "weight": nn.Parameter(weight.flip(0) / 2, requires_grad=False)}
    return all(_same(each, F.linear(x, own, bias), x) for each, own in ((module, weight), (twin, twin.weight)))


def _same(module: nn.Linear, expected: torch.Tensor, x: torch.Tensor) -> bool:
    try:
        found = type(module).forward(module, x)
    except Exception:  # whatever it wants, it is no plain map
        return False
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    off, size = (torch.linalg.vector_norm(own.double(), dim=2) for own in (found - expected, expected))
    return bool((off <= {2: 0.02, 4: 1e-4}.get(x.element_size(), 1e-9) * size).all())


def _is_regular(module: nn.Module) -> bool:
    """Exclude settings that change the gradient, and the layer that nn.MultiheadAttention uses without calling it."""
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return len(module.normalized_shape) == 1
    return not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _is_rms_norm(module: nn.Module) -> bool:
    """Recognise the RMSNorm classes of transformers models: one weight vector and an epsilon."""
    weight = module._parameters.get("weight")
    single = weight is not None and weight.ndim == 1 and len(module._parameters) == 1
    has_epsilon = hasattr(module, "eps") or hasattr(module, "variance_epsilon")
    return type(module).__name__.endswith("RMSNorm") and single and has_epsilon


def select_blocks(model: nn.Module, spec: str) -> list[Block]:
    r"""Return the blocks that a specification names, in model order.

    Args:
        model: any module.
        spec: "projector" (with biases), "lora" (A and B of every adapter, DoRA's magnitudes), "last-block" (linear and
            norm weights of the language model's last transformer layer, frozen ones too), such names joined by "+", or
            else a regular expression searched in parameter names. A tied weight is found under each of its names and
            is one block.

    Raises:
        ValueError: nothing matches, a match belongs to an unsupported layer, or the expression is malformed.

    >>> [block.name for block in select_blocks(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "weight$")]
    ['0.weight']
    """
    tests = _named_tests(model, spec)
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = {}
    for alias, parameter in model.named_parameters(remove_duplicate=False):
        if FROZEN_COPY not in alias.split(".") and any(test(alias) for test in tests):
            chosen[id(parameter)] = canonical[id(parameter)]
    if not chosen:
        raise ValueError(_nothing_found(spec, canonical.values()))
    wanted = set(chosen.values())
    return [_block(model, name) for name in canonical.values() if name in wanted]


def _named_tests(model: nn.Module, spec: str) -> list[Callable[[str], bool]]:
    """Turn a specification into predicates on parameter names."""
    known: dict[str, Callable[[], Callable[[str], bool]]] = {
        "projector": lambda: in_projector,
        "lora": lambda: lambda name: LORA.search("." + name) is not None,
        "last-block": lambda: _last_block_test(model),
    }
    parts = [part.strip() for part in spec.split("+")]
    if all(part in known for part in parts):
        return [known[part]() for part in parts]
    try:
        pattern = re.compile(spec)
    except re.error as problem:
        raise ValueError(
            f"blocks {spec!r} are neither of {', '.join(known)} (joined by +) nor a regular expression: {problem}"
        ) from None
    return [lambda name: bool(spec) and pattern.search(name) is not None]


def in_projector(name: str) -> bool:
    """Tell from a parameter's name whether it is of a map from what a tower sees to what a language model reads.

    >>> in_projector("model.visual.merger.mlp.0.weight"), in_projector("model.visual.blocks.0.mlp.fc1.weight")
    (True, False)
    """
    return not PROJECTORS.isdisjoint(name.split(".")[:-1])


def left_out(model: nn.Module, spec: str, blocks: Sequence[Block]) -> str:
    """Say what a specification implies and `blocks` lack, with its share of the entries; "" where that is nothing.

    The last block is all parameters of the last layer (linear and norm weights are looked at), adapters are all of
    PEFT's LoRA (A, B and magnitudes are); an expression names what it means.

    >>> layer = nn.ModuleDict({"map": nn.Linear(2, 3), "other": nn.Bilinear(1, 2, 3)})
    >>> model = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    >>> left_out(model, "last-block", select_blocks(model, "last-block"))
    'blocks last-block: 3 of 4 parameters, 67 % of the entries, are not looked at: other.weight, map.bias, other.bias'
    """
    parts = {part.strip() for part in spec.split("+")}
    prefixes = [last_layer(model) + "."] if "last-block" in parts else []
    implied = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if FROZEN_COPY not in name.split(".")
        and (any(name.startswith(prefix) for prefix in prefixes) or ("lora" in parts and ".lora_" in "." + name))
    }
    lost = [name for name in implied if name not in {block.name for block in blocks}]
    if not lost:
        return ""
    share = 100 * sum(implied[name] for name in lost) / sum(implied.values())
    lost = [name.removeprefix(prefixes[0] if prefixes else "") for name in sorted(lost, key=lambda n: -implied[n])]
    shown = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
    what = f"{len(lost)} of {len(implied)} parameters, {share:.2g} % of the entries"
    return f"blocks {spec}: {what}, are not looked at: {shown}"


def _last_block_test(model: nn.Module) -> Callable[[str], bool]:
    """Accept linear and norm weights under the path of the last transformer layer."""
    prefix = last_layer(model) + "."
    weights = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if name.startswith(prefix) and layer_kind(module) not in (None, "embedding")
    }
    return lambda name: name in weights


def last_layer(model: nn.Module) -> str:
    """Return the path of the last transformer layer of the language model in `model`.

    That is the last element of its longest list of layers (of the later one where two are as long, as in an
    encoder-decoder); lists inside a layer, such as experts, do not count, and neither do vision towers.

    Raises:
        ValueError: there is no list of layers.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = {name: module for name, module in lists.items() if _is_layer_list(name, module, lists)}
    if not outer:
        raise ValueError(f"{type(model).__name__} has no list of transformer layers; give a regular expression instead")
    language = {name: module for name, module in outer.items() if not LANGUAGE.isdisjoint(name.split("."))}
    candidates = language or outer
    longest = max(len(module) for module in candidates.values())
    name = [name for name, module in candidates.items() if len(module) == longest][-1]
    return f"{name}.{longest - 1}"


def _is_layer_list(name: str, module: nn.ModuleList, lists: Iterable[str]) -> bool:
    nested = any(name.startswith(other + ".") for other in lists)
    linear = any(layer_kind(part) in ("linear", "conv1d") for part in module.modules())
    return linear and not nested and not any(VISION.search(segment) for segment in name.split("."))


def _block(model: nn.Module, name: str) -> Block:
    """Describe a parameter as a block."""
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    if layer_kind(module) is None or leaf not in LEAVES:
        layer = type(module)
        raise ValueError(
            f"parameter {name} belongs to a layer of class {layer.__module__}.{layer.__qualname__}, "
            f"which is not supported; choose parameters of {SUPPORTED}"
        )
    shape = module.get_parameter(leaf).shape
    rows, cols = (1, shape[0]) if len(shape) == 1 else shape
    return Block(name, module_name, rows, cols)


def _likeness(spec: str, name: str) -> float:
    """Say how like a specification is to the nearest segment of a parameter's name, from 0 to 1."""
    return max(round(SequenceMatcher(None, spec, part).ratio(), 1) for part in name.split("."))


def _nothing_found(spec: str, names: Iterable[str]) -> str:
    """Say that nothing matches and what there is, layers of a kind counted once, those that could be meant first."""
    shapes = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
    shapes.sort(key=lambda shape: -_likeness(spec, shape))
    shown = ", ".join(shapes[:12]) + (f", and {len(shapes) - 12} more" if len(shapes) > 12 else "")
    return (
        f"blocks {spec!r} match no parameter (use projector, lora, last-block, or a regular expression, with | for "
        f"alternatives); the model has {shown or 'no parameters'}"
    )
