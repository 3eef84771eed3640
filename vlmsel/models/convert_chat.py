"""A conversation template of ours as the Jinja text that Hugging Face's tokenizers and processors are asked with.

Rendered, it gives the text whose tokens are those of `vlmsel.data.encoding`: the same order of images, the same blanks.
What the assistant says stands within `{% generation %}`, so that whoever trains on it can find it.
"""

from __future__ import annotations

import json

from vlmsel.data.templates import IMAGE, TEMPLATES, Template

# Parts of a message become text and a number of images; {words} says how text and images are put together.
MESSAGE = """
{%- set part = namespace(text='', images=0) -%}
{%- if message['content'] is string -%}
{%- set part.text = message['content'] -%}
{%- else -%}
{%- for piece in message['content'] -%}
{%- if piece['type'] == 'image' -%}{%- set part.images = part.images + 1 -%}
{%- elif piece['type'] == 'text' -%}{%- set part.text = part.text + piece['text'] -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
"""
FIRST = """
{%- for message in messages -%}
{%- if message['content'] is not string -%}
{%- for piece in message['content'] -%}{%- if piece['type'] == 'image' -%}{{ IMAGE }}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
"""
TURNS = "{{- raise_exception('turns must alternate user, assistant, user, ... from a user one on') -}}"


def chat_template(template: Template, bos: bool) -> str:
    """Write a template as Jinja; `bos` says whether the tokenizer has a BOS that this template begins with.

    `bos_token` and `eos_token` are the tokenizer's own, which transformers puts in.
    """
    begin = "{{ bos_token }}" if bos else ""
    first = FIRST.replace("{{ IMAGE }}", _say(IMAGE)) if template.image_position == "after_bos" else ""
    question = _question(template)
    reopen = begin if template.reopens else ""
    lead, trail = _quoted(template.lead), _quoted(template.trail)
    text = "part.text | trim" if template.image_position == "after_bos" else "part.text"
    answer = f"{{{{ turn.blanks + {lead} + ({text}) + {trail} }}}}" + ("{{ eos_token }}" if template.closes else "")
    lines = [
        begin + first.strip(),
        "{%- set turn = namespace(blanks='', text='') -%}",
        "{%- for message in messages -%}",
        f"{{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}}{TURNS}{{%- endif -%}}",
        MESSAGE.strip(),
        "{%- if message['role'] == 'user' -%}",
        *([f"{{%- if not loop.first -%}}{reopen}{{%- endif -%}}"] if reopen else []),
        f"{{%- set turn.text = {question} -%}}",
        "{%- set turn.blanks = turn.text[(turn.text.rstrip() | length):] -%}",
        "{{- turn.text.rstrip() -}}",
        "{%- else -%}",
        "{%- generation -%}" + answer + "{%- endgeneration -%}",
        "{%- endif -%}",
        "{%- endfor -%}",
    ]
    return "\n".join(lines)


def _question(template: Template) -> str:
    """Write what a question becomes, as a Jinja expression of `part` and `loop`."""
    image = _quoted(IMAGE)
    if not template.questions:
        said = f"({image} * part.images)"
    elif template.image_position == "after_bos":
        said = "(part.text | trim)"
    else:
        moved = f"(({_quoted(IMAGE + chr(10))} * part.images) + (part.text | trim)) | trim"
        said = f"({moved} if part.images else part.text)"
    opening = _quoted(template.opening)
    before = f"({opening} if loop.first else {_quoted(template.before)})"
    return f"{before} + {said} + {_quoted(template.after)}"


def _quoted(text: str) -> str:
    return json.dumps(text)


def _say(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}"


def known_template(chat: str | None) -> str | None:
    """Return the name of our template that a chat template was written from, None where it is another's."""
    found = (name for name, own in TEMPLATES.items() if chat in (chat_template(own, True), chat_template(own, False)))
    return next(found, None)
