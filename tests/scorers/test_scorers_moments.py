"""TracIn by Adam's own moments against its formula written as a loop, and what it refuses."""

import math

import naive_scorers as naive
import pytest
import torch
from safetensors.torch import save_file

from vlmsel import score_gradients
from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, TracIn

FLOOR = 1e-6


def moments(tmp_path, **blocks):
    path = tmp_path / "moments.safetensors"
    save_file({name: own.float() for name, own in blocks.items()}, path)
    return str(path)


def scaled(v, squares):
    """v / √v̂ entry by entry, with no moment below a millionth of their mean."""
    entries = squares.flatten().tolist()
    least = FLOOR * sum(entries) / len(entries)
    divided = [x / math.sqrt(max(s, least)) for x, s in zip(v.flatten().tolist(), entries, strict=True)]
    return torch.tensor(divided, dtype=torch.float64).view_as(v)


@pytest.mark.parametrize("shape", [(5, 3), (3, 6), (1, 5)])
def test_scores_and_norms_are_those_of_gradients_over_the_roots_of_moments(shape, tmp_path):
    gradients, targets = naive.draw(7, *shape, seed=1), naive.draw(2, *shape, seed=2)
    squares = naive.draw(*shape, seed=3).square().float().double()
    squares[0, 0] = 0  # never moved
    scorer = TracIn(moments=moments(tmp_path, w=squares, other=squares))
    found = score_gradients({"w": gradients}, {"w": targets}, scorer)
    for row, v in zip(found, targets, strict=True):
        assert row.tolist() == pytest.approx(naive.scores(gradients, scaled(v, squares)))
    statistic = scorer.statistic(BlockTargets(targets, name="w"))
    norms = scorer.metric(statistic).squares(Factor.from_dense(gradients))
    assert norms.tolist() == pytest.approx([naive.dot(scaled(g, squares), g) for g in gradients])


def test_a_block_that_never_moved_scores_nothing(tmp_path):
    gradients, targets = (
        {"w": naive.draw(3, 2, 2), "u": naive.draw(3, 2, 2)},
        {"w": naive.draw(1, 2, 2), "u": naive.draw(1, 2, 2)},
    )
    scorer = TracIn(moments=moments(tmp_path, w=torch.zeros(2, 2), u=torch.ones(2, 2)))
    expected = naive.scores(gradients["u"], targets["u"][0])
    assert score_gradients(gradients, targets, scorer)[0].tolist() == pytest.approx(expected)
    statistic = scorer.statistic(BlockTargets(targets["w"], name="w"))
    assert not scorer.metric(statistic).squares(Factor.from_dense(gradients["w"])).any()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"other": torch.ones(2, 2)},
            r"no moments of w; score the blocks that were trained \(--blocks\)",
        ),
        ({"w": torch.tensor([[1.0, math.nan], [1.0, 1.0]])}, "moments of w are not finite"),
        ({"w": torch.ones(4)}, r"moments of w have shape \[4\]"),
        ({"w": torch.ones(2, 3)}, r"moments of w have shape \[2, 3\]"),
        (None, "no file of moments"),
    ],
)
def test_moments_that_do_not_fit_are_refused(blocks, message, tmp_path):
    path = moments(tmp_path, **blocks) if blocks else str(tmp_path / "moments.safetensors")
    with pytest.raises(ValueError, match=message):
        score_gradients({"w": torch.ones(3, 2, 2)}, {"w": torch.ones(1, 2, 2)}, TracIn(moments=path))


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "moments.safetensors").write_bytes(b"{}")
    with pytest.raises(ValueError, match="no file of moments"):
        TracIn(moments=str(tmp_path / "moments.safetensors")).statistic(BlockTargets(torch.ones(1, 2, 2), name="w"))


def test_they_are_counted_in_memory_once_and_not_read_for_it():
    block = BlockTargets(torch.empty(1, 30, 20, device="meta"))
    assert TracIn(moments="nowhere").statistic(block).bytes(7) == 30 * 20 * 4
    assert TracIn(moments="nowhere").metric_bytes(block) == 0


@pytest.mark.parametrize("wrong", [3, True, ["a"]])
def test_what_is_no_path_is_refused(wrong):
    with pytest.raises(ValueError, match="moments is a path such as"):
        TracIn(moments=wrong)


@pytest.mark.parametrize("other", ["block_scale", "cosine"])
def test_moments_exclude_other_scales(other):
    with pytest.raises(ValueError, match="moments divide by entry"):
        TracIn(moments="a file", **{other: True})
