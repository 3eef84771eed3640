"""How well a model has learnt a data set of questions: greedy answers that are right to the letter, and the loss.

    python tools/exact_match.py runs/identification/tune runs/identification/data/grammars_test.json [--examples 5]

prints the share per source (class) and in all, and the mean loss of the answers. Text only.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from vlmsel.data.batches import Item
from vlmsel.data.dataset import Reading
from vlmsel.data.encoding import generation_ids
from vlmsel.data.sample import Sample
from vlmsel.models.generation import generate
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.vlm import VLM


def answers(model: VLM, samples: Sequence[Sample], batch_size: int, longest: int) -> list[str]:
    """Answer the last question of each sample."""
    collate, found = model.collate, []
    for start in range(0, len(samples), batch_size):
        items = []
        for sample in samples[start : start + batch_size]:
            ids = generation_ids(sample.turns[:-1], 0, model.tokenizer, model.vlm_config.template)
            items.append(Item(sample.uid, ids, [-100] * len(ids)))
        found += generate(model, collate(items).to(model.device), model.tokenizer, longest)
    return found


@torch.no_grad()
def mean_loss(model: VLM, items: Sequence[Item], batch_size: int) -> float:
    """Return the mean over samples of the answers' cross entropy."""
    total = 0.0
    for start in range(0, len(items), batch_size):
        batch = model.collate(items[start : start + batch_size])
        total += float(model.losses(batch.to(model.device)).sum())
    return total / len(items)


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--examples", type=int, default=0, help="wrong answers to show")
    args = parser.parse_args()
    try:
        model = open_subject(args.model)
        if not isinstance(model, VLM):
            raise ValueError(f"{args.model}: a {type(model).__name__} answers no questions; give a language model")
        found = open_pool(model, args.data, Reading()).samples
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    usable = found.usable()
    samples = [found.samples[i] for i in usable]
    given = answers(model.eval(), samples, args.batch_size, args.max_new_tokens)
    right: dict[str, list[bool]] = defaultdict(list)
    for sample, answer in zip(samples, given, strict=True):
        right[sample.source].append(answer.strip() == sample.turns[-1].text.strip())
        if not right[sample.source][-1] and args.examples:
            args.examples -= 1
            print(f"  {sample.source}: {answer.strip()!r} instead of {sample.turns[-1].text!r}")
    for source, each in sorted(right.items()):
        print(f"{source:40} {sum(each):4} of {len(each)}")
    whole = [one for each in right.values() for one in each]
    loss = mean_loss(model, [found[i] for i in usable], args.batch_size)
    print(f"{args.model} on {args.data.name}: exact match {sum(whole)} of {len(whole)}, mean loss {loss:.3f}")


if __name__ == "__main__":
    main()
