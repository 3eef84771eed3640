"""A Hugging Face causal language model, or PEFT's adapters of one, as a `VLM` that reads text only.

Adapters come in as our own when they are what `LoraSpec` can say; everything else that PEFT knows (other methods, ranks
by layer, trained biases, whole modules) is refused, because it would be lost when the model is trained and saved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from vlmsel.models.checkpoint import load_adapter
from vlmsel.models.config import LoraSpec, VLMConfig, resolve
from vlmsel.models.damage import check_folder, read_object
from vlmsel.models.huggingface import TOKENIZERS, kind_of
from vlmsel.models.language import load_tokenizer
from vlmsel.models.vlm import VLM, build

TEMPLATE = "text"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Settings of PEFT's LoRA that change what the adapters are, with the values that mean nothing of the kind.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    **dict.fromkeys(
        (
            "use_dora", "use_qalora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform",
            "target_parameters", "trainable_token_indices", "lora_bias", "exclude_modules", "layer_replication",
            "arrow_config", "use_bdlora",
        ),
        (None, False, {}, []),
    ),
}  # fmt: skip


def could_be_on_hub(source: str) -> bool:
    """Tell whether a source has the form `owner/name` and is no path that exists.

    >>> could_be_on_hub("meta-llama/Llama-2-7b-hf"), could_be_on_hub("/runs/tune"), could_be_on_hub("runs/a/model")
    (True, False, False)
    """
    return HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def open_text(
    source: str,
    template: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> VLM:
    """Build a text model of a Hugging Face folder (a causal language model, or its adapters) or a name on the hub.

    Args:
        source: the folder, or `owner/name`.
        template: the conversation template that it is trained and scored with; `text` when left out.
        dtype: that of the language model.
        device: where it shall lie.

    Raises:
        FileNotFoundError: weights, tokenizer or the adapters' model are missing.
        ValueError: it is another kind of model, or its adapters are of a kind that cannot be kept.
    """
    config = VLMConfig(vision=None, language=source, template=template or TEMPLATE)
    if not Path(source).is_dir():
        return _from_hub(config, dtype).to(device)
    kind = kind_of(source)
    if kind == "adapter":
        return _adapted(Path(source), config.template, dtype).to(device)
    if kind != "causal":
        raise ValueError(
            f"{source}: a Hugging Face {kind} model can be evaluated, not trained or scored; give a causal language "
            "model, or a model that align or tune wrote"
        )
    _require_files(Path(source), "tokenizer", *TOKENIZERS)
    _require_files(Path(source), ".safetensors weights", "*.safetensors")
    return build(config, dtype, device)


def _from_hub(config: VLMConfig, dtype: torch.dtype) -> VLM:
    """Build a model of the hub's; whatever goes wrong is one line that also says what else the name could be."""
    print(f"{config.language}: no folder of this name; looking for it on the hub", flush=True)
    try:
        return build(config, dtype)
    except (OSError, ValueError, ImportError) as problem:
        reason = " ".join(str(problem).split())[:200].rstrip(".")
        raise FileNotFoundError(
            f"{config.language}: no such folder, and no causal language model of this name can be loaded from the hub "
            f"({reason}); mend the path or the name, or fetch the model into a folder first"
        ) from problem


def _adapted(folder: Path, template: str, dtype: torch.dtype) -> VLM:
    """Build the model that adapters were made for and put them in."""
    file = folder / "adapter_config.json"
    content = read_object(file)
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not (Path(resolve(base)).is_dir() or could_be_on_hub(base)):
        raise FileNotFoundError(
            f"{file}: base_model_name_or_path is {base}, and there is no such folder; mend the path"
        )
    check_folder(folder)
    model = build(VLMConfig(vision=None, language=base, lora=_spec(file, content), template=template), dtype)
    load_adapter(model.language_model, folder)
    if any((folder / name).is_file() for name in TOKENIZERS):
        model.tokenizer = load_tokenizer(str(folder))
    return model


def _spec(file: Path, content: dict[str, Any]) -> LoraSpec:
    """Read PEFT's configuration of adapters as ours.

    Raises:
        ValueError: it says what ours cannot.
    """
    more = [key for key, plain in PLAIN.items() if content.get(key) not in plain]
    if not isinstance(content.get("target_modules"), list):
        more.append("target_modules")
    if more:
        raise ValueError(
            f"{file}: adapters with {more[0]} {content.get(more[0])!r} cannot be kept; merge them into their model "
            "(PEFT's merge_and_unload) and give that"
        )
    return LoraSpec(
        r=content.get("r", 8),
        alpha=content.get("lora_alpha", 8),
        rslora=bool(content.get("use_rslora")),
        targets=tuple(sorted({str(name).rpartition(".")[2] for name in content["target_modules"]})),
        dropout=content.get("lora_dropout", 0.0),
    )


def _require_files(folder: Path, what: str, *patterns: str) -> None:
    if not any(any(folder.glob(pattern)) for pattern in patterns):
        raise FileNotFoundError(f"{folder}: no {what} ({', '.join(patterns)}); copy them from the model's origin")
