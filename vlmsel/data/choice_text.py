"""How lm-evaluation-harness cleans the texts of HellaSwag and LogiQA, as pure functions.

HellaSwag: blanks at the ends go; " [title]" becomes ". "; [...] is deleted; two blanks become one, in one pass, so that
four leave two, and a blank that a deleted mark leaves at the end stays.

LogiQA: each period is followed by a blank; the first two characters of an option go whatever they are (nearly all
options begin "A."). Options without a letter, in 14 of the 651 questions of the evaluation file, lose two of their own
characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping


def hellaswag_text(text: str) -> str:
    """Clean a context or an ending of HellaSwag.

    >>> hellaswag_text("[header] How to dry hair [title] Wet it. [step] Use a towel.")
    ' How to dry hair. Wet it. Use a towel.'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag_query(record: Mapping[str, str]) -> str:
    """Return the text that the endings of a HellaSwag record go on from."""
    context = f"{record['ctx_a']} {record['ctx_b'].capitalize()}"
    return hellaswag_text(f"{record['activity_label']}: {context}")


def logiqa_text(line: str) -> str:
    """Clean a line of LogiQA that holds a context or a question."""
    return line.replace(".", ". ").strip()


def logiqa_option(line: str) -> str:
    """Clean a line of LogiQA that holds an option.

    >>> logiqa_option("A.It is 3.5 m long.")
    'It is 3. 5 m long.'
    """
    return logiqa_text(line[2:])
