"""COCO's caption files: read as samples, written with the images they need, told from other JSON, and their faults."""

import json

import pytest

from vlmsel.data.formats import form_of, read_records, read_samples, write_part
from vlmsel.data.formats.coco import ASKED, Coco

IMAGES = [
    {"id": 7, "file_name": "a.jpg", "height": 4},
    {"id": 9, "file_name": "b/c.jpg"},
    {"id": 11, "file_name": "d.jpg"},
]
CAPTIONS = [
    {"id": 1, "image_id": 9, "caption": "A cat. "},
    {"id": 2, "image_id": 7, "caption": "Two dogs."},
    {"id": 3, "image_id": 9, "caption": "A grey cat."},
    {"id": 4, "image_id": 5, "caption": "Lost."},
    {"id": 5, "image_id": 11, "bbox": [1, 2]},
    {"id": 6, "image_id": [9], "caption": "Odd."},
    "none",
]
WHOLE = {"info": {"year": 2017}, "images": IMAGES, "annotations": CAPTIONS}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_captions_are_samples_and_others_problems(tmp_path):
    pool = read_samples(write(tmp_path / "captions.json", WHOLE))
    said = [(one.uid, one.images, one.turns[0].text, one.turns[1].text) for one in pool.samples]
    assert said == [
        (0, ("b/c.jpg",), ASKED, "A cat."),
        (1, ("a.jpg",), ASKED, "Two dogs."),
        (2, ("b/c.jpg",), ASKED, "A grey cat."),
    ]
    assert [one.uid for one in pool.problems] == [3, 4, 5, 6]
    assert "no image has the id '5'" in pool.problems[0].reason
    assert "no text under 'caption', got null; is this COCO's file of captions?" in pool.problems[1].reason


def test_a_choice_holds_its_captions_and_the_images_they_need(tmp_path):
    pool, out = write(tmp_path / "captions.json", WHOLE), tmp_path / "chosen.json"
    write_part(out, pool, [2, 0, 3])
    chosen = json.loads(out.read_text())
    kept = [CAPTIONS[2], CAPTIONS[0], CAPTIONS[3]]
    assert chosen == {"info": {"year": 2017}, "images": [IMAGES[1]], "annotations": kept}
    records = read_records(pool)
    assert list(read_records(out)) == [records[uid] for uid in (2, 0, 3)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"images": ["a.png"], "annotations": "none", "conversations": []}) + "\n",
        json.dumps([WHOLE]),
        '{"images": [], "annotations": [',
        json.dumps({"images": [], "annotations": [{"caption": "of nothing"}]}),
        "".join(json.dumps({"id": i, "images": ["a.png"], "text": "x" * 3000}) + "\n" for i in range(500)),
    ],
)
def test_other_files_are_left_to_other_forms(tmp_path, text):
    path = tmp_path / "pool.json"
    path.write_text(text)
    assert not isinstance(form_of(path), Coco)


def test_a_file_that_changed_is_read_anew(tmp_path):
    path = write(tmp_path / "captions.json", WHOLE)
    assert len(read_records(path)) == 7
    write(path, {**WHOLE, "annotations": CAPTIONS[:2]})
    assert len(read_records(path)) == 2
