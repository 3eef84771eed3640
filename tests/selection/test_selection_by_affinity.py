"""Which target files choose and which are kept; strata and summaries."""

import numpy as np
import pytest
from small_choices import budget, each_in_turn, unit_rows

from vlmsel.selection import AffinityRule, Facts, Taken, describe, strata, top
from vlmsel.selection.turns import turn_order


class Held:
    """Affinities in memory: unit features, and directions of unit length, of the samples with odd uids."""

    def __init__(self, seed=0, n=120, files="aaabbc", whole=False):
        rng = np.random.default_rng(seed)
        self.uids = np.arange(n) * 2 + 1
        self.features, self.aims = unit_rows(rng, n, 4, whole), unit_rows(rng, len(files), 4)
        self.targets = [{"file": f, "uid": 10 * t, "weight": None, "loss": 1.0 + t} for t, f in enumerate(files)]

    def unit(self, scorer, rows):
        return self.features[rows]

    def directions(self, scorer):
        return self.aims

    def combination(self, scorer):
        return 3 * self.aims

    def whitening(self, scorer):
        return np.eye(4, dtype=np.float32)


def choose(source, count=30, rule="round_robin", files=None, **settings):
    amount = budget(count, 241, sources=settings.pop("sources", None))
    return AffinityRule(**settings).choose(rule, source, "S", files, amount)


def test_uids_and_target_samples_are_told():
    source = Held()
    choice = choose(source)
    turns = turn_order(source.targets, {"a": 2.0**0.5, "b": 4.5**0.5, "c": 6.0**0.5}, 30)
    expected = each_in_turn(source.aims @ source.features.T, turns, budget(30, 120), np.ones(120, dtype=bool))
    assert choice.taken.rows.tolist() == [2 * row + 1 for row, _, _ in expected]
    about = choice.about()
    assert about["target_uid"] == [10 * t for _, t, _ in expected] and set(about["target_file"]) == set("abc")
    assert about["affinity"] == pytest.approx([value for _, _, value in expected], abs=1e-5)
    assert choice.turns() == "6 target samples (turns: a 24 %, b 35 %, c 41 %)"


def test_some_files_choose_with_weights_and_samples_without_gradient_take_no_turns():
    source = Held()
    source.aims[1] = 0
    choice = choose(source, files=["a", "b"], weights={"a": 2, "b": 1})
    files, uids = choice.about()["target_file"], choice.about()["target_uid"]
    assert files.count("a") == 20 and files.count("b") == 10 and 10 not in uids
    source.aims[5] = 0
    with pytest.raises(ValueError, match="target c: none of its samples has a gradient"):
        choose(source)


def test_a_file_that_is_kept_takes_no_turns_and_its_worst_samples_are_passed_over():
    source = Held()
    near = source.features @ source.aims[:3].mean(axis=0)
    worst = set(source.uids[np.argsort(near)[:24]].tolist())
    free, kept = choose(source, 90, turns="equal"), choose(source, 90, keep="a", keep_quantile=0.2, turns="equal")
    assert worst & set(free.taken.rows.tolist()) and not worst & set(kept.taken.rows.tolist())
    assert set(kept.about()["target_file"]) == {"b", "c"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"files": ["a", "z"]}, "no target file 'z' in the affinity file; it has a, b, c"),
        ({"keep": "z"}, "no target file 'z'"),
        ({"files": ["a", "b"], "keep": "b"}, "target b can either choose or be kept"),
        ({"keep": ["a", "b", "c"]}, "all target files, a, b, c, are to be kept: none is left that chooses"),
        ({"keep": "a", "keep_quantile": 1.0}, "keep_quantile must lie in .0, 1., got 1.0"),
        ({"keep": "a", "count": 115}, "only 108 with a finite score can be chosen"),
        ({"within": "herding"}, "no meaning without --rule strata"),
        ({"turns": "equal", "weights": {"a": 1.0, "b": 1.0, "c": 1.0}}, "--turns: no meaning beside --weights"),
        ({"keep_quantile": 0.2}, "--keep_quantile: no meaning without --keep; leave it out"),
        ({"rule": "strata", "pool_share": 2.0}, "pool_share must lie in .0, 1., got 2.0"),
        ({"weights": {"a": -1.0, "b": 1.0, "c": 1.0}}, "weight of target a must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        choose(Held(), **settings)


def test_a_kept_file_that_says_nothing_or_is_one_that_chooses_is_refused():
    flat, twin = Held(), Held(files="aabb")
    flat.aims[5] = 0
    with pytest.raises(ValueError, match="--keep c: none of its samples has a gradient by S, so that none is kept"):
        choose(flat, keep="c")
    for one, other in zip(twin.targets[:2], twin.targets[2:], strict=True):
        other |= {"uid": one["uid"], "loss": one["loss"]}
    with pytest.raises(ValueError, match="--keep b: holds the samples of target a, which chooses; leave one of them"):
        choose(twin, keep="b")


def test_samples_without_gradient_are_told():
    source = Held()
    source.aims[1] = 0
    assert choose(source).turns().startswith("5 target samples, 1 more without gradient (turns: a ")


def test_herding_names_the_target_that_is_nearest():
    source = Held()
    choice = choose(source, rule="herding")
    rows = (choice.taken.rows - 1) // 2
    near = source.aims @ source.features[rows].T
    assert choice.taken.takers.tolist() == near.argmax(axis=0).tolist()
    np.testing.assert_allclose(choice.taken.values, near.max(axis=0), atol=1e-6)


@pytest.mark.parametrize("within", ["round_robin", "herding"])
def test_strata_choose_within_sources_by_the_rule(within):
    source = Held()
    sources = np.random.default_rng(3).choice(["x", "y", "z"], size=241, p=[0.6, 0.3, 0.1])
    free = choose(source, 40, rule=within).taken.rows
    choice = choose(source, 40, rule="strata", within=within, sources=sources)
    for name in "xyz":
        mixed = 20 * np.mean(sources[free] == name) + 20 * np.mean(sources[source.uids] == name)
        mine = choice.taken.rows[sources[choice.taken.rows] == name]
        assert abs(len(mine) - mixed) < 1
        part = Held()
        part.uids, part.features = source.uids[here := sources[source.uids] == name], source.features[here]
        assert mine.tolist() == choose(part, len(mine), rule=within).taken.rows.tolist()
    half = sources[choice.taken.rows[:20]]
    assert abs(np.mean(half == "x") - np.mean(sources[choice.taken.rows] == "x")) <= 0.05


def test_strata_of_tokens_leave_out_what_pays_for_nothing():
    amount = budget(100, 6, [50, 40, 30, 60, 90, 95], ["a", "a", "a", "a", "b", "b"])

    def rule(part, allowed):
        rows = top(np.where(allowed, np.arange(6.0), np.nan), part)
        return Taken(rows, rows, np.zeros(len(rows), dtype=np.float32))

    assert strata(rule, amount, np.ones(6, dtype=bool), 1.0).rows.tolist() == [1]  # 49 and 51 tokens
    with pytest.raises(ValueError, match="no source's share of 100 tokens pays for a sample"):
        dear = budget(100, 4, [90, 90, 90, 90], ["a", "b", "c", "d"])
        strata(
            lambda part, allowed: Taken(*[np.zeros(1, dtype=np.int64)] * 2, np.zeros(1)), dear, np.ones(4, bool), 1.0
        )


def test_a_summary_compares_the_choice_with_what_could_be_chosen():
    sources, usable = np.array([*"aaaabbbbcx"]), np.array([True] * 9 + [False])
    loss = np.array([1.0, 1, 1, 1, 2, 2, 2, 2, 3, np.nan])
    facts = Facts(sources, usable, np.array([2, 2, 2, 2, 10, 10, 10, 10, 10, 0]), loss)
    lines, warnings = describe(facts, np.array([0, 1, 2, 4]), np.arange(10.0))
    assert lines[0] == "sources: a 75.0 % (pool 44.4 %), b 25.0 % (pool 44.4 %), c 0.0 % (pool 11.1 %)"
    assert lines[1] == "mean of the choice (pool): tokens 4 (6.444), loss 1.25 (1.667), norm 1.75 (4)"
    assert warnings == ["warning: nothing was chosen from c"]
    _, warnings = describe(facts, np.array([0, 1, 2, 4]), rule="round_robin")
    assert warnings == ["warning: nothing was chosen from c; --rule strata keeps every source"]
    _, warnings = describe(facts, np.array([0, 1]), rule="top")
    assert "at most half as long as the pool's (2 tokens against 6.444)" in warnings[0] and "b, c;" in warnings[1]
    many = Facts(np.array([f"s{i}" for i in range(30)]), np.ones(30, dtype=bool))
    lines, warnings = describe(many, np.array([0]), rule="herding")
    assert lines[0].endswith("and 24 more") and len(lines) == 1 and "and 23 more;" in warnings[0]
