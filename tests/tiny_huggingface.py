"""Random Hugging Face models of a few thousand parameters in folders of their own: LLaVA, Llama, BERT, RoBERTa."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import CLIP_CONFIG, tiny_language
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from vlmsel.models.language import quiet_transformers

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ("ĠYes", "ĠNo", "Ġyes", "Ġno")
VISION = CLIP_CONFIG["vision_cfg"]
CHAT = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{{ '<image>\n' if c['type'] == 'image' else c['text'] }}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def byte_tokenizer(words: tuple[str, ...] = (), pair: bool = False, **settings: Any) -> PreTrainedTokenizerFast:
    """Bytes (0 to 255), <s> 256, </s> 257, <pad> 258, <image> 259, then `words` as tokens; BOS before every text.

    `pair` puts </s> between and behind sentences, as BERT's tokenizers do.
    """
    vocabulary = {letter: i for i, letter in enumerate(BYTES)}
    vocabulary |= {name: 256 + i for i, name in enumerate(("<s>", "</s>", "<pad>", "<image>"))}
    merges = list(dict.fromkeys((w[:i], w[i]) for w in words for i in range(1, len(w))))
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<image>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if pair else "<s> $A",
        pair="<s> $A </s> $B:1 </s>:1" if pair else "<s> $A $B",
        special_tokens=[("<s>", 256), ("</s>", 257)],
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    settings = {"model_max_length": 512, "extra_special_tokens": {"image_token": "<image>"}, **settings}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**special, **settings})


def tiny_processor(chat: str | None = None, words: tuple[str, ...] = WORDS) -> LlavaProcessor:
    """CLIP's preprocessing to 16 pixels by Pillow and a byte-level tokenizer."""
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return LlavaProcessor(
        images,
        byte_tokenizer(words),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )


def tiny_llava(seed: int = 0, **text: Any) -> LlavaForConditionalGeneration:
    """A random LLaVA of the shapes in `tiny_models`; its answers are settled by what it is shown and asked."""
    vision = CLIPVisionConfig(
        hidden_size=VISION["width"],
        intermediate_size=4 * VISION["width"],
        num_hidden_layers=VISION["layers"],
        num_attention_heads=VISION["width"] // VISION["head_width"],
        image_size=VISION["image_size"],
        patch_size=VISION["patch_size"],
        hidden_act="gelu",
        projection_dim=CLIP_CONFIG["embed_dim"],
        initializer_factor=5.0,
    )
    language = LlamaConfig(**{**tiny_language(layers=1).config.to_dict(), "num_hidden_layers": 2, **text})
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_id=259)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config).eval()


def save_llava(folder: Path, chat: str | None = None, words: tuple[str, ...] = WORDS, **text: Any) -> Path:
    """Write a LLaVA with its processor into `folder`."""
    with quiet_transformers():
        tiny_llava(**text).save_pretrained(folder)
        tiny_processor(chat, words).save_pretrained(folder)
    return folder


def save_language(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a Llama with its tokenizer."""
    with quiet_transformers():
        tiny_language(seed).save_pretrained(folder)
    byte_tokenizer(WORDS, **settings).save_pretrained(folder)
    return folder


def tiny_classifier(kind: str, classes: int = 2, names: dict[int, str] | None = None) -> Any:
    """A random BERT, RoBERTa (both of 40 tokens at most) or Llama that sorts texts."""
    size = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shared = {**size, "num_attention_heads": 2, "num_labels": classes, **({"id2label": names} if names else {})}
    made = {
        "bert": (BertForSequenceClassification, BertConfig, {"max_position_embeddings": 40, "pad_token_id": 258}),
        "roberta": (
            RobertaForSequenceClassification,
            RobertaConfig,
            {"max_position_embeddings": 43, "pad_token_id": 2},
        ),
        "llama": (LlamaForSequenceClassification, LlamaConfig, {"max_position_embeddings": 40, "pad_token_id": None}),
    }
    model, config, own = made[kind]
    spread = {"initializer_range": 0.5, "bos_token_id": 256, "eos_token_id": 257}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**shared, **own, **spread)).eval()


def save_classifier(folder: Path, kind: str = "bert", classes: int = 2, names: dict[int, str] | None = None) -> Path:
    """Write a classifier with its tokenizer, which has a padding token but for Llama."""
    with quiet_transformers():
        tiny_classifier(kind, classes, names).save_pretrained(folder)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    padding: dict[str, Any] = {"pad_token": None} if kind == "llama" else {}
    byte_tokenizer(pair=kind != "llama", model_input_names=inputs, **padding).save_pretrained(folder)
    return folder
