"""Text classifiers as they lie in a folder or on the hub: with a head for given classes, with their own, or as saved.

The head is what lies outside the encoder (`classifier`, `score`), and the encoder's pooler where the checkpoint has
none. A checkpoint without a head gets a fresh one, drawn from the seed; encoder weights that are missing are an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from vlmsel.models.classifier import RECORD, AskedClassifier, Classifier
from vlmsel.models.config import LoraSpec, checked
from vlmsel.models.damage import check_folder, loading, read_object
from vlmsel.models.huggingface import only_evaluated, require_text_model
from vlmsel.models.language import load_pretrained, load_tokenizer, quiet_transformers


def open_classifier(
    source: str, classes: Sequence[str], seed: int = 0, fresh_head: bool = False, dtype: torch.dtype = torch.float32
) -> Classifier:
    """Load an encoder with a head for `classes` from a folder or the hub, on the CPU; safetensors only.

    Args:
        source: the folder or the hub's name.
        classes: names of the classes, in the order of the logits.
        seed: draws a fresh head.
        fresh_head: draw the head anew also where the checkpoint has one.
        dtype: of the weights.

    Raises:
        FileNotFoundError: there is no such model, or files are missing in its folder.
        ValueError: a file is damaged, encoder weights are missing, or the checkpoint's head is one for other classes.
    """
    if Path(source).is_dir():
        require_text_model(source)
        check_folder(Path(source))
    try:
        model, held_classes, info = _load(source, classes, seed, dtype)
    except OSError as problem:
        reason = " ".join(str(problem).split())[:160]
        raise FileNotFoundError(
            f"{source}: neither a model's folder nor one that the hub gives as safetensors ({reason})"
        ) from None
    if not fresh_head:
        _check_order(source, held_classes, classes)
    own = [name for name, _ in model.named_parameters()]
    head = [name for name in own if not name.startswith(f"{model.base_model_prefix}.")]
    head += [name for name in own if name in info["missing_keys"] and "pooler" in name.split(".") and name not in head]
    missing = sorted(set(info["missing_keys"]) & set(own) - set(head))
    if missing:
        raise ValueError(f"{source}: {len(missing)} weights of the encoder are missing, the first is {missing[0]}")
    _check_shapes(source, info["mismatched_keys"], head, len(classes), fresh_head)
    if fresh_head:
        _redraw(model, head, seed)
    return Classifier(model, load_tokenizer(source), classes, head, source).eval()


def _load(source: str, classes: Sequence[str], seed: int, dtype: torch.dtype) -> tuple[Any, list[str], Any]:
    """Load a model for `classes`; return it with the classes that it came with and what transformers says of its files.

    Weights that the checkpoint lacks are drawn from the seed.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers(), loading("classifier", source):
        config = transformers.AutoConfig.from_pretrained(source)
        names = config.id2label or {}
        held = [str(names[i]) for i in sorted(names)]
        config.num_labels, config.problem_type = len(classes), None
        config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
        torch.manual_seed(seed)
        how = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = transformers.AutoModelForSequenceClassification.from_pretrained(source, config=config, **how)
    return model, held, info


def _check_order(source: str, held: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse a head whose classes have our names in another order: every logit would be that of another class."""
    own, ours = ([name.casefold() for name in names] for names in (held, classes))
    if sorted(own) == sorted(ours) and own != ours:
        raise ValueError(
            f"{source}: the head's classes are in the order {', '.join(own)}, the data's in {', '.join(ours)}; "
            "pass --fresh_head true to draw it anew"
        )


def _check_shapes(source: str, mismatched: Any, head: Sequence[str], classes: int, fresh_head: bool) -> None:
    """Refuse a head for another number of classes, and an encoder that is not of its configuration's size."""
    for name, held, expected in sorted(mismatched, key=lambda one: (one[0] in head, -len(one[1]), one[0])):
        if name not in head:
            raise ValueError(
                f"{source}: {name} is {list(held)}, its configuration says {list(expected)}; copy it again"
            )
        if not fresh_head:
            raise ValueError(
                f"{source}: its classifier head has {held[0]} classes ({name} is {list(held)}), the data have "
                f"{classes}; pass --fresh_head true to draw it anew"
            )


def _redraw(model: Any, head: Sequence[str], seed: int) -> None:
    """Draw the head anew as a model that is made from nothing draws it."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        fresh = dict(transformers.AutoModelForSequenceClassification.from_config(model.config).named_parameters())
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in head:
            parameters[name].copy_(fresh[name])


def open_asked(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> AskedClassifier:
    """Load a sequence classifier with the head and the classes that it came with.

    Raises:
        FileNotFoundError: weights or tokenizer are missing.
        ValueError: a file is damaged, weights are missing in the files, those of the head included, or a template is
            named.
    """
    if template is not None:
        raise ValueError(f"{source}: a classifier model is asked without a template; leave --template out")
    require_text_model(source)
    model = load_pretrained(transformers.AutoModelForSequenceClassification, "sequence classifier", source, dtype)
    classes = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    found = AskedClassifier(model, load_tokenizer(source), classes, source=source).eval()
    found.refusal = only_evaluated(source, "classifier")
    return found


def open_saved(source: str, dtype: torch.dtype = torch.float32, template: str | None = None) -> Classifier:
    """Load a classifier as it was trained and saved.

    Raises:
        FileNotFoundError: the model that it was made from is missing.
        ValueError: files are damaged or do not fit each other.
    """
    about = read_object(Path(source) / RECORD)
    found = open_classifier(about["model"], about["classes"], fresh_head=True, dtype=dtype)
    found.adapt(about["tune"], LoraSpec(**checked(LoraSpec, about["lora"] or {}, "LoRA")))
    found.load_trained(source)
    return found
