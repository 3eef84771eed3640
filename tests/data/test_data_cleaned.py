"""A labelled file is written again in its own form, and nothing in it changes but what should."""

import csv
import json

import pytest
from tiny_text import write_csv

from vlmsel.data.cleaned import write_cleaned
from vlmsel.data.labelled import Columns, label_of, read_labelled

ROWS = [
    ("7", "fine", "1.0", "x"),
    ("8", 'said "no",\nleft', "0", ""),
    ("9", "", "1.0", "y"),
    ("11", "poor", "0", "z"),
    ("12", " ok ", "1.0", "é"),
]
HEAD = ["id", "text", "label", "more"]
CHANGES = {0: "0", 3: None, 4: "0", 1: "1"}
LEFT = [("7", "fine", "0", "x"), ("8", 'said "no",\nleft', "1.0", ""), ROWS[2], ("12", " ok ", "0", "é")]


def test_csv_keeps_its_columns_and_rows_that_nothing_is_said_of(tmp_path):
    path = write_csv(tmp_path / "train.csv", ROWS, HEAD)
    write_cleaned(path, "label", CHANGES, tmp_path / "cleaned.csv")
    with open(tmp_path / "cleaned.csv", newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == [tuple(HEAD), *LEFT]
    file = read_labelled(tmp_path / "cleaned.csv", Columns())
    assert [(file.ids[one.uid], label_of(one)) for one in file.samples] == [("7", "0"), ("8", "1"), ("12", "0")]


@pytest.mark.parametrize("form", ["lines", "list"])
def test_json_keeps_its_layout_its_kinds_and_what_else_a_record_has(tmp_path, form):
    records = [{"id": int(i), "text": t, "label": label == "1.0", "more": {"a": [m]}} for i, t, label, m in ROWS]
    text = json.dumps(records) if form == "list" else "\n".join(map(json.dumps, records)) + "\n{broken\n"
    (tmp_path / "train.json").write_text(text)
    write_cleaned(tmp_path / "train.json", "label", {0: "false", 3: None}, tmp_path / "new.json")
    written = (tmp_path / "new.json").read_text()
    found = json.loads(written) if form == "list" else [json.loads(line) for line in written.splitlines()]
    assert found == [{**records[0], "label": False}, *records[1:3], records[4]]


@pytest.mark.parametrize("quoted", [False, True])
def test_tsv_is_quoted_only_where_it_was(tmp_path, quoted):
    rows = [("a\tb", "1"), ('"c', "0"), ("d", "1")] if quoted else [('"a"" ', "1"), ('"c', "0"), ("d", "1")]
    with open(tmp_path / "train.tsv", "w", newline="") as file:
        how = {} if quoted else {"quoting": csv.QUOTE_NONE, "quotechar": None}
        csv.writer(file, delimiter="\t", **how).writerows([("text", "label"), *rows])
    before = read_labelled(tmp_path / "train.tsv", Columns())
    write_cleaned(tmp_path / "train.tsv", "label", {2: None}, tmp_path / "cleaned.tsv")
    after = read_labelled(tmp_path / "cleaned.tsv", Columns())
    assert after.samples == before.samples[:2] and [one.said("human")[0] for one in after.samples] == [
        r[0] for r in rows[:2]
    ]
    assert ("\r" in (tmp_path / "cleaned.tsv").read_text()) is False


def test_a_label_that_the_file_never_gives_is_written_as_it_is(tmp_path):
    path = write_csv(tmp_path / "train.csv", [("a", "x"), ("b", "y")])
    write_cleaned(path, "label", {1: "z"}, tmp_path / "cleaned.csv")
    assert (tmp_path / "cleaned.csv").read_text() == "text,label\na,x\nb,z\n"
