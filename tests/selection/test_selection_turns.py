import numpy as np
import pytest

from vlmsel.selection.turns import file_weights, in_turn, shares, turn_order


def goals(**files):
    """Target samples of some files: their losses, or pairs of loss and weight."""
    return [
        {"file": file, "uid": uid, "loss": one[0] if isinstance(one, tuple) else one}
        | {"weight": one[1] if isinstance(one, tuple) else None}
        for file, losses in files.items()
        for uid, one in enumerate(losses)
    ]


def earliest(weights, count):
    """Webster's method, turn by turn."""
    had, turns = [0] * len(weights), []
    for _ in range(count):
        best = min(range(len(weights)), key=lambda i: ((had[i] + 0.5) / weights[i] if weights[i] else np.inf, i))
        had[best] += 1
        turns.append(best)
    return turns


@pytest.mark.parametrize("seed", range(10))
def test_turns_are_those_of_the_method_and_any_prefix_has_the_shares(seed):
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 1.0, 3.0, rng.random()], size=4) + [0, 0, 0, 0.5]
    turns = in_turn(weights, 97)
    weights = weights / weights.sum()
    assert turns.tolist() == earliest(weights, 97)
    for count in range(1, 98):
        assert (abs(np.bincount(turns[:count], minlength=4) - count * weights) <= 1 + 1e-9).all()


def test_files_take_turns_by_their_mean_loss_and_their_samples_equally():
    targets = goals(a=[1.0, 2.0, 3.0], b=[1.0] * 50)
    weights = file_weights(targets, "loss", None)
    assert weights == {"a": 2.0, "b": 1.0} and file_weights(targets, "equal", None) == {"a": 1.0, "b": 1.0}
    assert file_weights(targets, "root_loss", None) == {"a": pytest.approx(2**0.5), "b": 1.0}
    assert shares(targets, weights) == pytest.approx([2 / 9] * 3 + [1 / 150] * 50)
    turns = turn_order(targets, weights, 30)
    assert [(turns[:count] < 3).sum() for count in (3, 6, 30)] == [2, 4, 20]
    assert max(np.bincount(turns)[3:]) == 1 and max(np.bincount(turns)[:3]) - min(np.bincount(turns)[:3]) == 1
    served = np.sort(turns[turns >= 3])
    assert served[0] < 10 and served[-1] > 43 and np.diff(served).max() <= 10  # ten of fifty, all over the file


def test_records_own_weights_count():
    targets = goals(a=[(1.0, 3.0), (5.0, 1.0)], b=[(2.0, None)])
    assert file_weights(targets, "loss", None) == {"a": 2.0, "b": 2.0}
    turns = turn_order(targets, {"a": 1.0, "b": 1.0}, 16)
    assert np.bincount(turns).tolist() == [6, 2, 8]


def test_no_loss_at_all_means_equal_turns():
    assert file_weights(goals(a=[0.0], b=[0.0]), "loss", None) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a": 1.0}, "weights are needed of the target files that choose, a, b: look at 'b'"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "look at 'c'"),
        ({"a": 1.0, "b": -1.0}, "weight of target b must be 0 or more, got -1.0"),
        ({"a": float("nan"), "b": 1.0}, "weight of target a must be 0 or more, got nan"),
        ({"a": 0.0, "b": 0.0}, "the weights of all targets are 0"),
    ],
)
def test_other_weights_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        file_weights(goals(a=[1.0], b=[1.0]), "loss", given)


def test_unknown_losses_are_refused():
    with pytest.raises(ValueError, match="target b: no losses in the affinity file; pass --turns equal"):
        file_weights(goals(a=[1.0], b=[1.0, None]), "loss", None)
