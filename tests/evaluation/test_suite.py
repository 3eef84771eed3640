"""What is reported of a run: the result, its line for people, the record of how it came about, and what is refused."""

import json
import math

import pytest

from vlmsel.data.glue import GlueExample
from vlmsel.data.multiple_choice import ChoiceQuestion
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.engines.classifier import ClassifierEngine
from vlmsel.evaluation.harness import read_lines
from vlmsel.evaluation.results import how_given, result, summary, table
from vlmsel.evaluation.suite import Benchmark, answer_task, evaluate_all
from vlmsel.evaluation.task import Task
from vlmsel.evaluation.text.tasks import ChoiceTask, GlueTask
from vlmsel.evaluation.visual.questions import Question
from vlmsel.evaluation.visual.tasks import GQA, POPE, PopeLogit, TextVQA, TextVQABoth, VQAv2


class Scripted(Engine):
    """Answers by question id."""

    kind = "a script"

    def __init__(self, given):
        self.given, self.about, self.batches = given, {"template": "pure", "image_mode": "pad"}, []

    def prepare(self, asks):
        self.batches.append([ask.id for ask in asks])
        return asks

    def generate(self, batch, max_new_tokens):
        return [self.given[ask.id] for ask in batch]

    def first_words(self, batch, words):
        return [self.given[ask.id] for ask in batch]

    def loglikelihoods(self, pairs):
        return [self.given[continuation] for _, continuation in pairs]


class Sorter(ClassifierEngine):
    """A classifier without a model."""

    def __init__(self, scores):
        self.scores, self.about = scores, {"classes": ["no", "yes"], "classes_by": "position"}

    def classify(self, texts):
        return [self.scores[one[0]] for one in texts]


def vqa(count):
    return VQAv2([Question(str(i), f"{i}.png", f"what {i}?", ("red",) * 10, "other") for i in range(count)])


def pope(kind=POPE):
    labels = {"1": "yes", "2": "no"}
    return kind(
        [Question(f"{g}/{i}", "a.png", "is it?", (one,), g) for g in ("random", "popular") for i, one in labels.items()]
    )


def gqa(count=2):
    record = {
        "question": "what?", "isBalanced": True, "answer": "red", "entailed": [], "equivalent": [],
        "groups": {"global": "color"},
        "types": {"structural": "query", "semantic": "attr", "detailed": "x"}, "semantic": [], "fullAnswer": "red",
    }  # fmt: skip
    return GQA([Question(str(i), "a.png", "what?", ("red",), "open", record) for i in range(count)])


def ask(task, engine, tmp_path, batch_size=2):
    asking = Asking("bare", batch_size=batch_size, max_new_tokens=4)
    return answer_task(engine, task, asking, tmp_path, tmp_path / "run/predictions.jsonl")


# The result and its line


def test_the_result_holds_what_the_task_computes():
    task, answers = vqa(4), {"0": "red", "1": "blue", "2": "", "3": "red"}
    found = result("mine", task, answers, {"prompt": "bare"})
    assert found == {
        "format": 2,
        "task": "mine",
        "questions": 4,
        "groups": {"other": 4},
        "protocol": {"prompt": "bare", "normalize": "always (accuracy), official (accuracy_official)"},
        "headline": "accuracy",
        "metrics": {"accuracy": 0.5, "accuracy/other": 0.5, "accuracy_official": 0.5},
        "standard_errors": pytest.approx(
            dict.fromkeys(("accuracy", "accuracy/other", "accuracy_official"), math.sqrt(0.25 / 3))
        ),
        "majority": {"accuracy": 1.0, "accuracy/other": 1.0, "accuracy_official": 1.0},
        "majority_answer": "red",
        "notes": [],
        "empty_answers": 1,
    }
    assert summary(found) == (
        "mine: accuracy 50.0 ± 28.9, accuracy_official 50.0 ± 28.9 on 4 questions "
        "(best constant answer, 'red': accuracy 100.0; 1 of the answers empty)"
    )


def test_blanks_alone_are_an_empty_answer():
    assert result("vqav2", vqa(2), {"0": " \n", "1": "red"}, {})["empty_answers"] == 1


def test_answers_to_other_questions_are_not_counted_as_empty():
    assert result("vqav2", vqa(1), {"0": "red", "other": ""}, {})["empty_answers"] == 0


def test_no_empty_answers_are_not_worth_a_word():
    assert "empty" not in summary(result("vqav2", vqa(2), {"0": "red", "1": "blue"}, {}))


@pytest.mark.parametrize(
    ("task", "answers"),
    [
        (vqa(1), {"0": "red"}),
        (pope(), {"random/1": "yes", "random/2": "no", "popular/1": "yes", "popular/2": "no"}),
        (gqa(1), {"0": "red"}),
        (POPE([Question("random/1", "a.png", "is it?", ("yes",), "random")]), {"random/1": "yes"}),
        (ChoiceTask("piqa", [ChoiceQuestion("0", "q", ("a", "b"), 0)]), {"0": [-1.0, -2.0]}),
        (GlueTask("cola", [GlueExample("0", ("q",), 0)]), {"0": [-1.0, -2.0]}),
    ],
)
def test_a_result_is_json_without_nan_and_its_line_too(task, answers):
    found = result("one", task, answers, {})
    json.dumps(found, allow_nan=False)
    assert (
        "nan" not in summary(found) and "None" not in summary(found) and "± " not in summary(found).replace("± 0.0", "")
    )


def test_metrics_that_could_not_be_computed_are_left_out_of_the_line():
    found = result("gqa", gqa(), {"0": "red", "1": "blue"}, {})
    assert found["metrics"]["consistency"] is None
    line = summary(found)
    assert "consistency" not in line and "accuracy 50.0 ± 50.0" in line
    assert f"distribution {found['metrics']['distribution']:.2f}" in line  # a distance, no percentage


def test_undefined_metrics_of_pope_are_told_with_their_number():
    answers = {"random/1": "no", "random/2": "no", "popular/1": "yes", "popular/2": "no"}
    line = summary(result("pope", pope(), answers, {}))
    assert "precision, recall or f1 undefined in 1 of 2 categories" in line
    assert line.startswith("pope: accuracy 75.0 ± ") and "TP" not in line and "/random" not in line
    assert "undefined" not in summary(result("pope", pope(), answers | {"random/1": "yes"}, {}))


def test_notes_reach_the_line():
    examples = [GlueExample(str(i), ("a", "b"), i % 2) for i in range(4)]
    found = result("qqp", GlueTask("qqp", examples, skipped=3), {one.id: [1.0, 0.0] for one in examples}, {})
    assert summary(found).endswith("; malformed rows of the file that were left out: 3)")
    assert summary(found).startswith("qqp: accuracy 50.0 ± 28.9, f1 0.0 on 4 questions (best constant answer, 'class ")


# How it came about


KINDS = [
    (vqa(1), "greedy", "bare", "pure"),
    (gqa(1), "greedy", "bare", "pure"),
    (pope(), "greedy", "bare", "pure"),
    (TextVQA([]), "greedy", "bare", "pure"),
    (TextVQABoth([]), "greedy", "bare", "pure"),
    (pope(PopeLogit), "probabilities of the first token", "bare", "pure"),
    (ChoiceTask("piqa", []), "log-likelihoods", "lm-evaluation-harness", "none"),
    (GlueTask("rte", []), "log-likelihoods", "lm-evaluation-harness", "none"),
]


@pytest.mark.parametrize(("task", "decoding", "prompt", "template"), KINDS)
def test_every_result_records_how_it_came_about(task: Task, decoding, prompt, template):
    engine = Scripted({})
    how = {**engine.about, **task.how(engine, Asking("bare", max_new_tokens=7)), **task.rules}
    assert (how["decoding"], how["prompt"], how["template"]) == (decoding, prompt, template)
    assert how["image_mode"] == ("none" if template == "none" else "pad")
    assert how["normalize"] and how.get("max_new_tokens") == (7 if decoding == "greedy" else None)


def test_a_classifier_is_given_the_texts_alone():
    how = GlueTask("rte", []).how(Sorter({}), Asking("bare"))
    assert how["prompt"] == "the texts alone"
    assert how["decoding"] == "class with the highest logit" and how["template"] == how["image_mode"] == "none"


def test_given_answers_say_that_nobody_knows_how_they_came_about():
    how = how_given(["a.json"])
    assert how["predictions"] == ["a.json"]
    assert {"prompt", "template", "image_mode", "decoding"} <= {name for name in how if "unknown" in how[name]}


# Several benchmarks


def test_every_benchmark_has_its_folder_and_its_cell(tmp_path, capsys):
    engine = Scripted({"0": "red", "1": "blue", " a": -1.0, " b": -2.0})
    choices = ChoiceTask("piqa", [ChoiceQuestion("0", "q", ("a", "b"), 0)])
    benchmarks = [Benchmark("mine", "vqav2", vqa(2), tmp_path, {}), Benchmark("piqa", "piqa", choices, tmp_path, {})]
    found = evaluate_all(engine, benchmarks, Asking("bare"), tmp_path / "run", "digest")
    for name, kind in (("mine", "vqav2"), ("piqa", "piqa")):
        assert json.loads((tmp_path / f"run/{name}/metrics.json").read_text()) == found[name]
        assert found[name]["protocol"]["benchmark"] == kind and found[name]["protocol"]["model"] == "a script"
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["mine", "piqa"]
    assert (tmp_path / "run/mine/vqav2_results.json").is_file() and len(list((tmp_path / "run/piqa").iterdir())) == 3
    assert table({"a": found, "b": found}) == [
        ["model", "mine (accuracy)", "piqa (acc)"],
        *([name, "50.0 ± 50.0", "100.0"] for name in "ab"),
    ]


def test_a_fault_names_its_benchmark(tmp_path):
    with pytest.raises(ValueError, match="^mine: all 2 answers in .* are empty"):
        benchmark = Benchmark("mine", "vqav2", vqa(2), tmp_path, {})
        evaluate_all(Scripted({"0": "", "1": ""}), [benchmark], Asking("bare"), tmp_path / "run", "digest")


# Answering


def test_answers_come_back_by_question(tmp_path):
    given = {"0": "red", "1": "", "2": "blue"}
    assert ask(vqa(3), Scripted(given), tmp_path) == given


def test_all_answers_empty_is_one_error_and_the_file_is_kept(tmp_path):
    given = dict.fromkeys("012", "")
    for _ in range(2):  # the second run asks nothing and says the same
        engine = Scripted(given)
        with pytest.raises(
            ValueError, match=r"all 3 answers in .*predictions.jsonl are empty: .*--protocol, --template"
        ):
            ask(vqa(3), engine, tmp_path)
    assert engine.batches == [] and set(read_lines(tmp_path / "run/predictions.jsonl")) == set("012")


def test_text_tasks_are_scored_choice_by_choice(tmp_path):
    questions = [ChoiceQuestion("a", "q", ("x", "y", "z"), 0), ChoiceQuestion("b", "q", ("u", "v"), 0)]
    given = {" x": -1.0, " y": -2.0, " z": -3.0, " u": -4.0, " v": -5.0}
    found = ask(ChoiceTask("qasc", questions), Scripted(given), tmp_path)
    assert found == {"a": [-1.0, -2.0, -3.0], "b": [-4.0, -5.0]}


def test_glue_is_sorted_by_a_classifier_and_scored_by_a_language_model(tmp_path):
    task = GlueTask("sst2", [GlueExample("0", ("fine",), 1)])
    assert ask(task, Sorter({"fine": [0.25, 0.75]}), tmp_path / "a") == {"0": [0.25, 0.75]}
    assert ask(task, Scripted({" negative": -1.5, " positive": -2.5}), tmp_path / "b") == {"0": [-1.5, -2.5]}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused_with_their_question(tmp_path, bad):
    task = GlueTask("sst2", [GlueExample(str(i), (f"film {i}",), 1) for i in range(4)])
    scores = {f"film {i}": [0.0, 1.0] for i in range(4)} | {"film 2": [bad, 0.0]}
    with pytest.raises(
        ValueError, match=r"question 2: the model's scores are .* 1 of the batch's 2 questions.*weights"
    ):
        ask(task, Sorter(scores), tmp_path)
    assert set(read_lines(tmp_path / "run/predictions.jsonl", answer="scores")) == {
        "0",
        "1",
    }  # NaN never lies in a file
    words = dict.fromkeys(pope(PopeLogit).ids, [-1.0, -2.0]) | {"popular/1": [bad, -1.0]}
    with pytest.raises(ValueError, match="question popular/1: the model's scores are"):
        ask(pope(PopeLogit), Scripted(words), tmp_path / "pope")


def test_nan_in_a_file_of_answers_is_refused(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"question_id": "0", "prompt": "q", "scores": [NaN, 1.0]}\n')
    with pytest.raises(ValueError, match="line 1 is no prediction; delete the file"):
        read_lines(tmp_path / "predictions.jsonl", answer="scores")


def test_questions_about_one_image_share_a_batch(tmp_path):
    images = ["a", "b", "a", "b", "a", "b"]
    task = VQAv2([Question(str(i), one, "?" * i, ("x",) * 10, "other") for i, one in enumerate(images)])
    engine = Scripted(dict.fromkeys(task.ids, "x"))
    ask(task, engine, tmp_path, batch_size=3)
    assert engine.batches == [["0", "2", "4"], ["1", "3", "5"]]
    assert ChoiceTask("piqa", []).order() is None


def test_what_an_engine_cannot_do_is_said(tmp_path):
    class Deaf(Engine):
        kind = "a stone"

    with pytest.raises(ValueError, match="a stone cannot read images; evaluate a vision-language model on this task"):
        ask(vqa(1), Deaf(), tmp_path)
    with pytest.raises(ValueError, match="a stone cannot score text; evaluate a causal language model on this task"):
        ask(ChoiceTask("piqa", [ChoiceQuestion("0", "q", ("a", "b"), 0)]), Deaf(), tmp_path / "text")
    assert not (tmp_path / "run").exists()


# Images


def test_missing_images_are_counted(tmp_path):
    task = vqa(4)
    (tmp_path / "1.png").touch()
    with pytest.raises(ValueError, match=r"question 0: image '0.png' is missing .*\(3 of 4 questions have no usable"):
        task.require_images(tmp_path)
    for name in "023":
        (tmp_path / f"{name}.png").touch()
    task.require_images(tmp_path)


def test_one_missing_image_and_none_of_the_folder(tmp_path):
    with pytest.raises(ValueError, match=r"question 0: image '0.png' is missing in [^()]*$"):
        vqa(1).require_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        vqa(1).require_images(tmp_path / "nowhere")


def test_an_image_outside_the_folder_is_refused(tmp_path):
    task = VQAv2([Question("7", "../secret.png", "?", ("x",) * 10, "other")])
    with pytest.raises(ValueError, match="question 7: "):
        task.require_images(tmp_path)
