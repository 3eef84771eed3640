"""The engine that asks a subject, by its make. Another make is another file and one more entry of `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmsel.evaluation.engines.base import Engine
from vlmsel.evaluation.engines.classifier import ClassifierEngine
from vlmsel.evaluation.engines.image_text import ImageTextEngine
from vlmsel.evaluation.engines.likelihood import LanguageEngine
from vlmsel.evaluation.engines.vlm import VLMEngine
from vlmsel.models.classifier import Classifier
from vlmsel.models.image_text import ImageText
from vlmsel.models.subject import Subject
from vlmsel.models.vlm import VLM


def engine_of(subject: Subject, template: str | None = None, name: str = "this model") -> Engine:
    """Make the engine that asks a subject, which must be ready.

    `template` is the one that an image-text model is asked with, when it is not its processor's own; errors call the
    subject by `name`.

    Raises:
        ValueError: the subject cannot be evaluated, or not with this template.
    """
    subject.require_ready(name)
    make = next((own for own in type(subject).__mro__ if own in ENGINES), None)
    if make is None:
        raise ValueError(f"{name}: no engine asks a {type(subject).__name__}; add one to ENGINES")
    return ENGINES[make](subject, template, name)


def _vlm(subject: VLM, template: str | None, name: str) -> Engine:
    if subject.vision is None:
        _refuse_template("causal", template, name)
        return LanguageEngine(subject.language_model, subject.tokenizer)
    if template not in (None, subject.vlm_config.template):
        raise ValueError(f"{name} has the template {subject.vlm_config.template}; leave --template out")
    return VLMEngine(subject)


def _classifier(subject: Classifier, template: str | None, name: str) -> Engine:
    _refuse_template("classifier", template, name)
    return ClassifierEngine(subject)


def _image_text(subject: ImageText, template: str | None, name: str) -> Engine:
    return ImageTextEngine(subject.backbone, subject.processor, template or subject.template)


def _refuse_template(kind: str, template: str | None, name: str) -> None:
    if template is not None:
        raise ValueError(f"{name}: a {kind} model is asked without a template; leave --template out")


ENGINES: dict[type, Callable[[Any, str | None, str], Engine]] = {
    VLM: _vlm,
    Classifier: _classifier,
    ImageText: _image_text,
}
