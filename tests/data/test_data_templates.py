import json
from pathlib import Path

import pytest
from template_text import generation_prompt, join, per_turn_text, training_text

from vlmsel.data.sample import Turn
from vlmsel.data.templates import TEMPLATES, find_template

CASES = json.loads((Path(__file__).parents[1] / "cases/structure.json").read_text())["templates"]
ROUNDS = [Turn("human", "q1"), Turn("gpt", "a1"), Turn("human", "q2"), Turn("gpt", "a2")]


def turns_of(case):
    return [Turn(role, text) for role, text in case["turns"]]


@pytest.fixture(params=CASES, ids=lambda case: case["template"])
def case(request):
    return request.param


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES)
def template(request):
    return request.param


def test_every_template_has_a_worked_case():
    assert {case["template"] for case in CASES} | {"text"} == set(TEMPLATES)


def test_text_is_question_blank_answer_and_its_rounds_stand_apart():
    template = TEMPLATES["text"]
    assert training_text(template, ROUNDS[:2]) == "q1 a1</s>"
    assert training_text(template, ROUNDS) == "q1 a1</s><s>q2 a2</s>"
    assert generation_prompt(template, ROUNDS[:3]) == "q1 a1</s><s>q2"


def test_blanks_at_the_end_of_a_bare_question_belong_to_the_answer():
    turns = [Turn("human", "q \n"), Turn("gpt", "a")]
    first, second = TEMPLATES["text"].segments(turns)
    assert (first.text, second.text) == ("q", " \n a")
    assert [s.text for s in TEMPLATES["text"].segments(turns[:1], prompt=True)] == ["q"]


SYSTEM = Turn("system", " Be kind. ")


def test_a_system_turn_takes_the_place_of_the_templates_own():
    vicuna = "Be kind. USER: q1 ASSISTANT: a1</s>"
    llama = "[INST] <<SYS{}\nBe kind.\n<</SYS>>\n\nq1 [/INST] a1"
    expected = {
        "vicuna_v1": f"{vicuna}", "vicuna_v15": f"{vicuna}", "llava_llama_2": f"{llama.format('>>')} </s>",
        "llama2_chat": f"{llama.format('>')}</s>", "pure": "In: Be kind.\nq1\nOut: a1</s>", "plain": "a1\n",
        "text": "Be kind.\nq1 a1</s>",
    }  # fmt: skip
    assert expected == {name: training_text(TEMPLATES[name], [SYSTEM, *ROUNDS[:2]]) for name in TEMPLATES}


def test_later_rounds_and_prompts_are_as_without_a_system_turn(template):
    rounds = ROUNDS if template.questions else ROUNDS[:2]
    own, bare = template.segments([SYSTEM, *rounds]), template.segments(rounds)
    assert own[1:] == bare[1:] and own[0].begins == bare[0].begins and not own[0].supervised
    assert template.segments([SYSTEM, *rounds[:1]], prompt=True) == own[:1]
    assert template.segments([Turn("system", " "), *rounds]) == bare
    with pytest.raises(ValueError, match="got human, system, gpt"):
        template.segments([rounds[0], SYSTEM, rounds[1]])


def test_training_text(case):
    assert training_text(find_template(case["template"]), turns_of(case)) == case["training_text"]


def test_per_turn_text(case):
    got = per_turn_text(find_template(case["template"]), turns_of(case))
    assert len(got) == len(case["turns"])
    if "per_turn_text" in case:
        assert got == case["per_turn_text"]


def test_supervised_text(case):
    template = find_template(case["template"])
    segments = template.segments(turns_of(case))
    expected = case.get("supervised", [t.text for t in turns_of(case) if t.role == "gpt"])
    strip = "" if "supervised" in case else " "
    assert [s.text.strip(strip) if strip else s.text for s in segments if s.supervised] == expected
    assert [s.supervised for s in segments] == [t.role == "gpt" for t in turns_of(case)]
    assert all(s.ends == (s.supervised and case["template"] != "plain") for s in segments)


def test_generation_prompt(case):
    template, question = find_template(case["template"]), turns_of(case)[0]
    if "generation_prompt" in case:
        assert generation_prompt(template, [question]) == case["generation_prompt"]
    if "vqa_generation_prompt" in case:
        asked = Turn("human", question.text + "\nAnswer the question using a single word or phrase.")
        assert generation_prompt(template, [asked]) == case["vqa_generation_prompt"]
    assert case["training_text"].startswith(generation_prompt(template, [question]))


def test_prompts_never_end_in_a_blank(template):
    prompt = generation_prompt(template, [Turn("human", "<image>\nWhy?  \n ")])
    assert prompt == prompt.rstrip()


@pytest.mark.parametrize("template", [t for t in TEMPLATES.values() if t.questions], ids=lambda t: t.name)
def test_later_prompts_are_prefixes_too(template):
    assert training_text(template, ROUNDS).startswith(generation_prompt(template, ROUNDS[:3]) + " a2")


def test_empty_answer_is_the_joining_blank():
    empty = [Turn("human", "q"), Turn("gpt", "")]
    assert per_turn_text(TEMPLATES["pure"], empty) == ["In: q\nOut:", "</s>"]
    assert training_text(TEMPLATES["pure"], empty) == "In: q\nOut: </s>"
    assert training_text(TEMPLATES["vicuna_v1"], empty).endswith("ASSISTANT: </s>")
    assert training_text(TEMPLATES["plain"], empty) == "\n"


def test_markers_move_to_the_front_of_their_turn():
    template = TEMPLATES["vicuna_v1"]
    assert generation_prompt(template, [Turn("human", "What is it?\n<image>")]).endswith(
        "USER: <image>\nWhat is it? ASSISTANT:"
    )
    assert generation_prompt(template, [Turn("human", "<image> or <image>")]).endswith(
        "USER: <image>\n<image>\nor ASSISTANT:"
    )
    assert generation_prompt(template, [Turn("human", "<image>")]).endswith("USER: <image> ASSISTANT:")


def test_turns_without_a_marker_keep_their_blanks_where_llava_keeps_them():
    turns = [Turn("human", " q "), Turn("gpt", " a ")]
    assert training_text(TEMPLATES["vicuna_v1"], turns).endswith("USER:  q  ASSISTANT:  a </s>")
    assert training_text(TEMPLATES["vicuna_v15"], turns).endswith("USER: q ASSISTANT: a</s>")


@pytest.mark.parametrize("name", ["vicuna_v1", "pure"])
def test_marker_is_literal_without_images(name):
    segments = TEMPLATES[name].segments([Turn("human", "say <image>"), Turn("gpt", "<image>")], False)
    assert "say <image>" in segments[0].text
    assert segments[1].text == " <image>"


def test_eos_is_whatever_the_tokenizer_calls_it():
    assert training_text(TEMPLATES["pure"], ROUNDS[:2], eos="<|end|>") == "In: q1\nOut: a1<|end|>"
    assert "<|begin|>[INST] q2" in join(TEMPLATES["llava_llama_2"].segments(ROUNDS), bos="<|begin|>")


@pytest.mark.parametrize("roles", [[], ["gpt"], ["human", "human"], ["gpt", "human"], ["human", "gpt", "gpt"]])
def test_turns_must_alternate(template, roles):
    with pytest.raises(ValueError, match="alternate"):
        template.segments([Turn(role, "x") for role in roles])


def test_a_question_alone_is_nothing_to_train_on_and_an_answer_no_prompt(template):
    with pytest.raises(ValueError, match="needs an answer"):
        template.segments(ROUNDS[:1])
    with pytest.raises(ValueError, match="must end in a human turn"):
        generation_prompt(template, ROUNDS[:2])


def test_plain_takes_one_round():
    with pytest.raises(ValueError, match="plain takes one human and one gpt turn, got 4 turns"):
        TEMPLATES["plain"].segments(ROUNDS)


def test_unknown_template_lists_the_known():
    with pytest.raises(ValueError, match="no template is called 'v1'; there are vicuna_v1, llava_llama_2, plain"):
        find_template("v1")
