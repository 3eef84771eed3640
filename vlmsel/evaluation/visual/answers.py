r"""How VQAv2 and TextVQA compare answers: the text rules of their official scripts, as pure functions.

VQAv2 (GT-Vision-Lab/VQA, vqaEval.py), in this order:

1. newline and tab become a blank; blanks at the ends go.
2. Each mark of ; / [ ] " { } ( ) = + \ _ - > < @ ` , ? ! is deleted everywhere if it has a blank beside it anywhere in
   the original text, or if that text has a comma between digits; otherwise each becomes a blank.
3. A period goes unless a digit follows, at most 32 of them (the script hands a flag over as the count).
4. Lower case; none, zero, one ... ten become digits; a, an, the go; contractions get their apostrophe.

TextVQA (EvalAIAnswerProcessor) first lower-cases, deletes , and ? and puts a blank before 's.

LLaVA's answer file of TextVQA names a question by its image and its prompt; `textvqa_prompt_question` takes the
question out of the latter (haotian-liu/LLaVA, eval_textvqa.py).
"""

from __future__ import annotations

import re
from functools import lru_cache

from vlmsel.checks import quoted

OCR_MARK, OLD_OCR_MARK = "Reference OCR token:", "OCR tokens: "  # how LLaVA puts OCR tokens into a prompt
MARKS = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(value) for value, word in enumerate("one two three four five six seven eight nine ten".split(), start=1)
}
_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_DOUBLE = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've you'd've
"""
_IRREGULAR = {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _without_one(word: str) -> list[str]:
    """Return the word with one of its apostrophes left out, for each of them."""
    return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = (
    {word.replace("'", ""): word for word in _PLAIN.split()}
    | {spelt: word for word in _DOUBLE.split() for spelt in _without_one(word)}
    | _IRREGULAR
)


def strip_blanks(text: str) -> str:
    """Apply step 1."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_marks(text: str) -> str:
    """Apply steps 2 and 3.

    >>> strip_marks("a-b -c"), strip_marks("a-b"), strip_marks("10,000"), strip_marks("3.5 m.")
    ('ab c', 'a b', '10000', '3.5 m')
    """
    out, grouped = text, re.search(r"\d,\d", text) is not None
    for mark in MARKS:
        deleted = grouped or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if deleted else " ")
    return re.sub(r"\.(?!\d)", "", out, count=32)


def plain_words(text: str) -> str:
    """Apply step 4.

    >>> plain_words("The two dogs dont")
    "2 dogs don't"
    """
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)  # a benchmark asks for the same few answers again and again
def vqav2_answer(text: str) -> str:
    """Normalise an answer as VQAv2 does."""
    return plain_words(strip_marks(strip_blanks(text)))


@lru_cache(maxsize=1 << 16)
def textvqa_answer(text: str) -> str:
    """Normalise an answer as TextVQA does.

    >>> textvqa_answer("McDonald's, Inc.")
    "mcdonald 's inc"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(strip_marks(strip_blanks(text)))


def has_ocr_tokens(prompt: str) -> bool:
    """Tell whether a prompt of LLaVA's TextVQA file has OCR tokens."""
    return OCR_MARK in prompt or prompt.startswith(OLD_OCR_MARK)


def textvqa_prompt_question(prompt: str) -> str:
    """Return the question in a prompt of LLaVA's TextVQA file, in lower case.

    The last line, which asks for a short answer, goes, and so does a line of OCR tokens before or after the question.
    An older form is "OCR tokens: ... Question: ... Short answer:". On these forms this returns what LLaVA's script
    does, but where a question has several lines before that last one: the script stops, this returns them all.

    Raises:
        ValueError: there is no question in it.

    >>> textvqa_prompt_question("What is it?\\nReference OCR token: A, B\\nAnswer the question using a single word.")
    'what is it?'
    """
    if prompt.startswith(OLD_OCR_MARK):
        match = re.search("Question: (.*?) Short answer:", prompt, re.DOTALL)
        question = match[1] if match else ""
    else:
        question = "\n".join(_question_lines(prompt.split("\n")))
    if not question.strip():
        raise ValueError(f"no question in the prompt {quoted(prompt)}; expected it before the line of the request")
    return question.lower()


def _question_lines(lines: list[str]) -> list[str]:
    marked = [place for place, line in enumerate(lines) if line.startswith(OCR_MARK)]
    if marked and marked[0] > 0:
        return lines[: marked[0]]
    return lines[len(marked[:1]) : -1]
