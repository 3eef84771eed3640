"""Runs of `vlmsel detect` on a tiny encoder, and what its tests ask of them."""

import csv

from vlmsel import cli
from vlmsel.data.dataset import Reading
from vlmsel.data.labelled import labelled_text


def options(place, out, **more):
    given = {
        "model": place / "encoder",
        "train": place / "train.csv",
        "validation": place / "held.csv",
        "lora.r": 2,
        "lora.alpha": 4,
        "training.epochs": 6,
        "training.batch_size": 8,
        "training.learning_rate": 0.01,
        "flip": 0.2,
        "device": "cpu",
        "out": out,
        **more,
    }
    return ["detect", *(str(w) for name, value in given.items() if value is not None for w in (f"--{name}", value))]


def refused(capsys, *arguments, **more):
    """Return the one line that a command ends with."""
    capsys.readouterr()
    assert cli.main(options(*arguments, **more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def labels_of(folder):
    with open(folder / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def singles(model, texts, labels):
    """Return batches of one text."""
    samples = [labelled_text(uid, [text], label) for uid, (text, label) in enumerate(zip(texts, labels, strict=True))]
    return [model.collate([model.encode(sample, Reading(max_length=20))]) for sample in samples]


def logits(module, batch):
    return module(batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids).logits


class Stop(Exception):
    pass
