"""Targets, fit samples and pools without gradient are refused by name; blocks without one are told with their share."""

import pytest
import torch
from peft import PeftModel
from stored import random_gradients, score_stored, written
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, tiny_items

from vlmsel import score_gradients
from vlmsel.scorers import HyperINF, TracIn
from vlmsel.scoring.no_gradient import without_zeros

PICTURE, TEXT, PLAIN = [1, 2], [0, 0], TracIn()


@pytest.fixture
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


def score(model, out, pool=PICTURE, target=PICTURE, scorer=PLAIN, **more):
    targets = {"seen": tiny_items([1], seed=3), "asked": tiny_items(target, seed=1)}
    return Run(model, tiny_items(pool), targets, **more).score([scorer], out)


def test_a_target_without_gradient_is_refused_by_name(model, tmp_path):
    with pytest.raises(ValueError, match=r"target asked: no gradient on any block \(projector\.\S+, .*more\), all sco"):
        score(model, tmp_path, target=TEXT, spec="projector")


def test_a_target_without_gradient_on_some_blocks_is_fine_and_is_said_where_no_target_has_one(model, tmp_path, capsys):
    found = score(model, tmp_path / "a", target=TEXT)
    assert found.scores.any(1).all() and "no target" not in capsys.readouterr().out
    targets = {"asked": tiny_items(TEXT, seed=1)}
    Run(model, tiny_items(PICTURE), targets).score([TracIn()], tmp_path / "b")
    assert "no target has a gradient on 4 of 32 blocks, " in (said := capsys.readouterr().out)
    assert "% of the entries" in said and "projector.0.weight" in said


@pytest.mark.parametrize("how", ["merged", "disabled"])
def test_adapters_that_do_not_run_are_refused(model, how, tmp_path):
    adapters: PeftModel = model.language_model
    adapters.merge_adapter() if how == "merged" else adapters.base_model.disable_adapter_layers()
    with pytest.raises(ValueError, match="target seen: no gradient on any block .*switched on and not merged"):
        score(model, tmp_path, spec="lora")


@pytest.mark.parametrize("scorer", [TracIn(), HyperINF(), TracIn(cosine=True)])
def test_a_pool_without_gradient_is_refused(model, scorer, tmp_path):
    with pytest.raises(ValueError, match=rf"{scorer.name}\S* .*all scores would be 0|{scorer.name}/seen: every score"):
        score(model, tmp_path, pool=TEXT, scorer=scorer, spec="projector")


def test_blocks_on_which_no_fit_sample_has_a_gradient_are_said(model, tmp_path, capsys):
    found = score(model, tmp_path, pool=[1, 0, 0], scorer=HyperINF(), fit=[1, 2])
    assert found.scores.any(1).all()
    assert "no fit sample has a gradient on 4 of 32 blocks" in capsys.readouterr().out


def test_arrays_without_gradient_are_refused():
    some, nothing = torch.ones(2, 2, 3), torch.zeros(2, 2, 3)
    with pytest.raises(ValueError, match=r"target 0: no gradient on any block \(w\)"):
        score_gradients({"w": some}, {"w": nothing}, TracIn())
    with pytest.raises(ValueError, match=r"TracIn/0: every score is 0"):
        score_gradients({"w": nothing}, {"w": some}, TracIn())
    with pytest.raises(ValueError, match=r"HyperINF: no fit sample has a gradient on a block where target 0 has one"):
        score_gradients({"w": nothing}, {"w": some}, HyperINF())
    both = {"w": some, "v": nothing}
    assert score_gradients(both, both, HyperINF()).any()


def test_stored_gradients_that_are_all_zero_are_refused(tmp_path):
    zeros = {name: torch.zeros_like(own) for name, own in random_gradients().items()}
    with pytest.raises(ValueError, match=r"TracIn/one: every score is 0, .* on any block \(.*layer.weight"):
        score_stored(written(tmp_path, zeros), [TracIn()])


def test_a_column_in_which_nothing_is_in_common_is_left_empty(capsys):
    scores = torch.tensor([[0.0, 0.0, torch.nan], [0.0, -1.0, 2.0]])
    found = without_zeros([("BM25", "odd"), ("BM25", "gqa")], scores)
    assert found[0].isnan().all() and torch.equal(found[1], scores[1])
    assert (
        capsys.readouterr().out == "BM25/odd: every score is 0, for nothing is in common by BM25; the column is empty\n"
    )
