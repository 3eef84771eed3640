"""What scoring a Hugging Face image-text model costs over a plain forward and backward of the same batches.

    python tools/bench_huggingface.py [--samples 96] [--batch_tokens 4096] [--repeats 5] [--width 256]

A random Qwen2.5-VL and a random SmolVLM, whose language models have 4 layers of the given width, LoRA r = 16 on all
linear layers; three of four samples have one picture or two. The ratios are those of bench_score_pass.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from bench_score_pass import Setting, measure, random_stacks
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_vlms  # noqa: E402

from vlmsel.data.batches import length_batches  # noqa: E402
from vlmsel.data.dataset import Reading  # noqa: E402
from vlmsel.data.sample import Sample, Turn  # noqa: E402
from vlmsel.models.config import LoraSpec  # noqa: E402
from vlmsel.models.image_text import ImageText  # noqa: E402

PICTURES = [Image.new("RGB", (32 + 8 * i, 48 - 4 * i), (40 * i, 90, 200 - 30 * i)) for i in range(5)]


def items(subject: ImageText, samples: int) -> list[Any]:
    """Encode conversations of 20 to 120 letters about none to two pictures."""
    found = []
    for uid in range(samples):
        count = (1, 0, 2, 1)[uid % 4]
        turns = (
            Turn("human", "<image>\n" * count + "What? " * (1 + uid % 7)),
            Turn("gpt", "It is red. " * (1 + uid % 5)),
        )
        sample = Sample(uid, "bench", ("picture",) * count, turns)
        found.append(subject.reader.encode(sample, [PICTURES[(uid + i) % 5] for i in range(count)], Reading(), 4096))
    return found


def setting(name: str, samples: int, batch_tokens: int, width: int, device: str) -> Setting:
    """A model with fresh adapters and its batches."""
    tiny_vlms.TEXT.update(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=4, num_attention_heads=4, head_dim=width // 4
    )
    tiny_vlms.ROPE["mrope_section"] = [width // 8 - 2 * (width // 24), width // 24, width // 24]
    tiny_vlms.OUT["hidden_size"] = width
    model, processor = tiny_vlms.tiny_vlm(name)
    subject = ImageText(model, processor, None, name).eval()
    subject.attach_lora(LoraSpec(r=16, alpha=32))
    subject.to(device)
    encoded = items(subject, samples)

    def batches(own: list[Any]) -> list[Any]:
        groups = length_batches([len(item.input_ids) for item in own], max_tokens=batch_tokens)
        return [subject.collate([own[i] for i in group]).to(device) for group in groups]

    blocks = subject.blocks("lora")
    stacks = random_stacks(blocks, torch.device(device))
    return Setting(subject, blocks, batches(encoded), stacks, batches(encoded[::10]))


def main() -> None:
    """Print the ratios of both models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--batch_tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    for name in ("qwen2_5_vl", "smolvlm"):
        one = setting(name, given.samples, given.batch_tokens, given.width, given.device)
        found = measure(one, given.repeats)
        shown = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        print(
            f"{name} ({len(one.blocks)} blocks, {one.samples} samples, {len(one.batches)} batches): {shown}", flush=True
        )


if __name__ == "__main__":
    main()
