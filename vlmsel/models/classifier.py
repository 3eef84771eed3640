"""A text classifier: an encoder with a head, adapters on the encoder or none, and each sample's own loss.

The head is what lies outside the encoder (`classifier`, `score`), and the encoder's pooler where the checkpoint has
none. A checkpoint without a head gets a fresh one, drawn from the seed; encoder weights that are missing are an error.

Two ways to tune, those of the HyperINF paper (arXiv 2410.05090): LoRA with the head trained too, or the head alone.
What was trained is written as safetensors beside `classifier.json`, which comes last and says that it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmsel import runs
from vlmsel.models.config import LoraSpec
from vlmsel.models.damage import check_folder, check_weights, loading
from vlmsel.models.huggingface import require_text_model
from vlmsel.models.language import load_tokenizer, quiet_transformers
from vlmsel.models.lora import attach_lora

Tune = Literal["lora", "last-layer"]
TUNE = ("lora", "last-layer")
WEIGHTS, RECORD = "trained.safetensors", "classifier.json"


@dataclass(frozen=True)
class EncoderLora(LoraSpec):
    """Adapters on an encoder, W + s·BA: `LoraSpec` with the mislabelled-data study's settings.

    Attributes:
        r: rank.
        alpha: s is alpha / sqrt(r) with rsLoRA, else alpha / r.
        rslora: use rsLoRA's scale.
        targets: last components of the modules' names: query and value in BERT and RoBERTa, q_lin and v_lin in
            DistilBERT, query_proj and value_proj in DeBERTa.
        dropout: before A, while tuning.
    """

    r: int = 8
    alpha: int = 16
    rslora: bool = True
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0


@dataclass(frozen=True)
class Classifier:
    """A classifier as it was loaded: model, tokenizer, and the names of the head's parameters.

    `kept_head` says that the checkpoint had a head for these classes.
    """

    model: Any
    tokenizer: Any
    head: tuple[str, ...]
    kept_head: bool


def load_classifier(
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
    names = dict(enumerate(classes))
    config = _load_config(source)
    if not fresh_head:
        _check_order(source, config, classes)
    config.num_labels = len(classes)
    config.id2label, config.label2id = names, {name: i for i, name in names.items()}
    config.problem_type = None
    model, info = _load(source, config, seed, dtype)
    own = [name for name, _ in model.named_parameters()]
    head = [name for name in own if not name.startswith(f"{model.base_model_prefix}.")]
    head += [name for name in own if name in info["missing_keys"] and "pooler" in name.split(".") and name not in head]
    missing = sorted(set(info["missing_keys"]) & set(own) - set(head))
    if missing:
        raise ValueError(f"{source}: {len(missing)} weights of the encoder are missing, the first is {missing[0]}")
    _check_shapes(source, info["mismatched_keys"], head, len(classes), fresh_head)
    if fresh_head:
        _redraw(model, config, head, seed)
    kept = not fresh_head and not set(head) & set(info["missing_keys"])
    return Classifier(model.eval(), load_tokenizer(source), tuple(head), kept)


def _load_config(source: str) -> Any:
    try:
        with quiet_transformers(), loading("configuration", source):
            return transformers.AutoConfig.from_pretrained(source)
    except OSError as problem:
        raise FileNotFoundError(_absent(source, problem)) from None


def _load(source: str, config: Any, seed: int, dtype: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """Load the model; weights that the checkpoint lacks are drawn from the seed."""
    auto = transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]), quiet_transformers(), loading("classifier", source):
        torch.manual_seed(seed)
        try:
            return auto.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except OSError as problem:
            raise FileNotFoundError(_absent(source, problem)) from None


def _absent(source: str, problem: OSError) -> str:
    reason = " ".join(str(problem).split())[:160]
    return f"{source}: neither a model's folder nor one that the hub gives as safetensors ({reason})"


def _check_order(source: str, config: Any, classes: Sequence[str]) -> None:
    """Refuse a head whose classes have our names in another order: every logit would be that of another class."""
    own = [str(config.id2label[i]).casefold() for i in sorted(config.id2label)] if config.id2label else []
    ours = [name.casefold() for name in classes]
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


def _redraw(model: Any, config: Any, head: Sequence[str], seed: int) -> None:
    """Draw the head anew as a model that is made from nothing draws it."""
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        fresh = dict(transformers.AutoModelForSequenceClassification.from_config(config).named_parameters())
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in head:
            parameters[name].copy_(fresh[name])


def adapt(classifier: Classifier, tune: Tune, lora: LoraSpec, seed: int = 0) -> Any:
    """Return the model with adapters drawn from the seed (for `lora`) and only these and the head left to train.

    Raises:
        ValueError: there is no such way to tune, or the encoder has no module of a target's name (lists those it has).
    """
    if tune not in TUNE:
        raise ValueError(f"tune must be one of {', '.join(TUNE)}, got {tune!r}")
    parameters = dict(classifier.model.named_parameters())
    head = [parameters[name] for name in classifier.head]
    model = classifier.model.requires_grad_(False)
    if tune == "lora":
        model = attach_lora(model, lora, seed, task=None)
    for parameter in head:
        parameter.requires_grad_(True)
    return model.eval()


def default_blocks(tune: Tune, head: Sequence[str]) -> str:
    """Return the blocks whose gradients count, for `select_blocks`: all adapters, or the head."""
    return "lora" if tune == "lora" else "|".join(f"^{re.escape(name)}$" for name in head)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what was left to train, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


# The loss


def logits(model: Any, batch: Any) -> Tensor:
    """Return the logits of a batch, float32 (float64 for a float64 model). [n, classes]"""
    types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
    found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types).logits
    return found if found.dtype == torch.float64 else found.float()


def sample_losses(model: Any, batch: Any) -> Tensor:
    """Return each sample's own cross entropy. [n]"""
    return F.cross_entropy(logits(model, batch), batch.labels, reduction="none")


def no_rows(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Say that the rows of every module are the samples."""
    return {}


@torch.no_grad()
def predict(model: Any, batch: Any) -> Tensor:
    """Return the class with the largest logit of each sample. [n]"""
    return logits(model, batch).argmax(dim=1)


# Files


def save_trained(model: nn.Module, folder: Path, about: Mapping[str, Any]) -> None:
    """Write what was trained, and `about` it when that is done."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in trained_parameters(model).items()}
    with runs.atomic_path(folder / WEIGHTS) as part:
        save_file(tensors, part)
    runs.write_json(folder / RECORD, dict(about))


def load_trained(model: nn.Module, folder: Path) -> dict[str, Any] | None:
    """Put weights that `save_trained` wrote into a model made alike; return what is written about them, or None.

    Raises:
        ValueError: the file is damaged or holds other weights.
    """
    if not (folder / RECORD).is_file():
        return None
    check_weights(folder / WEIGHTS)
    found, own = load_file(folder / WEIGHTS), trained_parameters(model)
    if {n: t.shape for n, t in found.items()} != {n: p.shape for n, p in own.items()}:
        raise ValueError(f"{folder / WEIGHTS}: made with other settings; choose another --out or delete the folder")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
    return runs.read_json(folder / RECORD)


def describe(source: str, tune: Tune, lora: LoraSpec, classes: Sequence[str]) -> dict[str, Any]:
    """Return what must be known to use the trained weights again."""
    return {"model": source, "tune": tune, "lora": asdict(lora) if tune == "lora" else None, "classes": list(classes)}
