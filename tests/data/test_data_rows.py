"""Rows of files: each in its place, those that cannot be read too; and files that are refused as a whole."""

import csv
import io
import json

import pytest

from vlmsel.data.rows import (
    Unread,
    check_whole,
    json_rows,
    need,
    parse_all,
    read_lines,
    read_rows,
    readable,
    table_rows,
)

RECORDS = [{"a": 1}, {"a": "x\u2028y"}]


@pytest.fixture
def write(tmp_path):
    def write_file(name, content):
        (tmp_path / name).write_bytes(content.encode())
        return tmp_path / name

    return write_file


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_list_and_lines_are_told_by_the_first_character(write, mark):
    lined = "\r\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
    assert list(json_rows(write("rows", mark + lined))) == [("line 1", RECORDS[0]), ("line 3", RECORDS[1])]
    listed = list(json_rows(write("rows", mark + "\n " + json.dumps(RECORDS, indent=1))))
    assert listed == [("record 1 of 2", RECORDS[0]), ("record 2 of 2", RECORDS[1])]


def test_a_line_that_is_no_json_keeps_its_place(write):
    (first, bad, last) = json_rows(write("rows", "1\n{broken\n[2]\n"))
    assert (first, last) == (("line 1", 1), ("line 3", [2]))
    assert bad[0] == "line 2" and isinstance(bad[1], Unread) and bad[1].reason.startswith("not JSON (Expecting")
    with pytest.raises(ValueError, match="not JSON"):
        readable(bad[1])
    assert list(json_rows(write("rows", '{"a": 1}'))) == [("line 1", {"a": 1})]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{\n}", "expected a list of records, got an object"),
        ("[1", "not a JSON file (Expecting"),
        ("\n", "file is empty"),
    ],
)
def test_what_is_no_list_is_refused(write, content, said):
    with pytest.raises(ValueError) as error:
        json_rows(write("rows.json", content))
    assert "rows.json: " in str(error.value) and said in str(error.value)


def test_tables_of_both_kinds_differ_in_quotation_marks_alone(write):
    text = 'text{0}label\n"a{0}"{0}1\nshort\n'
    names, csv_rows = table_rows(write("rows.csv", text.format(",")))
    short = ("line 3", Unread("1 columns, 2 expected"))
    assert names == ["text", "label"] and list(csv_rows) == [("line 2", {"text": "a,", "label": "1"}), short]
    names, tsv_rows = table_rows(write("rows.tsv", text.format("\t")))
    assert list(tsv_rows) == [("line 2", Unread("3 columns, 2 expected")), short]
    named = list(table_rows(write("rows.tsv", '"a\t1'), ("text", "label"))[1])
    assert named == [("line 1", {"text": '"a', "label": "1"})]


ODD = ['He said "no" twice', "a tab\tinside", "one line\nand another", "plain", '"No"', '"', ""]


def written(quoting, texts, last=False):
    """What Python's writer makes of a table."""
    table, rows = io.StringIO(), [("text", "label"), *((text, str(i)) for i, text in enumerate(texts))]
    rows = [row[::-1] for row in rows] if last else rows
    csv.writer(table, "excel-tab", quoting=quoting, lineterminator="\n").writerows(rows)
    return table.getvalue()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_tsv_that_was_written_with_quotes_is_read_with_them(write, quoting, last):
    for texts in (ODD, ODD[3:], ODD[:1], ODD[1:2], ODD[2:3], ODD[5:6]):
        _, rows = read_rows(write("rows.tsv", written(quoting, texts, last)))
        assert [row["text"] for _, row in rows] == texts


@pytest.mark.parametrize(
    "texts",
    [
        ['"No," he said.', 'and "yes"', "plain"],
        ['"Yes."', "plain"],
        ['"open', 'closed"', "plain"],
        ['""Yes" she said', '"', "plain"],
        ["5'", 'a " b'],
    ],
)
def test_in_other_tsv_a_quotation_mark_is_a_character(write, texts):
    table = "text\tlabel\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(texts))
    _, rows = read_rows(write("rows.tsv", table))
    assert [row["text"] for _, row in rows] == texts
    _, rows = read_rows(write("rows.tsv", table + "one cell\n"))
    *whole, (_, short) = rows
    assert [row["text"] for _, row in whole] == texts and short == Unread("1 columns, 2 expected")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("end", ['"cut off', '"No," he said\t7\n'])
def test_tsv_whose_rows_fit_neither_way_is_refused(write, end, last):
    table = written(csv.QUOTE_MINIMAL, ODD[:4], last)
    with pytest.raises(ValueError, match="rows.tsv: line [0-9]: a quotation mark is opened and not closed in this row"):
        read_rows(write("rows.tsv", table + end))


def test_columns_of_json_are_the_keys_of_all_objects(write):
    names, rows = read_rows(write("rows.jsonl", '{"a": 1}\n3\n{"b": 2, "a": 0}'))
    assert names == ["a", "b"]
    assert list(rows) == [("line 1", {"a": 1}), ("line 2", Unread("no JSON object")), ("line 3", {"b": 2, "a": 0})]


def test_lines_end_at_line_feeds_alone(write):
    assert read_lines(write("lines", "\n a\x85b\r\n\nc\u2028\n\n\r\n")) == ["", " a\x85b", "", "c\u2028"]


def test_one_error_speaks_for_all_rows():
    rows = [("line 1", "1"), ("line 2", "x"), ("line 3", "y")]
    with pytest.raises(ValueError, match=r"f: line 2: invalid .*'x' \(2 of 3 rows cannot be used, this is the first\)"):
        parse_all("f", rows, lambda number, row: int(row), "row")
    assert parse_all("f", rows[:1], lambda number, row: (number, int(row)), "row") == [(0, 1)]


def test_ids_differ_and_labels_are_all_there_or_none():
    check_whole("f", ["a", "b"], [None, None], "row")
    with pytest.raises(ValueError, match="f: row a occurs more than once; take one of the two out$"):
        check_whole("f", ["a", "a"], [0, 1], "row")
    with pytest.raises(ValueError, match="f: 1 of 2 rows have no label, the first: row b"):
        check_whole("f", ["a", "b"], [0, None], "row")


def test_what_others_wrote_is_quoted_in_part():
    long = "x" * 100_000
    with pytest.raises(ValueError, match="f: row x{100} occurs more than once") as error:
        check_whole("f", [long, long], [0, 1], "row")
    assert len(str(error.value)) < 300
    with pytest.raises(ValueError, match="must be int, got 'xx") as error:
        need({"id": long}, "id", int)
    assert len(str(error.value)) < 300
