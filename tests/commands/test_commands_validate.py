"""vlmsel validate on runs of several scorers: LDS, deciles, groups and duel, of a VLM and of a classifier."""

import re

import numpy as np
import pytest
from tiny_text import save_encoder, sentences, write_csv

from vlmsel import cli, runs
from vlmsel.studies import retraining
from vlmsel.studies.known import Known
from vlmsel.studies.leave_out import halves

SCORERS = ["TracIn", "HyperINF", "Random", "Loss", "Length", "gradient norm"]


@pytest.fixture(scope="module")
def scored(world, aligned, tmp_path_factory):
    """A warm-up and a score by several scorers."""
    out = tmp_path_factory.mktemp("runs")
    pool = ["--pool", f"{world}/pool.json", "--images", f"{world}/images", "--device", "cpu"]
    steps = ["--settings.max_steps", "3", "--least", "3", "--out", f"{out}/warmup"]
    assert cli.main(["warmup", "--model", str(aligned), *pool, *steps]) == 0
    targets = ["--targets.gqa", f"{world}/targets/gqa.json", "--targets.pope", f"{world}/targets/pope.json"]
    words = ["score", "--model", f"{out}/warmup", *pool, *targets, "--scorers", "[Random,TracIn,HyperINF]"]
    assert cli.main([*words, "--out", f"{out}/score"]) == 0
    return out / "score"


def validate(run, out, study, *more):
    words = ["validate", "--run", str(run), "--study", study, "--device", "cpu", "--out", str(out), *map(str, more)]
    return cli.main(words)


def test_lds_retrains_once_for_all_scorers_and_goes_on(scored, tmp_path, monkeypatch, capsys):
    trained, train = [], retraining.train_on

    def stopped(subject, data, *more, **named):
        trained.append(runs.read_json(data))
        if len(trained) == 4:
            raise KeyboardInterrupt
        return train(subject, data, *more, **named)

    monkeypatch.setattr(retraining, "train_on", stopped)
    more = ("--subsets", 3, "--seeds", 2)
    assert validate(scored, tmp_path / "lds", "lds", *more) == 130
    assert validate(scored, tmp_path / "lds", "lds", *more) == 0
    assert "plan: 6 trainings on 6 samples each, 2 seeds" in capsys.readouterr().out
    assert len(trained) == 7 and all(len(records) == 6 for records in trained)  # one was begun twice
    found = runs.read_json(tmp_path / "lds/validate.json")
    assert list(found["rows"]) == [*SCORERS, "retrained again"]
    assert len(found["losses"]) == 2 and found["losses"][0] != found["losses"][1]
    assert not list(tmp_path.glob("lds/seed*/work")) and (tmp_path / "lds/validate.png").stat().st_size
    pool = runs.read_json(scored.parent / "warmup/warmup.json")["pool"]
    whole = runs.read_json(pool)
    for row, records in zip(halves(12, 3), trained, strict=False):
        assert [one["id"] for one in records] == [whole[i]["id"] for i in range(12) if row[i]]
    assert cli.main(["report", str(tmp_path / "lds")]) == 0
    assert "lds: LDS, 95 % interval" in (tmp_path / "lds/report.html").read_text()


def test_sums_are_those_of_single_affinities(scored):
    known = Known(scored, runs.read_json(scored.parent / "warmup/warmup.json")["pool"])
    subsets = halves(12, 2)
    for scorer in known.scorers:
        sums = known.sums(scorer, subsets)
        for t, target in enumerate(known.found.targets):
            if scorer in ("TracIn", "HyperINF"):
                single = known.found.block(scorer, slice(None), unit=False)[t]
            else:
                single = known.by_file(scorer)[known.files.index(target["file"])]
            expected = [sum(float(one) for one, there in zip(single, row, strict=True) if there) for row in subsets]
            np.testing.assert_allclose(sums[:, t], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("study", "more", "trainings"), [
    ("deciles", ["--count", 1], 20), ("groups", [], 10), ("duel", ["--count", 3, "--draws", 1], 5),
])  # fmt: skip
def test_every_study_of_two_scorers(scored, tmp_path, capsys, study, more, trainings):
    words = [*more, "--seeds", 1, "--scorers", "[HyperINF,Loss]"]
    assert validate(scored, tmp_path / "run", study, *words) == 0
    told = int(re.search(r"plan: (\d+) trainings on", capsys.readouterr().out)[1])
    # single samples of 12 are shared by the two scorers, and trained on once
    assert 10 <= told <= 12 if study == "deciles" else told == trainings
    found = runs.read_json(tmp_path / "run/validate.json")
    measured = found["answers" if study == "duel" else "losses"]
    assert list(found["rows"]) == ["HyperINF", "Loss"] and len(measured[0]) == trainings
    if study == "duel":
        means = {arm: np.mean(list(one["loss"].values())) for arm, one in measured[0].items()}
        assert found["rows"]["Loss"]["value"] == pytest.approx(
            means["Random 1" if "Random 1" in means else "random 1"] - means["Loss, chosen"]
        )
    else:
        assert all(-1 <= one["value"] <= 1 for one in found["rows"].values())


@pytest.mark.parametrize("how", ["sum", "rank"])
def test_classifiers_are_retrained_from_a_run_of_detect(tmp_path, capsys, how):
    save_encoder(tmp_path / "encoder")
    write_csv(tmp_path / "train.csv", sentences(12))
    write_csv(tmp_path / "held.csv", sentences(6, seed=1))
    files = ["--train", tmp_path / "train.csv", "--validation", tmp_path / "held.csv", "--out", tmp_path / "detect"]
    words = [
        "--lora.r",
        2,
        "--aggregate",
        how,
        "--training.epochs",
        1,
        "--scorers",
        "[TracIn,HyperINF]",
        "--device",
        "cpu",
        *files,
    ]
    assert cli.main(["detect", "--model", str(tmp_path / "encoder"), *map(str, words)]) == 0
    assert validate(tmp_path / "detect", tmp_path / "lds", "lds", "--subsets", 2, "--seeds", 1) == 0
    found = runs.read_json(tmp_path / "lds/validate.json")
    assert list(found["rows"]) == ["TracIn", "HyperINF", "Loss", "Length", "gradient norm"]
    assert f"aggregate: {how}\n" in (tmp_path / "lds/labelled/score/config.yaml").read_text()  # judged as it was scored
    assert found["count"] == 6 and all(len(losses) == 6 for losses in found["losses"][0].values())


@pytest.mark.parametrize(("study", "more", "message"), [
    ("lds", ["--count", 3], "--count: no meaning for --study lds; leave it out"),
    ("deciles", ["--metric", "choice"], "--metric: no meaning for --study deciles; leave it out"),
    ("duel", ["--count", 3, "--metric", "choice"], "gqa.json: sample 0: no 'choices', and no options in its text"),
    ("lds", ["--scorers", "[EKFAC]"], "nothing is known by 'EKFAC'; it has TracIn, HyperINF, Random"),
    ("deciles", ["--count", 9], "9 samples are asked for and a part of the ranking has 1; lower --count"),
    ("lds", ["--tuned_as", "."], "--tuned_as .: no run folder of `vlmsel warmup`, `tune` or `choose`"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(scored, tmp_path, capsys, study, more, message):
    assert validate(scored, tmp_path / "run", study, *more) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_known_of_halves_by_a_scorer_of_whole_files(scored):
    known = Known(scored, runs.read_json(scored.parent / "warmup/warmup.json")["pool"])
    known.table |= {f"Words/{file}": known.table[f"TracIn/{file}"] for file in known.files}
    assert known.by_file("Words").shape == known.by_file("Random", [0]).shape == known.by_file("Loss", [0]).shape
    with pytest.raises(ValueError, match="Words knows target files as a whole, so that the half of a file that judges"):
        known.by_file("Words", [0])
