"""TracIn over checkpoints against a loop over checkpoints, samples and targets, in float64; stopped runs go on."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, Stopped, loop, loop_means, scores_by_hand, stopping, tiny_items

from vlmsel.gradients import select_blocks
from vlmsel.scorers import DataInf, Random, TracIn
from vlmsel.scoring.arrays import score_gradients
from vlmsel.scoring.checkpoints import Checkpoints, add_checkpoints, first_order, score_checkpoints
from vlmsel.scoring.pool_pass import Scored, Share

FORMS = [TracIn(), TracIn(block_scale=True, name="scaled"), TracIn(cosine=True, name="cosine")]
RATES = [1e-3, 5e-4]
ITEMS = tiny_items(dtype=torch.float64)
GOALS = {"one": tiny_items([1, 2, 0], torch.float64, seed=1), "text": tiny_items([0, 0], torch.float64, seed=2)}
TWO = Share(chunk=2)


@pytest.fixture(scope="module")
def models():
    """Two checkpoints of one model: the second has moved on in projector and adapters."""
    found = [tiny_vlm(dtype=torch.float64) for _ in RATES]
    generator = torch.Generator().manual_seed(3)
    for model in found:
        wake_lora(model)
    with torch.no_grad():
        for block in select_blocks(found[1], "projector+lora"):
            weight = found[1].get_parameter(block.name)
            weight += 0.2 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return found


class Training:
    """A subject that loads its checkpoints from memory."""

    def __init__(self, models):
        self.models, self.now = models, models[-1]

    def load_trained(self, place):
        self.now = self.models[int(place.name)]


def summed(models, out, losses=None, rates=RATES):
    """Score the pool at the last model with other scorers too, then at every one of them, and add up."""
    training, folders = Training(models), tuple(out / str(number) for number in range(len(models)))
    checkpoints = Checkpoints(tuple(map(str, folders)), folders, tuple(rates), tuple(FORMS))

    def score(scorers, folder):
        return Run(training.now, ITEMS, GOALS, losses=losses).score(scorers, folder, TWO)

    scored = Run(models[-1], ITEMS, GOALS).score([*FORMS, DataInf()], out / "own", TWO)
    return score_checkpoints(checkpoints, training, scored, score, out)


def columns(scored):
    order = scored.uids.argsort()
    return {"/".join(name): row[order] for name, row in zip(scored.names, scored.scores, strict=True)}


def test_the_sum_is_that_of_a_loop_over_checkpoints(models, tmp_path):
    expected = {
        f"{form.name}.CP/{goal}": torch.zeros(len(ITEMS), dtype=torch.float64) for form in FORMS for goal in GOALS
    }
    for model, rate in zip(models, RATES, strict=True):
        blocks = select_blocks(model, "projector+lora")
        gradients, means = loop(model, ITEMS, blocks), loop_means(model, GOALS, blocks)
        for t, goal in enumerate(GOALS):
            for i in range(len(ITEMS)):
                inner = sum((means[b.name][t] * gradients[b.name][i]).sum() for b in blocks)
                expected[f"TracIn.CP/{goal}"][i] -= rate * inner
        scaled = scores_by_hand(gradients, means, FORMS[1], range(len(ITEMS)))
        for form, rows in ((FORMS[1], scaled), (FORMS[2], score_gradients(gradients, means, FORMS[2]))):
            for goal, row in zip(GOALS, rows, strict=True):
                expected[f"{form.name}.CP/{goal}"] += rate * row
    found = summed(models, tmp_path)
    own = columns(found)
    assert list(own)[-6:] == list(expected) and len(own) == 8 + 6
    for name, row in expected.items():
        torch.testing.assert_close(own[name], row, rtol=1e-9, atol=1e-9 * row.abs().max().item(), msg=name)
    assert found.details["TracIn.CP"] == {"learning_rates": RATES} and "DataInf" in found.details


def test_one_checkpoint_with_rate_one_is_tracin(models, tmp_path):
    found = columns(summed(models[-1:], tmp_path, rates=[1.0]))
    for form in FORMS:
        for goal in GOALS:
            one, other = found[f"{form.name}.CP/{goal}"], found[f"{form.name}/{goal}"]
            torch.testing.assert_close(one, other, rtol=1e-12, atol=0)


def test_the_curvature_pass_is_run_only_for_a_scale_per_block(models, tmp_path):
    targets = sum(map(len, GOALS.values()))
    for scorers, passes in ((FORMS[::2], 1), (FORMS, 2)):
        losses, calls = stopping(99)
        Run(models[0], ITEMS, GOALS, losses=losses).score(scorers, tmp_path / str(passes))
        assert sum(len(batch.uids) for batch in calls) == targets + passes * len(ITEMS)


@pytest.mark.parametrize(
    ("after", "left"),
    [(6, 11), (8, 8), *(pytest.param(*one, marks=pytest.mark.slow) for one in [(1, 16), (12, 8), (15, 1)])],
)
def test_a_run_stopped_within_or_between_checkpoints_goes_on(models, after, left, tmp_path):
    """2 batches of targets, 3 of the fit and 3 of the score pass at each checkpoint."""
    expected = columns(summed(models, tmp_path / "whole"))
    with pytest.raises(Stopped):
        summed(models, tmp_path / "stopped", stopping(after)[0])
    losses, calls = stopping(99)
    found = columns(summed(models, tmp_path / "stopped", losses))
    assert len(calls) == left
    for name, row in expected.items():
        assert torch.equal(found[name], row), name


def test_a_sample_that_is_not_finite_at_one_checkpoint_has_no_sum(models, tmp_path, capsys):
    def losses(subject, batch):
        first = subject.projector is models[0].projector
        return subject.losses(batch) + torch.where((batch.uids == 31) & first, float("nan"), 0.0)

    found, expected = columns(summed(models, tmp_path, losses)), columns(summed(models, tmp_path / "clean"))
    assert "1 of 8 samples left out" in capsys.readouterr().out
    for name, row in found.items():
        lost = torch.isnan(row).nonzero().flatten().tolist()
        assert lost == ([7] if ".CP/" in name else []), name
        if not name.startswith("scaled"):  # its scale is that of the samples it was fitted on
            torch.testing.assert_close(row[:7], expected[name][:7])


def at(names, uids, *scores):
    return Scored(torch.tensor(uids), torch.zeros(len(uids)), torch.tensor(scores), names, {}, {})


ONE = (("TracIn", "a"),)


def test_sums_are_matched_by_uid():
    own = at(ONE, [4, 7], [0.0, 0.0])
    found = add_checkpoints(own, [at(ONE, [4, 7], [1.0, 2.0]), at(ONE, [7, 4], [30.0, 40.0])], [1.0, 0.1])
    assert found.scores.tolist() == [[0, 0], [5, 5]] and found.names == (*ONE, ("TracIn.CP", "a"))


@pytest.mark.parametrize(
    ("found", "rates", "message"),
    [
        ([], [], "a learning rate for each checkpoint, got 0 for 0"),
        ([at(ONE, [4, 7], [1.0, 2.0])], [1.0, 2.0], "got 2 for 1 checkpoints"),
        (
            [at(ONE, [4, 7], [1.0, 2.0]), at((("other", "a"),), [4, 7], [1.0, 2.0])],
            RATES,
            "columns differ; .* TracIn/a",
        ),
        ([at(ONE, [4, 9], [1.0, 2.0])], [1.0], "of 2 samples, the pool of 2; 1 are missing, the first: 7"),
        ([at(ONE, [4, 7, 9], [1.0, 2.0, 3.0])], [1.0], "of 3 samples, the pool of 2; some are new"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(found, rates, message):
    with pytest.raises(ValueError, match=message):
        add_checkpoints(at(ONE, [4, 7], [0.0, 0.0]), found, rates)


def test_scorers_of_first_order_are_summed():
    assert first_order([DataInf(), *FORMS, Random()]) == FORMS
    with pytest.raises(ValueError, match="a scorer is called 'TracIn.CP', as the sum over checkpoints is"):
        first_order([TracIn(), DataInf(name="TracIn.CP")])
