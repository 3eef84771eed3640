"""What detect shows, from metrics and score tables made here."""

import csv
import subprocess
import sys

import numpy as np
from matplotlib.colors import to_rgb
from pictures import count, has, pixels
from tiny_text import write_csv

from vlmsel.data.labelled import labelled_text
from vlmsel.reporting.detection import (
    Estimate,
    Suspect,
    clean_file,
    detection_rows,
    estimate_wrong,
    heading,
    rank_suspects,
    write_suspects,
)
from vlmsel.reporting.figures import draw_rates
from vlmsel.scoring.table import write_table
from vlmsel.studies.detection import LABELS, LIKELY, POINTS, SCORES, TARGET, over_seeds


def metrics(auc, spearman=None, wrong=3):
    """Return `metrics.json` of a seed with TracIn and, 0.1 better, Mine."""
    rates = {"recall_20": 0.5, "recall_40": 0.7, "average_precision": 0.4}
    found = {name: {**rates, "auc": value} for name, value in (("TracIn", auc), ("Mine", auc + 0.1))}
    agreement = {name: {"pearson": 0.5, "spearman": spearman} for name in found}
    seen = {"accuracy": 0.9, "majority": 0.5, "seconds": {"all": 1.0}, "train": 20, "wrong": wrong}
    return {**seen, "detection": found, "curves": {"TracIn": [0.0], "Mine": [1.0]}, "agreement": agreement}


def test_rows_tell_rates_in_percent_and_paired_differences():
    table = detection_rows(over_seeds([metrics(0.6, 0.25), metrics(0.8, 0.75)]))
    assert table[0][-4:] == ["at 20 % - TracIn", "AUC - TracIn", "Pearson with Exact", "Spearman with Exact"]
    assert table[1][3] == "70.0 ± 127.1" and table[1][5:7] == ["", ""]
    assert table[2][0] == "Mine" and table[2][6] == "+10.0 ± 0.0"
    assert table[2][7:] == ["0.500 ± 0.000", "0.500 ± 3.177"]


def test_what_a_seed_lacks_is_not_shown():
    assert detection_rows(over_seeds([metrics(0.6), metrics(0.8, 0.5)]))[2][-1] == "undefined"
    only = over_seeds([{**metrics(0.6, 0.5), "detection": {}, "curves": {}}])
    assert "detection" not in only and "curves" not in only
    assert detection_rows(only)[0] == ["scorer", "Pearson with Exact", "Spearman with Exact"]


def test_headings():
    one, two = [metrics(0.5)], [metrics(0.5)] * 2
    assert heading("sst2", two, 0.2) == "sst2: 20 % of 20 labels flipped, 2 seeds"
    assert heading("mine", one, 0.0) == "mine: 20 samples with their labels as given, 3 of them wrong, 1 seed"
    assert heading("mine", [metrics(0.5, wrong=None)], 0.0) == "mine: 20 samples with their labels as given, 1 seed"


def write_seed(folder, scores, labels):
    """Write a seed's scores by uid and its rows of labels."""
    count = len(scores)
    fixed = {"uid": range(count), "source": ["x"] * count, "tokens": [1] * count, "loss": [0.0] * count}
    folder.mkdir()
    write_table(folder / SCORES, {**fixed, f"Mine/{TARGET}": scores}, {"pool": "p"})
    with open(folder / LABELS, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["uid", "given_label", "true_label"], *labels])


def suspect(uid, likely="b", confidence=0.2, sure=0.8):
    return Suspect(uid, "a", None, 1.0, 1.0, 1, likely, confidence, sure)


def estimated(*wrong, true=None):
    """Return `metrics.json` of seeds with these estimates, None for a model that has learnt nothing."""
    out = [{"accuracy": 0.7, "majority": 0.6, "p": 0.001 if one else 0.2, "wrong": one} for one in wrong]
    return [{**metrics(0.5, wrong=true), "detection": {}, "agreement": {}, "out_of_fold": one} for one in out]


def test_the_cut_off_is_at_the_estimated_part_of_the_list():
    seeds, suspects = estimated(5.0, 7.0, true=4), [suspect(uid) for uid in range(20)]
    found = estimate_wrong(seeds, suspects, over_seeds(seeds)["out_of_fold"])
    assert [one.uid for one in found.taken] == list(range(6))
    assert found.told == (
        "about 6 ± 13 of 20 labels are wrong (by models that give 70.0 ± 0.0 % of them out of fold), in truth 4 ± 0; "
        "cut-off after rank 6"
    )
    many = [suspect(uid) for uid in range(40)]  # seeds drew other parts of the data
    assert len(estimate_wrong(seeds, many, over_seeds(seeds)["out_of_fold"]).taken) == 12
    twice = estimate_wrong(seeds, [*suspects, suspect(3)], over_seeds(seeds)["out_of_fold"])  # flips of their own
    assert twice.taken is None and twice.told.endswith("in truth 4 ± 0")


def test_there_is_no_cut_off_where_a_seed_s_models_have_learnt_nothing(tmp_path):
    seeds = estimated(5.0, None)
    found = estimate_wrong(seeds, [suspect(0)], over_seeds(seeds)["out_of_fold"])
    assert found.taken is None and found.told.startswith(
        "no estimate of wrong labels and no cut-off: out of fold the models of seed 1 give 70.0% of the given labels, "
        "the most frequent label alone is 60.0% (p = 0.2); tune longer"
    )
    assert clean_file(tmp_path, "t.csv", "label", found, "drop") == "no cleaned file: there is no cut-off"
    assert estimate_wrong([metrics(0.5)], [suspect(0)], None) == ("", None) and not list(tmp_path.iterdir())


def test_cleaned_files_lack_suspects_or_have_their_likely_labels(tmp_path):
    source = write_csv(tmp_path / "t.csv", [(f"text {i}", "a") for i in range(4)])
    found = Estimate("", [suspect(2), suspect(0, "c"), suspect(3, confidence=0.6, sure=0.4)])
    told = clean_file(tmp_path, str(source), "label", found, "drop")
    assert told == f"cleaned: {tmp_path / 'cleaned.csv'}, 3 labels left out"
    assert (tmp_path / "cleaned.csv").read_text().splitlines() == ["text,label", "text 1,a"]
    told = clean_file(tmp_path, str(source), "label", found, "relabel")
    assert told.endswith("cleaned.csv, 2 labels replaced, 1 suspects keep the label that is still the most probable")
    lines = (tmp_path / "cleaned.csv").read_text().splitlines()
    assert lines == ["text,label", "text 0,c", "text 1,a", "text 2,b", "text 3,a"]


def test_suspects_are_ranked_by_the_mean_over_the_seeds_that_saw_the_label(tmp_path):
    nan = float("nan")
    write_seed(tmp_path / "seed0", [3.0, 1.0, 2.0, nan], [[0, "a", "a"], [1, "b", "a"], [2, "a", "a"], [3, "a", "a"]])
    write_seed(tmp_path / "seed1", [0.0, 5.0, nan, 4.0], [[1, "a", "a"], [3, "a", "a"], [0, "a", "a"]])
    found = rank_suspects(tmp_path, 2, "Mine")
    assert [(one.uid, one.given, one.suspicion, one.score, one.seeds) for one in found] == [
        (1, "a", 1.0, 5.0, 1),
        (3, "a", 0.5, 4.0, 1),
        (2, "a", 0.5, 2.0, 1),
        (0, "a", 0.5, 1.5, 2),
        (1, "b", 0.0, 1.0, 1),
    ]
    texts = {uid: labelled_text(uid, [f"text {uid}", "more"], "a").said("human") for uid in range(4)}
    write_suspects(tmp_path / "suspects.csv", found, ["first", "second"], texts, {})
    with open(tmp_path / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"rank": "1", "uid": "1", "given_label": "a", "true_label": "a", "suspicion": "1.000000",
                       "score": "5", "seeds": "1", "first": "text 1", "second": "more"}  # fmt: skip


def test_the_likely_label_is_that_of_most_seeds_and_never_the_given_one(tmp_path):
    for seed, likely in enumerate((["b", "b"], ["c", "a"], ["c", "a"])):
        write_seed(tmp_path / f"seed{seed}", [2.0, 1.0], [[0, "a", "a"], [1, "a", "a"]])
        with open(tmp_path / f"seed{seed}" / LIKELY, "w", newline="") as file:
            csv.writer(file).writerows([["uid", "likely_label"], *enumerate(likely)])
    found = rank_suspects(tmp_path, 3, "Mine")
    assert [(one.uid, one.likely) for one in found] == [(0, "c"), (1, "b")]
    write_suspects(tmp_path / "suspects.csv", found, ["text"], {0: ["x"], 1: ["y"]}, {0: "q7", 1: ""})
    head, first, last = (tmp_path / "suspects.csv").read_text().splitlines()
    assert head.startswith("rank,uid,id,given_label,likely_label,true_label,suspicion,")
    assert first.startswith("1,0,q7,a,c,a,") and last.startswith("2,1,,a,b,a,")


def test_the_picture_has_a_line_per_scorer_and_a_band_over_seeds(tmp_path):
    inspected, faint = np.linspace(0, 1, POINTS), []
    for seeds in (1, 3):
        curves = {"TracIn": [inspected ** (0.5 + 0.1 * k) for k in range(seeds)], "Mine": [inspected**0.2] * seeds}
        draw_rates(curves, 0.2, tmp_path / "rates.png", "rates")
        picture = pixels(tmp_path / "rates.png")
        assert 600 < picture.shape[0] < 760 and 1000 < picture.shape[1] < 1400
        assert has(picture, "C0") and has(picture, "C1") and not has(picture, "C2")
        faint.append(count(picture, [0.88 + 0.12 * part for part in to_rgb("C0")]))  # C0 at 12 % over white
    assert faint[1] > 20 * faint[0]


def test_reporting_needs_no_torch():
    modules = "vlmsel.reporting.tables, vlmsel.reporting.figures, vlmsel.reporting.results, vlmsel.reporting.report"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
