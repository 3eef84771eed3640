"""A random BERT that reads words, and sentences whose words tell their class: what detection is tested on."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from vlmsel.models.language import quiet_transformers

NAMES = ("bad", "good", "odd")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
WORDS = [f"{name}{i}" for name in (*NAMES, "plain") for i in range(6)]


def word_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """WordPiece over `WORDS`, with [CLS] and [SEP] around a text and [SEP] between two."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{**special, "model_max_length": 512, "model_input_names": inputs, **settings}
    )


def save_encoder(folder: Path, head: Sequence[str] | None = None, drop: str | None = None, **tokenizer: Any) -> Path:
    """Write a BERT of 20 positions with its tokenizer: the encoder alone, or with a head for the classes `head`.

    `drop` leaves the parameters out whose names contain it.
    """
    names = dict(enumerate(head or ("a", "b")))
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        initializer_range=0.3,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(config) if head else AutoModel.from_config(config)
    weights = {name: value for name, value in model.state_dict().items() if drop is None or drop not in name}
    with quiet_transformers():
        model.save_pretrained(folder, state_dict=weights)
    word_tokenizer(**tokenizer).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, classes: int = 2) -> list[tuple[str, str]]:
    """Draw texts of 3 to 8 words and their classes in turn: most words are the class's own, the others say nothing."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        name = NAMES[number % classes]
        own = [f"{draw.choice((name, name, 'plain'))}{draw.randrange(6)}" for _ in range(draw.randint(2, 7))]
        found.append((" ".join([*own, f"{name}0"]), name))
    return found


def write_csv(path: Path, rows: Sequence[Sequence[Any]], columns: Sequence[str] = ("text", "label")) -> Path:
    """Write rows under a line of columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path
