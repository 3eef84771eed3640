"""What was trained of a Hugging Face image-text model, in a folder that transformers and PEFT open by themselves.

adapter_config.json, adapter_model.safetensors    PEFT's, where it has adapters; a projector that was trained beside
                                                  them is one of its `modules_to_save`
config.json, model.safetensors, ...               the whole model otherwise
processor, tokenizer and chat template            the model's own
README.md                                         the model card: base, data, choice, scorer, versions
vlmsel_reading.json                               our template and EXIF, and the fingerprint of the adapters' base
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmsel.gradients.blocks import FROZEN_COPY, in_projector
from vlmsel.models.checkpoint import contiguous, fit
from vlmsel.models.config import absolute
from vlmsel.models.damage import read_object, read_weights
from vlmsel.models.fingerprints import fingerprint
from vlmsel.models.language import load_pretrained, quiet_transformers, unwrap
from vlmsel.runs import atomic_folder, versions, write_json, write_text

READING = "vlmsel_reading.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
WRAPPED = ".modules_to_save.default."
PREFIX = "base_model.model."  # of names within PEFT's wrapper


def save(subject: Any, folder: str | Path) -> None:
    """Write what was trained with all that belongs to it; an earlier model in `folder` is replaced.

    Raises:
        FileExistsError: `folder` holds something else than a model that was written here.
        OSError: the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / READING).is_file():
        raise FileExistsError(f"{folder} holds other files; save the model into a folder of its own")
    about = {"template": subject.template, "exif": subject.exif, "base": None, "base_weights": None}
    with atomic_folder(folder) as part, quiet_transformers():
        if subject.adapted:
            about |= {"base": absolute(subject.source), "base_weights": subject.base_weights}
            _save_adapter(subject, part)
        else:
            subject.model.save_pretrained(part)
        subject.processor.save_pretrained(part)
        write_text(part / "README.md", card(subject))
        write_json(part / READING, about)


def _save_adapter(subject: Any, part: Path) -> None:
    """Write adapters as PEFT does, with a trained projector among the modules that it saves whole."""
    state = peft.get_peft_model_state_dict(subject.model, save_embedding_layers=False)
    config = subject.model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": absolute(subject.source), "inference_mode": True}
    own = projector_weights(subject)
    if subject.projector_trained and own:
        state |= own
        config["modules_to_save"] = sorted(
            {*(config.get("modules_to_save") or []), *projector_modules(unwrap(subject.model))}
        )
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    save_file(contiguous(state), part / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_json(part / ADAPTER, plain)


def projector_weights(subject: Any) -> dict[str, Tensor]:
    """Return the projector's weights as PEFT calls them in its files; none where PEFT keeps them itself."""
    names = {f"{PREFIX}{name}": p for name, p in unwrap(subject.model).named_parameters() if in_projector(name)}
    return {} if any(WRAPPED in name or FROZEN_COPY in name for name in names) else names


def projector_modules(model: nn.Module) -> list[str]:
    """Return the outermost modules of a projector, lists taken apart, as PEFT's `modules_to_save` names them.

    >>> projector_modules(nn.ModuleDict({"connector": nn.ModuleList([nn.Linear(1, 1)]), "head": nn.Linear(1, 1)}))
    ['connector.0']
    """
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in found)
        if in_projector(f"{name}.weight") and not inside and not isinstance(module, nn.ModuleList):
            found.append(name)
    return sorted(found)


def load_trained(subject: Any, folder: str | Path) -> None:
    """Put what was trained, as `save` wrote it, into the same model, in place.

    Raises:
        FileNotFoundError, ValueError: files are missing, or do not fit the model.
    """
    folder = Path(folder)
    if not subject.adapted:
        stored = load_pretrained(type(subject.model), "image-text model", str(folder), subject.model.dtype)
        state = stored.state_dict()
        fit(subject.model, state, folder)
        return
    file = folder / ADAPTER_WEIGHTS
    state, own = read_weights(file), projector_weights(subject)
    projector = {name: state.pop(name) for name in list(state) if name in own}
    expected = peft.get_peft_model_state_dict(subject.model, save_embedding_layers=False)
    held, fitting = ({name: tensor.shape for name, tensor in one.items()} for one in (state, expected))
    if held != fitting:
        differ = sorted(name for name in {*held, *fitting} if held.get(name) != fitting.get(name))
        raise ValueError(f"{file} does not fit the model's adapters at {len(differ)} places, the first is {differ[0]}")
    peft.set_peft_model_state_dict(subject.model, state)
    for name, tensor in projector.items():
        own[name].data.copy_(tensor)
    subject.projector_trained = subject.projector_trained or bool(projector)


def check_base(subject: Any, folder: Path, base: str) -> None:
    """Refuse adapters that were trained here on other weights than now lie at their base.

    Raises:
        ValueError: names the base.
    """
    file = folder / READING
    expected = read_object(file).get("base_weights") if file.is_file() else None
    if expected and subject.base_weights not in ("", expected):
        raise ValueError(
            f"{folder}: the model at {base} is not the one that these adapters were trained on (fingerprint "
            f"{subject.base_weights}, expected {expected}); restore it, or give the adapters' own base"
        )


def base_fingerprint(model: Any) -> str:
    """Hash the weights that adapters are for: all but the adapters and the projector."""
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in unwrap(model).state_dict().items()}
    return fingerprint({n: t for n, t in state.items() if ".lora_" not in n and not in_projector(n)})


def card(subject: Any) -> str:
    """Write a model card: YAML for the hub, then what is known of how the model came about."""
    facts = {"Base model": absolute(subject.source), **subject.card}
    facts |= {"Versions": ", ".join(f"{name} {number}" for name, number in versions().items())}
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    library = "peft" if subject.adapted else "transformers"
    head = ["---", f"library_name: {library}", "pipeline_tag: image-text-to-text", "tags: [vlmsel]", "---"]
    return "\n".join([*head, "# Tuned on chosen data with vlmsel", "", *lines, ""])
