"""A text classifier: an encoder with a head, adapters on the encoder or none, and each sample's own loss.

A sample's human turns are its texts, one or two, and the answer is the name of its class; its loss is the cross entropy
of that class, one for each sample.

Two ways to tune, those of the HyperINF paper (arXiv 2410.05090): LoRA with the head trained too, or the head alone.
What was trained is written as safetensors beside `classifier.json`, which comes last and says that it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlmsel import runs
from vlmsel.checks import quoted
from vlmsel.data.dataset import Reading, Size
from vlmsel.data.sample import Sample
from vlmsel.data.text_batches import Encoded, TextBatch, TextCollator, encode_texts
from vlmsel.models.config import LoraSpec
from vlmsel.models.damage import read_weights
from vlmsel.models.language import max_positions, mean_of_rows, pad_id, set_padding, unwrap
from vlmsel.models.lora import attach_lora, lora_parameters
from vlmsel.models.losses import TokenLosses
from vlmsel.models.subject import Groups, OnlyEvaluated, Subject, only_these_learn

Tune = Literal["lora", "last-layer"]
PARTS = 4  # of like length that a training step is cut into on CPUs, where padding costs as much as words
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
        dora: give each row of the sum a length of its own.
    """

    r: int = 8
    alpha: int = 16
    rslora: bool = True
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0


class Classifier(nn.Module, Subject):
    """An encoder with a head for `classes`, named in the order of its logits.

    Args:
        model: the transformers model, `...ForSequenceClassification`.
        tokenizer: its tokenizer; gets a token to pad with where it has none.
        classes: names of the classes.
        head: names of the head's parameters.
        source: where the model came from.
    """

    def __init__(
        self, model: Any, tokenizer: Any, classes: Sequence[str], head: Sequence[str] = (), source: str = ""
    ) -> None:
        super().__init__()
        set_padding(tokenizer)
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id  # classifiers on causal models look for the last token
        self.model, self.tokenizer = model, tokenizer
        self.classes, self.head, self.source = tuple(classes), tuple(head), source
        self.limit = min(max_positions(model, tokenizer), int(tokenizer.model_max_length))
        self.tune: Tune = "last-layer"
        self.lora: LoraSpec | None = None
        self._encoded: dict[tuple[Sample, int], Encoded] = {}

    @property
    def module(self) -> nn.Module:
        return self.model

    @property
    def backbone(self) -> Any:
        return unwrap(self.model)

    @property
    def positions(self) -> int:
        return self.limit

    def encode(self, sample: Sample, reading: Reading) -> Encoded:
        """Tokenise a sample's texts, once; what is longer than `max_length` or the model takes is cut."""
        limit = self.longest(reading)
        if (sample, limit) not in self._encoded:
            self._encoded[sample, limit] = self._tokenise(sample, limit)
        return self._encoded[sample, limit]

    def _tokenise(self, sample: Sample, limit: int) -> Encoded:
        texts = tuple(turn.text for turn in sample.turns if turn.role == "human")
        answers = [turn.text for turn in sample.turns if turn.role == "gpt"]
        if sample.images or not texts:
            raise ValueError("it has an image and this model reads text only" if sample.images else "it has no text")
        if sample.said("system"):
            raise ValueError("it has a system turn, which a classifier does not read; put it into the question")
        if len(answers) != 1 or answers[0] not in self.classes:
            known = ", ".join(self.classes)[:200]
            raise ValueError(f"its answer {quoted(' '.join(answers))} is none of the classes {known}")
        return encode_texts(self.tokenizer, sample.uid, texts, self.classes.index(answers[0]), limit)

    def size(self, sample: Sample, reading: Reading) -> Size:
        return Size(len(self.encode(sample, reading).input_ids), 1)

    def collate(self, items: Sequence[Encoded]) -> TextBatch:
        return TextCollator(pad_id(self.tokenizer))(items)

    def logits(self, batch: TextBatch) -> Tensor:
        """Return the logits of a batch, float32 (float64 for a float64 model). [n, classes]"""
        found = self._run(batch).logits
        return found if found.dtype == torch.float64 else found.float()

    def _run(self, batch: TextBatch, **asked: Any) -> Any:
        types = {} if batch.token_type_ids is None else {"token_type_ids": batch.token_type_ids}
        return self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **types, **asked)

    def hidden(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        return self._run(batch, output_hidden_states=True).hidden_states[-1], batch.attention_mask

    def embedding(self, batch: TextBatch) -> list[Tensor]:
        embedded = self.backbone.get_input_embeddings()(batch.input_ids).float()
        return [mean_of_rows(embedded, batch.attention_mask)]

    def forward(self, batch: TextBatch) -> TokenLosses:
        """Return each sample's cross entropy; on CPUs a training step runs in parts of like length."""
        order = torch.arange(len(batch.uids), device=batch.labels.device)
        parts = [batch]
        if self.training and self.device.type == "cpu":
            order, parts = batch.by_length(PARTS)
        losses = [F.cross_entropy(self.logits(part), part.labels, reduction="none") for part in parts]
        return TokenLosses(torch.cat(losses), order, len(order))

    def token_losses(self, batch: TextBatch) -> TokenLosses:
        return self(batch)

    def supervised(self, batch: TextBatch) -> Tensor:
        return torch.ones_like(batch.labels)

    def adapt(self, tune: Tune, lora: LoraSpec, seed: int = 0) -> None:
        """Add adapters drawn from the seed (for `lora`), and leave only these and the head to train.

        Raises:
            ValueError: there is no such way to tune, or the encoder has no module of a target's name (lists those it
                has).
        """
        if tune not in (ways := get_args(Tune)):
            raise ValueError(f"tune must be one of {', '.join(ways)}, got {tune!r}")
        if tune == "lora":
            self.model = attach_lora(self.model, lora, seed, task=None)
            self.lora = lora
        self.tune = tune
        self.trained(tune)
        self.eval()

    def default_blocks(self) -> str:
        """Return all adapters, or the head where it trains alone."""
        return "lora" if self.tune == "lora" else "|".join(f"^{re.escape(name)}$" for name in self.head)

    def trained(self, parts: str) -> Groups:
        """Let adapters and head (lora) or the head alone (last-layer) learn, as the classifier was adapted."""
        if parts != self.tune:
            raise ValueError(f"train is {parts!r} and this classifier is tuned by {self.tune}")
        names = ((name, name.replace(".base_layer.", "."), p) for name, p in self.model.named_parameters())
        prefix = "base_model.model." if self.lora else ""
        head = {name: p for name, plain, p in names if plain.removeprefix(prefix) in self.head}
        groups = {"head": head} if self.lora is None else {"lora": lora_parameters(self.model), "head": head}
        return only_these_learn(self.model, groups)

    def reads(self) -> Any:
        """Return the classes, and the scale of adapters, which their weights do not tell."""
        return self.classes, self.lora and (self.lora.scale, self.lora.dropout)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        tensors = {name: p.detach().cpu().contiguous() for name, p in self._learnt().items()}
        with runs.atomic_path(folder / WEIGHTS) as part:
            save_file(tensors, part)
        about = {"tune": self.tune, "lora": None if self.lora is None else asdict(self.lora)}
        runs.write_json(folder / RECORD, {"model": self.source, **about, "classes": list(self.classes)})

    def load_trained(self, folder: str | Path) -> None:
        file = Path(folder) / WEIGHTS
        found, own = read_weights(file), self._learnt()
        if {n: t.shape for n, t in found.items()} != {n: p.shape for n, p in own.items()}:
            raise ValueError(f"{file}: made with other settings; choose another --out or delete the folder")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(found[name])

    def _learnt(self) -> dict[str, nn.Parameter]:
        """Return what was left to train, by name."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}


class AskedClassifier(OnlyEvaluated, Classifier):
    """A classifier with the classes that it came with; it can be evaluated only."""
