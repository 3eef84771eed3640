"""GLUE files: quotation marks, headers or none, labels in digits or words; what is skipped, refused and counted."""

import csv
import io
import random
from types import SimpleNamespace

import pytest

from vlmsel.data.glue import GLUE_TASKS, GlueExample, read_glue
from vlmsel.data.rows import Unread

HEADERS = {
    "cola": "source\tlabel\tmark\tsentence",
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
}
TEST_HEADERS = {
    "cola": "index\tsentence",
    "sst2": "index\tsentence",
    "mrpc": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "qqp": "id\tquestion1\tquestion2",
    "qnli": "index\tquestion\tsentence",
    "rte": "index\tsentence1\tsentence2",
}
PAIRS = ("mrpc", "qqp", "qnli", "rte")
TASKS = tuple(HEADERS)


def row(task, number=0, label=1, first="It 's \"so .", second='He said " no .'):
    word = ("entailment", "not_entailment")[label] if label in (0, 1) else label
    cells = {
        "cola": ["gj04", label, "*", first],
        "sst2": [first, label],
        "mrpc": [label, 70 + number, 90 + number, first, second],
        "qqp": [number, 7, 8, first, second, label],
        "qnli": [number, first, second, word],
        "rte": [number, first, second, word],
    }[task]
    return "\t".join(map(str, cells))


def unlabelled_row(task, number=0):
    ids = ["70", "90"] if task == "mrpc" else []
    return "\t".join([str(number), *ids, "One .", *(["Two ."] if task in PAIRS else [])])


def content(task, *rows):
    return "\n".join([*([] if task == "cola" else [HEADERS[task]]), *rows]) + "\n"


@pytest.fixture
def read(tmp_path):
    def read_file(task, text):
        (tmp_path / "dev.tsv").write_bytes(text.encode())
        rows = read_glue(task, tmp_path / "dev.tsv")
        return SimpleNamespace(
            examples=[row for _, row in rows if isinstance(row, GlueExample)],
            skipped=[(place, row.reason) for place, row in rows if isinstance(row, Unread)],
        )

    return read_file


def refused(read, task, text):
    with pytest.raises(ValueError) as caught:
        read(task, text)
    (line,) = str(caught.value).split("\n")
    assert "dev.tsv: " in line
    return line


@pytest.mark.parametrize("task", TASKS)
def test_rows_become_examples_with_their_quotation_marks(read, task):
    found = read(task, content(task, row(task, 0, 1), row(task, 1, 0, first="Plain .")))
    pair = ('He said " no .',) if task in PAIRS else ()
    want = [GlueExample("0", ("It 's \"so .", *pair), 1), GlueExample("1", ("Plain .", *pair), 0)]
    assert found.examples == want and found.skipped == []


@pytest.mark.parametrize("task", TASKS)
def test_mark_line_ends_and_blank_last_lines_change_nothing(read, task):
    text = content(task, row(task, 0), row(task, 1, 0))
    for other in ("\ufeff" + text, text.replace("\n", "\r\n"), text.rstrip("\n"), text + "\n\n"):
        assert read(task, other) == read(task, text)


def test_rows_are_those_of_the_csv_module_without_quotes(read):
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab \"',\\", k=12)) for _ in range(300)]
    text = content("rte", *(row("rte", i, i % 2, one, one[::-1]) for i, one in enumerate(texts)))
    twin = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE))
    found = read("rte", text).examples
    assert [one.texts for one in found] == [(line["sentence1"], line["sentence2"]) for line in twin]
    assert [GLUE_TASKS["rte"].classes[one.label] for one in found] == [line["label"] for line in twin]
    with_quotes = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    assert len(with_quotes) < len(found) == 300  # the usual rules lose rows of this very file


def test_sentences_are_kept_as_they_stand(read):
    (one,) = read("sst2", content("sst2", " charming \u2028 journey . \t1")).examples
    assert one.texts == (" charming \u2028 journey . ",)


@pytest.mark.parametrize("task", TASKS)
def test_files_without_labels_give_none(read, task):
    rows = [unlabelled_row(task, number) for number in (5, 6)]
    found = read(task, "\n".join([TEST_HEADERS[task], *rows]))
    assert [(one.id, one.label) for one in found.examples] == [("5", None), ("6", None)]
    assert found.examples[0].texts == (("One .", "Two .") if task in PAIRS else ("One .",))
    hidden = read(task, content(task, row(task, 0, -1), row(task, 1, -1)))
    assert [one.label for one in hidden.examples] == [None, None]


def test_cola_may_have_a_header(read):
    rows = [row("cola", label=1), row("cola", label=0)]
    assert read("cola", "\n".join([HEADERS["cola"], *rows])).examples == read("cola", "\n".join(rows)).examples


def test_columns_are_found_by_name(read):
    text = "label\tsentence2\tindex\tsentence1\nnot_entailment\tsecond\t9\tfirst\n"
    assert read("rte", text).examples == [GlueExample("9", ("first", "second"), 1)]


def test_malformed_rows_of_qqp_are_skipped_and_counted(read):
    rows = [row("qqp", 10), "11\t7\t8\tcut", row("qqp", 12, 0), row("qqp", 13) + "\textra", "", row("qqp", 14)]
    found = read("qqp", content("qqp", *rows))
    assert [(one.id, one.label) for one in found.examples] == [("10", 1), ("12", 0), ("14", 1)]
    assert found.skipped == [
        ("line 3", "4 columns, 6 expected"),
        ("line 5", "7 columns, 6 expected"),
        ("line 6", "1 columns, 6 expected"),
    ]
    assert "no row with 6 columns" in refused(read, "qqp", content("qqp", "11\tcut"))


@pytest.mark.parametrize("task", [task for task in TASKS if task != "qqp"])
def test_malformed_rows_of_the_others_are_refused(read, task):
    start = 1 if task == "cola" else 2
    line = refused(read, task, content(task, row(task), "cut", row(task, 2), row(task, 3) + "\textra"))
    width = HEADERS[task].count("\t") + 1
    assert f"line {start + 1}: 1 columns, {width} expected" in line and "(2 of 4 rows cannot be used" in line


@pytest.mark.parametrize("task", TASKS)
def test_unknown_labels_are_refused_with_line_and_count(read, task):
    start = 1 if task == "cola" else 2
    line = refused(read, task, content(task, row(task, 0), row(task, 1, "neutral"), row(task, 2, "")))
    assert f"line {start + 1}: the label must be" in line and "got 'neutral'" in line and "(2 of 3 rows" in line


@pytest.mark.parametrize("task", ["qnli", "rte"])
def test_worded_labels_are_not_digits(read, task):
    assert "entailment or not_entailment, got '1'" in refused(read, task, content(task, "0\ta\tb\t1"))


@pytest.mark.parametrize("task", TASKS)
def test_files_labelled_in_part_are_refused(read, task):
    line = refused(read, task, content(task, row(task, 0), row(task, 1, -1), row(task, 2)))
    assert "1 of 3 rows have no label, the first: row 1" in line


@pytest.mark.parametrize("task", [task for task in TASKS if task != "cola"])
def test_a_missing_column_is_named_with_what_is_there(read, task):
    text = content(task, row(task))
    for name in (*GLUE_TASKS[task].texts, GLUE_TASKS[task].label):
        line = refused(read, task, text.replace(name, "Other", 1))
        assert f"no column {name!r}" in line and "'Other'" in line
    assert "line 1: 2 columns, 4 expected" in refused(read, "cola", "two\tcolumns")
    assert "a column occurs twice" in refused(read, "rte", HEADERS["rte"] + "\tlabel\n" + row("rte") + "\tentailment")


def test_an_id_that_comes_again_is_refused(read):
    assert "row 3 occurs more than once" in refused(read, "rte", content("rte", row("rte", 3), row("rte", 3)))


def test_missing_and_empty_files_and_unknown_tasks(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.tsv: no such file"):
        read_glue("sst2", tmp_path / "absent.tsv")
    assert "the file is empty" in refused(read, "sst2", "\n")
    assert "no row with 2 columns" in refused(read, "sst2", HEADERS["sst2"])
    with pytest.raises(ValueError, match="no GLUE task 'wnli'; choose one of cola, sst2, mrpc, qqp, qnli, rte"):
        read_glue("wnli", tmp_path / "dev.tsv")
