"""Write a Llama with random weights, for studies that train a small language model from scratch.

    python tools/new_llama.py stories260K fresh --width 256 --layers 6 --heads 8 --seed 0

`stories260K` is any folder with the tokenizer that the model shall have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM


def new_llama(tokenizer: str, out: Path, width: int, layers: int, heads: int, seed: int) -> int:
    """Write model and tokenizer into a folder; return the number of parameters."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    shape = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=8 * width // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=512,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape)
    model.save_pretrained(out)
    words.save_pretrained(out)
    return model.num_parameters()


def main() -> None:
    """Write the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.width % (2 * args.heads):
        parser.error(f"width {args.width} must be a multiple of twice the {args.heads} heads")
    size = new_llama(args.tokenizer, args.out, args.width, args.layers, args.heads, args.seed)
    print(f"{args.out}: {size / 1e6:.2f} million parameters")


if __name__ == "__main__":
    main()
