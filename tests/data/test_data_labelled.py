"""Labelled texts: every format gives the same samples under the positions of its file; what cannot be used is named."""

import json

import datasets
import pytest
from tiny_text import write_csv

from vlmsel.data.labelled import (
    Columns,
    class_names,
    label_of,
    merged,
    read_dataset,
    read_glue_folder,
    read_labelled,
)

COLUMNS = Columns()
ROWS = [("a fine film", "good"), ('he said "no",\nand left', "bad"), ("", "good"), ("why", ""), ("fine", "good")]
EXPECTED = [(0, ("a fine film",), "good"), (1, ('he said "no",\nand left',), "bad"), (4, ("fine",), "good")]


def content(file):
    return [(sample.uid, sample.said("human"), label_of(sample)) for sample in file.samples]


def save_dataset(folder, labels=(1, 0, 1, -1, 1)):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    part = datasets.Dataset.from_dict({"text": [text for text, _ in ROWS], "label": list(labels)}, features=features)
    datasets.DatasetDict({"train": part, "validation": part}).save_to_disk(folder)
    return folder


def test_csv_keeps_quoted_commas_and_line_ends_and_names_what_is_left_out(tmp_path):
    file = read_labelled(write_csv(tmp_path / "train.csv", ROWS), COLUMNS)
    assert content(file) == EXPECTED and file.total == 5 and file.classes is None
    assert [(p.uid, p.reason) for p in file.problems] == [(2, "line 5: no text"), (3, "line 6: no label")]


@pytest.mark.parametrize("layout", ["lines", "list"])
def test_json_gives_the_same_samples(tmp_path, layout):
    records = [{"text": text, "label": label or None} for text, label in ROWS]
    text = "\n".join(map(json.dumps, records)) if layout == "lines" else json.dumps(records, indent=1)
    path = tmp_path / f"train.json{'l' if layout == 'lines' else ''}"
    path.write_text(text)
    assert content(read_labelled(path, COLUMNS)) == EXPECTED


def test_a_saved_dataset_gives_the_same_samples_with_its_classes_by_name(tmp_path):
    file = read_dataset(str(save_dataset(tmp_path / "set")), "train", COLUMNS)
    assert content(file) == EXPECTED and file.classes == ("bad", "good")
    assert [problem.uid for problem in file.problems] == [2, 3]


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text('label\ttext\n1\t"open\n0\tclosed"\n1\ttoo\tmany\n')
    file = read_labelled(path, COLUMNS)
    assert content(file) == [(0, ('"open',), "1"), (1, ('closed"',), "0")]
    assert file.problems[0].reason == "line 4: 3 columns, 2 expected"


def test_texts_of_several_columns_and_true_labels(tmp_path):
    rows = [("a", "b", 1, 0), ("", "c", 1, ""), (" ", "", 1, 1), ("d", "", 0, 0)]
    path = write_csv(tmp_path / "pairs.csv", rows, ["one", "two", "given", "true"])
    file = read_labelled(path, Columns(("one", "two"), "given", "true"))
    assert content(file) == [(0, ("a", "b"), "1"), (3, ("d", ""), "0")]
    assert file.true_labels == {0: "0", 3: "0"} and [sample.source for sample in file.samples] == ["1", "0"]
    assert [problem.reason for problem in file.problems] == ["line 3: no true label", "line 4: no text"]


@pytest.mark.parametrize("columns", [Columns(("body",)), Columns(label="mark"), Columns(true_label="truth")])
def test_a_column_that_is_missing_lists_those_that_there_are(tmp_path, columns):
    path = write_csv(tmp_path / "train.csv", ROWS)
    with pytest.raises(ValueError, match="train.csv: no column '(body|mark|truth)'; it has 'text', 'label'"):
        read_labelled(path, columns)
    with pytest.raises(ValueError, match=r"no column '(body|mark|truth)'; it has 'text', 'label'"):
        read_dataset(str(save_dataset(tmp_path / "set")), "train", columns)


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv: no such file"):
        read_labelled(tmp_path / "none.csv", COLUMNS)
    with pytest.raises(ValueError, match="unknown kind of file; give one that ends in .csv, .tsv, .jsonl, .json"):
        read_labelled(tmp_path / "train.xlsx", COLUMNS)
    with pytest.raises(ValueError, match="none of 2 samples can be used; the first, line 2: no label"):
        read_labelled(write_csv(tmp_path / "bare.csv", [("a", ""), ("b", " ")]), COLUMNS)
    (tmp_path / "open.csv").write_text('text,label\na,1\n"b,0\nc,1\n')
    with pytest.raises(ValueError, match="line 3: unexpected end of data; close the quotation mark that begins there"):
        read_labelled(tmp_path / "open.csv", COLUMNS)
    (tmp_path / "cut.json").write_text('[{"text": "a"')
    with pytest.raises(ValueError, match=r"cut.json: not a JSON file \("):
        read_labelled(tmp_path / "cut.json", COLUMNS)
    (tmp_path / "some.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n3\n')
    file = read_labelled(tmp_path / "some.jsonl", COLUMNS)
    assert [p.reason.partition(" (")[0] for p in file.problems] == ["line 2: not JSON", "line 3: no JSON object"]


def test_datasets_that_cannot_be_used(tmp_path):
    folder = str(save_dataset(tmp_path / "set"))
    with pytest.raises(ValueError, match="no split 'dev'; it has 'train', 'validation'"):
        read_dataset(folder, "dev", COLUMNS)
    datasets.load_from_disk(folder)["train"].save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="a single split; save a DatasetDict"):
        read_dataset(str(tmp_path / "one"), "train", COLUMNS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither a folder with a data set .* nor one that the hub gives"):
        read_dataset(str(tmp_path / "empty"), "train", COLUMNS)


def test_glue_uids_are_rows_of_the_file_also_behind_rows_that_are_left_out(tmp_path):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = ["7\t1\t2\twho\twhose\t1", "8\tbroken", "9\t3\t4\t \t\t0", "10\t5\t6\twhat\twhy\t0"]
    (tmp_path / "train.tsv").write_text("\n".join([head, *rows]) + "\n")
    file = read_glue_folder("qqp", tmp_path, "train")
    assert content(file) == [(0, ("who", "whose"), "duplicate"), (3, ("what", "why"), "not_duplicate")]
    assert [problem.uid for problem in file.problems] == [1, 2]
    assert [problem.reason for problem in file.problems] == ["line 3: 2 columns, 6 expected", "line 4: no text"]
    assert file.classes == ("not_duplicate", "duplicate") and file.text_names == ("question1", "question2")
    assert file.ids == {0: "7", 3: "10"}


@pytest.mark.parametrize("own", ["id", "idx", "Index"])
def test_the_data_s_own_ids_go_by_uid_and_a_column_of_texts_or_labels_is_none(tmp_path, own):
    path = write_csv(tmp_path / "train.csv", [("q7", "a", 1), ("q8", "", 1), ("", "c", 0)], [own, "text", "label"])
    assert read_labelled(path, COLUMNS).ids == {0: "q7", 2: ""}
    assert read_labelled(path, Columns(("text", own))).ids == {} == read_labelled(path, Columns(label=own)).ids
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": 1}\n{"id": 7, "text": "b", "label": 0}\n')
    assert read_labelled(tmp_path / "train.jsonl", COLUMNS).ids == {0: "", 1: "7"}


def test_labels_are_sorted_as_numbers_where_they_are_numbers():
    assert class_names(["10", "9", "-1"]) == ("-1", "9", "10")
    assert class_names(["yes", "no", "no"]) == ("no", "yes")


def test_one_rule_makes_labels_of_all_files_words(tmp_path):
    rows = [("a", "1"), ("b", "1.0"), ("c", "0.0"), ("d", "nan"), ("e", "NaN"), ("f", ""), ("g", "True"), ("h", "true")]
    table = read_labelled(write_csv(tmp_path / "train.csv", rows), COLUMNS)
    given = ["1", "1", "0", "true", "true"]
    assert [label_of(sample) for sample in table.samples] == given
    assert {p.uid: p.reason.split(": ")[1] for p in table.problems} == dict.fromkeys((3, 4, 5), "no label")
    (tmp_path / "val.jsonl").write_text("".join(json.dumps({"text": "a", "label": i}) + "\n" for i in (0, 1.0, True)))
    lines = read_labelled(tmp_path / "val.jsonl", COLUMNS)
    assert [label_of(sample) for sample in lines.samples] == ["0", "1", "true"]
    said = "labels that say the same are one class: "
    assert merged(table) == f"{said}'1' (1, 1.0), 'true' (True, true)"
    assert merged(table, lines) == f"{said}'1' (1, 1.0), '0' (0, 0.0), 'true' (True, true)"
    assert merged(lines) == merged() == ""


def test_labels_that_differ_stay_apart(tmp_path):
    words = ["01", "1", "1.5", "yes", "Yes", "none", "null", "1e3", "1000", "inf", "-1.0"]
    file = read_labelled(write_csv(tmp_path / "train.csv", [("a", word) for word in words]), COLUMNS)
    assert [label_of(sample) for sample in file.samples] == [*words[:-1], "-1"]


def test_classes_of_a_dataset_are_written_by_the_same_rule(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["0.0", "True"])}
    )
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    datasets.DatasetDict({"train": part}).save_to_disk(tmp_path / "set")
    file = read_dataset(str(tmp_path / "set"), "train", COLUMNS)
    assert file.classes == ("0", "true") and [label_of(sample) for sample in file.samples] == ["true", "0"]
