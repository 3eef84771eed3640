"""What scoring costs over a plain forward and backward of the same batches, as ratios measured in one run.

    python tools/bench_score_pass.py [--model tiny|llama|deep] [--samples 640] [--batch_tokens 8192] [--repeats 7]
                                     [--columns 64 128]

tiny   the tiny VLM on projector + LoRA, samples of the embedded world's pool
llama  a 4-layer Llama of width 256, LoRA r = 16 on all linear layers, random texts of 48 to 160 tokens
deep   a 16-layer Llama of width 128, last block; its score pass is held against a plain forward

score / plain           score pass with 4 scorers x 4 targets over loss.sum().backward() with gradients for the selected
                        parameters and nothing else
both / plain            curvature pass over a tenth of the samples and score pass together, solving left out
score / forward         the same score pass over a plain forward
r columns / plain       a score pass for single target samples: 4 scorers x r virtual targets and the targets' means,
                        plain norms and those in HyperINF's metric (64 and 256 target samples have up to 64 and 128)
r columns, products     multiply-adds of these columns' inner products with formed gradients, the least that any exact
                        way takes, over those of a plain forward and backward: counted, not timed

Repetitions of all ways are interleaved; a ratio is the median over repetitions of the ratio within one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from plain_text import PlainText, Ready, adapted, gather, llama
from torch.utils.flop_counter import FlopCounterMode

from vlmsel.data.batches import Batch, Collator, Item, length_batches
from vlmsel.data.dataset import Reading
from vlmsel.data.world.files import WorldSizes, write_world
from vlmsel.gradients import Block, select_blocks
from vlmsel.models.config import ALL_LINEAR
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.scorers import BlockTargets, DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scorers.base import Metric
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.solve import start_statistics
from vlmsel.scoring.source import ModelSource

SCORERS = (HyperINF(), DataInf(), LiSSA(batch="stream"), TracIn())
TARGETS = 4


@dataclass(frozen=True)
class Setting:
    """A model with its blocks and batches, and the preconditioned targets of the score pass."""

    subject: Any  # a Subject, or what the passes need of one
    blocks: Sequence[Block]
    batches: Sequence[Any]
    stacks: dict[str, torch.Tensor]
    tenth: Sequence[Any]  # batches of every tenth sample

    @property
    def samples(self) -> int:
        """Samples of a pass."""
        return sum(len(batch.uids) for batch in self.batches)

    def source(self, batches: Sequence[Any]) -> ModelSource:
        """Give these batches' gradients."""
        return ModelSource(self.subject, self.blocks, Ready(batches), Budget())  # type: ignore[arg-type]


def random_stacks(blocks: Sequence[Block], device: torch.device) -> dict[str, torch.Tensor]:
    """Draw preconditioned targets for all scorers and targets."""
    generator = torch.Generator(device).manual_seed(0)
    columns = len(SCORERS) * TARGETS
    return {b.name: torch.randn(columns, b.rows, b.cols, generator=generator, device=device) for b in blocks}


def tiny_setting(samples: int, batch_tokens: int, device: str, folder: Path) -> Setting:
    """The tiny VLM on samples of a world's pool."""
    write_world(folder, WorldSizes(0, samples, 0, 0))
    model = open_subject("tiny", device)
    data = open_pool(model, folder / "pool.json", Reading(folder / "images")).samples

    def batches(positions: Sequence[int]) -> list[Any]:
        groups = length_batches([data.lengths()[i] for i in positions], max_tokens=batch_tokens)
        return [model.collate([data[positions[i]] for i in group]).to(model.device) for group in groups]

    blocks = model.blocks("projector+lora")
    model.module.eval()
    whole, tenth = batches(range(samples)), batches(range(0, samples, 10))
    return Setting(model, blocks, whole, random_stacks(blocks, model.device), tenth)


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


def text_setting(kind: str, samples: int, batch_tokens: int, device: str) -> Setting:
    """A Llama with LoRA, or a deep one of which the last block counts."""
    model: Any = adapted(llama(4, 256), 16, ALL_LINEAR) if kind == "llama" else llama(16, 128)
    subject = PlainText(model.to(device).eval())
    blocks = select_blocks(model, "lora" if kind == "llama" else "last-block")
    batches, tenth = random_batches(samples, batch_tokens, device), random_batches(samples, batch_tokens, device, 10)
    return Setting(subject, blocks, batches, random_stacks(blocks, torch.device(device)), tenth)


def plain(setting: Setting) -> None:
    """A forward and backward with gradients for the selected parameters."""
    chosen, module = {block.name for block in setting.blocks}, setting.subject.module
    trained = [parameter for name, parameter in module.named_parameters() if name in chosen]
    module.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    for batch in setting.batches:
        setting.subject.losses(batch).sum().backward()
        for parameter in trained:
            parameter.grad = None
    module.requires_grad_(False)


def forward(setting: Setting) -> None:
    """A forward without anything kept."""
    with torch.no_grad():
        for batch in setting.batches:
            setting.subject.losses(batch)


def score(setting: Setting) -> None:
    """The score pass."""
    pass_over(setting, ScoreReducer(setting.stacks))


def pass_over(setting: Setting, reducer: ScoreReducer) -> None:
    """Run over all batches."""
    source = setting.source(setting.batches)
    with source.passing(reducer) as read:
        for pieces in read(range(len(source.sizes))):
            for _ in pieces:
                pass


def both(setting: Setting) -> None:
    """The curvature pass over a tenth of the batches, and the score pass."""
    blocks = {name: BlockTargets(stack[:TARGETS], 1.0) for name, stack in setting.stacks.items()}
    gather(setting.source(setting.tenth), start_statistics(SCORERS, blocks))
    score(setting)


def for_each(columns: int, setting: Setting) -> Callable[[Setting], None]:
    """Return the score pass for single target samples through so many virtual targets."""
    device, count = setting.source([]).device, len(SCORERS) * (TARGETS + columns)
    stacks = {b.name: torch.randn(count, b.rows, b.cols, device=device) for b in setting.blocks}
    inverse: dict[str, Metric] = {}
    for block in setting.blocks:
        side, size = ("cols", block.cols) if block.cols >= block.rows else ("rows", block.rows)
        inverse[block.name] = Metric(**{side: torch.randn(size, size, device=device).tril()}, lower=True)
    plain_norm = {block.name: Metric() for block in setting.blocks}
    return lambda own: pass_over(own, ScoreReducer(stacks, metrics=[plain_norm, inverse]))


def products(columns: int, setting: Setting) -> float:
    """Return the least multiply-adds of so many columns' inner products over those of a plain forward and backward."""
    with FlopCounterMode(display=False) as counted:
        plain(setting)
    weights = sum(block.rows * block.cols for block in setting.blocks)
    return 2 * setting.samples * len(SCORERS) * (TARGETS + columns) * weights / counted.get_total_flops()


def seconds(call: Callable[[Setting], None], setting: Setting) -> float:
    """Time a call, GPU work included."""
    start = time.perf_counter()
    call(setting)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(setting: Setting, repeats: int, columns: Sequence[int] = ()) -> dict[str, float]:
    """Return the median ratios."""
    ways = (forward, plain, score, both, *(for_each(count, setting) for count in columns))
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
    for number, count in enumerate(columns, 4):
        named[f"{count} columns / plain"] = [one[number] / one[1] for one in rows]
    return {name: statistics.median(values) for name, values in named.items()}


def main() -> None:
    """Print the ratios of one or all settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "llama", "deep"), help="all three when left out")
    parser.add_argument("--samples", type=int, default=640)
    parser.add_argument("--batch_tokens", type=int, default=8192, help="padded tokens per batch, as `vlmsel score` has")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--columns", type=int, nargs="*", default=[64, 128], help="virtual targets per scorer")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for kind in [given.model] if given.model else ["tiny", "llama", "deep"]:
        with tempfile.TemporaryDirectory() as folder:
            if kind == "tiny":
                setting = tiny_setting(given.samples, given.batch_tokens, given.device, Path(folder))
            else:
                setting = text_setting(kind, given.samples, given.batch_tokens, given.device)
        found = measure(setting, given.repeats, given.columns)
        found |= {f"{count} columns, products": products(count, setting) for count in given.columns}
        shown = ", ".join(
            f"{name} {value:.3f}" if value < 50 else f"{name} {value:.0f}" for name, value in found.items()
        )
        print(f"{kind} ({len(setting.blocks)} blocks, {setting.samples} samples, {torch.get_num_threads()} threads)")
        print(f"  {shown}")


if __name__ == "__main__":
    main()
