"""Catch the two factors of every selected parameter's per-sample gradient during one batched backward.

A forward hook ends each selected layer with an identity, the tap, that keeps what the layer read; when the gradient δ
of what the layer gave arrives at the tap, the two make a factor. Nothing is accumulated in any parameter: parameters
need no gradient meanwhile, so that the backward goes no deeper than the lowest selected layer. The tap is a node of the
graph like any other, so that activation checkpointing, which runs layers again in the backward, drops and rebuilds it.
LoRA layers run as one map meanwhile (see lora_merge.py), and the tap stands behind the whole layer.

Some transformer layers flatten [samples, tokens] to rows before a map. Where the layer that a module stands in read
[n, t, ...] and the module reads n·t rows, they are taken for these tokens in order; whether they are is for the check
of the first batch to say (check.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_leaves, tree_map

from vlmsel.gradients.blocks import LEAVES, SUPPORTED, Block, layer_kind
from vlmsel.gradients.factors import Factor, OuterFactor
from vlmsel.gradients.layers import Rows, contribution, read
from vlmsel.gradients.lora_merge import Adapter, find_adapters, merged
from vlmsel.gradients.sum_factor import merge

Sink = Callable[[str, Factor], None]
Maps = Mapping[str, Int[Tensor, " _rows"]]  # module name -> the sample of each row of its input
Uses = dict[str, list[tuple[str, str]]]  # module name -> (parameter's name in the module, block's name)


class _Tap(torch.autograd.Function):
    """The identity, which reports its input's gradient along with a tensor that was kept.

    `anchor` requires a gradient and never gets one: it makes the output part of the graph where nothing below is.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, kept: Tensor, anchor: Tensor, report: Callable) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.report = report
        return output.detach()  # returned as it is, it would be a view that later layers may not change in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, None, None, None]:
        (kept,) = ctx.saved_tensors
        ctx.report(kept, delta)
        return (delta if ctx.needs_input_grad[0] else None), None, None, None


class Capture:
    """What a batched backward left behind: one factor per block.

    `samples` may be set after the forward, when the number of losses is known, and before the backward. `start` makes
    it ready for another batch, so that a pass installs its hooks once.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        samples: int | None,
        row_samples: Maps,
        sink: Sink | None = None,
        whole: bool = False,
    ) -> None:
        self._blocks, self._sink, self._whole = list(blocks), sink, whole
        self._parameters = {block.name: _parameter(model, block) for block in blocks}
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        self.adapters: dict[str, Adapter] = find_adapters(model, names)
        one_map = {name for one in self.adapters.values() for name in (one.down, one.up)}
        self._uses = _find_uses(model, {n: p for n, p in self._parameters.items() if n not in one_map})
        self._modules = dict(model.named_modules())
        self._users = Counter(block for uses in self._uses.values() for _, block in uses)
        self._layers = _layers_above(self._modules, [*self._uses, *self.adapters])
        self._anchor = torch.zeros((), requires_grad=True)
        self.start(samples, row_samples)

    def start(self, samples: int | None, row_samples: Maps | None = None) -> None:
        """Forget what was captured and expect another batch.

        Raises:
            ValueError: `row_samples` names a module that the model does not have.
        """
        self.samples, self._row_samples = samples, row_samples or {}
        self._parts: dict[str, list[Factor]] = {block.name: [] for block in self._blocks}
        self._blind: set[str] = set()  # modules that ran without autograd
        self._seen: set[str] = set()  # modules that a backward reached
        self._calls: Counter[str] = Counter()  # of modules, with autograd
        self._given: set[str] = set()  # blocks that the sink has
        self._read: dict[str, tuple[int, int]] = {}  # samples and tokens of what a layer read
        self._ran = False
        for prefix, owners in self._row_samples.items():
            if len(owners) and prefix not in self._modules:
                raise ValueError(f"row_samples names module {prefix!r}, which {_kind(self._modules[''])} does not have")

    def backward(self, losses: Float[Tensor, " n"]) -> None:
        """Run the backward of the summed losses, or nothing where no selected layer took part in them."""
        self._ran = True
        if losses.requires_grad:
            losses.sum().backward()

    def factors(self) -> dict[str, Factor]:
        """Return the factors of the blocks that the sink does not have, in the order of the blocks; zero for a block
        that the losses do not touch.

        Raises:
            ValueError: the number of samples was never given, or gradients were cut off before they reached a block.
        """
        self.check()
        left = [block for block in self._blocks if block.name not in self._given]
        return {block.name: merge(self._parts[block.name] or [self._zero(block)]) for block in left}

    def _zero(self, block: Block) -> Factor:
        values = self._parameters[block.name].detach()
        return OuterFactor(*(values.new_zeros(self._count(), 0, size) for size in (block.rows, block.cols)))

    def _count(self) -> int:
        if self.samples is None:
            raise ValueError(
                "the number of samples is not known; pass `samples` to capture or set it on what it yields"
            )
        return self.samples

    def check(self) -> None:
        """Refuse gradients that were cut off before they reached a block.

        Raises:
            ValueError: names the module.
        """
        cut = sorted(self._blind - self._seen) if self._ran else []
        if cut:
            raise ValueError(
                f"module {cut[0]} ran without autograd, so that its gradient is lost; with re-entrant activation "
                "checkpointing let the checkpointed inputs require gradients (model.enable_input_require_grads()) or "
                "pass use_reentrant=False, and do not select modules that run under torch.no_grad()"
            )

    def _owners(self, module: str) -> Tensor | None:
        """Return the nearest map of rows."""
        above = [name for name in self._row_samples if name == module or module.startswith(name + ".")]
        return self._row_samples[max(above, key=len)] if above else None

    def _rows(self, module: str, x: Tensor) -> Rows:
        """Say which samples the rows of this input are."""
        samples, owners = self._count(), self._owners(module)
        expected = samples if owners is None else len(owners)
        if x.ndim == 0 or len(x) != expected:
            raise ValueError(
                f"module {module} read a tensor of shape {list(x.shape)}; expected {expected} rows, "
                + (f"one for each of {samples} samples" if owners is None else "one for each entry of its row_samples")
                + "; give row_samples, the sample of each row, for modules whose rows are not samples"
            )
        if owners is not None and len(owners) and not 0 <= int(owners.min()) <= int(owners.max()) < samples:
            raise ValueError(f"row_samples of module {module} hold {owners.tolist()}; expected 0 .. {samples - 1}")
        return Rows(samples, None if owners is None else owners.to(x.device))

    def _report(self, name: str, read: tuple[int, int] | None, x: Tensor, delta: Tensor) -> None:
        self._ran = True
        self._seen.add(name)
        if read is not None and read[0] == self._count() and self._owners(name) is None:
            x, delta = x.unflatten(0, read), delta.unflatten(0, read)
        for block, factor in self._contributions(name, x, delta.detach(), self._rows(name, x)):
            if self._sink is not None and (not self._whole or self._is_whole(name, block)):
                self._given.add(block)
                self._sink(block, factor)
            else:
                self._parts[block].append(factor)

    def _is_whole(self, name: str, block: str) -> bool:
        """Say whether one call of this module is all that the block is used for, as far as the forward has shown.

        A layer that checkpointing runs again counts twice or was run without autograd.
        """
        return self._calls[name] == 1 and name not in self._blind and self._users[block] <= 1

    def _contributions(self, name: str, x: Tensor, delta: Tensor, rows: Rows) -> Iterator[tuple[str, Factor]]:
        if name in self.adapters:
            yield from self.adapters[name].factors(x, delta, rows)
        for leaf, block in self._uses.get(name, ()):
            yield block, contribution(self._modules[name], leaf, x, delta, rows)

    def _tap(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """Forward hook of a selected layer."""
        if name in self.adapters and self.adapters[name].layer.disable_adapters:
            return None  # the loss switched them off for a while
        if not torch.is_grad_enabled():
            self._blind.add(name)
            return None
        self._calls[name] += 1
        x = read(module, args, kwargs, output)
        return _Tap.apply(output, x.detach(), self._anchor, partial(self._report, name, self._flattened(name, x)))

    def _flattened(self, name: str, x: Tensor) -> tuple[int, int] | None:
        """Return the samples and tokens that the rows of an input are, where its layer can have flattened them."""
        if x.ndim != 2:
            return None
        read = next((self._read[layer] for layer in self._layers[name] if layer in self._read), None)
        return read if read is not None and math.prod(read) == len(x) else None

    def _note_read(self, layer: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Forward hook of a layer, before it runs."""
        states = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim > 2)
        if (x := next(states, None)) is not None:
            self._read[layer] = (x.shape[0], x.shape[1])

    def _join(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Forward hook: make an output part of the graph if nothing in it is, so that a backward can start there."""
        if not torch.is_grad_enabled() or any(isinstance(x, Tensor) and x.requires_grad for x in tree_leaves(output)):
            return None
        return tree_map(self._joined, output)

    def _joined(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return _Tap.apply(x, self._anchor.detach(), self._anchor, self._note)

    def _note(self, kept: Tensor, delta: Tensor) -> None:
        self._ran = True

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the hooks on the model within the block."""
        joined = [self._modules[""]]
        if any(map(_reentrant, self._modules.values())):
            joined += [module for module in self._modules.values() if isinstance(module, nn.Embedding)]
        try:
            try:
                for name in [*self._uses, *(n for n, one in self.adapters.items() if one.down or one.up)]:
                    self._modules[name].register_forward_hook(partial(self._tap, name), with_kwargs=True)
                for name in {layer for above in self._layers.values() for layer in above}:
                    self._modules[name].register_forward_pre_hook(partial(self._note_read, name), with_kwargs=True)
                for module in joined:
                    module.register_forward_hook(self._join)
                yield
            finally:
                self._remove_hooks()
        finally:
            self._remove_hooks()  # again, for Ctrl-C may have cut the first time short

    def _remove_hooks(self) -> None:
        """Remove its hooks by what they are: Ctrl-C may come before a handle is at hand."""
        for module in self._modules.values():
            for hooks, marked in (
                (module._forward_hooks, module._forward_hooks_with_kwargs),
                (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            ):
                for number, hook in list(hooks.items()):
                    if getattr(getattr(hook, "func", hook), "__self__", None) is self:
                        marked.pop(number, None)
                        del hooks[number]


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _parameter(model: nn.Module, block: Block) -> nn.Parameter:
    """Return the parameter of a block."""
    try:
        return model.get_parameter(block.name)
    except AttributeError:
        raise ValueError(
            f"{_kind(model)} has no parameter {block.name}; select the blocks on the model that is run"
        ) from None


def _find_uses(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Uses:
    """List the layers that hold each parameter; a tied one has several."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    uses: Uses = {}
    for module_name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None or id(parameter) not in names:
                continue
            if layer_kind(module) is None or leaf not in LEAVES:
                raise ValueError(
                    f"parameter {names[id(parameter)]} is used by module {module_name} of class {_kind(module)}, "
                    f"which is not supported; choose parameters of {SUPPORTED}"
                )
            uses.setdefault(module_name, []).append((leaf, names[id(parameter)]))
    return uses


def _layers_above(modules: Mapping[str, nn.Module], names: Iterable[str]) -> dict[str, list[str]]:
    """Return what each module stands in: elements of lists of layers, the nearest first, and the model."""
    listed = {
        f"{name}.{each}"
        for name, one in modules.items()
        if isinstance(one, nn.ModuleList)
        for each, _ in one.named_children()
    }
    parts = {name: name.split(".") for name in names}
    above = {name: [".".join(own[:end]) for end in range(len(own) - 1, 0, -1)] for name, own in parts.items()}
    return {name: [*(layer for layer in own if layer in listed), ""] for name, own in above.items()}


def _reentrant(module: nn.Module) -> bool:
    """Say whether a transformers layer checkpoints re-entrantly, which loses gradients unless its input needs them."""
    if not (module.training and getattr(module, "gradient_checkpointing", False)):
        return False
    keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return keywords.get("use_reentrant", True) is not False


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient within the block."""
    trained = nn.ParameterList(parameter for parameter in model.parameters() if parameter.requires_grad)
    try:
        try:
            trained.requires_grad_(False)
            yield
        finally:
            trained.requires_grad_(True)
    finally:
        trained.requires_grad_(True)  # again, for Ctrl-C may have cut the first time short


@contextmanager
def capture(
    model: nn.Module,
    blocks: Sequence[Block],
    samples: int | None = None,
    row_samples: Maps | None = None,
    sink: Sink | None = None,
    whole: bool = False,
) -> Iterator[Capture]:
    """Capture the per-sample gradients of one forward and backward run inside; `factors()` of what it yields has them.

    The loss must be a sum of per-sample losses, `losses.sum().backward()`. A layer called several times counts every
    call, a tied weight every layer that uses it. Padding needs no care: its gradients are zero.

    Args:
        model: any module; its parameters' `requires_grad` is False inside and restored afterwards.
        blocks: what `select_blocks` returned for this model.
        samples: the number of samples; if None, set it on the yielded `Capture` before the backward.
        row_samples: for modules whose input rows are not samples, by module name (covering what lies below it): the
            sample of each row, [rows] of 0 .. samples - 1. A sample may have no row or several.
        sink: called with a block's name and a factor as soon as the backward has made it, instead of keeping it; a
            block whose weight is used several times comes as often, and its gradient is the sum.
        whole: the sink gets whole gradients: those of weights that are used once; `factors()` has the others.

    Raises:
        ValueError: a block is not of this model, a layer read another number of rows than expected, or a map is wrong.
    """
    captured = Capture(model, blocks, samples, row_samples or {}, sink, whole)
    with captured.installed(), frozen(model), merged(captured.adapters.values()):
        yield captured
