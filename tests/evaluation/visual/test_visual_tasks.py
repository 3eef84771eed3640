"""Readers of the official files, from the embedded world and by hand; constant answers; scores of whole tasks."""

import json
import statistics
from collections import Counter
from pathlib import Path

import pytest

from vlmsel.data.world.files import WorldSizes, benchmark_files, write_world
from vlmsel.evaluation.metrics import f1_error
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import VISUAL_TASKS, load_task
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.tasks import GQA, POPE, PopeLogit, TextVQA, VisualTask, VQAv2

QUESTIONS = 12


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, WorldSizes(captions=0, pool=0, target=0, questions=QUESTIONS))
    return benchmark_files(folder)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def answers(*texts):
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]


def vqa_question(number=262148000, **changes):
    return {"image_id": 262148, "question": "Where is he looking?", "question_id": number} | changes


def vqa_annotation(number=262148000, **changes):
    return {
        "question_id": number,
        "image_id": 262148,
        "question_type": "none of the above",
        "answer_type": "other",
        "multiple_choice_answer": "down",
        "answers": answers(*["down"] * 8, "at table", "skateboard"),
    } | changes


def read_vqa(folder, questions, annotations, **changes):
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014"}
    asked = write(folder / "questions.json", head | {"task_type": "Open-Ended", "questions": questions} | changes)
    noted = write(folder / "annotations.json", head | {"annotations": annotations})
    return load_task("vqav2", TaskFiles(asked, annotations=noted))


def gqa_record(**changes):
    return {
        "question": "Is it red?",
        "answer": "yes",
        "imageId": "n161313",
        "isBalanced": True,
        "types": {"structural": "verify", "semantic": "attr", "detailed": "verifyAttr"},
        "groups": {"global": None, "local": "06-yes"},
        "entailed": [],
        "semantic": [{"operation": "select", "argument": "car (1)", "dependencies": []}],
    } | changes


def read_gqa(folder, content):
    return load_task("gqa", TaskFiles(write(folder / "testdev_balanced_questions.json", content)))


def pope_line(number=1, **changes):
    text = "Is there a snowboard in the image?"
    return {"question_id": number, "image": "COCO_val2014_000000310196.jpg", "text": text, "label": "yes"} | changes


def write_pope(folder, category, *lines):
    return write(folder / f"coco_pope_{category}.json", "".join(json.dumps(line) + "\n" for line in lines))


def textvqa_record(number=34602, **changes):
    return {
        "question_id": number,
        "image_id": "003a8ae2ef43b901",
        "question": "what is the brand of this camera?",
        "answers": ["nous les gosses", *["dakota"] * 9],
        "set_name": "val",
    } | changes


def read_textvqa(folder, *records):
    return load_task("textvqa", TaskFiles(write(folder / "TextVQA_0.5.1_val.json", {"data": list(records)})))


# The official files


@pytest.mark.parametrize("name", VISUAL_TASKS)
def test_the_worlds_files_are_read(world, name):
    task = load_task(name, TaskFiles(**world[name]))
    assert type(task).__name__.lower() == name
    assert len(task.questions) == len({question.id for question in task.questions}) == QUESTIONS
    right = {q.id: Counter(q.references).most_common(1)[0][0] for q in task.questions}
    assert task.score(right)[task.headline] == 1
    assert task.score(dict.fromkeys(right, "not of the kind"))[task.headline] < 1


def test_vqav2_names_images_as_coco_does(tmp_path):
    (question,) = read_vqa(tmp_path, [vqa_question()], [vqa_annotation()]).questions
    assert question == Question(
        id="262148000",
        image="COCO_val2014_000000262148.jpg",
        text="Where is he looking?",
        references=("down",) * 8 + ("at table", "skateboard"),
        group="other",
    )


def test_vqav2_may_ask_a_part_of_what_is_annotated(tmp_path):
    assert len(read_vqa(tmp_path, [vqa_question(2)], [vqa_annotation(1), vqa_annotation(2)]).questions) == 1


def test_gqa_ids_stay_strings(tmp_path):
    records = {"02930152": gqa_record(), "2930152": gqa_record(types={"structural": "query", "semantic": "attr"})}
    first, second = read_gqa(tmp_path, records).questions
    assert (first.id, first.group, first.image) == ("02930152", "binary", "n161313.jpg")
    assert (second.id, second.group) == ("2930152", "open")


def test_gqa_asks_balanced_questions_and_those_they_entail(tmp_path):
    records = {
        "1": gqa_record(isBalanced=False),
        "2": gqa_record(entailed=["2", "3"]),
        "3": gqa_record(isBalanced=False),
    }
    found = read_gqa(tmp_path, records)
    assert [question.id for question in found.questions] == ["2", "3"]
    assert found.score({"2": "yes", "3": "no"})["accuracy"] == 1  # only balanced ones count
    assert found.score({"2": "yes", "3": "no"})["consistency"] == 0
    assert read_gqa(tmp_path, {"2": records["2"]}).score({"2": "yes"})["consistency"] is None


def test_gqa_gives_all_that_the_script_prints(tmp_path):
    records = {"1": gqa_record(), "2": gqa_record(types={"structural": "query", "semantic": "rel"}, answer="car")}
    records["2"]["groups"] = {"global": "vehicle", "local": ""}
    found = read_gqa(tmp_path, records).score({"1": "Yes.", "2": "bus"})
    assert (found["accuracy"], found["accuracy/binary"], found["accuracy/open"]) == (0.5, 1, 0)
    assert found["accuracy/semantic/rel"] == 0 and found["accuracy/structural/verify"] == 1
    assert found["accuracy/steps/1"] == 0.5 and found["accuracy/words/3"] == 0.5
    assert found["distribution"] == pytest.approx(0.01)
    assert found["validity"] is found["plausibility"] is found["grounding"] is None


def test_pope_ids_are_told_apart_by_category(tmp_path):
    files = [write_pope(tmp_path, name, pope_line(1), pope_line(2)) for name in ("random", "popular", "adversarial")]
    found = load_task("pope", TaskFiles(files)).questions
    assert [q.id for q in found[:3]] == ["random/1", "random/2", "popular/1"]
    assert Counter(q.group for q in found) == {"random": 2, "popular": 2, "adversarial": 2}


def test_popes_other_files_are_json_lists(tmp_path):
    path = write(tmp_path / "gqa_pope_seem_random.json", json.dumps([pope_line(1), pope_line(2, label="no")], indent=4))
    assert [(q.id, q.references) for q in load_task("pope", TaskFiles(path)).questions] == [
        ("random/1", ("yes",)),
        ("random/2", ("no",)),
    ]


def read_ocr(folder, tokens, *records):
    path = write(folder / "TextVQA_0.5.1_val.json", {"data": list(records)})
    data = [{"image_id": image, "ocr_tokens": own, "ocr_info": []} for image, own in tokens.items()]
    return load_task(
        "textvqa", TaskFiles(path, ocr=write(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": data}))
    )


def test_textvqa_is_asked_without_and_with_ocr_tokens(tmp_path):
    task = read_ocr(tmp_path, {"003a8ae2ef43b901": ["DAKOTA", "DIGITAL"]}, textvqa_record())
    pure, ocr = task.questions
    assert (pure.id, ocr.id) == ("34602", "34602/ocr")
    assert pure.text == "what is the brand of this camera?"
    assert ocr.text == "what is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL"
    assert task.score({"34602": "nikon", "34602/ocr": "dakota"}) == {"textvqa_pure": 0, "textvqa_ocr": pytest.approx(1)}
    assert task.headline == "textvqa_ocr" and task.groups == {"ocr": 1, "pure": 1}


def test_images_without_ocr_tokens_are_counted(tmp_path):
    records = [textvqa_record(5), textvqa_record(6, image_id="other"), textvqa_record(7, image_id="other")]
    fails(
        ValueError,
        lambda: read_ocr(tmp_path, {"003a8ae2ef43b901": []}, *records),
        "val.json: no OCR tokens for the images of 2 of 3 questions, the first: 6 (other.jpg); give the OCR file",
    )


def test_textvqa_is_read(tmp_path):
    (question,) = read_textvqa(tmp_path, textvqa_record()).questions
    assert (question.id, question.image) == ("34602", "003a8ae2ef43b901.jpg")
    assert question.references == ("nous les gosses", *["dakota"] * 9)


# Files that are not what they should be


def fails(error, call, *parts):
    """The call ends with one line that has all the parts."""
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    return line


@pytest.mark.parametrize(
    ("questions", "annotations", "parts"),
    [
        ([vqa_question(7)], [vqa_annotation(8)], ["annotations.json: question 7", "give the annotations of the same"]),
        (
            [vqa_question(7)],
            [vqa_annotation(7, answers=answers(*["a"] * 9))],
            ["annotations.json: question 7", "9 answers", "exactly ten", "official file"],
        ),
        ([vqa_question(7), vqa_question(7)], [vqa_annotation(7)], ["questions.json: question 7", "more than once"]),
        ([vqa_question(7)], [vqa_annotation(7)] * 2, ["annotations.json: question 7", "more than once", "take one"]),
        ([{"question_id": 7}], [vqa_annotation(7)], ["questions.json: question 7: no 'image_id'", "official file?"]),
        ([vqa_question(7, image_id="x")], [vqa_annotation(7)], ["question 7: 'image_id' must be int, got 'x'"]),
        ([vqa_question(7, question=None)], [vqa_annotation(7)], ["question 7: 'question' must be str, got 'None'"]),
        ([vqa_question(True)], [vqa_annotation(1)], ["'question_id' must be int or str, got 'True'"]),
        (
            [vqa_question(7)],
            [vqa_annotation(7, answers=None)],
            ["question 7: 'answers' must be list"],
        ),
        ([vqa_question(7)], [vqa_annotation(7, answers=["a"] * 10)], ["question 7: no 'answer'"]),
        (["who?"], [vqa_annotation(7)], ["questions.json: no 'question_id'"]),
        (None, [vqa_annotation(7)], ["questions.json: 'questions' must be list"]),
        ([], [], ["questions.json: no question in it"]),
        (
            [vqa_question(7)],
            [vqa_annotation(7, answer_type="maybe")],
            ["question 7: answer_type must be yes/no, number"],
        ),
        (
            [vqa_question(i) for i in (1, 2, 3, 4)],
            [vqa_annotation(3)],
            ["annotations.json: question 1", "no annotation", "(3 of 4 questions cannot be used"],
        ),
    ],
)
def test_wrong_vqav2_files(tmp_path, questions, annotations, parts):
    fails(ValueError, lambda: read_vqa(tmp_path, questions, annotations), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ([gqa_record()], ["questions.json: expected a dictionary of questions by id"]),
        ({"01": {}}, ["questions.json: question 01: no 'types'", "official file?"]),
        ({"01": gqa_record(types="verify")}, ["question 01: 'types' must be dict"]),
        ({"01": gqa_record(answer=1)}, ["question 01: 'answer' must be str, got '1'"]),
        ({"01": "what?"}, ["question 01: no 'types'"]),
        ({"01": gqa_record(isBalanced=False)}, ["no question in it"]),
        ({"01": gqa_record(isBalanced="yes")}, ["question 01: 'isBalanced' must be bool, got 'yes'"]),
        ({"01": gqa_record(groups={})}, ["question 01: no 'global'"]),
        ({"01": gqa_record(semantic=["select"])}, ["question 01: no 'operation'"]),
        ({"01": gqa_record(entailed=None)}, ["question 01: 'entailed' must be list"]),
        ({"01": gqa_record(answer=1), "02": {}}, ["question 01", "(2 of 2 questions cannot be used"]),
        ({}, ["no question in it"]),
        (f'{{"01": {json.dumps(gqa_record())}, "01": {json.dumps(gqa_record())}}}', ["question 01", "more than once"]),
        ("{", ["questions.json: not a JSON file"]),
    ],
)
def test_wrong_gqa_files(tmp_path, content, parts):
    fails(ValueError, lambda: read_gqa(tmp_path, content), *parts)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (json.dumps([{"question_id": 1}]), ["random.json: record 1 of 1: no 'label'", "official file?"]),
        (json.dumps(pope_line()) + "\n{'label'", ["random.json: line 2: not JSON"]),
        (json.dumps(pope_line(label="maybe")), ["random.json: line 1: label must be yes or no, got 'maybe'", "mend"]),
        (json.dumps(pope_line(label=True)), ["line 1: 'label' must be str, got 'True'"]),
        ("\n".join([json.dumps(pope_line())] * 2), ["question random/1 occurs more than once"]),
        ("", ["random.json: the file is empty"]),
        ("\n", ["random.json: the file is empty"]),
    ],
)
def test_wrong_pope_files(tmp_path, content, parts):
    fails(ValueError, lambda: load_task("pope", TaskFiles(write(tmp_path / "coco_pope_random.json", content))), *parts)


def test_a_pope_file_in_another_encoding(tmp_path):
    path = tmp_path / "coco_pope_random.json"
    path.write_bytes(b"\xff\xfe{")
    fails(ValueError, lambda: load_task("pope", TaskFiles(path)), f"{path}: not a text file")


def test_a_pope_file_given_twice(tmp_path):
    path = write_pope(tmp_path, "popular", pope_line())
    fails(
        ValueError,
        lambda: load_task("pope", TaskFiles([path, path])),
        "question popular/1",
        "take one of the two out",
    )


@pytest.mark.parametrize(
    ("record", "parts"),
    [
        (textvqa_record(5, answers=["a"] * 3), ["val.json: question 5: 3 answers", "exactly ten"]),
        (textvqa_record(5, answers=["a"] * 9 + [7]), ["val.json: question 5: an answer must be str, got 7"]),
        ({"question_id": 5, "question": "?", "image_id": "x"}, ["question 5: it has no answers", "take the val file"]),
        ({"question": "?"}, ["val.json: no 'question_id'"]),
    ],
)
def test_wrong_textvqa_files(tmp_path, record, parts):
    fails(ValueError, lambda: read_textvqa(tmp_path, record), *parts)


def test_one_textvqa_id_twice(tmp_path):
    fails(ValueError, lambda: read_textvqa(tmp_path, textvqa_record(5), textvqa_record(5)), "question 5", "take one")


@pytest.mark.parametrize("name", VISUAL_TASKS)
def test_a_missing_file_is_named(tmp_path, name):
    annotations = tmp_path / "a.json" if name == "vqav2" else None
    fails(
        FileNotFoundError,
        lambda: load_task(name, TaskFiles(tmp_path / "q.json", annotations=annotations)),
        "q.json: no such file",
    )


def test_a_missing_annotations_file_is_named(tmp_path):
    path = write(tmp_path / "q.json", {"data_subtype": "val2014", "questions": []})
    fails(
        FileNotFoundError,
        lambda: load_task("vqav2", TaskFiles(path, annotations=tmp_path / "a.json")),
        "a.json: no such file",
    )


def test_the_right_number_of_files_is_needed(tmp_path):
    fails(ValueError, lambda: load_task("okvqa", TaskFiles([])), "no task is called 'okvqa'; there are vqav2, gqa")
    fails(ValueError, lambda: load_task("gqa", TaskFiles([])), "gqa needs one question file, got 0")
    fails(ValueError, lambda: load_task("gqa", TaskFiles(["a", "b"])), "gqa needs one question file, got 2")
    fails(ValueError, lambda: load_task("pope", TaskFiles([])), "pope needs question files, got 0")
    fails(ValueError, lambda: load_task("vqav2", TaskFiles(["a"])), "vqav2 needs an annotations file")
    fails(ValueError, lambda: load_task("gqa", TaskFiles("a", annotations="b")), "gqa has no annotations file")


# Scores


@pytest.mark.parametrize("name", VISUAL_TASKS)
def test_a_missing_answer_is_an_error_and_never_a_smaller_denominator(world, name):
    task = load_task(name, TaskFiles(**world[name]))
    predictions = {question.id: "yes" for question in task.questions}
    del predictions[task.questions[3].id]
    with pytest.raises(ValueError, match=f"1 of {QUESTIONS} questions have no answer, the first: "):
        task.score(predictions)


@pytest.mark.parametrize("name", VISUAL_TASKS)
def test_answers_to_other_questions_change_nothing(world, name):
    task = load_task(name, TaskFiles(**world[name]))
    predictions = {question.id: "yes" for question in task.questions}
    assert task.score(predictions) == task.score({"elsewhere": "no", **predictions})


def test_accuracy_is_split_by_group():
    ten = ("yes",) * 10
    task = VQAv2([Question("1", "", "", ten, "yes/no"), Question("2", "", "", ("2",) * 10, "number")])
    found = task.score({"1": "Yes", "2": "3"})
    assert found == {"accuracy": 0.5, "accuracy/yes/no": 1, "accuracy/number": 0, "accuracy_official": 0}
    errors = task.errors({"1": "Yes", "2": "3"})
    assert errors["accuracy"] == pytest.approx(0.5) and set(errors) == set(found)


def test_popes_headline_is_the_mean_of_the_categories():
    questions = [Question(f"{c}/{i}", "", "", (label,), c) for c in "ab" for i, label in enumerate(("yes", "no"))]
    found = POPE(questions).score({"a/0": "Yes", "a/1": "No", "b/0": "yes", "b/1": "yes"})
    assert (found["f1/a"], found["f1/b"], found["f1"]) == pytest.approx((1, 2 / 3, 5 / 6))
    assert (found["TP/a"], found["FP/b"], found["undefined"]) == (1, 1, 0)
    assert "TP" not in found  # a mean of counts says nothing


def test_popes_standard_errors_are_those_of_its_answers():
    questions = [Question(f"{c}/{i}", "", "", ("yes" if i % 2 else "no",), c) for c in "ab" for i in range(20)]
    task = POPE(questions)
    given = {q.id: "yes" if i % 3 else "no" for i, q in enumerate(questions)}
    errors, scores = task.errors(given), task.score(given)
    right = {c: [float(given[q.id] == q.references[0]) for q in questions if q.group == c] for c in "ab"}
    for category in "ab":
        assert errors[f"accuracy/{category}"] == pytest.approx(statistics.stdev(right[category]) / 20**0.5)
        wrong = scores[f"FP/{category}"] + scores[f"FN/{category}"]
        assert errors[f"f1/{category}"] == f1_error(scores[f"TP/{category}"], wrong)
    for name in ("accuracy", "f1"):
        assert errors[name] == pytest.approx((errors[f"{name}/a"] ** 2 + errors[f"{name}/b"] ** 2) ** 0.5 / 2)


def test_pope_off_probabilities():
    questions = [Question(f"a/{i}", "", "", (label,), "a") for i, label in enumerate(["yes", "no", "yes", "no"])]
    given = {"a/0": [-0.1, -2.0], "a/1": [-3.0, -0.2], "a/2": [-1.5, -0.5], "a/3": [-1.0, -1.4]}
    task = PopeLogit(questions)
    found = task.score(given)
    assert (found["accuracy"], found["f1"], found["auroc"]) == (0.5, 0.5, 0.75)
    assert found["aupr"] == pytest.approx((1 + 2 / 3) / 2)  # the two yes stand first and third
    assert task.errors(given)["accuracy"] == pytest.approx((0.25 / 3) ** 0.5)
    assert task.majority()[1]["accuracy"] == 0.5


def test_pope_off_probabilities_with_labels_of_one_kind():
    task = PopeLogit([Question("a/0", "", "", ("yes",), "a"), Question("a/1", "", "", ("yes",), "a")])
    found = task.score({"a/0": [-1.0, -2.0], "a/1": [-1.0, -2.0]})
    assert found["accuracy"] == 1 and found["auroc/a"] is None and "auroc" not in found


# Constant answers


def every_reference(task):
    return {reference for question in task.questions for reference in question.references}


@pytest.mark.parametrize("name", VISUAL_TASKS)
def test_no_other_constant_is_better(world, name):
    task = load_task(name, TaskFiles(**world[name]))
    constant, metrics = task.majority()
    tried = [task.score({q.id: c for q in task.questions})[task.headline] for c in every_reference(task)]
    assert isinstance(task, VisualTask)
    assert metrics == task.score({q.id: constant for q in task.questions})
    assert metrics[task.headline] == pytest.approx(max(tried))


def test_the_most_frequent_reference_is_not_always_the_best_constant():
    sure = [Question(f"s{i}", "", "", (f"answer{i}",) * 10, "pure") for i in range(25)]
    unsure = [Question(f"u{i}", "", "", ("red",) * 4 + tuple(f"word{i}{j}" for j in range(6)), "pure") for i in (0, 1)]
    for kind in (VQAv2, TextVQA):
        constant, metrics = kind([*sure, *unsure]).majority()
        assert constant == "red"
        assert metrics[kind.headline] == pytest.approx(2 / 27)


def test_spellings_of_one_answer_count_together():
    answers = [("Two.",) * 10, ("2",) * 10, ("cat",) * 10]
    constant, metrics = VQAv2([Question(str(i), "", "", own, "other") for i, own in enumerate(answers)]).majority()
    assert constant == "Two."
    assert metrics["accuracy"] == pytest.approx(2 / 3)


def test_a_constant_is_compared_as_it_was_written():
    """TextVQA makes what's of whats, but what 's of what's: a key must not be answered in its references' place."""
    constant, metrics = TextVQA([Question("1", "", "", ("whats",) * 10, "pure")]).majority()
    assert (constant, metrics["textvqa_pure"]) == ("whats", 1)


def test_an_unreachable_gqa_reference_is_no_constant():
    references = ["Mt.", "Mt.", "cat"]
    records = [gqa_record(answer=own) for own in references]
    questions = [Question(str(i), "", "", (own["answer"],), "open", own) for i, own in enumerate(records)]
    constant, metrics = GQA(questions).majority()
    assert (constant, metrics["accuracy"]) == ("cat", pytest.approx(1 / 3))


def test_popes_constant_is_yes_wherever_something_is_there():
    labels = ["no", "no", "no", "yes"]
    constant, metrics = POPE([Question(str(i), "", "", (own,), "random") for i, own in enumerate(labels)]).majority()
    assert (constant, metrics["f1"], metrics["accuracy"]) == ("yes", pytest.approx(0.4), 0.25)


@pytest.mark.parametrize("task", ["vqav2", "gqa", "pope", "textvqa"])
def test_byte_order_marks_change_nothing(task, world, tmp_path):
    paths = [Path(path) for path in world[task]["questions"]]
    noted = world[task].get("annotations")
    expected = load_task(task, TaskFiles(paths, annotations=noted))
    marked = [write(tmp_path / path.name, "\ufeff" + path.read_text()) for path in paths]
    notes = noted and write(tmp_path / "notes.json", "\ufeff" + Path(noted).read_text())
    assert load_task(task, TaskFiles(marked, annotations=notes)).questions == expected.questions
