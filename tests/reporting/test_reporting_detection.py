"""What detect shows, from metrics and score tables made here."""

import csv
import subprocess
import sys

import numpy as np
from matplotlib.colors import to_rgb
from pictures import count, has, pixels

from vlmsel.data.labelled import labelled_text
from vlmsel.reporting.detection import detection_rows, heading, rank_suspects, write_suspects
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
    write_suspects(tmp_path / "suspects.csv", found, ["first", "second"], texts)
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
    write_suspects(tmp_path / "suspects.csv", found, ["text"], {0: ["x"], 1: ["y"]})
    head, first, _ = (tmp_path / "suspects.csv").read_text().splitlines()
    assert head.startswith("rank,uid,given_label,likely_label,true_label,") and first.startswith("1,0,a,c,a,")


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
