"""Multiple choice and GLUE as tasks: metrics by hand and by naive twins, standard errors, baselines, refusals."""

import math
import random

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from vlmsel.data.glue import GlueExample
from vlmsel.data.multiple_choice import ChoiceQuestion
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task
from vlmsel.evaluation.text.tasks import ChoiceTask, GlueTask

RULES = ("acc", "acc_norm", "acc_bytes")
# By hand: the whole takes 0, 0, 1; per character 1, 0, 1 (é is one); per byte 1, 1, 1 (é is two).
CHOICES = (
    ChoiceQuestion("a", "so", ("no", "certainly"), 0),
    ChoiceQuestion("b", "so", ("abcde", "ééééé"), 1),
    ChoiceQuestion("c", "so", ("x", "y"), 1),
)
LOGS = {"a": [-4.0, -9.0], "b": [-5.0, -6.0], "c": [-2.0, -1.0]}


def test_each_rule_by_hand():
    task = ChoiceTask("piqa", CHOICES)
    assert task.score(LOGS) == {"acc": 2 / 3, "acc_norm": 1 / 3, "acc_bytes": 2 / 3}


def random_choices(count, seed=0):
    rng = random.Random(seed)
    words = ["a", "été", "naïve", "東京都", "long enough", "ß", "emoji 🙂", "plain"]
    questions = [
        ChoiceQuestion(str(i), "q", tuple(rng.sample(words, rng.choice([2, 3, 8]))), rng.randrange(2))
        for i in range(count)
    ]
    return questions, {q.id: [-20 * rng.random() for _ in q.choices] for q in questions}


def naive_right(question, logs, length):
    best = 0
    for place, choice in enumerate(question.choices):
        if logs[place] / length(choice) > logs[best] / length(question.choices[best]):
            best = place
    return best == question.answer


def test_each_rule_against_a_naive_twin():
    questions, logs = random_choices(200)
    found, errors = ChoiceTask("qasc", questions).score(logs), ChoiceTask("qasc", questions).errors(logs)
    lengths = (lambda text: 1, len, lambda text: len(text.encode("utf-8")))
    for rule, length in zip(RULES, lengths, strict=True):
        p = sum(naive_right(q, logs[q.id], length) for q in questions) / 200
        assert found[rule] == pytest.approx(p, abs=1e-12)
        assert errors[rule] == pytest.approx(math.sqrt(p * (1 - p) / 199), abs=1e-12)
    assert len({found[rule] for rule in RULES}) == 3  # else the rules could not be told apart


def test_the_order_of_questions_and_answers_changes_nothing():
    questions, logs = random_choices(50)
    other = ChoiceTask("qasc", questions[::-1]).score(dict(sorted(logs.items(), reverse=True)))
    assert other == pytest.approx(ChoiceTask("qasc", questions).score(logs))


def test_the_first_of_equal_choices_is_taken():
    assert ChoiceTask("piqa", CHOICES).score({i: [-1.0, -1.0] for i in "abc"})["acc"] == 1 / 3


def test_groups_and_majority_of_choices():
    questions = [*CHOICES, ChoiceQuestion("d", "so", ("p", "q", "r"), 1)]
    task = ChoiceTask("piqa", questions)
    assert task.groups == {"2 choices": 3, "3 choices": 1} and task.notes == []
    assert task.majority() == ("choice 2", {"acc": 3 / 4})
    assert ChoiceTask("piqa", CHOICES[:1] + CHOICES[2:]).majority() == ("choice 1", {"acc": 1 / 2})  # first of equals


def test_one_question_has_no_standard_error():
    assert math.isnan(ChoiceTask("piqa", CHOICES[:1]).errors(LOGS)["acc"])


@pytest.mark.parametrize("call", ["score", "errors"])
def test_missing_answers_are_counted(call):
    task = ChoiceTask("piqa", CHOICES)
    with pytest.raises(ValueError, match="2 of 3 questions have no answer, the first: a$"):
        getattr(task, call)({"c": [-1.0, -2.0]})
    glue = GlueTask("rte", [GlueExample(i, ("x", "y"), 0) for i in "abc"])
    with pytest.raises(ValueError, match="1 of 3 questions have no answer, the first: b$"):
        getattr(glue, call)({"a": [0, 1], "c": [0, 1]})


def test_what_is_asked_is_what_the_answer_depends_on():
    asked = ChoiceTask("piqa", CHOICES).asked(Asking())
    assert asked["b"] == {"prompt": "Question: so\nAnswer:", "choices": ["abcde", "ééééé"]}
    (one,) = GlueTask("sst2", [GlueExample("0", ("fine film ",), 1)]).asked(Asking()).values()
    assert one["texts"] == ["fine film "] and one["choices"] == ["negative", "positive"]
    assert one["prompt"].startswith("fine film ")


# GLUE


def random_glue(task, count=97, seed=3):
    rng = random.Random(seed)
    texts = ("x",) if task in ("cola", "sst2") else ("x", "y")
    examples = [GlueExample(f"{i}", texts, int(rng.random() < 0.65)) for i in range(count)]
    return examples, {one.id: [rng.random(), rng.random() + 0.3 * (one.label or 0)] for one in examples}


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "qqp", "qnli", "rte"])
def test_glue_agrees_with_scikit_learn_on_random_scores(name):
    examples, scores = random_glue(name)
    task = GlueTask(name, examples)
    truth, chosen = [one.label for one in examples], [int(scores[one.id][1] > scores[one.id][0]) for one in examples]
    right = accuracy_score(truth, chosen)
    expected = {"accuracy": right, "f1": f1_score(truth, chosen), "mcc": matthews_corrcoef(truth, chosen)}
    names = {"cola": ["mcc"], "mrpc": ["accuracy", "f1"], "qqp": ["accuracy", "f1"]}.get(name, ["accuracy"])
    assert task.score(scores) == pytest.approx({one: expected[one] for one in names}, abs=1e-12)
    assert task.headline == names[0]
    errors = {} if name == "cola" else {"accuracy": math.sqrt(right * (1 - right) / (len(truth) - 1))}
    assert task.errors(scores) == pytest.approx(errors, abs=1e-12)
    assert task.groups == {"class 0": truth.count(0), "class 1": truth.count(1)}


def test_majority_of_glue():
    labels = [1, 1, 1, 0]
    examples = [GlueExample(str(i), ("x", "y"), label) for i, label in enumerate(labels)]
    constant, found = GlueTask("mrpc", examples).majority()
    assert (constant, found) == ("class 1", {"accuracy": 3 / 4, "f1": pytest.approx(6 / 7)})
    assert GlueTask("cola", examples).majority()[1] == {"mcc": 0.0}  # a constant correlates with nothing
    assert GlueTask("rte", [*examples, *(GlueExample(f"{i}+", ("x", "y"), 0) for i in range(3))]).majority() == (
        "class 0",
        {"accuracy": 4 / 7},
    )


def write_qqp(path, *rows):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_malformed_rows_of_qqp_are_left_out_and_told(tmp_path):
    path = write_qqp(tmp_path / "dev.tsv", "1\ta\tb\twhy\thow\t1", "2\ta\tbroken", "3\ta\tb\twho\twhen\t0")
    task = load_task("qqp", TaskFiles(path))
    assert list(task.ids) == ["1", "3"] and task.notes == ["malformed rows of the file that were left out: 1"]
    assert load_task("qqp", TaskFiles(write_qqp(tmp_path / "good.tsv", "1\ta\tb\twhy\thow\t1"))).notes == []


def test_files_without_labels_end_with_the_count(tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tgood\n1\tbad\n")
    with pytest.raises(ValueError, match="test.tsv: 2 of 2 questions have no label; test labels are not public, take"):
        load_task("sst2", TaskFiles(tmp_path / "test.tsv"))
    (tmp_path / "piqa.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c"}\n' * 3)
    with pytest.raises(ValueError, match=r"piqa.jsonl: 3 of 3 questions have no label; .*PIQA's labels.*--annotations"):
        load_task("piqa", TaskFiles(tmp_path / "piqa.jsonl"))


def test_files_that_a_text_task_has_not_are_refused(tmp_path):
    path = write_qqp(tmp_path / "dev.tsv", "1\ta\tb\twhy\thow\t1")
    with pytest.raises(ValueError, match="qqp has no annotations file; leave annotations .* out"):
        load_task("qqp", TaskFiles(path, annotations=path))
    with pytest.raises(ValueError, match="qqp needs one question file, got 2"):
        load_task("qqp", TaskFiles([path, path]))
    with pytest.raises(ValueError, match="qqp has no file of OCR tokens; leave ocr .* out"):
        load_task("qqp", TaskFiles(path, ocr=path))
    with pytest.raises(ValueError, match="pope_mode must be text or logit, got 'both'"):
        Asking(pope_mode="both")
