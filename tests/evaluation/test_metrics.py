"""Metrics against the shared worked cases, plain twins, and each other."""

import json
import math
import random
import statistics
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from vlmsel.data.multiple_choice import READERS, hellaswag_text, logiqa_option
from vlmsel.evaluation.metrics import (
    GLUE,
    f1_error,
    glue_metrics,
    mean,
    multiple_choice,
    pope_metrics,
    pope_parse,
    soft_accuracy,
    standard_error,
    textvqa_accuracy,
    vqa_accuracy,
)
from vlmsel.evaluation.visual.answers import textvqa_answer, textvqa_prompt_question, vqav2_answer
from vlmsel.evaluation.visual.gqa import gqa_match, gqa_metrics

CASES = json.loads((Path(__file__).parents[1] / "cases/metrics.json").read_text())


def close(value):
    return pytest.approx(value, abs=1e-9)


def check_vqav2(case):
    assert vqa_accuracy(case["prediction"], case["answers"]) == close(case["expected"])
    official = vqa_accuracy(case["prediction"], case["answers"], normalize="official")
    assert official == close(case["expected_official_2021"])


def check_textvqa(case):
    assert textvqa_accuracy(case["prediction"], case["answers"]) == close(case["expected"])
    assert textvqa_answer(case["prediction"]) == case["normalized_prediction"]


def check_gqa(case):
    assert gqa_match(case["prediction"], case["answers"]) == close(case["expected"])


def check_gqa_metrics(case):
    found = gqa_metrics(case["questions"], case["prediction"])
    for name in ("binary", "open", "accuracy"):  # the script prints percent with two decimals
        assert round(100 * found[name], 2) == case["expected"][name]
    assert found["distribution"] == close(case["exact_distribution"])


def check_pope_parse(case):
    assert pope_parse(case["prediction"]) == case["expected"]


def check_pope_metrics(case):
    found = pope_metrics(case["prediction"], case["references"])
    assert {name: found[name] for name in case["expected"]} == close(case["expected"])
    assert found["undefined"] == 0


def check_multiple_choice(case):
    found = multiple_choice(case["loglikelihoods"], case["choices"])
    assert {f"{name}_pred": choice for name, choice in found.items()} == case["expected"]


def check_glue_metrics(case):
    found = {}
    for task in GLUE:
        found |= glue_metrics(task, case["prediction"], case["references"])
    assert found == close(case["expected"])


def check_hellaswag_query(case):
    read = READERS["hellaswag"](0, {**case["prediction"], "endings": list("abcd")})
    assert read.question == case["expected"]


def check_logiqa_option(case):
    assert logiqa_option(case["prediction"]) == case["expected"]


def check_textvqa_prompt_question(case):
    assert textvqa_prompt_question(case["prediction"]) == case["expected"]


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_worked_case(case):
    CHECKS[case["task"]](case)


def test_every_group_of_cases_is_checked():
    assert {case["task"] for case in CASES} == set(CHECKS)


# VQAv2 and TextVQA


def naive_soft_accuracy(prediction, references):
    """The formula as it is written: leave each reference out by its place."""
    scores = []
    for place in range(len(references)):
        others = references[:place] + references[place + 1 :]
        scores.append(min(sum(other == prediction for other in others) / 3, 1))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("matches", range(11))
def test_soft_accuracy_by_number_of_matches(matches):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    expected = [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1][matches]
    assert soft_accuracy("red", references) == close(expected) == naive_soft_accuracy("red", references)
    assert vqa_accuracy("red", references) == textvqa_accuracy("red", references) == close(expected)


def test_the_order_of_references_does_not_matter():
    rng = random.Random(0)
    for _ in range(50):
        references = rng.choices(["two", "2", "Two.", "three", "a two"], k=10)
        shuffled = rng.sample(references, 10)
        for rule in ("always", "official"):
            assert vqa_accuracy("2", references, rule) == close(vqa_accuracy("2", shuffled, rule))


@pytest.mark.parametrize(
    ("prediction", "reference", "always", "official"),
    [("Yes", "yes", 1, 0), ("yes", "Yes", 1, 0), ("yes.", "yes", 1, 0), ("two", "2", 1, 0), ("yes\t", " yes\n", 1, 1)],
)
def test_the_official_rule_leaves_equal_references_as_they_stand(prediction, reference, always, official):
    assert vqa_accuracy(prediction, [reference] * 10) == always
    assert vqa_accuracy(prediction, [reference] * 10, normalize="official") == official


def test_the_official_rule_normalises_when_references_differ():
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"], normalize="official") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3.", "3"),  # the script's look-behind is misspelt, so that the period goes
        ("3.5", "3.5"),
        ("a..5", "a.5"),
        ("T-shirt", "t shirt"),
        ("1,000 km", "1000 km"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("The a an", ""),
        ("none", "0"),
        ("ten eleven", "10 eleven"),
        ("dont", "don't"),
        ("im", "im"),  # the table's key Im can never be met after lower-casing
        ("somebody'd", "somebodyd"),
        ("50% #1 & *", "50% #1 & *"),
    ],
)
def test_vqav2_text(text, expected):
    assert vqav2_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,000", "1000"), ("red,white", "redwhite"), ("let's go", "let 's go"), ("dog's", "dog 's"), ("what?", "what")],
)
def test_textvqa_text(text, expected):
    assert textvqa_answer(text) == expected


def test_scoring_leaves_the_references_alone():
    references = ["The dog."] * 9 + ["cat"]
    assert vqa_accuracy("dog", references) == textvqa_accuracy("dog", references) == 1
    assert references == ["The dog."] * 9 + ["cat"]


def test_wrong_use_of_soft_accuracy_is_refused():
    with pytest.raises(ValueError, match="got none"):
        vqa_accuracy("yes", [])
    with pytest.raises(ValueError, match="exactly ten reference answers, got 9"):
        textvqa_accuracy("yes", ["yes"] * 9)
    with pytest.raises(ValueError, match="always or official, got 'never'"):
        vqa_accuracy("yes", ["yes"] * 10, normalize="never")


# GQA


def gqa_record(answer, structural="query", group="color", entailed=(), balanced=True, semantic=()):
    return {
        "question": "what is it",
        "answer": answer,
        "isBalanced": balanced,
        "types": {"structural": structural, "semantic": "attr", "detailed": "x"},
        "groups": {"global": group, "local": None},
        "semantic": [{"operation": op, "argument": argument} for op, argument in semantic],
        "entailed": list(entailed),
    }


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [(" Yes.. ", "yes", 1), ("yes", "Yes", 0), ("tshirt", "t-shirt", 0), ("yes .", "yes", 0), ("", "", 1)],
)
def test_gqa_match_follows_llava(prediction, answer, expected):
    assert gqa_match(prediction, answer) == expected


def test_gqa_metrics_by_type():
    steps = [("select", "ball (1)"), ("exist", "?"), ("query", "name"), ("choose name", "cat|dog"), ("query", "color")]
    questions = {"01": gqa_record("red", semantic=steps), "1": gqa_record("yes", "verify")}
    found = gqa_metrics(questions, {"01": "Red", "1": "no"})
    assert (found["accuracy"], found["open"], found["binary"]) == (0.5, 1, 0)
    assert found["accuracy/structural/query"] == 1 and found["accuracy/structural/verify"] == 0
    assert found["accuracy/semantic/attr"] == found["accuracy/words/3"] == 0.5
    assert found["accuracy/steps/2"] == 1 and found["accuracy/steps/0"] == 0


def test_gqa_consistency_is_taken_over_rightly_answered_questions():
    questions = {
        "a": gqa_record("red", entailed=["a", "c", "d"]),
        "b": gqa_record("red", entailed=["c"]),
        "c": gqa_record("yes", "verify", balanced=False),
        "d": gqa_record("no", "verify", balanced=False, entailed=["a"]),
    }
    answers = {"a": "red", "b": "blue", "c": "yes", "d": "yes"}
    found = gqa_metrics(questions, answers)
    assert found["consistency"] == 0.5
    assert found["accuracy"] == 0.5 and found["binary"] is None  # unbalanced questions count in consistency only


def test_gqa_metrics_that_cannot_be_computed_are_none():
    questions = {"a": gqa_record("red", entailed=["elsewhere"], group=None)}
    found = gqa_metrics(questions, {"a": "red"})
    for name in ("binary", "consistency", "distribution", "validity", "plausibility", "grounding"):
        assert found[name] is None
    assert gqa_metrics({"a": gqa_record("red")}, {"a": "red"})["consistency"] is None


def test_gqa_distribution_is_zero_for_the_references_themselves():
    questions = {str(i): gqa_record(a, group=g) for i, (a, g) in enumerate(product(["red", "blue"], "xyx"))}
    assert gqa_metrics(questions, {i: one["answer"] for i, one in questions.items()})["distribution"] == 0


def test_gqa_metrics_need_every_balanced_question():
    questions = {"a": gqa_record("red"), "b": gqa_record("red"), "c": gqa_record("red", balanced=False)}
    with pytest.raises(ValueError, match="1 of 2 balanced questions have no answer, the first: b"):
        gqa_metrics(questions, {"a": "red"})


# POPE


@pytest.mark.parametrize(
    ("text", "expected"),
    [(text, "yes") for text in ("NO", "Nope", "No!", "isn't", "", "No\nThere", ".No", "Not")]
    + [(text, "no") for text in ("No, there", "is not", "no")],
)
def test_pope_parse_is_as_strict_as_the_script(text, expected):
    assert pope_parse(text) == expected


def test_reading_an_answer_twice_changes_nothing():
    raw, labels = ["No, none.", "Yes.", "not sure", "maybe"], ["no", "yes", "yes", "no"]
    assert pope_metrics(raw, labels) == pope_metrics([pope_parse(text) for text in raw], labels)


def test_yes_ratio_is_that_of_the_answers():
    assert pope_metrics(["yes", "yes", "no", "yes"], ["no"] * 4)["yes_ratio"] == 0.75


@pytest.mark.parametrize(
    ("predictions", "labels"), [(["no", "no"], ["yes", "no"]), (["yes"], ["no"]), (["no"], ["no"]), ([], [])]
)
def test_where_the_pope_script_divides_by_zero_it_is_flagged(predictions, labels):
    found = pope_metrics(predictions, labels)
    assert found["undefined"] == 1 and found["f1"] == 0


def test_pope_metrics_agree_with_scikit_learn():
    rng = random.Random(1)
    for _ in range(20):
        predictions, labels = rng.choices(["yes", "no"], k=9), rng.choices(["yes", "no"], k=9)
        found = pope_metrics(predictions, labels)
        assert found["accuracy"] == close(accuracy_score(labels, predictions))
        assert found["f1"] == close(f1_score(labels, predictions, pos_label="yes", zero_division=0))


def test_pope_refuses_other_labels_and_lengths():
    with pytest.raises(ValueError, match="got 'Yes'"):
        pope_metrics(["yes"], ["Yes"])
    with pytest.raises(ValueError, match="got 1 answers for 2 labels"):
        pope_metrics(["yes"], ["yes", "no"])


# Text tasks


def test_multiple_choice_counts_characters_and_bytes():
    assert multiple_choice([-6.0, -8.0], ["éé", "abc"]) == {"acc": 0, "acc_norm": 1, "acc_bytes": 0}


def test_the_first_of_equal_choices_is_taken():
    assert set(multiple_choice([-2.0, -2.0, -2.0], ["aa", "bb", "cc"]).values()) == {0}


def test_multiple_choice_refuses_what_has_no_answer():
    for values, choices in ([[-1.0], ["a", "b"]], [[], []], [[-1.0, float("nan")], ["a", "b"]], [[-1.0], [""]]):
        with pytest.raises(ValueError):
            multiple_choice(values, choices)


def test_glue_metrics_agree_with_scikit_learn():
    rng = random.Random(2)
    for _ in range(20):
        predictions, references = [0, 1, *rng.choices([0, 1], k=7)], [1, 0, *rng.choices([0, 1], k=7)]
        f1 = f1_score(references, predictions)
        assert glue_metrics("cola", predictions, references) == close(
            {"mcc": matthews_corrcoef(references, predictions)}
        )
        assert glue_metrics("mrpc", predictions, references)["f1"] == close(f1)
        assert glue_metrics("rte", predictions, references) == close(
            {"accuracy": accuracy_score(references, predictions)}
        )


def test_constant_predictions_have_no_correlation():
    assert glue_metrics("cola", [1, 1, 1], [0, 1, 1]) == {"mcc": 0.0}
    assert glue_metrics("qqp", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("wnli", [1], [1]), "no GLUE task is called 'wnli'; there are cola, mrpc"),
        (("sst2", [1], [-1]), "test split"),
        (("sst2", [1], [1, 0]), "got 1 for 2"),
        (("sst2", [], []), "got 0 for 0"),
    ],
)
def test_glue_refuses_what_it_cannot_score(arguments, match):
    with pytest.raises(ValueError, match=match):
        glue_metrics(*arguments)


def test_hellaswag_text_keeps_the_harness_order_of_steps():
    assert hellaswag_text(" a [title] b    c [step]") == "a. b  c "


def test_logiqa_options_lose_two_characters_whatever_they_are():
    assert logiqa_option("B.It costs 3.5. ") == "It costs 3. 5."


def test_no_mean_of_nothing():
    with pytest.raises(ValueError, match="no question"):
        mean([])


# Standard errors


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 7), (40, 50), (9, 9)])
def test_the_standard_error_of_right_and_wrong_answers(right, count):
    share = right / count
    assert standard_error([1.0] * right + [0.0] * (count - right)) == close((share * (1 - share) / (count - 1)) ** 0.5)


def test_one_question_has_no_standard_error():
    assert math.isnan(standard_error([1.0]))


def test_the_error_of_f1_is_that_of_drawing_questions_again():
    """The spread of F1 over 4,000 samples of 300 questions drawn again with replacement."""
    rng = random.Random(0)
    kinds = ["tp"] * 120 + ["wrong"] * 60 + ["tn"] * 120
    drawn = [Counter(rng.choices(kinds, k=300)) for _ in range(4000)]
    spread = statistics.stdev(2 * one["tp"] / (2 * one["tp"] + one["wrong"]) for one in drawn)
    assert f1_error(120, 60) == pytest.approx(spread, rel=0.05)


def test_the_error_of_f1_without_a_true_positive():
    assert f1_error(0, 5) == f1_error(0, 0) == 0
