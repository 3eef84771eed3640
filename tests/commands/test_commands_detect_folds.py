"""`vlmsel detect --folds`: labels judged without a clean set, the estimate, the cleaned file, resuming, wrong input."""

import csv
import json

import numpy as np
import pytest
import torch
from detect_runs import Stop, labels_of, logits, options, refused, singles
from tiny_text import save_encoder, sentences, write_csv

from vlmsel import cli, runs
from vlmsel.models.classifier import EncoderLora
from vlmsel.models.classifier_files import open_classifier
from vlmsel.scoring.table import read_table
from vlmsel.studies import cross_fit
from vlmsel.training import trainer

TURNED = {"good": "bad", "bad": "good"}
WRONG = {*range(0, 90, 12), *range(5, 90, 12)}  # of both classes
SET = [(f"q{i}", text, TURNED[name] if i in WRONG else name, name) for i, (text, name) in enumerate(sentences(90))]
FOLDS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder and train.csv, a seventh of whose labels are wrong, with ids."""
    folder = tmp_path_factory.mktemp("folds")
    save_encoder(folder / "encoder")
    write_csv(folder / "train.csv", SET, ["id", "text", "label", "truth"])
    write_csv(folder / "held.csv", sentences(40, seed=1))
    return folder


ALONE = {"validation": None, "flip": None, "folds": FOLDS, "scorers": "[TracIn,HyperINF]", "training.epochs": 12}


def done(place, out, **more):
    assert cli.main(options(place, out, **{**ALONE, **more})) == 0


@pytest.fixture(scope="module")
def finished(place):
    """The run folder of one seed with true labels and a relabelled file."""
    done(place, place / "run", true_label_column="truth", clean="relabel")
    return place / "run"


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_probabilities_are_those_of_the_fold_s_own_model_and_it_has_not_seen_the_sample(place, finished):
    given = [row["given_label"] for row in labels_of(finished / "seed0")]
    said, judged = {int(row["uid"]): row for row in rows_of(finished / "seed0/likely.csv")}, {}
    fold = cross_fit.folds_of(given, FOLDS, 0)
    texts = [text for _, text, *_ in SET]
    for number in range(FOLDS):
        folder = finished / f"seed0/fold{number}"
        assert runs.read_json(folder / "phase.json")["samples"] == 60
        model = open_classifier(str(place / "encoder"), ("bad", "good"), 0)
        model.adapt("lora", EncoderLora(r=2, alpha=4), 0)
        model.load_trained(folder / "model")
        with torch.no_grad():
            for uid, one in enumerate(singles(model, texts, given)):
                if fold[uid] == number:
                    judged[uid] = logits(model.module, one)[0].softmax(0).tolist()
    assert sorted(judged) == sorted(said) == list(range(90))
    for uid, p in judged.items():
        own = ("bad", "good").index(given[uid])
        assert float(said[uid]["confidence"]) == pytest.approx(p[own], abs=1e-4)
        assert float(said[uid]["likely"]) == pytest.approx(p[1 - own], abs=1e-4)
    column = read_table(finished / "seed0/scores.parquet")[0]["SelfConfidence.folds/validation"]
    assert column.tolist() == pytest.approx([1 - float(said[uid]["confidence"]) for uid in range(90)], abs=2e-6)


def test_wrong_labels_are_found_counted_and_replaced_without_a_clean_set(place, finished, capsys):
    results = runs.read_json(finished / "results.json")
    assert results["rank_by"] == "SelfConfidence.folds"
    assert min(results["detection"][name]["auc"][0] for name in ("HyperINF", "SelfConfidence.folds")) > 0.75
    assert results["out_of_fold"]["p"][0] < 0.05 and not results["clean"]
    assert results["cut"] == results["out_of_fold"]["wrong"][0] and 5 < results["cut"] < 40
    suspects, cleaned = rows_of(finished / "suspects.csv"), rows_of(finished / "cleaned.csv")
    assert suspects[0]["id"] == f"q{suspects[0]['uid']}" and len(suspects) == len(cleaned) == 90
    table, _ = read_table(finished / "seed0/scores.parquet")
    assert table["id"].tolist() == [row[0] for row in SET]
    before = {row["id"]: row for row in suspects[: results["cut"]]}
    changed = [new["id"] for new, old in zip(cleaned, SET, strict=True) if new["label"] != old[2]]
    assert set(changed) == {i for i, row in before.items() if float(row["confidence"]) < 0.5}
    assert sum(new["label"] != new["truth"] for new in cleaned) < len(WRONG)
    done(place, finished, true_label_column="truth", clean="drop")
    said = capsys.readouterr().out
    assert f"about {results['cut']} of 90 labels are wrong (by models that give" in said
    assert f" % of them out of fold), in truth {len(WRONG)}; cut-off after rank {results['cut']}\n" in said
    left = {row["id"] for row in rows_of(finished / "cleaned.csv")}
    assert left == {row[0] for row in SET} - set(before)
    assert cli.main(["report", str(finished), "--out", str(finished.parent / "page.html")]) == 0
    page = (finished.parent / "page.html").read_text()
    assert f"cut-off after rank {results['cut']}." in page and page.count('class="cut"') == 1


@pytest.mark.slow
def test_a_run_killed_between_folds_goes_on_with_the_same_result(place, finished, tmp_path, monkeypatch):
    out, trained, run = tmp_path / "run", [], trainer.run

    def noting(*arguments, **more):
        trained.append(len(arguments[2]))
        return run(*arguments, **more)

    def stop(self, *arguments):
        raise Stop

    monkeypatch.setattr(trainer, "run", noting)
    how = {"true_label_column": "truth"}
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(cross_fit, "joined", stop)
        patch.setattr(cross_fit, "_whole", stop)
        done(place, out, **how)
    (out / "seed0/fold2/phase.json").unlink()
    (out / "seed0/fold2/directions.safetensors").unlink()
    for part in (out / "seed0/fold2/parts").iterdir():
        part.unlink()
    done(place, out, **how)
    assert trained == [60] * 4
    for name in ("likely.csv", "labels.csv"):
        assert (out / "seed0" / name).read_bytes() == (finished / "seed0" / name).read_bytes()
    mine, whole = (read_table(folder / "seed0/scores.parquet")[0] for folder in (out, finished))
    assert all(mine[name].tolist() == whole[name].tolist() for name in whole)


@pytest.mark.slow
def test_with_clean_samples_both_baselines_stand_beside_the_scorers(place, tmp_path):
    done(place, tmp_path / "run", validation=place / "held.csv", flip=0.2, **{"training.epochs": 6})
    results = runs.read_json(tmp_path / "run/results.json")
    assert list(results["detection"]) == ["TracIn", "HyperINF", "SelfConfidence", "SelfConfidence.folds"]
    assert results["clean"] and results["out_of_fold"]["wrong"] is not None
    table, _ = read_table(tmp_path / "run/seed0/scores.parquet")
    assert table["SelfConfidence/validation"] == pytest.approx(1 - np.exp(-table["loss"]), abs=1e-5)


SMALL = [(text, "good" if i < 8 else "bad") for i, (text, _) in enumerate(sentences(10))]
BAD = {
    "one fold": ({"folds": 1}, "folds must be at least 2, got 1; leave it out to do without"),
    "no folds": ({"folds": None}, "no samples with clean labels beside it; give --validation, or --folds 5 to have"),
    "rare": ({"train": SMALL}, "folds: 3 are more than the 2 samples of the class 'bad'; give fewer or leave rare"),
    "name": ({"scorers": "[\"TracIn(name='SelfConfidence.folds')\"]"}, "SelfConfidence.folds stand beside the scorers"),
    "moments": ({"scorers": "[\"TracIn(moments='m')\"]"}, "TracIn reads Adam's moments, which the models tuned here"),
    "flips": ({"clean": "drop", "flip": 0.2}, "clean takes labels out of your own --train file as it is"),
    "set": (
        {"clean": "drop", "folds": None, "validation": "held.csv"},
        "and with --folds 5, whose models tell how many",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_before_anything_is_trained(name, place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trainer, "run", None)
    given, message = BAD[name]
    if "train" in given:
        given = {**given, "train": write_csv(tmp_path / "train.csv", given["train"])}
    assert message in refused(capsys, place, tmp_path / "run", **{**ALONE, **given})


def test_a_run_without_clean_samples_is_not_validated(finished, tmp_path, capsys):
    assert cli.main(["validate", "--run", str(finished), "--study", "lds", "--out", str(tmp_path / "v")]) == 2
    assert "has no clean samples to score for; run `vlmsel detect` with --validation" in capsys.readouterr().err


def test_models_that_have_learnt_nothing_give_no_estimate(place, tmp_path, capsys):
    rows = [{"id": i, "text": f"plain{i % 5}", "label": i % 7 < 4} for i in range(42)]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    how = {"train": tmp_path / "train.json", "training.epochs": 1, "folds": 2, "clean": "drop", "scorers": "[TracIn]"}
    done(place, tmp_path / "run", **how)
    said = capsys.readouterr().out
    assert "no estimate of wrong labels and no cut-off: out of fold the models of seed 0 give" in said
    assert "no cleaned file: there is no cut-off" in said and not (tmp_path / "run/cleaned.json").exists()
    results = runs.read_json(tmp_path / "run/results.json")
    assert results["cut"] is None and results["out_of_fold"]["wrong"] == [None]
    assert rows_of(tmp_path / "run/suspects.csv")[0]["id"].isdigit()
