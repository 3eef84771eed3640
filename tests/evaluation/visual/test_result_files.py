"""Files of answers: what is written is what the official scripts load, and is read again; bad files end with one line.

The scripts' loading is done over in plain functions here: GT-Vision-Lab/VQA (vqa.py, loadRes), GQA (eval.py), POPE
(evaluate.py), LLaVA (eval_textvqa.py).
"""

import json
import random
import re

import pytest

from vlmsel.evaluation.visual.answer_files import read_results
from vlmsel.evaluation.visual.answers import has_ocr_tokens, textvqa_prompt_question
from vlmsel.evaluation.visual.gqa import gqa_match
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.result_files import write_results

SHORT = "\nAnswer the question using a single word or phrase."
CATEGORIES = ("random", "popular", "adversarial")


def texts(kind, identity, image, text, group):
    return Question(identity, image, text, ("yes",) * (10 if kind in ("vqav2", "textvqa") else 1), group)


VQAV2 = [texts("vqav2", str(262148000 + i), "a.jpg", f"What is {i}?", "other") for i in range(5)]
GQA = [texts("gqa", identity, "b.jpg", "Is it red?", "binary") for identity in ("02930152", "2930152", "7")]
POPE = [
    texts("pope", f"{category}/{i}", "c.jpg", f"Is there a {category}{i % 2} in the image?", category)
    for category in CATEGORIES
    for i in (3, 1, 2)
]
PURE = [texts("textvqa", str(34602 + i), f"00{i % 2}e2e.jpg", f"What is the Brand {i}?", "pure") for i in range(4)]
OCR = [
    texts("textvqa", f"{q.id}/ocr", q.image, f"{q.text}\nReference OCR token: A, B", "ocr")  # as the prompt has it
    for q in PURE
]
QUESTIONS = {"vqav2": VQAV2, "gqa": GQA, "pope": POPE, "textvqa": [*PURE, *OCR]}
NAMES = {
    "vqav2": ["vqav2_results.json"],
    "gqa": ["gqa_results.json"],
    "pope": [f"pope_{category}_results.json" for category in CATEGORIES],
    "textvqa": ["textvqa_pure_results.json", "textvqa_ocr_results.json"],
}
ODD = ["red, white", "", 'a "b"\n\tc', "é \u2028 日本", "it's 5.", "\r"]


def answers_to(questions):
    return {q.id: f"{ODD[i % len(ODD)]}{i}" for i, q in enumerate(questions)}


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries), encoding="utf-8")
    return path


def write_list(path, entries):
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def own_lines(questions, answers):
    return [{"question_id": q.id, "prompt": q.text + SHORT, "text": answers[q.id]} for q in questions]


def llava_line(identity, prompt, text):
    return {
        "question_id": identity,
        "prompt": prompt,
        "text": text,
        "answer_id": "Xy",
        "model_id": "llava",
        "metadata": {},
    }


def fails(call, *parts, error=ValueError):
    """The call ends with one line that has all the parts."""
    with pytest.raises(error) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line
    return line


# What is written


@pytest.mark.parametrize("task", QUESTIONS)
def test_what_is_written_is_read_again(tmp_path, task):
    questions = QUESTIONS[task]
    answers = answers_to(questions)
    paths = write_results(task, questions, answers, tmp_path / "run")
    assert [path.name for path in paths] == NAMES[task]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(NAMES[task])  # no half file is left
    expected = {identity: text.strip().lower().rstrip(".") for identity, text in answers.items()}
    found = read_results(task, paths, questions)
    assert found == (expected if task == "gqa" else answers)
    assert list(found) == [q.id for q in questions]


def vqa_load(path, ids):
    """As VQA's loadRes: the ids of a list's entries must be the split's, as numbers."""
    results = json.loads(path.read_text(encoding="ascii"))
    assert type(results) is list
    assert {one["question_id"] for one in results} == {int(i) for i in ids} and len(results) == len(ids)
    return {str(one["question_id"]): one["answer"] for one in results}


def test_the_vqa_servers_take_the_files(tmp_path):
    answers = answers_to(VQAV2)
    (path,) = write_results("vqav2", VQAV2, answers, tmp_path)
    assert vqa_load(path, [q.id for q in VQAV2]) == answers
    answers = answers_to(OCR)
    (path,) = write_results("textvqa", OCR, answers, tmp_path)
    found = vqa_load(path, [q.id for q in PURE])
    assert {f"{identity}/ocr": text for identity, text in found.items()} == answers


@pytest.mark.parametrize("answer", ["Yes.", " yes", "yes .", "YES..", "no", "yes", "", ". yes", "yes. "])
def test_gqas_script_finds_right_what_our_metric_does(tmp_path, answer):
    questions = [texts("gqa", "02930152", "b.jpg", "Is it red?", "binary")]
    (path,) = write_results("gqa", questions, {"02930152": answer}, tmp_path)
    loaded = {one["questionId"]: one["prediction"] for one in json.loads(path.read_text())}
    assert (loaded["02930152"] == "yes") == gqa_match(answer, "yes")


def test_popes_script_finds_each_answer_at_its_questions_place(tmp_path):
    answers = answers_to(POPE)
    shuffled = [POPE[i] for i in (0, 3, 6, 1, 4, 7, 2, 5, 8)]  # the order within a category is kept
    paths = write_results("pope", shuffled, answers, tmp_path)
    assert [path.name for path in paths] == NAMES["pope"]
    for path, category in zip(paths, CATEGORIES, strict=True):
        with path.open(encoding="ascii") as file:
            loaded = [json.loads(line) for line in file]
        own = [q for q in POPE if q.group == category]
        assert [one["question"] for one in loaded] == [q.text for q in own]
        assert [one["answer"] for one in loaded] == [answers[q.id] for q in own]


@pytest.mark.parametrize("task", QUESTIONS)
@pytest.mark.parametrize("lacking", ["missing", "no text"])
def test_no_shorter_file_is_written(tmp_path, task, lacking):
    questions = QUESTIONS[task]
    answers = answers_to(questions)
    for question in questions[-2:]:  # in the last of a task's files, so that the first must not be written either
        answers.pop(question.id) if lacking == "missing" else answers.update({question.id: [-0.1, -2.3]})
    line = f"2 of {len(questions)} questions have no answer in words, the first: {questions[-2].id}"
    fails(lambda: write_results(task, questions, answers, tmp_path), line)
    assert not list(tmp_path.iterdir())


def test_wrong_use_of_the_writers_is_refused(tmp_path):
    named = [texts("vqav2", identity, "a.jpg", "?", "other") for identity in ("7", "007", "x", "-1")]
    message = "question 007: its id is no whole number; the server takes the ids of the official files only (3 of 4"
    fails(lambda: write_results("vqav2", named, answers_to(named), tmp_path), "vqav2_results.json: ", message)
    both = [*PURE, texts("textvqa", "x/ocr", "a.jpg", "?", "ocr")]  # in the last file, so that no first is written
    fails(
        lambda: write_results("textvqa", both, answers_to(both), tmp_path), "ocr_results.json: question x/ocr: its id"
    )
    assert not list(tmp_path.iterdir())


# What is read


@pytest.mark.parametrize("task", QUESTIONS)
def test_our_own_predictions_are_read_in_any_order(tmp_path, task):
    questions = QUESTIONS[task]
    answers = answers_to(questions)
    lines = own_lines(questions, answers)
    random.Random(0).shuffle(lines)
    path = write_lines(tmp_path / "predictions.jsonl", lines)
    found = read_results(task, [path], questions)
    assert found == answers and list(found) == [q.id for q in questions]
    path.write_bytes("\ufeff".encode() + path.read_bytes())
    assert read_results(task, [path], questions) == answers


def test_a_questions_own_id_comes_before_an_images(tmp_path):
    questions = [
        texts("textvqa", identity, f"{image}.jpg", "Who?", "pure") for identity, image in (("1", "2"), ("2", "1"))
    ]
    path = write_lines(tmp_path / "predictions.jsonl", own_lines(questions, {"1": "me", "2": "you"}))
    assert read_results("textvqa", [path], questions) == {"1": "me", "2": "you"}


@pytest.mark.parametrize("task", ["vqav2", "gqa"])
def test_llavas_answer_files_are_read_by_id(tmp_path, task):
    questions = QUESTIONS[task]
    answers = answers_to(questions)
    number = int if task == "vqav2" else str
    lines = [llava_line(number(q.id), q.text + SHORT, answers[q.id]) for q in questions]
    parts = [write_lines(tmp_path / f"part{i}.jsonl", lines[i::2]) for i in (0, 1)]  # a file per device
    assert read_results(task, parts, questions) == answers


@pytest.mark.parametrize("place", ["before", "after", "none"])
def test_llavas_textvqa_is_read_by_image_and_prompt(tmp_path, place):
    questions = PURE if place == "none" else OCR
    answers = answers_to(questions)
    lines = []
    for q, asked in zip(questions, PURE, strict=True):
        tokens = {"before": f"Reference OCR token: X, Y\n{asked.text}", "none": asked.text}
        prompt = tokens.get(place, f"{asked.text}\nReference OCR token: X, Y") + SHORT
        lines.append(llava_line(q.image.removesuffix(".jpg"), prompt.replace("Brand", "brand"), answers[q.id]))
    path = write_lines(tmp_path / "llava.jsonl", lines)
    assert read_results("textvqa", [path], questions) == answers
    others = OCR if place == "none" else PURE
    said = "without OCR" if place == "none" else "with OCR"
    fails(lambda: read_results("textvqa", [path], others), "4 of 4 answers in", "'what is the brand 0?' of image", said)


def test_a_question_asked_twice_of_an_image_has_one_answer_in_llavas_file(tmp_path):
    questions = [
        texts("textvqa", identity, "e2e.jpg", text, "pure") for identity, text in (("1", "Who?"), ("2", "who?"))
    ]
    line = llava_line("e2e", "Who?" + SHORT, "me")
    path = write_lines(tmp_path / "a.jsonl", [line, line])
    assert read_results("textvqa", [path], questions) == {"1": "me", "2": "me"}


def test_a_textvqa_file_is_told_by_its_name_or_by_the_questions(tmp_path):
    entries = [{"question_id": int(q.id), "answer": q.id} for q in PURE]
    unnamed, named = write_list(tmp_path / "answers.json", entries), write_list(tmp_path / "my-OCR.json", entries)
    assert read_results("textvqa", [unnamed], PURE) == {q.id: q.id for q in PURE}
    assert (
        read_results("textvqa", [unnamed], OCR)
        == read_results("textvqa", [named], OCR)
        == {f"{q.id}/ocr": q.id for q in PURE}
    )
    fails(lambda: read_results("textvqa", [named], PURE), "4 of 4 answers in", "my-OCR.json", "the first: 34602/ocr")
    fails(lambda: read_results("textvqa", [unnamed], [*PURE, *OCR]), "answers.json", "name it textvqa_ocr_results.json")


def pope_entries(category, questions=POPE):
    return [{"question": q.text, "answer": f"{q.id}!"} for q in questions if q.group == category]


@pytest.mark.parametrize("name", ["answers_{}.json", "coco-POPE-{}.json", "{}.jsonl", "run{}x.json"])
@pytest.mark.parametrize("write", [write_lines, write_list])
def test_a_pope_file_is_told_by_its_name_or_by_what_it_answers(tmp_path, name, write):
    """In the last name the category is no word of its own, so that only the questions tell it."""
    paths = [write(tmp_path / name.format(category), pope_entries(category)) for category in reversed(CATEGORIES)]
    assert read_results("pope", paths, POPE) == {q.id: f"{q.id}!" for q in POPE}


def test_a_pope_answer_may_repeat_the_whole_prompt(tmp_path):
    entries = [one | {"question": one["question"].lower() + SHORT} for one in pope_entries("random")]
    path = write_lines(tmp_path / "answers.json", entries)
    assert read_results("pope", [path], POPE[:3]) == {q.id: f"{q.id}!" for q in POPE[:3]}


def test_a_categorys_name_is_whole_words_of_the_files(tmp_path):
    """The name pope_answers does not name the category pop."""
    questions = [texts("pope", f"{name}/1", "c.jpg", f"Is there a {name}?", name) for name in ("pop", "hard")]
    paths = [tmp_path / "pope_answers.json", tmp_path / "pope-pop.json"]
    for path, question in zip(paths, reversed(questions), strict=True):
        write_lines(path, [{"question": question.text, "answer": question.id}])
    assert read_results("pope", paths, questions) == {"pop/1": "pop/1", "hard/1": "hard/1"}


def test_categories_that_ask_the_same_must_be_named(tmp_path):
    same = [texts("pope", f"{category}/1", "c.jpg", "Is there a car?", category) for category in ("hard", "very-hard")]
    entry = {"question": "Is there a car?", "answer": "yes"}
    path = write_lines(tmp_path / "answers.json", [entry])
    fails(lambda: read_results("pope", [path], same), "answers.json: which category are its 1 answers to?", "hard (1 q")
    paths = [write_lines(tmp_path / f"a_{name}.json", [entry]) for name in ("hard", "easy")]
    fails(lambda: read_results("pope", paths, same), "a_easy.json: which category")


# Files that are not what they should be


def test_bad_pope_files(tmp_path):
    whole = pope_entries("random")

    def read(entries, name="pope_random_results.json", questions=POPE[:3]):
        return read_results("pope", [write_lines(tmp_path / name, entries)], questions)

    fails(lambda: read(whole[:2]), "1 of 3 questions have no answer in", "results.json, the first: random/2; give")
    place = "2 of 3 answers in", "the first: line 1 is to 'Is there a random0 in the image?', random/3 is 'Is there a"
    fails(lambda: read([whole[2], whole[1], whole[0] | {"question": "Is it?"}]), *place)
    popular = pope_entries("popular")
    fails(
        lambda: read(popular, questions=POPE), "3 of 3 answers in", "line 1 is to 'Is there a popular1", "random/3 is"
    )
    fails(lambda: read([*whole, whole[0]]), "1 of 4 answers in", "for category random has 3; is it of another split?")
    fails(lambda: read([*whole, *popular], "all.json", POPE), "all.json: which category are its 6 answers to?")
    fails(lambda: read(whole, questions=POPE), "6 of 9 questions have no answer in", "the first: popular/3")


def test_llavas_pope_ids_are_told_from_another_split(tmp_path):
    path = write_lines(tmp_path / "llava.jsonl", [llava_line(i, q.text, "yes") for i, q in enumerate(POPE)])
    fails(lambda: read_results("pope", [path], POPE), "9 of 9 answers in", "LLaVA numbers", "a file per category")
    path = write_lines(path, own_lines(POPE, answers_to(POPE)))
    line = fails(lambda: read_results("pope", [path], POPE[:3]), "6 of 9 answers in", "the first: popular/3; is it of")
    assert "LLaVA" not in line


@pytest.mark.parametrize("task", QUESTIONS)
def test_a_missing_answer_is_counted(tmp_path, task):
    questions = QUESTIONS[task]
    path = write_lines(tmp_path / "predictions.jsonl", own_lines(questions[2:], answers_to(questions)))
    line = f"2 of {len(questions)} questions have no answer in {path}, the first: {questions[0].id}; "
    fails(lambda: read_results(task, [path], questions), line)
    fails(lambda: read_results(task, [], questions), f"{len(questions)} of {len(questions)}", "no answer in no file")
    path.write_text("[]")
    fails(lambda: read_results(task, [path], questions), f"{len(questions)} of {len(questions)} questions have no")
    path.write_text("")
    fails(lambda: read_results(task, [path], questions), f"{path}: the file is empty")


@pytest.mark.parametrize("task", QUESTIONS)
def test_two_answers_to_a_question_must_be_the_same(tmp_path, task):
    questions = QUESTIONS[task]
    answers = answers_to(questions)
    paths = [write_lines(tmp_path / f"{i}.jsonl", own_lines(questions, answers)) for i in (1, 2)]
    assert read_results(task, paths, questions) == answers
    write_lines(paths[1], own_lines(questions, answers | {q.id: "new\nline" for q in questions[1:3]}))
    parts = f"2 of {len(questions)} questions have different answers in {paths[0]}, {paths[1]}", questions[1].id
    fails(lambda: read_results(task, paths, questions), *parts, "and 'new\\nline')")


@pytest.mark.parametrize("task", ["vqav2", "gqa", "textvqa"])
def test_a_file_of_another_split(tmp_path, task):
    questions = {"vqav2": VQAV2, "gqa": GQA, "textvqa": PURE}[task]
    (path,) = write_results(task, questions, answers_to(questions), tmp_path)
    line = f"1 of {len(questions)} answers in {path} are to questions that the questions given do not have, the first: "
    fails(lambda: read_results(task, [path], questions[1:]), line + questions[0].id, "is it of another split?")


def test_llavas_textvqa_of_another_split(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [llava_line("ffff", "Who?\nReference OCR token: \nx", "me")])
    fails(lambda: read_results("textvqa", [path], OCR), "1 of 1 answers in", "the first: ffff; is it of another split?")


def test_llavas_textvqa_without_a_question_in_the_prompt(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [llava_line("000e2e", prompt, "me") for prompt in (PURE[0].text + "\nx", "x")]
    )
    fails(lambda: read_results("textvqa", [path], PURE), "line 2: no question in the prompt")


@pytest.mark.parametrize("prompt", [None, 7, ["Who?"]])
def test_a_prompt_that_is_no_text(tmp_path, prompt):
    path = write_lines(tmp_path / "a.jsonl", [llava_line("000e2e", p, "me") for p in ("Who?\nx", prompt)])
    fails(lambda: read_results("textvqa", [path], PURE), 'line 2: not {"question_id", "prompt", "text"}; take')


SHAPE = {"vqav2": ("question_id", "answer"), "gqa": ("questionId", "prediction"), "pope": ("question", "answer")}


@pytest.mark.parametrize("task", SHAPE)
@pytest.mark.parametrize("bad", [7, None, [], "lines", {}, True, 1.5])
def test_entries_of_the_wrong_shape(tmp_path, task, bad):
    """Whole entries that are no objects, and names of questions that are neither text nor a whole number."""
    name, answer = SHAPE[task]
    entries = [{name: q.id, answer: "yes"} for q in QUESTIONS[task]]
    shown = f'{{"{name}", "{answer}"}}'
    entries[1] = {name: bad, answer: "yes"} if isinstance(bad, bool | float) else bad
    path = write_list(tmp_path / "a.json", entries)
    message = f"{path}: record 2 of {len(entries)}: not {shown}; take these keys"
    fails(lambda: read_results(task, [path], QUESTIONS[task]), message)
    path = write_list(tmp_path / "a.json", [bad] * 3)
    both = f'{path}: record 1 of 3: not {shown} or {{"question_id", "prompt", "text"}}; take'
    fails(lambda: read_results(task, [path], QUESTIONS[task]), both, "(3 of 3 answers cannot be used")


@pytest.mark.parametrize("task", SHAPE)
@pytest.mark.parametrize("bad", [7, None, ["yes"], True])
def test_an_answer_that_is_no_text(tmp_path, task, bad):
    name, answer = SHAPE[task]
    entries = [{name: q.id, answer: bad if i else "yes"} for i, q in enumerate(QUESTIONS[task])]
    path = write_list(tmp_path / "a.json", entries)
    count = f"({len(entries) - 1} of {len(entries)} answers cannot be used, this is the first)"
    first = f"{path}: record 2 of {len(entries)}: an answer ('{answer}') that is no text"
    fails(lambda: read_results(task, [path], QUESTIONS[task]), first, count)


def test_a_number_names_the_same_question_as_text(tmp_path):
    """Question 1 is no truth value, though Python holds True for 1."""
    questions = [texts("vqav2", identity, "a.jpg", "?", "other") for identity in ("0", "1")]
    for kind in (int, str):
        path = write_list(tmp_path / "a.json", [{"question_id": kind(i), "answer": f"{i}"} for i in (0, 1)])
        assert read_results("vqav2", [path], questions) == {"0": "0", "1": "1"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{", "a.json: not a JSON file"),
        (b"\xff\xfe{", "a.json: not a text file"),
        (b'{"question_id": 1, "prompt": "", "text": ""}\n\n{"question_id"', "a.json: line 3: not JSON"),
        (b'{\n "262148000": "yes"\n}', "a.json: expected a list of records, got an object"),
    ],
)
def test_files_that_are_not_json(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    fails(lambda: read_results("vqav2", [tmp_path / "a.json"], VQAV2), message)


def test_a_missing_file(tmp_path):
    path = tmp_path / "a.json"
    fails(lambda: read_results("vqav2", [path], VQAV2), f"{path}: no such file", error=FileNotFoundError)


# The question in a prompt


def llava_rule(prompt):
    """LLaVA's prompt_processor, done over; it stops on any other prompt."""
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        found = re.search(r"Question: (.*?) Short answer:", prompt, re.DOTALL).group(1)
    elif "Reference OCR token: " in prompt and len(lines) == 3:
        found = lines[int(prompt.startswith("Reference OCR token:"))]
    elif len(lines) == 2:
        found = lines[0]
    else:
        raise AssertionError
    return found.lower()


QUESTION = "What does THE sign, É say?"
TOKENS = "Reference OCR token: A, Question: b"


@pytest.mark.parametrize(
    ("prompt", "ocr"),
    [
        (f"{QUESTION}{SHORT}", False),
        (f"{QUESTION}\n{TOKENS}{SHORT}", True),
        (f"{TOKENS}\n{QUESTION}{SHORT}", True),
        (f"{QUESTION}\nReference OCR token: {SHORT}", True),
        (f"OCR tokens: A, B. Question: {QUESTION} Short answer:", True),
        (f"OCR tokens: A\nB. Question: {QUESTION} Short answer: x Short answer:", True),
        (f"{QUESTION}\n{TOKENS}", True),
    ],
)
def test_the_question_in_a_prompt_is_llavas(prompt, ocr):
    assert textvqa_prompt_question(prompt) == llava_rule(prompt) == QUESTION.lower()
    assert has_ocr_tokens(prompt) == ocr


@pytest.mark.parametrize("form", ["{}\nx", "{}\nReference OCR token: A\nx", "Reference OCR token: A\n{}\nx"])
def test_a_question_of_several_lines_is_whole_where_llavas_script_stops(form):
    prompt = form.format("Who is\nhe?")
    assert textvqa_prompt_question(prompt) == "who is\nhe?"
    with pytest.raises(AssertionError):
        llava_rule(prompt)
    old = "OCR tokens: A. Question: Who is\nhe? Short answer:"
    assert textvqa_prompt_question(old) == llava_rule(old) == "who is\nhe?"


def test_a_question_of_several_lines_is_found_again_in_llavas_file(tmp_path):
    questions = [texts("textvqa", "5/ocr", "e2e.jpg", "Who is\nhe? \nReference OCR token: A", "ocr")]
    path = write_lines(tmp_path / "a.jsonl", [llava_line("e2e", "Who is\nHe?\nReference OCR token: A" + SHORT, "me")])
    assert read_results("textvqa", [path], questions) == {"5/ocr": "me"}


@pytest.mark.parametrize("prompt", ["", "Who?", "\nx", "Reference OCR token: A\nx", "OCR tokens: A. Question: who?"])
def test_a_prompt_without_a_question_is_refused(prompt):
    fails(lambda: textvqa_prompt_question(prompt), "no question in the prompt")
