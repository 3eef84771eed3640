"""A trained model in one folder that says all that is needed to build it again.

    vlmsel_config.json        parts, prompts, LoRA, names and fingerprints of the backbones, versions
    projector.safetensors     always, so that it cannot be lost beside its adapters; text models have none
    adapter/                  LoRA in PEFT's layout, when there is one
    language_model/           Hugging Face layout, only when the whole language model was trained
    tokenizer/

Backbones that were not trained are named, not copied, but by `vlmsel convert`, which leaves them in `vision/` and
`language_model/` and names them by paths that begin with `./`. Weights are safetensors; there is no pickle.

`fingerprints` holds the hash of each backbone's weights (`vision weights`, `language weights`); one that is absent or
empty makes no statement.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmsel.models.config import VLMConfig, absolute, beside
from vlmsel.models.damage import MEND, read_object, read_weights
from vlmsel.models.language import load_language, quiet_transformers, unwrap
from vlmsel.runs import atomic_folder, environment, write_json

CONFIG, PROJECTOR = "vlmsel_config.json", "projector.safetensors"
ADAPTER, LANGUAGE, TOKENIZER = "adapter", "language_model", "tokenizer"
FORMAT = 1


def save(model: Any, folder: str | Path) -> None:
    """Write the trained parts of a model and the names of the rest; an earlier model in `folder` is replaced.

    A killed process leaves no half model.

    Raises:
        FileExistsError: `folder` holds something else than a saved model.
        OSError: the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise FileExistsError(f"{folder} holds other files; save the model into a folder of its own")
    was = model.vlm_config
    config = replace(was, vision=was.vision and absolute(was.vision), language=absolute(was.language))
    with atomic_folder(folder) as part:
        if config.vision is not None:
            save_file(contiguous(model.projector.state_dict()), part / PROJECTOR, metadata={"format": "pt"})
        if config.lora is not None:
            save_adapter(model.language_model, part / ADAPTER, config.language)
        if config.language_trained:
            with quiet_transformers():
                own = own_weights(model.language_model)
                unwrap(model.language_model).save_pretrained(part / LANGUAGE, state_dict=own)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(part / TOKENIZER)
        content = {"format": FORMAT, "model": asdict(config), "fingerprints": model.fingerprints}
        write_json(part / CONFIG, {**content, "environment": environment()})


def contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy what safetensors cannot store as it is."""
    return {name: tensor.detach().contiguous() for name, tensor in state.items()}


def save_adapter(language_model: Any, folder: Path, base: str) -> None:
    """Write the adapters as PEFT does, with `base` as the base model's name and keys in a fixed order."""
    folder.mkdir(parents=True)
    state = peft.get_peft_model_state_dict(language_model, save_embedding_layers=False)
    save_file(contiguous(state), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = language_model.peft_config["default"].to_dict() | {"base_model_name_or_path": base, "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(folder / "adapter_config.json", plain)


def own_weights(language_model: Any) -> dict[str, Tensor]:
    """Return the language model's weights under their own names, without the adapters inside it."""
    state = unwrap(language_model).state_dict()
    return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}


def changed_backbones(model: Any, config: VLMConfig, recorded: dict[str, str]) -> list[str]:
    """Return which of a model's backbones, `vision` and `language`, are known not to be those that a folder recorded.

    A language model that was trained as a whole lies in the folder itself.
    """
    parts = ("vision",) if config.language_trained else ("vision", "language")
    known = [(part, recorded[name]) for part in parts if recorded.get(name := f"{part} weights")]
    return [part for part, expected in known if model.fingerprints.get(f"{part} weights") not in (None, "", expected)]


def check_backbones(model: Any, recorded: dict[str, str]) -> None:
    """Refuse a model whose backbones are not those that were recorded when it was saved.

    Raises:
        ValueError: one has changed; names it.
    """
    config = model.vlm_config
    for part in changed_backbones(model, config, recorded):
        words, source = ("vision tower", config.vision) if part == "vision" else ("language model", config.language)
        found, expected = (prints[f"{part} weights"] for prints in (model.fingerprints, recorded))
        raise ValueError(
            f"the {words} at {source} is not the one this model was trained with (fingerprint {found}, expected "
            f"{expected}); restore that backbone or train the projector again"
        )


def read_config(folder: Path) -> tuple[VLMConfig, dict[str, str]]:
    """Read a saved model's `vlmsel_config.json`: its configuration and the fingerprints of its backbones.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged or was written by a newer version.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {CONFIG}")
    content = read_object(file)
    if content.get("format") != FORMAT:
        raise ValueError(f"{file} has format {content.get('format')}, this version reads {FORMAT}; update vlmsel")
    fingerprints = content.get("fingerprints", {})
    if not isinstance(fingerprints, dict):
        raise ValueError(f"{file}: fingerprints must be an object: {MEND}")
    try:
        config = VLMConfig.from_json(content.get("model"))
    except ValueError as problem:
        raise ValueError(f"{file}: {problem}") from None
    vision = config.vision and beside(config.vision, folder)
    return replace(config, vision=vision, language=beside(config.language, folder)), fingerprints


def load_trained(model: Any, folder: str | Path) -> None:
    """Put the trained parts of a saved model into a model of the same make, in place: how a training run goes on.

    Raises:
        FileNotFoundError, ValueError: as for `load`.
    """
    folder = Path(folder)
    config, _ = read_config(folder)
    if (config.vision is None) != (model.vision is None):
        raise ValueError(f"{folder} does not fit the model: one of the two reads text only")
    load_parts(model, folder, config)
    if config.language_trained:
        stored = load_language(str(folder / LANGUAGE))
        fit_language(unwrap(model.language_model), stored.state_dict(), folder / LANGUAGE)
    model.vlm_config = config


def load_parts(model: Any, folder: Path, config: VLMConfig) -> None:
    """Load projector and adapters, those that a folder's configuration names.

    Raises:
        FileNotFoundError: a file is missing; nothing is made up in its place.
        ValueError: names or shapes do not fit.
    """
    if config.vision is not None:
        fit(model.projector, read_weights(folder / PROJECTOR), folder / PROJECTOR)
    if config.lora is not None:
        load_adapter(model.language_model, folder / ADAPTER)


def fit(module: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load `state` into `module`; names and shapes must fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as problem:
        reason = " ".join(str(problem).split())
        raise ValueError(f"{file} does not fit the model: {reason}") from None


def fit_language(model: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load a language model's own weights, leaving adapters inside it as they are."""
    adapters = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    names = {name.replace(".base_layer.", "."): name for name in model.state_dict()}
    fit(model, {**{names.get(name, name): tensor for name, tensor in state.items()}, **adapters}, file)


def load_adapter(language_model: Any, folder: Path) -> None:
    """Load adapters written by `save_adapter` or PEFT into adapters of the same shape.

    Raises:
        FileNotFoundError: the weights are missing.
        ValueError: names or shapes do not fit.
    """
    file = folder / "adapter_model.safetensors"
    state = read_weights(file)
    own = peft.get_peft_model_state_dict(language_model, save_embedding_layers=False)
    held, fitting = ({name: tensor.shape for name, tensor in one.items()} for one in (state, own))
    if differ := [name for name in sorted({*own, *state}) if held.get(name) != fitting.get(name)]:
        raise ValueError(f"{file} does not fit the model's adapters at {len(differ)} places, the first is {differ[0]}")
    peft.set_peft_model_state_dict(language_model, state)
