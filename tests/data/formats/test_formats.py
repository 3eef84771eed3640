"""A form of pool of one's own: one class and one place in the list, and pools of it are read and written."""

import csv
import io

import pytest

from vlmsel import runs
from vlmsel.data import formats
from vlmsel.data.formats import form_of, read_records, read_samples, write_records
from vlmsel.data.formats.base import Form, checked_sample
from vlmsel.data.rows import readable, table_rows
from vlmsel.data.sample import Sample, Turn


class Csv(Form):
    """Columns question, answer, image and weight, all but the first two optional."""

    name = "CSV"

    def claims(self, path):
        return path.suffix == ".csv"

    def read(self, path):
        return [row for _, row in table_rows(path)[1]]

    def write(self, path, records):
        records = list(records)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
        runs.write_text(path, text.getvalue())

    def parse(self, uid, record):
        row = readable(record)
        turns = [Turn("human", row["question"]), Turn("gpt", row["answer"])]
        image = [row["image"]] if row.get("image") else []
        return checked_sample(uid, turns, image, weight=float(row["weight"]) if row.get("weight") else None)


ROWS = """question,answer,image,weight
<image> What?,"A cat, asleep",coco/1.jpg,2
broken
Why?,So.,,
<image> Where?,Up.,../up.png,
How?,Well.,,-1
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "FORMS", [Csv(), *formats.FORMS])
    (tmp_path / "pool.csv").write_text(ROWS)
    return tmp_path / "pool.csv"


def test_a_new_form_is_read_by_its_name(pool):
    found = read_samples(pool)
    assert found.samples == [
        Sample(0, "coco", ("coco/1.jpg",), (Turn("human", "<image> What?"), Turn("gpt", "A cat, asleep")), weight=2.0),
        Sample(2, "text", (), (Turn("human", "Why?"), Turn("gpt", "So."))),
    ]
    assert [(problem.uid, problem.reason.split(";")[0]) for problem in found.problems] == [
        (1, "1 columns, 4 expected"),
        (3, "image path '../up.png' leaves the image folder"),
        (4, "the weight must be a positive number, got -1.0"),
    ]


def test_a_selection_is_written_in_the_form_it_came_in(pool, tmp_path):
    records = read_records(pool)
    write_records(tmp_path / "chosen.csv", [records[2], records[0]], pool)
    assert read_records(tmp_path / "chosen.csv") == [records[2], records[0]]
    with pytest.raises(ValueError, match=r"chosen.json: .*pool.csv is CSV and this name JSON"):
        write_records(tmp_path / "chosen.json", [records[0]], pool)
    assert not (tmp_path / "chosen.json").exists()


def test_files_that_no_form_claims_are_json(pool):
    assert [form_of(name).name for name in ("a.json", "a.jsonl", "a", "a.csv")] == ["JSON"] * 3 + ["CSV"]
