"""Questions of one's own, MMBench and ScienceQA: files in, metrics out, against loops written out."""

import base64
import io
import json
import math
import random

import pandas as pd
import pytest
from PIL import Image

from vlmsel.data.images import image_digest, load_image
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.results import result, summary, table
from vlmsel.evaluation.suite import load_all, some
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task, task_entries
from vlmsel.evaluation.visual.choices import letter_of, option_of
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.tasks import POPE

OPTIONS = ("a red car", "a cat", "two cats")
REQUEST = "\nAnswer with the option's letter from the given choices directly."


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def own(folder, records, metric):
    return load_task("mine", TaskFiles(write(folder / "mine.json", records), metric=metric))


def turns(question, answer, **more):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


# What an answer names


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("b", "B"), (" (b) ", "B"), ("B.", "B"), ("B. a cat", "B"), ("[C]", "C"), ("A: a cat", "A"),
        ("The answer is B.", "B"), ("so the answer is: (C)", "C"), ("A cat.", "B"), ("two cats", "C"),
        ("It is a red car, I think", "A"), ("I see two cats", "C"), ("a cat and two cats", None), ("D", None),
        ("the answer is a dog", None), ("", None), ("a dog", None), ("A dog", None), ("concat", None),
    ],
)  # fmt: skip
def test_the_option_that_an_answer_names(text, letter):
    assert option_of(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" B ", "B"), ("B. a cat", "B"), ("B\na cat", "B"), ("The answer is C.", "C"), ("D", None),
        ("Hm. The answer is A", "A"), ("b", None), ("(B)", None), ("B.", None), ("a cat", None), ("", None),
        ("The answer is E.", None),
    ],
)  # fmt: skip
def test_the_letter_that_llavas_script_reads(text, letter):
    assert letter_of(text, OPTIONS) == letter


# One's own questions


def test_exact_match_takes_any_answer_that_is_right(tmp_path):
    records = [
        {"id": "x", "image": "a.png", "question": "What?", "answers": ["a cat", "Cat"], "group": "animals"},
        {"question": "How many?", "answer": 3},
        {"question_id": 9, "question": "Colour?", "answers": [{"answer": "red"}], "group": "colours"},
    ]
    task = own(tmp_path, records, "exact_match")
    assert task.ids == ["x", "1", "9"] and [q.image for q in task.questions] == ["a.png", "", ""]
    given = {"x": " CAT.", "1": "3", "9": "dark red"}
    assert task.score(given) == {"accuracy": 2 / 3, "accuracy/": 1.0, "accuracy/animals": 1.0, "accuracy/colours": 0.0}
    assert task.errors(given)["accuracy"] == pytest.approx(math.sqrt(2 / 3 * 1 / 3 / 2))
    assert task.majority()[1]["accuracy"] == 1 / 3
    assert task.asked(Asking("bare"))["1"] == {"prompt": "How many?"}


def test_few_answers_that_are_right_are_labels(tmp_path):
    records = [{"question": f"Is it {i}?", "answer": "no" if i % 3 else "Yes"} for i in range(20)]
    task = own(tmp_path, records, "exact_match")
    given = {identity: "a dog" if int(identity) < 7 else "yes." for identity in task.ids}
    assert result("mine", task, given, {})["fit_no_label"] == {"none of the 2 labels": 7}
    assert "fit_no_label" not in result("mine", own(tmp_path, records[:19], "exact_match"), given, {})


def test_vqa_accuracy_leaves_each_of_ten_out(tmp_path):
    answers = ["two"] * 3 + ["3"] * 7
    task = own(tmp_path, [{"question": "How many?", "answers": answers}], "vqa_accuracy")
    naive = sum(min((3 - (own == "two")) / 3, 1) for own in answers) / 10
    assert task.score({"0": "2"})["accuracy"] == pytest.approx(naive)
    assert task.majority() == ("3", {"accuracy": 1.0, "accuracy/": 1.0})


def test_choices_are_asked_by_letter(tmp_path):
    records = [
        {"question": "Which?", "choices": list(OPTIONS), "answer": "a cat"},
        {"question": "Which?", "choices": list(OPTIONS), "answer": "c", "image": "a.png"},
        {"question": "Which?", "choices": ["B", "A"], "answer": "A"},
    ]
    task = own(tmp_path, records, "choice")
    assert [q.references for q in task.questions] == [("B",), ("C",), ("B",)]  # the text of a choice comes first
    asked = "Which?\nA. a red car\nB. a cat\nC. two cats"
    assert task.asked(Asking())["0"] == {"prompt": asked + REQUEST}
    assert task.asked(Asking("prismatic"))["0"] == {"prompt": f"\n{asked}{REQUEST}"}
    given = {"0": "It is a cat", "1": "no idea", "2": "B."}
    assert task.score(given)["accuracy"] == pytest.approx(2 / 3)
    found = result("mine", task, given, {})
    assert found["fit_no_label"] == {"no option": 1} and "no option: 1 of 3 answers" in summary(found)


def test_records_of_a_pool_are_questions(tmp_path):
    records = [
        turns(f"<image>\nWhat?{REQUEST}", "a cat", image="coco/a.png"),
        turns("What?\nAnswer the question using a single word or phrase.", "red"),
    ]
    task = own(tmp_path, records, "exact_match")
    assert [(q.id, q.image, q.text, q.references, q.group) for q in task.questions] == [
        ("0", "coco/a.png", "What?", ("a cat",), "coco"),
        ("1", "", "What?", ("red",), "text"),
    ]
    lettered = own(tmp_path, [turns(f"Which?\nA. red\nB. blue{REQUEST}", "B")], "choice")
    assert lettered.asked(Asking())["0"] == {"prompt": f"Which?\nA. red\nB. blue{REQUEST}"}
    assert lettered.score({"0": "blue"})["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("metric", "records", "message"),
    [
        ("exact_match", {"a": 1}, "record 1 of 1: no 'question'"),
        ("exact_match", [{"question": "What?"}], "no 'answer'"),
        ("exact_match", [{"question": "What?", "answers": []}], "'answers' must be a list of texts, got []"),
        ("exact_match", [{"question": "a", "answer": "b", "id": 1}] * 2, "question 1 occurs more than once"),
        ("exact_match", [], "no question in it"),
        ("vqa_accuracy", [{"question": "What?", "answer": "red"}], "needs ten answers, got 1; or take --metric exact"),
        ("choice", [{"question": "What?", "answer": "red"}], "no 'choices', and no options in its text"),
        (
            "choice",
            [{"question": "What?", "answer": "red", "choices": ["a", "b"]}],
            "'red' is not one of its 2 choices",
        ),
        ("choice", [turns("What?\nA. red\nB. blue", "green")], "'green' is not one of its 2 choices"),
        (
            "exact_match",
            [{"conversations": turns("a", "b")["conversations"] * 2}],
            "4 turns and 0 images; a question is",
        ),
        ("exact_match", [turns("a", "b"), 3], "record 2 of 2: no 'question'"),
        ("f1", [turns("a", "b")], "metric must be one of 'exact_match', 'vqa_accuracy', 'choice'; got 'f1'"),
    ],
)
def test_what_is_wrong_with_own_questions_is_said_in_one_line(tmp_path, metric, records, message):
    content = [records] if isinstance(records, dict) else records
    with pytest.raises(ValueError) as fault:
        own(tmp_path, content, metric)
    assert message in str(fault.value) and "\n" not in str(fault.value)


def test_own_questions_are_called_as_their_file(tmp_path):
    none = dict.fromkeys(("images", "annotations", "ocr"))
    entries = task_entries(None, None, questions="some/my_test.json", metric="choice", **none)
    assert list(entries) == ["my_test"] and entries["my_test"].metric == "choice"
    with pytest.raises(ValueError, match="gqa has metrics of its own; leave metric"):
        load_task("gqa", TaskFiles("a.json", metric="choice"))
    with pytest.raises(ValueError, match="questions of your own need --questions and --metric, one of exact_match"):
        task_entries(None, None, questions="some/my_test.json", metric=None, **none)
    path = write(tmp_path / "mine.json", [{"question": "a", "answer": "b", "image": "c.png"}])
    with pytest.raises(ValueError, match="1 of 1 questions have images; name their folder"):
        load_all({"mine": TaskFiles(path, metric="exact_match")}, Asking(), named=False)


# MMBench


def picture(color, size=(9, 7)):
    held = io.BytesIO()
    noise = random.Random(color).randbytes(3 * size[0] * size[1])
    Image.frombytes("RGB", size, noise).save(held, "PNG")
    return base64.b64encode(held.getvalue()).decode()


BASE = [
    {"index": 7, "question": 'Which "one"?\nSay.', "hint": "A\thint", "A": "red", "B": "blue", "answer": "A",
     "category": "color", "image": picture("a", (250, 250))},
    {"index": 8, "question": "How many?", "hint": None, "A": "one", "B": "two", "C": "three", "D": "four",
     "answer": "D", "category": "count", "image": picture("b")},
]  # fmt: skip


def rotated(row):
    """All rotations of a question, as a file for circular evaluation has them."""
    letters = [letter for letter in "ABCD" if row.get(letter)]
    texts, right = [row[letter] for letter in letters], row[row["answer"]]
    found = []
    for k in range(len(letters)):
        now = texts[k:] + texts[:k]
        copy = {**row, **dict(zip(letters, now, strict=True)), "answer": letters[now.index(right)]}
        found.append(copy | ({"index": row["index"] + k * 10**6, "image": str(row["index"])} if k else {}))
    return found


def mmbench(folder, rows):
    pd.DataFrame(rows).to_csv(folder / "mmbench.tsv", sep="\t", index=False)
    return load_task("mmbench", TaskFiles(folder / "mmbench.tsv"))


def test_mmbench_as_pandas_writes_it(tmp_path):
    task = mmbench(tmp_path, BASE)
    assert len(BASE[0]["image"]) > 131_072  # more than Python's own reader takes
    first, second = task.questions
    assert first.text == 'A\thint\nWhich "one"?\nSay.\nA. red\nB. blue'
    assert second.text == "How many?\nA. one\nB. two\nC. three\nD. four" and second.references == ("D",)
    assert task.groups == {"color": 1, "count": 1} and task.headline == "accuracy"
    assert load_image("nowhere", first.image).size == (250, 250)
    assert image_digest("", first.image) != image_digest("", second.image) != ""
    found = task.score({"7": "red", "8": "C"})
    assert found == {"accuracy": 0.5, "accuracy/color": 1.0, "accuracy/count": 0.0}


def test_circular_counts_questions_that_are_right_in_every_rotation(tmp_path):
    rows = [copy for row in BASE for copy in rotated(row)]
    task = mmbench(tmp_path, rows)
    assert len(task.ids) == 6 and task.headline == "circular"
    assert task.questions[1].image == task.questions[0].image
    right = {str(row["index"]): row["answer"] for row in rows}
    for wrong in [(), ("7",), ("1000007",), ("2000008",), ("7", "3000008")]:
        given = right | dict.fromkeys(wrong, "none")
        whole = [
            all(str(7 + k * 10**6) not in wrong for k in (0, 1)),
            all(str(8 + k * 10**6) not in wrong for k in range(4)),
        ]
        found = task.score(given)
        assert found["circular"] == sum(whole) / 2
        assert found["accuracy"] == 1 - sum(one in ("7", "8") for one in wrong) / 2
    assert task.majority()[1]["circular"] == 0.0  # no letter is right wherever the options stand


def test_a_limit_draws_questions_with_all_their_rotations(tmp_path, capsys):
    task = mmbench(tmp_path, [copy for row in BASE for copy in rotated(row)])
    drawn = some(task, 1, "mmbench")
    assert len({int(q.id) % 10**6 for q in drawn.questions}) == 1 and len(drawn.questions) in (2, 4)
    assert "mmbench: 1 of 2 questions, drawn" in capsys.readouterr().out
    assert some(task, 2, "mmbench") is task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answer": None},
            "the answer must be the letter of one of 2 options, got ''; the test split's are not public",
        ),
        ({"answer": "C"}, "question 7: the answer must be the letter of one of 2 options, got 'C'; mend it"),
        ({"index": "x"}, "question x: the index must be a whole number, got 'x'"),
        ({"image": "99"}, "no picture, and its cell '99' is the index of no question"),
        ({"image": "?" * 100}, "its picture is no base64"),
    ],
)
def test_what_is_wrong_with_mmbench_is_said_in_one_line(tmp_path, change, message):
    with pytest.raises(ValueError) as fault:
        mmbench(tmp_path, [BASE[0] | change])
    assert message in str(fault.value) and str(fault.value).startswith(f"{tmp_path}/mmbench.tsv: ")
    assert "\n" not in str(fault.value)


def test_a_test_split_and_another_file_are_no_mmbench(tmp_path):
    with pytest.raises(ValueError, match="no column 'answer'; the test split's answers are not public"):
        mmbench(tmp_path, [{name: value for name, value in BASE[1].items() if name != "answer"}])
    with pytest.raises(ValueError, match="no column 'index'; MMBench's TSV has index, question"):
        load_task("mmbench", TaskFiles(write(tmp_path / "a.tsv", "sentence\tlabel\ngood\t1\n")))
    with pytest.raises(ValueError, match="not MMBench's TSV"):
        load_task("mmbench", TaskFiles(write(tmp_path / "a.tsv", "index\tA\n1\t2\t3\n")))
    with pytest.raises(ValueError, match="mmbench has no images; leave images"):
        load_task("mmbench", TaskFiles(tmp_path / "a.tsv", images="b"))


# ScienceQA


def problem(answer, image=None, **more):
    return {"question": "Which?", "choices": ["red", "blue"], "answer": answer, "hint": "", "image": image,
            "subject": "natural science", "split": "test"} | more  # fmt: skip


def scienceqa(folder, problems, ids):
    path = write(folder / "problems.json", problems)
    return load_task("scienceqa", TaskFiles(path, "images", write(folder / "pid_splits.json", {"test": ids})))


def test_scienceqa_is_the_test_split_with_and_without_pictures(tmp_path):
    problems = {
        "1": problem(0), "2": problem(1, "image.png", hint="It rains."), "3": problem(1, "image.png", subject="art"),
        "9": problem(0),
    }  # fmt: skip
    task = scienceqa(tmp_path, problems, ["3", "1", "2"])
    assert task.ids == ["3", "1", "2"] and [q.image for q in task.questions] == ["3/image.png", "", "2/image.png"]
    assert task.asked(Asking())["2"] == {"prompt": f"Context: It rains.\nWhich?\nA. red\nB. blue{REQUEST}"}
    found = task.score({"1": "A", "2": "The answer is B.", "3": "blue"})
    assert found == {"accuracy": 2 / 3, "img_accuracy": 0.5, "accuracy/art": 0.0, "accuracy/natural science": 1.0}
    assert [q.id for q in task.in_folder] == ["3", "2"]


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        ({"1": problem(2)}, "question 1: answer 2 is the place of none of its 2 choices"),
        ({"2": problem(0)}, "question 1: it is of the split and not in the file"),
        ({"1": problem(0, choices=["a"])}, "choices must be two texts or more, got 1"),
        ([], "expected a dictionary of questions by id"),
    ],
)
def test_what_is_wrong_with_scienceqa_is_said_in_one_line(tmp_path, problems, message):
    with pytest.raises(ValueError) as fault:
        scienceqa(tmp_path, problems, ["1"])
    assert message in str(fault.value) and "\n" not in str(fault.value)


def test_scienceqa_needs_its_splits(tmp_path):
    with pytest.raises(ValueError, match="scienceqa needs pid_splits.json"):
        load_task("scienceqa", TaskFiles(write(tmp_path / "problems.json", {}), "images"))


# Answers that fit no label


def test_popes_answers_without_yes_and_no_are_counted(tmp_path):
    task = POPE([Question(f"random/{i}", "a.png", "is it?", ("yes",), "random") for i in range(4)])
    given = {"random/0": "a dog", "random/1": "Yes.", "random/2": "noisy", "random/3": "NO"}
    found = result("pope", task, given, {})
    assert found["fit_no_label"] == {"neither yes nor no": 2}
    assert "neither yes nor no: 2 of 4 answers" in summary(found)
    assert table({"a": {"pope": found}})[1][1].endswith(" (neither yes nor no: 2 of 4)")
    fine = result("pope", task, dict.fromkeys(task.ids, "yes"), {})
    assert "fit_no_label" not in fine and "neither" not in summary(fine) + table({"a": {"pope": fine}})[1][1]
