"""Scoring a model of full size on one GPU: random weights of a preset's shapes, samples of real length.

    python tools/bench_full_size.py [--preset llava-7b] [--samples 80] [--batch_size 8] [--dtype bfloat16]

Each sample has one picture (576 patches for llava-7b) and `--text_tokens` of text, of which the second half is
supervised; blocks are projector + LoRA as the preset has them. Printed are the ratios of bench_score_pass.py (4 scorers
x 4 targets), samples per second, the share of the card's measured rate of bfloat16 products that the model's own
operations reach, and peak memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import open_clip
import torch
import transformers
from bench_score_pass import Setting, forward, measure, plain, random_stacks, score
from torch.utils.flop_counter import FlopCounterMode

from vlmsel.data.batches import Batch, Collator, Item
from vlmsel.models.assembly import assemble
from vlmsel.models.config import VLMConfig, resolve
from vlmsel.models.presets import LLAMA2_7B, PRESETS
from vlmsel.models.vision import VisionTower, load_vision
from vlmsel.models.vlm import VLM

IMAGE = -200


def random_model(config: VLMConfig, dtype: torch.dtype, device: str) -> VLM:
    """A model of the preset's shapes with random weights, made on the device."""
    torch.manual_seed(0)
    if config.language == LLAMA2_7B:
        sizes = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        shape = transformers.LlamaConfig(
            **sizes, num_attention_heads=32, max_position_embeddings=4096, rms_norm_eps=1e-5
        )
    else:
        shape = transformers.AutoConfig.from_pretrained(resolve(config.language))
    with torch.device(device):
        language = transformers.AutoModelForCausalLM.from_config(shape, dtype=dtype)
        if config.vision in open_clip.list_models():
            visual = open_clip.CLIP(**open_clip.get_model_config(config.vision)).visual.to(dtype)
            vision = VisionTower(visual, config.vision_layer)
        else:
            vision = load_vision(config, dtype)  # the embedded one
    model = assemble(config, vision, language, None).to(device)
    wake(model)
    return model


def wake(model: VLM) -> None:
    """Draw the adapters' B, which is zero at first and would leave A without gradients."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.002)


def batches(model: VLM, samples: int, size: int, text_tokens: int, device: str) -> list[Batch]:
    """Batches of samples with a picture of their own and as many tokens."""
    generator, items = torch.Generator().manual_seed(1), []
    words = model.language_model.config.vocab_size
    for uid in range(samples):
        text = torch.randint(3, words, (text_tokens,), generator=generator).tolist()
        side = model.tower.image_size
        picture = torch.randint(0, 256, (3, side, side), generator=generator, dtype=torch.uint8)
        ids, labels = [IMAGE, *text], [-100] * (1 + text_tokens // 2) + text[text_tokens // 2 :]
        items.append(Item(uid, ids, labels, (f"{uid}.jpg",), (picture,)))
    collate = Collator(0)
    return [collate(items[start : start + size]).to(device) for start in range(0, samples, size)]


def product_rate(dtype: torch.dtype, device: str, size: int) -> float:
    """Measure the rate of a large matrix product, in operations per second."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    a @ b
    times = []
    for _ in range(10):
        times.append(timed(lambda: a @ b, device))
    return 2 * size**3 / sorted(times)[len(times) // 2]


def waited(device: str) -> float:
    """Return the time when all GPU work is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(call: Callable[[], object], device: str) -> float:
    """Time a call, GPU work included."""
    start = waited(device)
    call()
    return waited(device) - start


def peak(call: Callable[[Setting], None], setting: Setting) -> float:
    """Return the peak of allocated GPU memory during a call, in GiB."""
    torch.cuda.reset_peak_memory_stats()
    call(setting)
    return torch.cuda.max_memory_allocated() / 2**30


def operations(setting: Setting, call: Callable[[Setting], None]) -> float:
    """Count the operations of a call on the first batch, per sample."""
    first = replace(setting, batches=setting.batches[:1])
    with FlopCounterMode(display=False) as counter:
        call(first)
    return counter.get_total_flops() / len(first.batches[0].uids)


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llava-7b")
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--text_tokens", type=int, default=200)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the backbones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--product", type=int, default=8192, help="side of the matrices that the card's rate is of")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    model = random_model(PRESETS[given.preset], dtype, given.device)
    blocks = model.blocks("projector+lora")
    made = batches(model, given.samples, given.batch_size, given.text_tokens, given.device)
    tenth = batches(model, given.samples // 10, given.batch_size, given.text_tokens, given.device)
    setting = Setting(model, blocks, made, random_stacks(blocks, torch.device(given.device)), tenth)
    card = torch.cuda.get_device_name() if given.device != "cpu" else "CPU"
    print(
        f"{given.preset} in {given.dtype} on {card}, torch {torch.__version__}, transformers {transformers.__version__}"
    )
    tokens = model.tower.patches + given.text_tokens
    entries = sum(block.rows * block.cols for block in blocks)
    print(f"{len(blocks)} blocks of {entries / 1e6:.1f} million entries, {given.samples} samples of {tokens} tokens")
    needed, rate = operations(setting, plain), product_rate(dtype, given.device, given.product)
    found = measure(setting, given.repeats)
    print("  " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    speed = found["samples/s of the score pass"]
    plainly = speed * found["score / plain"]
    print(
        f"  plain forward + backward {plainly:.2f} samples/s, {needed / 1e12:.1f} TFLOP per sample of the model alone"
    )
    print(f"  matrix products of {given.product}²: {rate / 1e12:.0f} TFLOP/s; of that the score pass reaches")
    print(f"  {speed * needed / rate:.2f}, plain forward + backward {plainly * needed / rate:.2f}")
    if given.device != "cpu":
        names = ", ".join(f"{way.__name__} {peak(way, setting):.1f}" for way in (forward, plain, score))
        print(f"  peak memory in GiB: {names}; of {torch.cuda.get_device_properties(0).total_memory / 2**30:.1f}")


if __name__ == "__main__":
    main()
