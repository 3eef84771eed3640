"""Multiple-choice files: every form of every task, what is refused, and errors that name the place and the count."""

import json

import pytest

from vlmsel.data.multiple_choice import (
    TASKS,
    ChoiceQuestion,
    hellaswag_text,
    logiqa_option,
    logiqa_text,
    read_choices,
)


def qasc(number=0, key="B", texts=("sand", "weather", "forests")):
    options = [{"text": text, "label": letter} for text, letter in zip(texts, "ABCDEFGH", strict=False)]
    return {"id": f"3E{number}", "question": {"stem": "What is climate?", "choices": options}, "answerKey": key}


def qasc_hub(number=0, key="B", texts=("sand", "weather", "forests")):
    choices = {"text": list(texts), "label": list("ABCDEFGH"[: len(texts)])}
    return {"id": f"3E{number}", "question": "What is climate?", "choices": choices, "answerKey": key}


def qasc_listed(answer="weather", texts=("sand", "weather", "forests")):
    return {"query": "What is climate?", "cands": list(texts), "answer": answer, "facts": []}


def hellaswag(number=24, label=3, **changes):
    return {
        "ind": number,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man is on a roof.",
        "ctx_b": "he",
        "ctx": "A man is on a roof. he",
        "endings": ["wraps skis.", "[step] levels  tiles.", "holds a cube.", "pulls up [title] roofing."],
        "label": label,
    } | changes


def piqa(goal="dresser", **changes):
    return {"goal": goal, "sol1": "replace drawer ", "sol2": "finish  drawer"} | changes


def logiqa(place=1, **changes):
    return {
        "context": "All x.are y.",
        "query": "So?",
        "options": ["A.1", "p", "q", "r"],
        "correct_option": place,
    } | changes


def logiqa_text_item(letter="b", context="All x are y.But z is 3.5."):
    return ["", letter, context, "Which follows.", "A.It is 3.5 m.", "B.Two.", "No letter", "D.Four"]


GOOD = {"qasc": qasc, "hellaswag": hellaswag, "piqa": piqa, "logiqa": logiqa}
UNLABELLED = {
    "qasc": {"answerKey": ""},
    "hellaswag": {"label": ""},
    "piqa": {"label": -1},
    "logiqa": {"correct_option": None},
}


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def read(tmp_path):
    """Write a file (a str as it is, a list as one JSON list) and perhaps its labels, and read them."""

    def read_file(task, content, labels=None):
        path = tmp_path / "questions"
        path.write_bytes((content if isinstance(content, str) else json.dumps(content, indent=4)).encode())
        if labels is not None:
            (tmp_path / "labels.lst").write_bytes(labels.encode())
        return read_choices(task, path, None if labels is None else tmp_path / "labels.lst")

    return read_file


def refused(read, task, content, labels=None):
    with pytest.raises(ValueError) as caught:
        read(task, content, labels)
    (line,) = str(caught.value).split("\n")
    return line


def test_the_three_forms_of_qasc_are_one_question(read):
    want = ChoiceQuestion("3E0", "What is climate?", ("sand", "weather", "forests"), 1)
    assert read("qasc", lines(qasc())) == read("qasc", lines(qasc_hub())) == read("qasc", [qasc_hub()]) == [want]
    (listed,) = read("qasc", [qasc_listed()])
    assert (listed.id, listed.question, listed.choices, listed.answer) == ("0", want.question, want.choices, 1)


def test_qasc_without_answers(read):
    bare = [{"query": "q", "cands": ["a", "b"], "facts": []}] * 2
    assert [(one.id, one.answer) for one in read("qasc", bare)] == [("0", None), ("1", None)]
    without_key = {name: value for name, value in qasc(5).items() if name != "answerKey"}
    assert [one.answer for one in read("qasc", lines(without_key, qasc_hub(6, key="")))] == [None, None]


@pytest.mark.parametrize("key", range(8))
def test_every_letter_of_qasc_is_its_place(read, key):
    texts = tuple(f"text {i}" for i in range(8))
    for record in (qasc(key="ABCDEFGH"[key], texts=texts), qasc_hub(key="ABCDEFGH"[key], texts=texts)):
        assert read("qasc", lines(record))[0].answer == key
    assert read("qasc", [qasc_listed(texts[key], texts)])[0].answer == key


def test_hellaswag_is_cleaned_and_its_label_may_be_a_number_or_a_text(read):
    number, text = read("hellaswag", lines(hellaswag(24, 3), hellaswag(25, "2")))
    assert (number.id, number.answer, text.id, text.answer) == ("24", 3, "25", 2)
    assert number.question == "Roof shingle removal: A man is on a roof. He"
    assert number.choices == tuple(hellaswag_text(ending) for ending in hellaswag()["endings"])
    assert number.choices[1] == " levels tiles." and number.choices[3] == "pulls up. roofing."


def test_hellaswag_without_its_two_sentences_takes_the_context(read):
    record = {key: value for key, value in hellaswag(ctx="A man  sits. he").items() if key not in ("ctx_a", "ctx_b")}
    assert read("hellaswag", lines(record))[0].question == "Roof shingle removal: A man sits. he"


def test_piqa_with_a_file_of_labels_or_labels_within(read):
    content, labels = lines(piqa("a"), piqa("b"), piqa("c")), "1\n0\r\n1"
    found = read("piqa", content, labels)
    assert [(one.id, one.question, one.answer) for one in found] == [("0", "a", 1), ("1", "b", 0), ("2", "c", 1)]
    assert found[0].choices == ("replace drawer ", "finish  drawer")  # as they stand, with their blanks
    assert found == read("piqa", lines(piqa("a", label=1), piqa("b", label=0), piqa("c", label=1)))
    assert [one.answer for one in read("piqa", content)] == [None] * 3
    assert found == read("piqa", lines(*(piqa(goal, label=-1) for goal in "abc")), labels + "\n\n")


def test_logiqa_text_is_read_with_and_without_a_last_line_feed(read):
    text = "\n".join([*logiqa_text_item("d"), *logiqa_text_item("a")])
    found = read("logiqa", text)
    assert found == read("logiqa", text + "\n") == read("logiqa", text.replace("\n", "\r\n"))
    assert [(one.id, one.answer) for one in found] == [("0", 3), ("1", 0)]
    assert found[0].passage == logiqa_text(logiqa_text_item()[2]) == "All x are y. But z is 3. 5."
    assert found[0].question == "Which follows."
    assert found[0].choices == tuple(logiqa_option(line) for line in logiqa_text_item()[4:])
    assert found[0].choices == ("It is 3. 5 m.", "Two.", "letter", "Four")


@pytest.mark.parametrize("task, key", [("hellaswag", "label"), ("piqa", "label"), ("logiqa", "correct_option")])
@pytest.mark.parametrize("hidden", [None, "", -1, "-1"])
def test_hidden_labels_are_none(read, task, key, hidden):
    assert read(task, lines(GOOD[task]() | {key: hidden}))[0].answer is None


def test_minus_one_may_be_a_choice_of_qasc(read):
    assert read("qasc", [qasc_listed("-1", ("0", "-1"))])[0].answer == 1


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_only_line_feeds_end_a_line(read, separator):
    context = f"one{separator}two"
    (text,) = read("logiqa", "\n".join(logiqa_text_item(context=context)))
    (record,) = read("logiqa", lines(logiqa(context=context)))
    assert text.passage == record.passage == context


def test_logiqa_records_stand_as_they_are(read):
    (one,) = read("logiqa", lines(logiqa(2)))
    assert (one.passage, one.question, one.choices, one.answer) == ("All x.are y.", "So?", ("A.1", "p", "q", "r"), 2)


@pytest.mark.parametrize("task", TASKS)
def test_a_byte_order_mark_and_blank_last_lines_change_nothing(read, task):
    content = lines(GOOD[task]())
    assert read(task, content) == read(task, "\ufeff" + content + "\n\n") == read(task, content.rstrip("\n"))
    assert read(task, content) == read(task, [GOOD[task]()])


@pytest.mark.parametrize("task", TASKS)
def test_what_is_no_json_is_named_with_its_line(read, task):
    line = refused(read, task, lines(GOOD[task]()) + "{broken\n")
    assert "questions: line 2: not JSON" in line
    assert "not a JSON file (nested too deeply)" in refused(read, task, "[" * 100_000)
    assert "no question in it" in refused(read, task, "[]")
    assert "the file is empty" in refused(read, task, "\n\n")


@pytest.mark.parametrize(
    "task, key",
    [("qasc", "question"), ("hellaswag", "endings"), ("hellaswag", "activity_label"), ("piqa", "sol2")]
    + [("logiqa", "context"), ("logiqa", "query"), ("logiqa", "options")],
)
def test_a_missing_key_is_named_with_the_first_line_and_the_count(read, task, key):
    bad = {name: value for name, value in GOOD[task]().items() if name != key}
    line = refused(read, task, lines(GOOD[task](), bad, bad))
    assert f"line 2: no '{key}'" in line and "(2 of 3 questions cannot be used, this is the first)" in line


def test_hellaswag_needs_a_context(read):
    bad = {name: value for name, value in hellaswag().items() if not name.startswith("ctx")}
    assert "line 1: no 'ctx'" in refused(read, "hellaswag", lines(bad))


@pytest.mark.parametrize(
    "task, bad, said",
    [
        ("hellaswag", hellaswag(endings=["a", "b", "c"]), "3 choices, the task has 4"),
        ("hellaswag", hellaswag(endings=["a", "b", "c", "[x]"]), "a choice must be a text that is not empty"),
        ("hellaswag", hellaswag(endings=["a", "b", "c", 4]), "a choice must be a text"),
        ("hellaswag", hellaswag(label=4), "a number from 0 to 3, got 4"),
        ("hellaswag", hellaswag(label="x"), "a number from 0 to 3, got 'x'"),
        ("hellaswag", hellaswag(label=True), "a number from 0 to 3, got True"),
        ("hellaswag", hellaswag(ctx_b=None), "'ctx_b' must be str"),
        ("piqa", piqa(sol1="  "), "a choice must be a text that is not empty"),
        ("piqa", piqa(label=2), "a number from 0 to 1, got 2"),
        ("piqa", ["a"], "no 'goal'"),
        ("logiqa", logiqa(options=["a"] * 5), "5 choices, the task has 4"),
        ("logiqa", logiqa(4), "a number from 0 to 3, got 4"),
        ("qasc", qasc(key="D"), "'D' is the label of 0 choices"),
        ("qasc", qasc_hub(key="D"), "'D' is the label of 0 choices"),
        ("qasc", qasc(texts=("sand",), key="A"), "1 choices, a question needs two or more"),
        ("qasc", qasc(texts=("sand", "")), "a choice must be a text that is not empty"),
        ("qasc", qasc_hub() | {"choices": {"text": ["a", "b"], "label": ["A", "A"]}}, "distinct labels"),
        ("qasc", qasc_hub() | {"choices": {"text": ["a", "b"], "label": ["A"]}}, "distinct labels"),
        ("qasc", qasc_listed("rain"), "'rain' is the text of 0 choices"),
        ("qasc", qasc_listed("a", ("a", "a", "b")), "'a' is the text of 2 choices"),
        ("qasc", 5, "no 'question'"),
    ],
)
def test_a_wrong_record_is_refused(read, task, bad, said):
    assert said in (line := refused(read, task, lines(GOOD[task](), bad))) and "questions: line 2: " in line
    assert "record 1 of 1: " in (line := refused(read, task, [bad])) and said in line


def test_damaged_logiqa_text_is_refused(read):
    good = logiqa_text_item()
    assert "line 9: the answer must be a letter" in refused(read, "logiqa", "\n".join([*good, *logiqa_text_item("e")]))
    assert "line 9: the answer must be a letter" in refused(read, "logiqa", "\n".join([*good, *logiqa_text_item("ab")]))
    assert "line 9: a question of LogiQA" in refused(read, "logiqa", "\n".join([*good, *good[:7]]))
    line = refused(read, "logiqa", "\n".join([*good, *good[:3], *good[4:], *good]))  # a line lost: the rest is shifted
    assert "line 9: " in line and "(2 of 3 questions" in line
    empty = [*good[:7], "C."]
    assert "line 1: a choice must be a text that is not empty" in refused(read, "logiqa", "\n".join(empty))


def test_labels_that_do_not_fit_are_refused(read):
    content = lines(piqa(), piqa())
    assert "3 labels for the 2 questions" in refused(read, "piqa", content, "1\n0\n1\n")
    line = refused(read, "piqa", content, "1\n2\n\n0\n")
    assert "labels.lst: line 2: " in line and "got '2'" in line and "(2 of 4 labels" in line
    assert "labels of their own" in refused(read, "piqa", lines(piqa(label=1), piqa(label=0)), "1\n0\n")
    assert "leave the labels file out" in refused(read, "qasc", lines(qasc()), "1\n")


@pytest.mark.parametrize("task", TASKS)
def test_a_file_labelled_in_part_is_refused_with_the_count(read, task):
    labelled, bare = GOOD[task](), GOOD[task]() | UNLABELLED[task]
    if task == "piqa":
        labelled["label"] = 1
    named = [record | {"id": f"{i}", "ind": i} for i, record in enumerate([labelled, bare, bare], start=7)]
    line = refused(read, task, lines(*named))
    assert "2 of 3 questions have no label, the first: question 8" in line
    assert [one.answer for one in read(task, lines(*named[1:]))] == [None, None]


def test_an_id_that_comes_again_is_refused(read):
    line = refused(read, "qasc", lines(qasc(1), qasc(2), qasc(2), qasc(1), qasc(3)))
    assert "question 3E1 occurs more than once" in line and "(2 ids are used again" in line
    assert "question 24 occurs more than once" in refused(read, "hellaswag", lines(hellaswag(), hellaswag()))


def test_missing_files_and_unknown_tasks(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.jsonl: no such file"):
        read_choices("qasc", tmp_path / "absent.jsonl")
    read("piqa", lines(piqa()))
    with pytest.raises(FileNotFoundError, match="absent.lst: no such file"):
        read_choices("piqa", tmp_path / "questions", tmp_path / "absent.lst")
    assert "choose one of qasc, hellaswag, piqa, logiqa" in refused(read, "arc", lines(qasc()))
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match="latin: not a text file in UTF-8"):
        read_choices("qasc", tmp_path / "latin")


@pytest.mark.parametrize("change", [{"label": "9" * 100_000}, {"endings": ["a", "b", "c", {"x" * 100_000: 1}]}])
def test_what_others_wrote_is_quoted_in_part(read, change):
    record = {"activity_label": "a", "ctx": "b", "endings": ["a", "b", "c", "d"], "label": 0, **change}
    assert len(refused(read, "hellaswag", json.dumps(record))) < 400
