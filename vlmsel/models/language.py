"""The language model: loading it with its tokenizer, reaching its decoder and output head through any wrapper."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from vlmsel.models.config import resolve
from vlmsel.models.damage import check_folder, loading

# What different architectures call the number of positions in their configuration.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
UNLIMITED = 10**9  # transformers' tokenizers say 1e30 where they know no limit


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen within the block."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_pretrained(auto: Any, what: str, source: str, dtype: torch.dtype) -> Any:
    """Load a model with a class of transformers' `Auto` kind from a folder or the hub, on the CPU; safetensors only.

    Raises:
        ValueError: a file is damaged, or weights are missing in the files.
    """
    check_folder(Path(source))
    with quiet_transformers(), loading(what, source):
        loaded: Any = auto.from_pretrained(source, dtype=dtype, use_safetensors=True, output_loading_info=True)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{what} {source}: {len(missing)} weights are missing, the first is {missing[0]}")
    return model


def load_language(source: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a causal language model from a folder, the hub or `assets:<name>`, on the CPU; safetensors only.

    Raises:
        ValueError: a file is damaged, or weights are missing in the files.
    """
    return load_pretrained(transformers.AutoModelForCausalLM, "language model", resolve(source), dtype)


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer that lies with a language model.

    Raises:
        ValueError: one of its files is damaged.
    """
    folder = resolve(source)
    check_folder(Path(folder))
    with loading("tokenizer", source):
        return transformers.AutoTokenizer.from_pretrained(folder)


def unwrap(language_model: Any) -> Any:
    """Return the language model itself, without a PEFT wrapper; adapters stay in place inside it."""
    return language_model.get_base_model() if hasattr(language_model, "get_base_model") else language_model


def decoder_and_head(language_model: Any) -> tuple[nn.Module, nn.Module]:
    """Return the transformer that maps embeddings to hidden states, and the map from hidden states to logits."""
    model = unwrap(language_model)
    return model.get_decoder(), model.get_output_embeddings()


def position_ids(attention_mask: Tensor) -> Tensor:
    """Count real tokens from 0 within each row, whatever side the padding is on. [n, t] -> [n, t]

    >>> position_ids(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])).tolist()
    [[0, 0, 0, 1], [0, 1, 2, 2]]
    """
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def run(model: Any, attention_mask: Tensor, **inputs: Any) -> Any:
    """Run a language model, or its decoder, on `input_ids` [n, t] or `inputs_embeds` [n, t, d]; return its output.

    With a cache (see `cache_name`) that holds the first k positions of every row, `inputs_embeds` still counts them,
    and the output is that of the others, [n, t - k, ...].
    """
    places, cache = position_ids(attention_mask), inputs.get(cache_name(model))
    if cache is not None:
        held = cache.get_seq_length()
        inputs["inputs_embeds"], places = inputs["inputs_embeds"][:, held:], places[:, held:]
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = places
    return model(attention_mask=attention_mask, use_cache=cache is not None, **inputs)


def decode(decoder: Any, attention_mask: Tensor, **inputs: Any) -> Tensor:
    """Return a decoder's hidden states [n, t, d]; see `run`."""
    return run(decoder, attention_mask, **inputs).last_hidden_state


def hidden_states(language_model: Any, attention_mask: Tensor, **inputs: Any) -> Tensor:
    """Return a language model's last hidden states, [n, t, d], whatever its head does."""
    decoder, _ = decoder_and_head(language_model)
    if decoder is not None and decoder is not unwrap(language_model):
        return decode(decoder, attention_mask, **inputs)
    return run(unwrap(language_model), attention_mask, output_hidden_states=True, **inputs).hidden_states[-1]


def mean_of_rows(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each sample's marked rows, 0 where there is none. [n, t, d], [n, t] -> [n, d]"""
    weights = mask.to(values.dtype)
    return (values * weights[:, :, None]).sum(1) / weights.sum(1).clamp_min(1)[:, None]


def cache_name(decoder: Any) -> str:
    """Return how this version of transformers calls the keys and values of earlier positions."""
    return "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"


def pad_id(tokenizer: Any) -> int:
    """Return an id to pad with. Masks are made from lengths, so that any id will do; prefer pad, then unk, then eos.

    Raises:
        ValueError: the tokenizer has none of the three.
    """
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("the tokenizer has no pad, unk or eos token; set its pad_token")


def set_padding(tokenizer: Any) -> None:
    """Give a tokenizer without a padding token one to pad with; masks are made from lengths."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(tokenizer))


def positions(model: Any) -> int | None:
    """Return how many tokens a model reads at once, by its configuration and its tables; None where nothing says.

    RoBERTa and its kin count positions from behind the padding's index, which their configuration does not subtract.
    """
    config = unwrap(model).config.get_text_config()
    known = [getattr(config, name, None) for name in POSITIONS]
    limits = [_scaled(config, int(value)) for value in known if isinstance(value, int | float) and 0 < value][:1]
    for name, module in unwrap(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            limits.append(module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return min((limit for limit in limits if limit < UNLIMITED), default=None)


def _scaled(config: Any, limit: int) -> int:
    """Stretch a limit as rotary positions are stretched, by a factor of what the model was pretrained with."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if not rope.get("factor"):
        return limit
    return max(limit, int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit)))


def max_positions(model: Any, tokenizer: Any) -> int:
    """Return how many tokens a model reads at once: its own word, else the tokenizer's.

    Raises:
        ValueError: neither says.
    """
    limit = positions(model) or int(tokenizer.model_max_length)
    if limit >= UNLIMITED:
        raise ValueError(f"neither {type(unwrap(model)).__name__} nor its tokenizer has a limit; set max_length")
    return limit
