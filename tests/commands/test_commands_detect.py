"""`vlmsel detect`: its scores against a plain twin, flips that are found, resuming, the list, and wrong input."""

import csv
import shutil

import datasets
import naive_scorers as naive
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detect_runs import Stop, labels_of, logits, options, refused, singles
from naive_gradients import loop_gradients
from pictures import has, pixels
from tiny_text import save_encoder, sentences, word_tokenizer, write_csv

from vlmsel import cli, runs
from vlmsel.models.classifier import EncoderLora
from vlmsel.models.classifier_files import open_classifier
from vlmsel.scoring.passes import Passes
from vlmsel.scoring.table import read_table
from vlmsel.training import trainer

CLASSES = ("bad", "good")
TRAIN, HELD = sentences(120), sentences(40, seed=1)
SCORERS = "[Random,TracIn,\"TracIn(block_scale=True,name='TracIn.scaled')\",DataInf,LiSSA,HyperINF,Exact]"
FORMULAS = {
    "TracIn": naive.tracin,
    "TracIn.scaled": naive.tracin_block_scale,
    "DataInf": lambda g, v: naive.datainf(g, v, 0.1),
    "LiSSA": lambda g, v: naive.lissa(g, v, 0.1, 10),
    "HyperINF": lambda g, v: naive.hyperinf(g, v, 0.1, "cols" if g.shape[2] >= g.shape[1] else "rows"),
    "Exact": lambda g, v: naive.direct(g, v, 0.1),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder and the files train.csv and held.csv."""
    folder = tmp_path_factory.mktemp("detect")
    save_encoder(folder / "encoder")
    write_csv(folder / "train.csv", TRAIN)
    write_csv(folder / "held.csv", HELD)
    return folder


BRIEF = {"training.epochs": 1}  # where nothing need be learnt


def done(*arguments, **more):
    assert cli.main(options(*arguments, **more)) == 0


@pytest.fixture(scope="module")
def finished(place):
    """The run folder of two seeds."""
    done(place, place / "run", scorers=SCORERS, seeds=2)
    return place / "run"


@pytest.mark.parametrize("seed", [0, 1])
def test_scores_are_those_of_a_plain_twin_in_float64(place, finished, seed):
    folder = finished / f"seed{seed}"
    model = open_classifier(str(place / "encoder"), CLASSES, seed)
    model.adapt("lora", EncoderLora(r=2, alpha=4), seed)
    model.load_trained(folder / "model")
    model, blocks = model.double(), model.blocks()
    given = [row["given_label"] for row in labels_of(folder)]
    pool, held = singles(model, [text for text, _ in TRAIN], given), singles(model, *zip(*HELD, strict=True))

    def loss(module, batch):
        return F.cross_entropy(logits(module, batch), batch.labels, reduction="none")

    gradients = loop_gradients(model.module, pool, loss, blocks)
    targets = {name: g.mean(0) for name, g in loop_gradients(model.module, held, loss, blocks).items()}
    columns, about = read_table(folder / "scores.parquet")
    assert columns["uid"].tolist() == list(range(120)) and len(blocks) == 8
    assert columns["source"].tolist() == given
    losses = torch.cat([loss(model.module, one) for one in pool]).tolist()
    assert columns["loss"] == pytest.approx(losses, rel=1e-4, abs=1e-6)
    for scorer, formula in FORMULAS.items():
        expected = sum(np.array(naive.scores(g, formula(g, targets[name]))) for name, g in gradients.items())
        error = np.linalg.norm(columns[f"{scorer}/validation"] - expected)
        assert error < 2e-3 * np.linalg.norm(expected), scorer


def test_flips_are_found_and_an_exact_share_is_flipped(finished):
    results = runs.read_json(finished / "results.json")
    learnt = results["validation"]
    assert min(learnt["accuracy"]) > 0.65 and learnt["majority"] == [0.5, 0.5]
    found = results["detection"]
    assert min(found["HyperINF"]["recall_20"]) > 0.6 and min(found["HyperINF"]["auc"]) > 0.85
    for scorer in ("TracIn", "TracIn.scaled", "DataInf", "LiSSA"):
        assert np.mean(found[scorer]["auc"]) > 0.65, scorer
    for seed in (0, 1):
        rows = labels_of(finished / f"seed{seed}")
        assert sum(row["given_label"] != row["true_label"] for row in rows) == 24
        assert [row["true_label"] for row in rows] == [name for _, name in TRAIN]
    first, second = (labels_of(finished / f"seed{seed}") for seed in (0, 1))
    assert first != second


def test_results_tell_rates_differences_and_agreement_with_exact(finished):
    results = runs.read_json(finished / "results.json")
    assert results["agreement"]["Exact"] == {"pearson": pytest.approx([1, 1]), "spearman": pytest.approx([1, 1])}
    assert results["agreement"]["Random"]["spearman"] != pytest.approx([1, 1], abs=0.5)
    curve = results["curves"]["TracIn"][0]
    assert len(curve) == 101 and (curve[0], curve[100]) == (0, 1) and curve == sorted(curve)
    assert curve[20] == pytest.approx(results["detection"]["TracIn"]["recall_20"][0], abs=1e-6)
    head, _, *rows = (finished / "table.md").read_text().splitlines()[2:12]
    assert head == (
        "| scorer | found at 20 % | found at 40 % | AUC | average precision | inspected to find all | at 20 % - TracIn "
        "| AUC - TracIn | Pearson with Exact | Spearman with Exact |"
    )
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ") for row in rows}
    aucs = results["detection"]["HyperINF"]["auc"], results["detection"]["TracIn"]["auc"]
    assert cells["HyperINF"][3].startswith(f"{100 * np.mean(aucs[0]):.1f} ± ")
    assert cells["HyperINF"][7].startswith(f"{100 * (np.mean(aucs[0]) - np.mean(aucs[1])):+.1f} ± ")
    assert cells["TracIn"][6] == "" and cells["Exact"][8].startswith("1.000 ± ")
    picture = pixels(finished / "detection.png")
    assert 1000 < picture.shape[1] < 1400 and all(has(picture, color) for color in ("C0", "C1", "C2", "C3", "C4"))


def test_the_list_has_every_sample_as_labelled_the_most_suspicious_first(finished):
    with open(finished / "suspects.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    suspicion = [float(row["suspicion"]) for row in rows]
    assert suspicion == sorted(suspicion, reverse=True)
    keys = {(int(row["uid"]), row["given_label"]) for row in rows}
    given = [[(uid, r["given_label"]) for uid, r in enumerate(labels_of(finished / f"seed{s}"))] for s in (0, 1)]
    assert keys == {*given[0], *given[1]} and len(keys) == len(rows)
    assert all(int(r["seeds"]) == sum((int(r["uid"]), r["given_label"]) in one for one in given) for r in rows)
    columns = [read_table(finished / f"seed{s}/scores.parquet")[0]["HyperINF/validation"] for s in (0, 1)]
    both = next(row for row in rows if row["seeds"] == "2")
    mean = np.mean([column[int(both["uid"])] for column in columns])
    assert float(both["score"]) == pytest.approx(mean, rel=1e-4) and both["text"] == TRAIN[int(both["uid"])][0]


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_labels_the_other_is_likely(finished, seed):
    with open(finished / f"seed{seed}/likely.csv", newline="") as file:
        likely = {int(row["uid"]): row["likely_label"] for row in csv.DictReader(file)}
    given = [row["given_label"] for row in labels_of(finished / f"seed{seed}")]
    assert likely == {uid: CLASSES[1 - CLASSES.index(label)] for uid, label in enumerate(given)}


@pytest.mark.slow
def test_batches_change_nothing_but_rounding(place, finished, tmp_path):
    done(place, tmp_path / "small", scorers=SCORERS, batch_tokens=25)
    small, whole = (read_table(folder / "seed0/scores.parquet")[0] for folder in (tmp_path / "small", finished))
    for name in whole:
        if "/" in name:
            error = np.linalg.norm(np.subtract(small[name], whole[name]))
            assert error < 2e-3 * np.linalg.norm(whole[name]), name


@pytest.mark.slow
def test_a_killed_run_goes_on_and_repeats_nothing_that_is_done(place, finished, tmp_path, monkeypatch, capsys):
    out, trained = tmp_path / "run", []

    def stop(*arguments, **more):
        raise Stop

    def noting(*arguments, **more):
        trained.append(arguments)
        return run(*arguments, **more)

    run = trainer.run
    monkeypatch.setattr(trainer, "run", noting)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(Passes, "score", stop)
        done(place, out, scorers=SCORERS, seeds=2)
    assert (out / "seed0/model/classifier.json").is_file() and not (out / "seed0/metrics.json").is_file()
    done(place, out, scorers=SCORERS, seeds=2)
    assert len(trained) == 2  # once per seed
    kept = {path: path.stat().st_mtime_ns for path in out.glob("seed*/**/*") if path.is_file()}
    done(place, out, scorers=SCORERS, seeds=2)
    assert len(trained) == 2 and kept == {path: path.stat().st_mtime_ns for path in kept}
    results, expected = (runs.read_json(folder / "results.json") for folder in (out, finished))
    assert {**results, "seconds": 0} == {**expected, "seconds": 0}
    assert "another configuration (there: flip: 0.2; now: flip: 0.1)" in refused(
        capsys, place, out, scorers=SCORERS, flip=0.1
    )


@pytest.mark.slow
def test_a_seed_more_and_another_ranking_go_on_from_a_finished_run(place, tmp_path):
    done(place, tmp_path / "run", scorers="[TracIn,DataInf]")
    first = (tmp_path / "run/seed0/scores.parquet").stat().st_mtime_ns
    done(place, tmp_path / "run", scorers="[TracIn,DataInf]", seeds=2, rank_by="DataInf")
    assert (tmp_path / "run/seed0/scores.parquet").stat().st_mtime_ns == first
    results = runs.read_json(tmp_path / "run/results.json")
    assert results["seeds"] == 2 and results["rank_by"] == "DataInf" and "agreement" not in results


def test_changed_data_are_refused(place, tmp_path, capsys):
    write_csv(tmp_path / "train.csv", TRAIN)
    given = {"train": tmp_path / "train.csv", "scorers": "[TracIn]", **BRIEF}
    done(place, tmp_path / "run", **given)
    write_csv(tmp_path / "train.csv", TRAIN[:-2])
    line = refused(capsys, place, tmp_path / "run", **given)
    assert "the training data changed since this run began; choose another --out or delete it" in line


def test_labels_as_given_make_a_list_alone_that_no_control_character_leaves(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [
        (f"{text} \x1b[31m\u202e odd5 odd5 odd5 plain5", "good" if i == 7 else n) for i, (text, n) in enumerate(TRAIN)
    ]
    write_csv(tmp_path / "train.csv", [*rows[:10], ("", "bad"), *rows[10:]])
    capsys.readouterr()
    done(place, tmp_path / "run", train=tmp_path / "train.csv", flip=None, scorers="[TracIn,HyperINF]", **BRIEF)
    said = capsys.readouterr().out
    assert "train.csv: 1 of 121 samples left out, listed in" in said and "line 12: no text" in said
    shown = said.partition("most suspicious labels by HyperINF")[2].splitlines()[2:14]
    assert len(shown) == 12 and all(len(line) <= 60 for line in shown) and "\x1b" not in said and "\u202e" not in said
    assert not any((tmp_path / "run" / name).exists() for name in ("table.md", "detection.png"))
    assert "detection" not in runs.read_json(tmp_path / "run/results.json")
    with open(tmp_path / "run/suspects.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == [
        "rank",
        "uid",
        "given_label",
        "likely_label",
        "confidence",
        "suspicion",
        "score",
        "seeds",
        "text",
    ]
    assert sorted(int(row["uid"]) for row in found) == [i for i in range(121) if i != 10]
    assert next(row for row in found if row["uid"] == "7")["text"] == rows[7][0]


@pytest.mark.slow
def test_true_labels_in_a_column_give_rates_of_the_real_errors(place, tmp_path):
    turned = {"good": "bad", "bad": "good"}
    rows = [(text, turned[name] if i % 6 == 0 else name, name) for i, (text, name) in enumerate(TRAIN)]
    path = write_csv(tmp_path / "train.csv", rows, ["text", "label", "truth"])
    done(place, tmp_path / "run", train=path, flip=None, true_label_column="truth", scorers="[TracIn,HyperINF]")
    results = runs.read_json(tmp_path / "run/results.json")
    assert "120 samples with their labels as given, 20 of them wrong" in results["title"]
    assert results["detection"]["HyperINF"]["recall_40"][0] > 0.8
    right = write_csv(tmp_path / "right.csv", [(t, n, n) for t, n in TRAIN], ["text", "label", "truth"])
    done(place, tmp_path / "none", train=right, flip=None, true_label_column="truth", scorers="[TracIn]")
    assert not (tmp_path / "none/table.md").exists() and (tmp_path / "none/suspects.csv").is_file()


def test_the_head_alone_on_a_saved_dataset_with_subsets_of_three_classes(place, tmp_path):
    features = datasets.Features(
        {"words": datasets.Value("string"), "class": datasets.ClassLabel(names=["bad", "good", "odd"])}
    )
    parts = {}
    for name, rows in {"train": sentences(60, classes=3), "dev": sentences(30, seed=1, classes=3)}.items():
        columns = {"words": [text for text, _ in rows], "class": [name for _, name in rows]}
        parts[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "set")
    names = {"text_columns": "[words]", "label_column": "class", "train": None, "validation": "dev"}
    counts = {"train_samples": 45, "validation_samples": 20, "scorers": "[TracIn,HyperINF]"}
    done(place, tmp_path / "run", data=tmp_path / "set", tune="last-layer", **names, **counts)
    metrics = runs.read_json(tmp_path / "run/seed0/metrics.json")
    assert (metrics["train"], metrics["validation"], metrics["wrong"]) == (45, 20, 9)
    columns, _ = read_table(tmp_path / "run/seed0/scores.parquet")
    scored = [value == value for value in columns["HyperINF/validation"]]
    assert len(scored) == 60 and sum(scored) == 45
    assert scored == [uid in {int(row["uid"]) for row in labels_of(tmp_path / "run/seed0")} for uid in range(60)]


def test_a_glue_folder_takes_the_study_s_settings(place, tmp_path, capsys):
    for name, rows in {"train": TRAIN, "dev": HELD}.items():
        lines = ["sentence\tlabel", *(f"{text}\t{CLASSES.index(label)}" for text, label in rows)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    files = {"train": None, "validation": None, "task": "sst2", "data": tmp_path}
    done(place, tmp_path / "run", **files, flip=None, scorers="[TracIn]")
    assert runs.read_json(tmp_path / "run/seed0/metrics.json")["wrong"] == 24
    assert "sst2: 20 % of 120 labels flipped, 1 seed" in capsys.readouterr().out
    about = runs.read_json(tmp_path / "run/seed0/model/classifier.json")
    assert about["classes"] == ["negative", "positive"]


ONE = [(text, "good") for text, _ in HELD]
BAD_FILES = {
    "one class": ({"train": ONE}, "train.csv: all labels are 'good'; detection needs at least two classes"),
    "one class to validate": ({"held": ONE}, "all validation labels are 'good', so that scores would tell classes"),
    "unknown labels": (
        {"held": [*HELD, ("odd0", "odd"), ("odd1", "odd")]},
        "held.csv: 2 samples have labels that training lacks, the first is 'odd' (training has bad, good)",
    ),
    "no labels": (
        {"train": [(text, "") for text, _ in TRAIN]},
        "none of 120 samples can be used; the first, line 2: no",
    ),
    "texts as labels": ({"train": [(t, f"{t} {i}") for i, (t, _) in enumerate(TRAIN)]}, "120 different labels in 120"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_used(name, place, tmp_path, capsys):
    files, message = BAD_FILES[name]
    train = write_csv(tmp_path / "train.csv", files.get("train", TRAIN))
    held = write_csv(tmp_path / "held.csv", files.get("held", HELD))
    assert message in refused(capsys, place, tmp_path / "run", train=train, validation=held)


BAD_OPTIONS = {
    "column": ({"text_columns": "[body]"}, "train.csv: no column 'body'; it has 'text', 'label'"),
    "truth and flips": ({"true_label_column": "label"}, "flip and true_label_column exclude each other"),
    "share": ({"flip": 1.2}, "flip must be a share from 0 to below 1, got 1.2"),
    "rank": ({"rank_by": "Exact"}, "rank_by names the scorer 'Exact'; there are Random, TracIn, TracIn.scaled"),
    "targets": ({"lora.targets": "[q_proj]"}, "no linear module is called q_proj; the model has ['classifier', "),
    "blocks": ({"blocks": "nothing"}, "blocks 'nothing' match no parameter"),
    "nothing to read": ({"train": None}, "give --task and --data (a GLUE folder), --data"),
    "task": ({"task": "sst3", "data": "x"}, "there is no GLUE task 'sst3'; choose one of cola, sst2"),
    "count": ({"seeds": 0}, "seeds must be at least 1, got 0"),
    "model": ({"model": "./none/there"}, "./none/there: neither a model's folder nor one that the hub gives"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_that_cannot_be(name, place, tmp_path, capsys):
    options, message = BAD_OPTIONS[name]
    assert message in refused(capsys, place, tmp_path / "run", **options)


def test_missing_labels_rare_classes_and_long_texts_are_told_and_the_rest_goes_on(place, tmp_path, capsys):
    rows = [*TRAIN, ("good1", ""), (" ".join(["good1"] * 40), "good"), ("odd1 odd1", "odd"), ("odd2 odd3", "odd")]
    capsys.readouterr()
    done(place, tmp_path / "run", train=write_csv(tmp_path / "train.csv", rows), scorers="[TracIn]")
    said = capsys.readouterr().out
    assert "train.csv: 1 of 124 samples left out, listed in" in said and "line 122: no label)" in said
    assert "lacks 1 of 3 classes, the first is 'odd'; 2 training samples have them" in said
    assert "1 of 123 training samples were cut to 20 tokens" in said


def test_heads_and_tokenizers_that_do_not_fit(place, tmp_path, capsys):
    three = save_encoder(tmp_path / "three", head=("x", "y", "z"))
    assert "head has 3 classes" in refused(capsys, place, tmp_path / "run", model=three)
    done(place, tmp_path / "run", model=three, fresh_head="true", scorers="[TracIn]", **BRIEF)
    bare = shutil.copytree(place / "encoder", tmp_path / "bare")
    word_tokenizer(pad_token=None).save_pretrained(bare)
    done(place, tmp_path / "unk", model=bare, scorers="[TracIn]", **BRIEF)  # padded with [UNK]
    done(place, tmp_path / "pad", scorers="[TracIn]", **BRIEF)
    unk, pad = (read_table(tmp_path / name / "seed0/scores.parquet")[0]["TracIn/validation"] for name in ("unk", "pad"))
    assert np.linalg.norm(np.subtract(unk, pad)) < 2e-3 * np.linalg.norm(pad)
    none = shutil.copytree(place / "encoder", tmp_path / "none")
    word_tokenizer(pad_token=None, unk_token=None).save_pretrained(none)
    assert "the tokenizer has no pad, unk or eos token" in refused(capsys, place, tmp_path / "stop", model=none)


def test_several_processes_are_refused(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "detect runs as one process" in refused(capsys, place, tmp_path / "run")


def test_blocks_are_put_together_as_asked(place, tmp_path):
    for how in ("sum", "vote"):
        done(place, tmp_path / how, scorers="[TracIn]", aggregate=how, **BRIEF)
    summed, voted = (
        read_table(tmp_path / how / "seed0/scores.parquet")[0]["TracIn/validation"] for how in ("sum", "vote")
    )
    assert (-(1 + 1 / 8) <= voted).all() and (voted <= 0).all()  # of 8 blocks, and a rank among equals
    assert len(set(np.floor(-8 * voted).tolist())) > 1 and summed.max() > 0
