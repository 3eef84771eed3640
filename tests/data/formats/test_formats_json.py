"""JSON files: what is read, what is reported instead, and that nothing shifts another sample's uid."""

import json
import pickle
import random
import re
import tracemalloc

import pytest

from vlmsel.data.formats import read_records, read_samples, write_records
from vlmsel.data.formats.base import path_problem, source_of
from vlmsel.data.formats.json_file import JsonFile
from vlmsel.data.sample import Turn
from vlmsel.data.world.files import WorldSizes, write_world

ASK = {"from": "human", "value": "<image>\nWhat?"}
SAY = {"from": "gpt", "value": "A cat"}
GOOD = {"id": "a", "image": "coco/1.jpg", "conversations": [ASK, SAY]}


def talk(*pairs):
    return [{"from": role, "value": text} for role, text in pairs]


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="pool.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def test_a_record_becomes_a_sample(write):
    pool = read_samples(write([GOOD]))
    (sample,) = pool.samples
    assert (sample.uid, sample.source, sample.images) == (0, "coco", ("coco/1.jpg",))
    assert sample.turns == (Turn("human", "<image>\nWhat?"), Turn("gpt", "A cat"))
    assert pool.problems == [] and pool.records == [GOOD]


def test_bad_records_are_reported_and_shift_no_uid(write):
    pool = read_samples(write([GOOD, {"id": 1}, GOOD, "no", GOOD]))
    assert [sample.uid for sample in pool.samples] == [0, 2, 4]
    assert [problem.uid for problem in pool.problems] == [1, 3]


BAD = {
    "no conversations": {"id": 1},
    "non-empty list": {"conversations": []},
    "got a list": [],
    "turn 2 is from 'system', which only the first may be": {
        "conversations": talk(("human", "a"), ("gpt", "b"), ("system", "Be kind."))
    },
    "marker stands in the system turn": {"conversations": talk(("system", "<image>"), ("human", "a"), ("gpt", "b"))},
    "expected 'human': turns must": {"conversations": talk(("system", "a"), ("gpt", "b"), ("gpt", "c"))},
    "'system' and the system turn differ": {
        "system": "x",
        "conversations": talk(("system", "y"), ("human", "a"), ("gpt", "b")),
    },
    "string under 'system', got a list": {"system": ["x"], "conversations": talk(("human", "a"), ("gpt", "b"))},
    "turn 0: a part of type 'audio'": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
    "turn 0: a part of type None": {"messages": [{"role": "user", "content": [None]}]},
    "parts of turns name images, and so does the record": {
        "images": ["a.png"],
        "messages": [{"role": "user", "content": [{"type": "image", "image": "b.png"}]}],
    },
    "'history' 0: expected a question": {"instruction": "a", "output": "b", "history": ["x"]},
    "round 0: expected an object with texts": {"texts": [{"user": "a"}]},
    "unknown role None": {"conversations": [{"value": "x"}]},
    "got null": {"conversations": [{"from": "human", "value": None}]},
    "got a number": {"conversations": [7]},
    "nothing to learn": {"conversations": talk(("gpt", "Welcome."), ("human", "a"))},
    "must alternate": {"conversations": talk(("human", "a"), ("human", "b"), ("gpt", "c"))},
    "turn 2 is from 'gpt'": {"conversations": talk(("human", "a"), ("gpt", "b"), ("gpt", "c"))},
    "2 <image> markers for 1 images": {
        "image": "a.png",
        "conversations": talk(("human", "<image><image>"), ("gpt", "b")),
    },
    "1 <image> markers for 2 images": {"images": ["a.png", "b.png"], "conversations": [ASK, SAY]},
    "leaves the image folder": {"image": "../a.png", "conversations": [ASK, SAY]},
    "'/etc/a.png' leaves": {"image": "/etc/a.png", "conversations": [ASK, SAY]},
    "image 0: expected a path, got a number": {"image": 3, "conversations": [ASK, SAY]},
    "'image' and 'images' differ": {"image": "a.png", "images": ["b.png"], "conversations": [ASK, SAY]},
    "the weight must be a positive number, got 0": {**GOOD, "weight": 0},
    "the weight must be a positive number, got nan": {**GOOD, "weight": float("nan")},
    "the weight must be a positive number, got inf": {**GOOD, "weight": float("inf")},
    "the weight must be a positive number, got 1000": {**GOOD, "weight": 10**400},
    "the weight must be a number, got true or false": {**GOOD, "weight": True},
    "the weight must be a number, got a string": {**GOOD, "weight": "2"},
    "surrogate": {"conversations": talk(("human", "a\ud800"), ("gpt", "b"))},
}


@pytest.mark.parametrize("reason", BAD)
def test_reasons_say_what_is_wrong(reason, write):
    (problem,) = read_samples(write([BAD[reason]])).problems
    assert reason in problem.reason and "\n" not in problem.reason


def test_an_opening_turn_of_the_assistant_is_dropped():
    sample = JsonFile().parse(0, {"conversations": talk(("gpt", "Hello!"), ("human", "a"), ("gpt", "b"))})
    assert sample.turns == (Turn("human", "a"), Turn("gpt", "b"))


PLAIN = talk(("human", "a"), ("gpt", "b"))
UNREAD = {  # what a record names, or marks, beside text
    "video": ({"video": "clip.mp4", "conversations": PLAIN}, "'video' names what no model here reads"),
    "video of frames": ({"videos": ["v_1"], "image": "a.png", "conversations": [ASK, SAY]}, "'videos' names what"),
    "sound": ({"audio_path": "a.wav", "conversations": PLAIN}, "'audio_path' names what"),
    "marked video": ({"conversations": talk(("human", "<video>\nWhy?"), ("gpt", "b"))}, "<video> marks what"),
    "marked sound": ({"conversations": talk(("human", "Why? <audio>"), ("gpt", "b"))}, "<audio> marks what"),
    "no key": ({"conversations": [ASK, SAY]}, "1 <image> markers for 0 images"),
    "empty": ({"image": "", "conversations": [ASK, SAY]}, "1 <image> markers for 0 images"),
    "null": ({"image": None, "conversations": [ASK, SAY]}, "1 <image> markers for 0 images"),
    "empty list": ({"images": [], "conversations": [ASK, SAY]}, "1 <image> markers for 0 images"),
    "literal": ({"conversations": talk(("human", "Why <image>?"), ("gpt", "b"))}, "1 <image> markers for 0 images"),
    "in the answer": ({"conversations": talk(("human", "a"), ("gpt", "<image>"))}, "1 <image> markers for 0 images"),
    "other key": ({"image_path": "1", "conversations": PLAIN}, "'image_path' names a picture that is not read"),
    "other case": ({"Image": ["1"], "conversations": PLAIN}, "'Image' names a picture"),
    "bytes": ({"img": {"bytes": "abc"}, "conversations": PLAIN}, "'img' names a picture"),
    "misspelt": ({"imgae": "1.PNG", "conversations": PLAIN}, "'imgae' names a picture"),
    "inline": ({"file": "data:image/png;base64,AAAA", "conversations": PLAIN}, "'file' names a picture"),
    "in a turn": ({"conversations": [{**PLAIN[0], "image": "a.png"}, PLAIN[1]]}, "'image' names a picture"),
    "tools": ({"tools": [{"name": "f"}], "conversations": PLAIN}, "'tools' holds text"),
    "a call": ({"conversations": [PLAIN[0], {**PLAIN[1], "tool_calls": [1]}]}, "'tool_calls' holds text"),
    "twice": ({"messages": PLAIN, "conversations": PLAIN}, "'messages' holds text"),
    "mask": ({"conversations": [PLAIN[0], {**PLAIN[1], "loss": False}]}, "'loss' is not read of a turn"),
    "zero": ({"conversations": [PLAIN[0], {**PLAIN[1], "weight": 0}]}, "'weight' is not read of a turn"),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_names_something_that_is_not_read_is_left_out(case):
    record, reason = UNREAD[case]
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        JsonFile().parse(0, record)


@pytest.mark.parametrize(
    "more",
    [
        {"id": "a.png", "video": "", "img": None, "system": "", "messages": [], "image_id": 7},
        {"context": "a", "url": "https://example.org/a.html", "meta": {"video": "x.mp4"}},
        {"image": "1.png", "image_path": "/data/1.png", "thumbnail": "2.jpg", "conversations": [ASK, SAY]},
        {"conversations": [{**PLAIN[0], "lang": "en"}, {**PLAIN[1], "loss": True, "weight": 1, "image": None}]},
    ],
)
def test_what_is_no_part_of_the_conversation_is_no_obstacle(more):
    assert JsonFile().parse(0, {"conversations": PLAIN, **more}).said("gpt") in (("b",), ("A cat",))


KIND = Turn("system", "Be kind.")
ROUND = (Turn("human", "a"), Turn("gpt", "b"))


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"system": "Be kind.", "conversations": PLAIN}, (KIND, *ROUND)),
        ({"conversations": [*talk(("system", "Be kind.")), *PLAIN]}, (KIND, *ROUND)),
        ({"system": " Be kind.", "conversations": [*talk(("system", "Be kind.")), *PLAIN]}, (KIND, *ROUND)),
        ({"conversations": [*talk(("system", "Be kind."), ("gpt", "Hello!")), *PLAIN]}, (KIND, *ROUND)),
        ({"system": "", "conversations": [*talk(("system", " ")), *PLAIN]}, ROUND),
        ({"messages": [{"role": "system", "content": "Be kind."}, *PLAIN]}, (KIND, *ROUND)),
        ({"instruction": "a", "input": "", "output": "b"}, ROUND),
        ({"instruction": "", "input": "a", "output": "b", "system": None, "history": None}, ROUND),
        ({"instruction": "a", "input": "x", "output": "b"}, (Turn("human", "a\nx"), ROUND[1])),
        (
            {"instruction": "a", "output": "b", "system": "Be kind.", "history": [["q", "r"]]},
            (KIND, Turn("human", "q"), Turn("gpt", "r"), *ROUND),
        ),
        ({"texts": [{"user": "a", "assistant": "b", "source": "mine"}]}, ROUND),
    ],
)
def test_ways_to_say_one_thing(record, turns):
    sample = JsonFile().parse(0, record)
    assert sample.turns == turns and sample.source == ("mine" if "texts" in record else "text")


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    "record",
    [
        {"images": ["a.png"], "messages": [{"role": "user", "content": [{"type": "image"}, TEXT]}, SAY]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, TEXT]}, SAY]},
        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png", "text": None}, TEXT]}, SAY]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT]}, SAY]},
        {"images": [{"path": "a.png", "bytes": None}], "messages": [{"role": "user", "content": "What?"}, SAY]},
        {"image": "a.png", "messages": [{"role": "user", "content": [{"type": "image"}, "What?"]}, SAY]},
        {"images": ["a.png"], "texts": [{"user": "What?", "assistant": "A cat"}]},
        {"images": ["a.png"], "instruction": "What?", "output": "A cat"},
        {"image": "a.png", "instruction": "<image>What?", "output": "A cat"},
    ],
)
def test_ways_to_show_one_image(record):
    sample = JsonFile().parse(0, record)
    assert sample.images == ("a.png",)
    assert sample.turns == (Turn("human", "<image>What?"), Turn("gpt", "A cat"))


def test_an_image_list_in_one_record_and_a_text_in_the_next(write):
    samples = read_samples(write([GOOD, {**GOOD, "image": ["coco/1.jpg"]}])).samples
    assert samples[0].images == samples[1].images == ("coco/1.jpg",)


def test_records_are_found_whatever_part_of_the_file_is_in_memory(write, monkeypatch):
    records = [{"a": [1, {"b": 'é\u2028\\"]},'}], "n": n, "x": "y" * n} for n in range(40)] + [7, "text", None, []]
    lists = (json.dumps(records, ensure_ascii=False, indent=2), json.dumps(records))
    for part in (1, 7, 64, 1 << 20):
        monkeypatch.setattr("vlmsel.data.formats.json_index.PART", part)
        for text in (*lists, " \n[ ]", "[]"):
            assert list(read_records(write(f"\ufeff{text}\n"))) == json.loads(text)


def test_lists_are_taken_or_refused_as_the_decoder_does(tmp_path, monkeypatch):
    rng, taken = random.Random(0), 0
    bits = [
        '{"a": [1, "]"]}',
        '"\\\\"',
        '"\\"[,"',
        '"\\\\\\"{"',
        "7",
        "[]",
        " ",
        "\n",
        ",",
        ",",
        ",",
        "]",
        "[",
        '"',
        "\\",
        "}",
        "{}",
    ]
    for number in range(500):
        monkeypatch.setattr("vlmsel.data.formats.json_index.PART", rng.choice([1, 3, 1 << 20]))
        values = [rng.choice(bits) for _ in range(rng.randrange(6))]
        text = f"[{rng.choice(['', ',']).join(values)}]" if rng.random() < 0.6 else f"[{', '.join(values)} ]"
        path = tmp_path / f"{number % 2}.json"
        path.write_text(text)
        try:
            expected = json.loads(text)
        except ValueError:
            for read in (lambda records: records[:], list):  # together, and one by one
                with pytest.raises(ValueError, match=rf"{path.name}: not a JSON file"):
                    read(JsonFile().read(path))
            continue
        taken += 1
        records = JsonFile().read(path)
        assert list(records) == records[:] == expected and records[1:3] == expected[1:3]
    assert 50 < taken < 450


def test_records_go_to_other_processes(write):
    records = read_records(write([GOOD, {**GOOD, "id": "b"}]))
    assert records[1]["id"] == "b" and pickle.loads(pickle.dumps(records))[1:] == [{**GOOD, "id": "b"}]


def test_lists_are_written_as_json_does(tmp_path):
    for records in ([], [GOOD], [GOOD, {"a": [1, {"b": "x\ny"}]}, 7]):
        write_records(tmp_path / "out.json", iter(records))
        assert (tmp_path / "out.json").read_text() == json.dumps(records, indent=1) + "\n"


def test_turns_of_chats_are_read():
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    named = [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]
    for record in ({"messages": chat}, {"messages": chat, "conversations": None}, {"conversations": named}):
        assert JsonFile().parse(0, record) == JsonFile().parse(0, {"conversations": PLAIN})


@pytest.mark.parametrize(
    "path", ["data:image/png;base64," + "A" * 100_000, "a" * 100_000 + "/..", "https://a.org/b.png"]
)
def test_long_and_odd_paths_are_quoted_in_part(path):
    with pytest.raises(ValueError, match="image path '") as error:
        JsonFile().parse(0, {**GOOD, "image": path})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("absent", [{}, {"image": None}, {"image": ""}, {"images": []}])
def test_ways_to_have_no_image(absent):
    assert JsonFile().parse(0, {**absent, "conversations": talk(("human", "a"), ("gpt", "b"))}).images == ()


@pytest.mark.parametrize("key", ["image", "images"])
def test_several_images(key):
    turns = talk(("human", "<image>\n<image>\nWhich?"), ("gpt", "b"))
    assert JsonFile().parse(0, {key: ["x/1.png", "x/2.png"], "conversations": turns}).images == ("x/1.png", "x/2.png")


@pytest.mark.parametrize("given", ["a", 7, 1.5, [1], None])
def test_ids_of_any_type_are_no_obstacle(given):
    assert JsonFile().parse(0, {**GOOD, "id": given}) == JsonFile().parse(0, GOOD)


@pytest.mark.parametrize(("given", "kept"), [(2, 2.0), (0.5, 0.5), (None, None)])
def test_a_weight_is_read(given, kept):
    assert JsonFile().parse(0, {**GOOD, "weight": given}).weight == kept
    assert JsonFile().parse(0, GOOD).weight is None


def test_sources():
    expected = {
        "gqa/images/1.jpg": "gqa",
        "ocr_vqa/images/2.jpg": "ocr_vqa",
        "textvqa/train_images/3.jpg": "textvqa",
        "COCO_train2014_01.jpg": "coco",
        "vg/VG_100K_2/1.jpg": "vg",
        "vgg/1.jpg": "vgg",
        "./a.jpg": "images",
    }
    assert {path: source_of("", [path]) for path in expected} == expected


@pytest.mark.parametrize("path", ["..", "a/../b", "/a", "\\a", "C:\\a", "c:/a", "a\\..\\..\\b", "", " ", "a\0b"])
def test_paths_that_leave_the_folder(path):
    assert path_problem(path) in (
        f"image path {path!r} is not a path",
        f"image path {path!r} leaves the image folder; give paths relative to it and without '..'",
    )


@pytest.mark.parametrize("path", ["a.png", "a/b.png", "a..b/..c.png", "a b.png", "ü.png"])
def test_paths_that_stay(path):
    assert path_problem(path) is None


@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
def test_records_are_written_back_with_all_their_keys(name, tmp_path):
    records = [{**GOOD, "meta": {"score": 0.5, "é": [1, None]}}, {"id": 2, "half": "\ud800"}]
    write_records(tmp_path / name, records)
    assert read_records(tmp_path / name) == records
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_byte_order_mark_changes_nothing(write):
    assert read_records(write("\ufeff" + json.dumps([GOOD]))) == [GOOD]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["pool.json", "pool.jsonl", "pool"])
@pytest.mark.parametrize("listed", [False, True])
def test_lists_and_lines_are_told_by_their_content(name, mark, listed, write):
    text = json.dumps([GOOD, GOOD]) if listed else "".join(json.dumps(GOOD) + "\n" for _ in range(2))
    pool = read_samples(write(mark + text, name))
    assert [sample.uid for sample in pool.samples] == [0, 1] and pool.records == [GOOD, GOOD]


def test_line_separators_inside_texts_do_not_end_a_line(write):
    path = write(json.dumps({"a": "x\u2028y"}, ensure_ascii=False) + "\n\n" + json.dumps({"b": 1}), "pool.jsonl")
    assert read_records(path) == [{"a": "x\u2028y"}, {"b": 1}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", '{\n "a": 1\n}', "expected a list of records, got an object"),
        ("a.json", '{"a": 1}\n[1,', "line 2: not JSON"),
        ("a.json", "[1,", "not a JSON file"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", f"[{'9' * 5000}]", "not a JSON file"),
        ("a.jsonl", "{}\n[1,", "line 2: not JSON"),
        ("a.jsonl", "", "the file is empty"),
        ("a.json", "[{}] x", "extra data behind the list"),
        ("a.json", "[{} {}]", "expected ',', got '{'"),
        ("a.json", "[{},]", "record 2"),
    ],
)
def test_files_that_are_no_conversation_files(name, content, words, write):
    with pytest.raises(ValueError, match=words) as error:
        read_samples(write(content, name))
    assert name in str(error.value)


@pytest.mark.parametrize("name", ["none.json", "none.jsonl"])
def test_a_missing_file_is_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=name):
        read_samples(tmp_path / name)


def test_the_worlds_own_files_are_read_without_problems(tmp_path):
    write_world(tmp_path, WorldSizes(captions=3, pool=40, target=2, questions=3))
    for name in ("captions.json", "pool.json", "targets/gqa.json"):
        pool = read_samples(tmp_path / name)
        assert pool.problems == [] and len(pool.samples) == len(pool.records)
        assert [s.source for s in pool.samples] == [record["source"] for record in pool.records]


def test_a_list_on_one_line_is_not_read_as_one_line(tmp_path):
    (tmp_path / "a.json").write_text(" " * 2000 + json.dumps([{"a": "x" * 200}] * 50_000))
    tracemalloc.start()
    try:
        assert len(read_records(tmp_path / "a.json")) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 8e6  # of 11 MB
    finally:
        tracemalloc.stop()
