"""Another part of the same pools: what a demo takes over from an earlier one, and what the papers' presets score."""

import pytest

from vlmsel.studies.demo import BEFORE, CHOSEN, FULL, MIXTURE, PRESETS, SCORERS, TOP, Demo
from vlmsel.studies.study import Seed


@pytest.fixture
def calls():
    return []


def demo(folder, calls, preset, worlds=None):
    return Demo(folder, PRESETS[preset], lambda *given, **options: calls.append((*given, options)), worlds)


def scored_by(tmp_path, calls, preset):
    folder = tmp_path / "seed3"
    (folder / "world").mkdir(parents=True)
    (folder / "world" / "world.json").write_text("{}")  # drawn already
    demo(tmp_path, calls, preset).prepare(Seed(3, folder))
    return {command: options for command, _, options in calls}


def test_the_papers_scorers_read_the_aligned_model(tmp_path, calls):
    done = scored_by(tmp_path, calls, "papers")
    assert done["score"]["model"] == done["choose"]["model"] == "tiny-aligned"
    assert "blocks" not in done["score"] and "allow_untrained" not in done["score"]


def test_before_alignment_they_read_the_last_block_of_the_model_that_has_not_seen(tmp_path, calls):
    done = scored_by(tmp_path, calls, "unaligned")
    assert done["choose"]["model"] == "tiny-aligned"  # the default's row stays what it is
    score = done["score"]
    assert (score["model"], score["blocks"], score["allow_untrained"]) == ("tiny", "last-block", True)


def test_another_part_is_chosen_from_the_other_demos_scores(tmp_path, calls):
    there, seed = tmp_path / "20", Seed(3, tmp_path / "05" / "seed3")
    study = demo(tmp_path / "05", calls, "papers", there)
    for arm in (CHOSEN, TOP, *SCORERS, f"{MIXTURE} 1"):
        out = study.subset(seed, arm)
        command, written, options = calls[-1]
        assert (command, written) == ("select", out) and out.parent == seed.folder / "selected"
        assert options["pool"] == str(there / "seed3/world/pool.json")
        run = "score" if arm in SCORERS else "choose/score"
        assert options["scores"] == str(there / "seed3" / run)
    assert options["like"] == str(seed.folder / "selected" / f"{CHOSEN}.json")
    assert "rule" not in next(given for _, out, given in calls if out.stem == CHOSEN)  # the default rule


def test_the_whole_pools_model_is_the_other_demos(tmp_path, calls):
    there, seed = tmp_path / "20", Seed(3, tmp_path / "05" / "seed3")
    study = demo(tmp_path / "05", calls, "papers", there)
    assert study.tune(seed, FULL, study.subset(seed, FULL)) == there / "seed3/tune/full_pool"
    assert study.tune(seed, BEFORE, None) == "tiny-aligned" and not calls
    assert study.tune(seed, TOP, tmp_path / "top.json") == seed.folder / "tune" / TOP
    assert calls[-1][-1]["images"] == str(there / "seed3/world/images")


def test_worlds_that_were_not_run_are_refused(tmp_path, calls):
    study = demo(tmp_path / "05", calls, "papers", tmp_path / "20")
    with pytest.raises(FileNotFoundError, match="20/seed3: no world was evaluated there; run that demo first"):
        study.prepare(Seed(3, tmp_path / "05" / "seed3"))
    assert not calls
