"""The projector: shapes, initialisation and names."""

import pytest
import torch
from torch import nn

from vlmsel.models.projector import build_projector


def test_mlp2x_is_linear_exact_gelu_linear():
    projector = build_projector("mlp2x_gelu", 6, 4, seed=0)
    assert [type(layer) for layer in projector] == [nn.Linear, nn.GELU, nn.Linear]
    assert projector[1].approximate == "none"
    assert {name: tuple(p.shape) for name, p in projector.named_parameters()} == {
        "0.weight": (4, 6),
        "0.bias": (4,),
        "2.weight": (4, 4),
        "2.bias": (4,),
    }


@pytest.mark.parametrize(("kind", "maps"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp3x_gelu", 3), ("mlp2_gelu", 2)])
def test_other_depths(kind, maps):
    projector = build_projector(kind, 6, 4, seed=0)
    assert len(projector) == 2 * maps - 1
    assert projector(torch.zeros(2, 5, 6)).shape == (2, 5, 4)


def test_initialisation_is_its_own_and_repeatable():
    state = torch.random.get_rng_state()
    first, second, other = (build_projector("mlp2x_gelu", 64, 32, seed=s) for s in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)
    assert first[0].weight.abs().max() <= 64**-0.5
    assert first[0].weight.std().item() == pytest.approx(64**-0.5 / 3**0.5, rel=0.05)
    assert first[2].bias.abs().max() <= 32**-0.5


@pytest.mark.parametrize("kind", ["mlp0x_gelu", "mlp2x_relu", "identity", ""])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ValueError, match="no projector is called"):
        build_projector(kind, 6, 4, seed=0)
