"""What scoring costs over a plain forward and backward of the same batches, as ratios measured in one run.

    python tools/bench_score_pass.py [--model tiny|llama|deep] [--samples 640] [--batch_tokens 8192] [--repeats 7]

tiny   the tiny VLM on projector + LoRA, samples of the embedded world's pool
llama  a 4-layer Llama of width 256, LoRA r = 16 on all linear layers, random texts of 48 to 160 tokens
deep   a 16-layer Llama of width 128, last block; its score pass is held against a plain forward

score / plain           score pass with 4 scorers x 4 targets over loss.sum().backward() with gradients for the selected
                        parameters and nothing else
both / plain            curvature pass over a tenth of the samples and score pass together, solving left out
score / forward         the same score pass over a plain forward

Repetitions of all ways are interleaved; a ratio is the median over repetitions of the ratio within one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from vlmsel.data.batches import Batch, Collator, Item, length_batches
from vlmsel.data.dataset import Reading
from vlmsel.data.world.files import WorldSizes, write_world
from vlmsel.gradients import Block
from vlmsel.models.config import ALL_LINEAR, LoraSpec, VLMConfig
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.subject import Subject
from vlmsel.models.vlm import VLM
from vlmsel.scorers import BlockTargets, DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scoring.curvature import take_in
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.solve import start_statistics
from vlmsel.scoring.source import ModelSource

SCORERS = (HyperINF(), DataInf(), LiSSA(batch="stream"), TracIn())
TARGETS = 4


@dataclass(frozen=True)
class Made:
    """Batches that are made already, as a plan of batches."""

    made: Sequence[Any]

    @property
    def sizes(self) -> list[int]:
        """Samples per batch."""
        return [len(batch.uids) for batch in self.made]

    def batches(self, numbers: Iterable[int]) -> Iterator[Any]:
        """Give the batches of these numbers."""
        return (self.made[number] for number in numbers)


@dataclass(frozen=True)
class Setting:
    """A model with its blocks and batches, and the preconditioned targets of the score pass."""

    model: Subject
    blocks: Sequence[Block]
    batches: Sequence[Any]
    stacks: dict[str, torch.Tensor]
    tenth: Sequence[Any]  # batches of every tenth sample

    @property
    def samples(self) -> int:
        """Samples of a pass."""
        return sum(len(batch.uids) for batch in self.batches)

    def source(self, batches: Sequence[Any]) -> ModelSource:
        """Return what runs batches."""
        return ModelSource(self.model, self.blocks, Made(batches), Budget())


def preconditioned(blocks: Sequence[Block], device: torch.device) -> dict[str, torch.Tensor]:
    """Draw preconditioned targets for all scorers and targets."""
    generator = torch.Generator(device).manual_seed(0)
    columns = len(SCORERS) * TARGETS
    return {b.name: torch.randn(columns, b.rows, b.cols, generator=generator, device=device) for b in blocks}


def tiny_setting(samples: int, batch_tokens: int, device: str, folder: Path) -> Setting:
    """The tiny VLM on samples of a world's pool."""
    write_world(folder, WorldSizes(0, samples, 0, 0))
    model = open_subject("tiny", device)
    data = open_pool(model, folder / "pool.json", Reading(folder / "images")).samples
    groups, some = length_batches(data.lengths(), max_tokens=batch_tokens), list(range(0, samples, 10))
    batches = [model.collate([data[i] for i in group]).to(model.device) for group in groups]
    parts = length_batches([data.lengths()[i] for i in some], max_tokens=batch_tokens)
    tenth = [model.collate([data[some[i]] for i in group]).to(model.device) for group in parts]
    blocks = model.blocks()
    return Setting(model, blocks, batches, preconditioned(blocks, model.device), tenth)


def random_batches(samples: int, batch_tokens: int, device: str, step: int = 1) -> list[Batch]:
    """Every `step`th of texts of 48 to 160 random tokens, the second half of each supervised."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(48, 161, (samples,), generator=generator).tolist()
    items = []
    for uid, length in enumerate(lengths):
        ids = torch.randint(3, 1000, (length,), generator=generator).tolist()
        items.append(Item(uid, ids, [-100] * (length // 2) + ids[length // 2 :]))
    items, lengths = items[::step], lengths[::step]
    collate = Collator(0)
    return [collate([items[i] for i in group]).to(device) for group in length_batches(lengths, max_tokens=batch_tokens)]


def llama(layers: int, width: int) -> VLM:
    """A random Llama with four heads and a vocabulary of 1,000, as a text model."""
    torch.manual_seed(0)
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1000,
            hidden_size=width,
            intermediate_size=8 * width // 3 // 8 * 8,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=512,
        )
    )
    return VLM(VLMConfig(None, "random", template="text"), None, nn.Sequential(), language.requires_grad_(False))


def text_setting(kind: str, samples: int, batch_tokens: int, device: str) -> Setting:
    """A Llama with LoRA, or a deep one of which the last block counts."""
    model = llama(4, 256) if kind == "llama" else llama(16, 128)
    if kind == "llama":
        model.attach_lora(LoraSpec(r=16, alpha=32, targets=ALL_LINEAR))
    model = model.to(device).eval()
    blocks = model.blocks()
    batches, tenth = random_batches(samples, batch_tokens, device), random_batches(samples, batch_tokens, device, 10)
    return Setting(model, blocks, batches, preconditioned(blocks, torch.device(device)), tenth)


def plain(setting: Setting) -> None:
    """A forward and backward with gradients for the selected parameters."""
    chosen = {block.name for block in setting.blocks}
    trained = [parameter for name, parameter in setting.model.module.named_parameters() if name in chosen]
    setting.model.module.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for batch in setting.batches:
        setting.model.losses(batch).sum().backward()
        for parameter in trained:
            parameter.grad = None
    setting.model.module.requires_grad_(False)


def forward(setting: Setting) -> None:
    """A forward without anything kept."""
    with torch.no_grad():
        for batch in setting.batches:
            setting.model.losses(batch)


def score(setting: Setting) -> None:
    """The score pass."""
    with setting.source(setting.batches).passing(ScoreReducer(setting.stacks)) as read:
        for pieces in read(range(len(setting.batches))):
            for _ in pieces:
                pass


def both(setting: Setting) -> None:
    """The curvature pass over a tenth of the batches, and the score pass."""
    blocks = {name: BlockTargets(stack[:TARGETS], 1.0) for name, stack in setting.stacks.items()}
    gathered = start_statistics(SCORERS, blocks).statistics
    with setting.source(setting.tenth).gradients() as read:
        for found in (found for pieces in read(range(len(setting.tenth))) for found in pieces):
            kept, _ = found.clean()
            for (block, _), statistic in gathered.items():
                take_in(statistic, kept, kept.factors[block])
    score(setting)


def seconds(call: Callable[[Setting], None], setting: Setting) -> float:
    """Time a call, GPU work included."""
    start = time.perf_counter()
    call(setting)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(setting: Setting, repeats: int) -> dict[str, float]:
    """Return the median ratios."""
    ways = (forward, plain, score, both)
    for way in ways:
        way(setting)  # warm up
    rows = [[seconds(way, setting) for way in ways] for _ in range(repeats)]
    named = {
        "score / plain": [one[2] / one[1] for one in rows],
        "both / plain": [one[3] / one[1] for one in rows],
        "score / forward": [one[2] / one[0] for one in rows],
        "plain / forward": [one[1] / one[0] for one in rows],
        "samples/s of the score pass": [setting.samples / one[2] for one in rows],
    }
    return {name: statistics.median(values) for name, values in named.items()}


def main() -> None:
    """Print the ratios of one or all settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "llama", "deep"), help="all three when left out")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--batch_tokens", type=int, default=8192, help="padded tokens per batch, as `vlmsel score` has")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for kind in [given.model] if given.model else ["tiny", "llama", "deep"]:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "tiny":
                setting = tiny_setting(given.samples, given.batch_tokens, given.device, Path(folder))
            else:
                setting = text_setting(kind, given.samples, given.batch_tokens, given.device)
        found = measure(setting, given.repeats)
        shown = ", ".join(
            f"{name} {value:.3f}" if value < 50 else f"{name} {value:.0f}" for name, value in found.items()
        )
        print(f"{kind} ({len(setting.blocks)} blocks, {setting.samples} samples, {torch.get_num_threads()} threads)")
        print(f"  {shown}")


if __name__ == "__main__":
    main()
