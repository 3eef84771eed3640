"""A new scorer of either kind, a new form of pool and a new make of model: one file and at most one line each.

Nothing else is told of them, and score, select and tune take them through the ordinary commands.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from vlmsel import cli, runs
from vlmsel.data import formats
from vlmsel.data.dataset import Size
from vlmsel.data.formats.base import Form, checked_sample
from vlmsel.data.rows import readable, table_rows
from vlmsel.data.sample import Turn
from vlmsel.models import open as opening
from vlmsel.models.losses import TokenLosses
from vlmsel.models.subject import Subject, only_these_learn
from vlmsel.scoring.table import read_table

SCORERS = '''
from dataclasses import dataclass

import torch

from vlmsel.scorers import GradientScorer, SampleScorer, Solved


@dataclass(frozen=True)
class Halved(GradientScorer):
    name: str = "Halved"

    def solve(self, statistic, v):
        return Solved(v / 2)


@dataclass(frozen=True)
class Shared(SampleScorer):
    """The words that a sample and a target have in common."""

    name: str = "Shared"

    def score(self, samples, targets):
        words = [set(text.split()) for text in samples.texts]
        wanted = [set(" ".join(target.texts).split()) for target in targets.values()]
        return -torch.tensor([[float(len(own & goal)) for own in words] for goal in wanted])
'''


class Csv(Form):
    """Columns question and answer."""

    name = "CSV"

    def claims(self, path):
        return path.suffix == ".csv"

    def read(self, path):
        return [row for _, row in table_rows(path)[1]]

    def write(self, path, records):
        records, text = list(records), io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        runs.write_text(path, text.getvalue())

    def parse(self, uid, record):
        row = readable(record)
        return checked_sample(uid, [Turn("human", row["question"]), Turn("gpt", row["answer"])])


@dataclass(frozen=True)
class Letters:
    """A batch: letters seen [n, t], letters that follow [n, t] and where there are some [n, t]."""

    input_ids: torch.Tensor
    labels: torch.Tensor
    mask: torch.Tensor
    uids: torch.Tensor

    def to(self, device, non_blocking=False):
        return Letters(*(getattr(self, name).to(device) for name in ("input_ids", "labels", "mask", "uids")))

    def halves(self):
        parts = zip(*(x.chunk(2) for x in (self.input_ids, self.labels, self.mask, self.uids)), strict=True)
        return tuple(Letters(*part) for part in parts)


class Bigrams(nn.Module, Subject):
    """Predicts each letter of the answer from the one before it."""

    tokenizer = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look, self.say = nn.Embedding(128, 8), nn.Linear(8, 128, bias=False)

    @property
    def module(self):
        return self

    @property
    def backbone(self):
        return self

    def digest(self):
        return repr([(name, weight.double().sum().item()) for name, weight in self.state_dict().items()])

    def encode(self, sample, reading):
        ids = [min(127, ord(letter)) for letter in sample.said("gpt")[0]][: reading.max_length]
        if len(ids) < 2:
            raise ValueError("its answer is too short")
        return sample.uid, ids

    def size(self, sample, reading):
        letters = len(self.encode(sample, reading)[1])
        return Size(letters, letters - 1)

    def collate(self, items):
        longest = max(len(ids) for _, ids in items)
        rows = torch.tensor([ids + [0] * (longest - len(ids)) for _, ids in items])
        mask = torch.tensor([[place + 1 < len(ids) for place in range(longest - 1)] for _, ids in items])
        return Letters(rows[:, :-1], rows[:, 1:], mask, torch.tensor([uid for uid, _ in items]))

    def forward(self, batch):
        logits = self.say(self.look(batch.input_ids))
        losses = F.cross_entropy(logits[batch.mask], batch.labels[batch.mask], reduction="none")
        return TokenLosses(losses, batch.mask.nonzero()[:, 0], len(batch.uids))

    token_losses = forward

    def supervised(self, batch):
        return batch.mask.sum(1)

    def default_blocks(self):
        return r"^(look|say)\."

    def trained(self, parts):
        return only_these_learn(self, {"letters": dict(self.named_parameters())})

    def save(self, folder):
        with runs.atomic_path(Path(folder) / "letters.safetensors") as part:
            save_file(self.state_dict(), part)

    def load_trained(self, folder):
        self.load_state_dict(load_file(Path(folder) / "letters.safetensors"))


def open_bigrams(source, dtype, template):
    found = Bigrams()
    if source != "bigrams":
        found.load_trained(Path(source) / "model")
    return found.eval()


BIGRAMS = opening.Make(
    lambda source: source == "bigrams" or bool(list(Path(source).glob("model/letters.*"))), open_bigrams
)
ROWS = [
    ("Who?", "a cat"),
    ("What?", "a dog"),
    ("Why?", "x"),
    ("How?", "by train, at noon"),
    ("When?", "at dawn, a cat"),
]


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])


@pytest.fixture
def world(tmp_path, monkeypatch):
    """The three registrations, and files in the new form."""
    monkeypatch.setattr(formats, "FORMS", [Csv(), *formats.FORMS])
    monkeypatch.setattr(opening, "MAKES", [BIGRAMS, *opening.MAKES])
    (tmp_path / "mine.py").write_text(SCORERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_rows("pool.csv", ROWS)
    write_rows("target.csv", [("Where?", "a cat at noon"), ("Who?", "a cat")])
    return tmp_path


def run(*words):
    assert cli.main(list(words)) == 0


def test_the_ordinary_commands_take_all_of_them(world, capsys):
    scorers = "[HyperINF(damping=10.0), TracIn, mine:Halved, mine:Shared]"
    run("score", "--model", "bigrams", "--pool", "pool.csv", "--targets.t", "target.csv", "--scorers", scorers,
        "--device", "cpu", "--out", "scored")  # fmt: skip
    table, _ = read_table("scored/scores.parquet", "pool.csv")
    scored = [0, 1, 3, 4]
    assert runs.read_json("scored/skipped.json") == [{"uid": 2, "reason": "its answer is too short"}]
    torch.testing.assert_close(2 * table["Halved/t"][scored], table["TracIn/t"][scored])
    assert table["Shared/t"][scored].tolist() == [-3, -1, -2, -3]  # Who? a cat; a; at noon; at a cat

    run("select", "--scores", "scored/scores.parquet", "--pool", "pool.csv", "--scorer", "Shared", "--rule", "top",
        "--count", "2", "--out", "chosen.csv")  # fmt: skip
    assert Path("chosen.csv").read_text() == 'question,answer\nWho?,a cat\nWhen?,"at dawn, a cat"\n'

    run("tune", "--model", "bigrams", "--data", "chosen.csv", "--settings.epochs", "3", "--device", "cpu",
        "--settings.train", "lm", "--out", "tuned")  # fmt: skip
    losses = runs.read_json("tuned/phase.json")["losses"]
    assert losses[-1] < losses[0]
    run("score", "--model", "tuned", "--pool", "chosen.csv", "--targets.t", "target.csv", "--scorers", "[TracIn]",
        "--device", "cpu", "--out", "again")  # fmt: skip
    again, _ = read_table("again/scores.parquet", "chosen.csv")
    assert (again["loss"] < table["loss"][[0, 4]]).all()
