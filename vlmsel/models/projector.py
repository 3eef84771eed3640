"""The projector: maps each patch feature of the vision tower into the language model's embedding space.

`mlp2x_gelu` is LLaVA-1.5's Linear -> GELU (exact, not tanh) -> Linear with biases (arXiv 2310.03744). It differs in
one thing: its weights are drawn from a generator of its own, so building a model leaves the global random state alone.
"""

from __future__ import annotations

import re

import torch
from torch import nn


def linear_maps(kind: str) -> int:
    """Return how many linear maps a projector has.

    >>> linear_maps("linear"), linear_maps("mlp2x_gelu"), linear_maps("mlp3_gelu")
    (1, 2, 3)
    """
    match = re.fullmatch(r"mlp([1-9]\d*)x?_gelu", kind)
    if match is None and kind != "linear":
        raise ValueError(f"no projector is called {kind!r}; use linear or mlp<N>x_gelu, such as mlp2x_gelu")
    return int(match[1]) if match else 1


def draw_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear map with PyTorch's default distribution U(-1/sqrt(in), 1/sqrt(in)), drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = inputs**-0.5
    for parameter in (layer.weight, layer.bias):
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


def build_projector(kind: str, inputs: int, outputs: int, seed: int) -> nn.Sequential:
    """Build a float32 projector from `inputs` (tower width) to `outputs` (embedding width).

    Linear maps sit at even indices of the Sequential, as in LLaVA's `mm_projector.{0,2}`.

    Raises:
        ValueError: the kind is unknown.
    """
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for index in range(linear_maps(kind)):
        if index:
            layers.append(nn.GELU())
        layers.append(draw_linear(inputs if index == 0 else outputs, outputs, generator))
    return nn.Sequential(*layers)
