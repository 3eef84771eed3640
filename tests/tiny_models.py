"""Random vision-language models of a few thousand parameters, a byte-level tokenizer and batches for them."""

from __future__ import annotations

import atexit
import copy
import json
import shutil
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlmsel.models.assembly import assemble, build
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.language import quiet_transformers
from vlmsel.models.lora import attach_lora
from vlmsel.models.losses import head_rows, sample_means, token_losses
from vlmsel.models.projector import build_projector
from vlmsel.models.subject import Subject
from vlmsel.models.vision import VisionTower
from vlmsel.models.vlm import VLM

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1},
}
LORA = LoraSpec(r=4, alpha=8, rslora=True)


@dataclass
class TinyBatch:
    """The fields that models read from `vlmsel.data.batches.Batch`."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    pixel_values: Tensor | None
    image_index: Tensor
    image_samples: Tensor
    uids: Tensor

    @property
    def row_samples(self) -> dict[str, Tensor]:
        return {"projector": self.image_samples}

    def to(self, device: Any) -> TinyBatch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, Tensor)})


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges: 256 bytes, <s>, </s>, <pad>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=512
    )


def tiny_language(seed: int = 0, layers: int = 2, **changes: Any) -> LlamaForCausalLM:
    """A random Llama with grouped key-value heads and a vocabulary of 300."""
    shape = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 512}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **special, "initializer_range": 0.3, **changes}))


def tiny_clip(seed: int = 0, quick_gelu: bool = False) -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**CLIP_CONFIG, quick_gelu=quick_gelu)


@cache
def _saved_backbones(seed: int, quick_gelu: bool) -> Path:
    """Write a tower and a language model once per process."""
    folder = Path(mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    clip, llama = folder / "clip", folder / "llama"
    clip.mkdir()
    config = {"model_cfg": {**CLIP_CONFIG, "quick_gelu": quick_gelu}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (clip / "open_clip_config.json").write_text(json.dumps(config))
    state = {k: v.contiguous() for k, v in tiny_clip(seed, quick_gelu).state_dict().items()}
    save_file(state, clip / "open_clip_model.safetensors")
    with quiet_transformers():
        tiny_language(seed).save_pretrained(llama)
    tiny_tokenizer().save_pretrained(llama)
    return folder


def save_backbones(folder: Path, seed: int = 0, quick_gelu: bool = False) -> tuple[Path, Path]:
    """Write a tower in open_clip's layout and a language model with tokenizer; return the two folders."""
    for part in ("clip", "llama"):  # a new file: weights of a model that was read from the old one lie there
        shutil.rmtree(folder / part, ignore_errors=True)
    shutil.copytree(_saved_backbones(seed, quick_gelu), folder, dirs_exist_ok=True)
    return folder / "clip", folder / "llama"


def llava_7b(config: VLMConfig) -> VLM:
    """A model of Llama-2-7B's and its tower's shapes; backbones have no weights."""
    shape = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    with torch.device("meta"):
        language = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=32)).requires_grad_(False)
        tower, projector = None, torch.nn.Sequential()
        if config.vision is not None:
            tower = VisionTower(open_clip.CLIP(**open_clip.get_model_config(config.vision)).visual, config.vision_layer)
            projector = build_projector(config.projector, tower.width, 4096, 0)
        return VLM(config, tower, projector, attach_lora(language, config.lora) if config.lora else language)


def tiny_vlm(tmp_path: Path | None = None, dtype: torch.dtype = torch.float32, lora: bool = True) -> VLM:
    """A random vision-language model; with `tmp_path`, built from backbones saved there.

    Its projector counts as trained. float64 makes every parameter float64.
    """
    spec = LORA if lora else None
    if tmp_path is not None:
        clip, llama = save_backbones(tmp_path)
        config = VLMConfig(vision=f"local-dir:{clip}", language=str(llama), lora=spec, projector_trained=True)
        model = build(config, dtype)
    else:
        model = copy.deepcopy(_in_memory(dtype, spec))
    return model.double() if dtype == torch.float64 else model


@cache
def _in_memory(dtype: torch.dtype, lora: LoraSpec | None) -> VLM:
    """Put random backbones together."""
    config = VLMConfig(vision="memory", language="memory", lora=lora, projector_trained=True)
    vision, language = VisionTower(tiny_clip().visual.to(dtype)), tiny_language().to(dtype)
    return assemble(config, vision, language, tiny_tokenizer())


def wake_lora(model: torch.nn.Module, seed: int = 1, scale: float = 0.3) -> None:
    """Give the adapters' B, which start at zero, random values, so that they matter."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))


def random_ids(images: int, generator: torch.Generator, length: int) -> tuple[list[int], list[int]]:
    """BOS, then text with `images` placeholders at random places, then a supervised answer that ends with EOS."""
    text = torch.randint(0, 256, (length,), generator=generator).tolist()
    for _ in range(images):
        text.insert(int(torch.randint(0, len(text) + 1, (), generator=generator)), -200)
    answer = [*torch.randint(0, 256, (length // 2,), generator=generator).tolist(), 257]
    return [256, *text, *answer], [-100] * (1 + len(text)) + answer


def pad(rows: list[list[int]], value: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(r)) + r if left else r + [value] * (width - len(r)) for r in rows])


def random_batch(
    model: VLM | None = None, images_per_sample: list[int] | None = None, seed: int = 0, left: bool = False
) -> TinyBatch:
    """Samples of different lengths, some sharing images; `model` gives dtype and device."""
    counts = [1, 0, 2, 1] if images_per_sample is None else images_per_sample
    generator = torch.Generator().manual_seed(seed)
    made = [random_ids(count, generator, 3 + 2 * i) for i, count in enumerate(counts)]
    total = sum(counts)
    distinct = max(1, total - 1)  # the last image row shows an image again
    weight = next(model.vision.parameters()) if model is not None else torch.zeros(())
    pixels = torch.randn(distinct, 3, 16, 16, generator=generator).to(weight.dtype) if total else None
    batch = TinyBatch(
        input_ids=pad([ids for ids, _ in made], 258, left),
        labels=pad([labels for _, labels in made], -100, left),
        attention_mask=pad([[1] * len(ids) for ids, _ in made], 0, left),
        pixel_values=pixels,
        image_index=torch.arange(total) % distinct,
        image_samples=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        uids=100 + torch.arange(len(counts)),
    )
    return batch.to(weight.device)


def one_sample(batch: TinyBatch, row: int) -> TinyBatch:
    """The batch that holds only sample `row`, without padding."""
    real, mine = batch.attention_mask[row].bool(), batch.image_samples == row
    used = batch.image_index[mine]
    return TinyBatch(
        input_ids=batch.input_ids[row : row + 1, real],
        labels=batch.labels[row : row + 1, real],
        attention_mask=batch.attention_mask[row : row + 1, real],
        pixel_values=batch.pixel_values[used] if len(used) else None,
        image_index=torch.arange(len(used)),
        image_samples=torch.zeros(len(used), dtype=torch.long),
        uids=batch.uids[row : row + 1],
    )


def sample_losses(model: Any, batch: Any) -> Tensor:
    """Each sample's own loss, of one of our models or of a plain (or PEFT-wrapped) causal language model. [n]"""
    if isinstance(model, Subject):
        return model.losses(batch)
    return sample_means(token_losses(model, batch.labels, batch.attention_mask, input_ids=batch.input_ids))


def row_samples(model: Any, batch: Any) -> dict[str, Tensor]:
    """Whose rows a module sees, of one of our models or of a plain causal language model."""
    if isinstance(model, Subject):
        return dict(model.row_samples(batch))
    found = head_rows(model, batch.labels, batch.attention_mask)
    return {} if found is None else {next(name for name, m in model.named_modules() if m is found[0]): found[1]}
