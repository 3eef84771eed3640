"""Convert a llama2.c checkpoint (github.com/karpathy/llama2.c, "version 0") and its tokenizer to a Hugging Face folder.

    python tools/convert_llama2c.py stories260K.bin tok512.bin OUT [--overwrite]

The checkpoint is seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len), then float32:

    embedding, per kind and layer: attention norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3,
    final norm, RoPE cosines, RoPE sines, and the output head if vocab_size is negative (otherwise it is the embedding)

llama2.c turns neighbouring pairs (2i, 2i+1) of each head, transformers the pairs (i, i + head/2); rows of wq and wk are
put in the other order, which leaves their dot products the same. The tokenizer is int32 max_token_length, then per
piece float32 score, int32 length and the bytes; a blank stands for SentencePiece's "▁". It becomes a BPE whose merges
are every split of every piece into two pieces, by score; a blank goes in front of the text, characters without a piece
become bytes. As in llama2.c, blanks stay as they are; a SentencePiece model may be set to drop doubled ones. What
differs from it: "<s>" and "</s>" in a text are read as the special tokens, as all Hugging Face Llamas do.
"""

from __future__ import annotations

import argparse
import math
import struct
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlmsel.models.language import quiet_transformers

MAGIC = 0x616B3432  # "ak42": files of version 1 and 2 begin with it
THETA = 10000.0
SPECIAL = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2; llama2.c stores the latter two with line breaks around
BYTES = {f"<0x{value:02X}>" for value in range(256)}
BLANK = "▁"


@dataclass(frozen=True)
class Header:
    """The seven numbers at the start of a checkpoint."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int  # negative: the output head is stored apart
    max_seq_len: int

    @property
    def head(self) -> int:
        return self.dim // self.n_heads


def read_header(path: Path) -> Header:
    """Read and check a checkpoint's header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a version 0 header.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        start = file.read(28)
    if len(start) < 28:
        raise ValueError(f"{path}: {len(start)} bytes are too few for a llama2.c header of 28; copy the file again")
    numbers = struct.unpack("<7i", start)
    if numbers[0] == MAGIC:
        raise ValueError(f"{path}: a llama2.c file of version {numbers[1]}; export it as version 0")
    header = Header(*numbers)
    sound = min(*numbers[:5], abs(header.vocab_size), header.max_seq_len) > 0
    if not sound or header.dim % (2 * header.n_heads) or header.n_heads % header.n_kv_heads:
        raise ValueError(f"{path}: {list(numbers)} is no llama2.c header; give a version 0 checkpoint")
    return header


def sections(header: Header) -> dict[str, tuple[int, ...]]:
    """Return the arrays of a checkpoint by name, with shape, in the file's order."""
    layers, dim, hidden, vocabulary = header.n_layers, header.dim, header.hidden_dim, abs(header.vocab_size)
    keys, turns = header.n_kv_heads * header.head, (header.max_seq_len, header.head // 2)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocabulary, dim),
        "attention_norm": (layers, dim),
        "wq": (layers, dim, dim),
        "wk": (layers, keys, dim),
        "wv": (layers, keys, dim),
        "wo": (layers, dim, dim),
        "feed_forward_norm": (layers, dim),
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
        "cosines": turns,
        "sines": turns,
    }
    return shapes if header.vocab_size > 0 else {**shapes, "output": (vocabulary, dim)}


def read_checkpoint(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Read a checkpoint into its header and arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is none, the file has another length than the header says, or the RoPE tables are not
            those of base 10000.
    """
    header = read_header(path)
    shapes = sections(header)
    expected, got = 28 + 4 * sum(math.prod(shape) for shape in shapes.values()), path.stat().st_size
    if got != expected:
        raise ValueError(
            f"{path}: {got} bytes, but its header {list(astuple(header))} asks for {expected}; copy the file again"
        )
    numbers = np.memmap(path, dtype="<f4", mode="c", offset=28)
    arrays, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        arrays[name] = numbers[start : start + size].reshape(shape)
        start += size
    _check_turns(path, header, arrays)
    return header, arrays


def _check_turns(path: Path, header: Header, arrays: dict[str, np.ndarray]) -> None:
    speeds = THETA ** (-np.arange(0, header.head, 2) / header.head)
    angles = np.outer(np.arange(header.max_seq_len), speeds)
    for name, expected in (("cosines", np.cos(angles)), ("sines", np.sin(angles))):
        if not np.allclose(arrays[name], expected, atol=1e-3):  # float32 angles of some thousand radians
            raise ValueError(f"{path}: its RoPE {name} are not those of base {THETA:.0f}; only that base is supported")


def halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key map from neighbouring pairs to halves, head by head. [heads * h, dim]

    >>> halves(torch.arange(8.0)[:, None], heads=2)[:, 0].tolist()
    [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
    """
    rows, dim = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def weights(header: Header, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Name a checkpoint's arrays as transformers' Llama does."""
    held = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    state = {"model.embed_tokens.weight": held["embedding"], "model.norm.weight": held["norm"]}
    state["lm_head.weight"] = held.get("output", held["embedding"])
    for layer in range(header.n_layers):
        named = {
            "input_layernorm": held["attention_norm"][layer],
            "self_attn.q_proj": halves(held["wq"][layer], header.n_heads),
            "self_attn.k_proj": halves(held["wk"][layer], header.n_kv_heads),
            "self_attn.v_proj": held["wv"][layer],
            "self_attn.o_proj": held["wo"][layer],
            "post_attention_layernorm": held["feed_forward_norm"][layer],
            "mlp.gate_proj": held["w1"][layer],
            "mlp.down_proj": held["w2"][layer],
            "mlp.up_proj": held["w3"][layer],
        }
        state |= {f"model.layers.{layer}.{name}.weight": value for name, value in named.items()}
    return state


def build_model(header: Header, arrays: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """Return the checkpoint as a Hugging Face Llama, float32."""
    config = LlamaConfig(
        vocab_size=abs(header.vocab_size),
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.n_layers,
        num_attention_heads=header.n_heads,
        num_key_value_heads=header.n_kv_heads,
        max_position_embeddings=header.max_seq_len,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=header.vocab_size > 0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(weights(header, arrays))
    # The models were trained on texts that begin with BOS and do not end with EOS, so that BOS ends a text too.
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 1], pad_token_id=0)
    return model


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Read the pieces of a llama2.c tokenizer, with their scores, in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file was cut off or is something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    content = path.read_bytes()
    longest = struct.unpack_from("<i", content)[0] if len(content) >= 4 else 0
    pieces, place = [], 4
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place) if place + 8 <= len(content) else (0.0, 0)
        end = place + 8 + length
        if not 0 < length <= longest or end > len(content):
            raise ValueError(f"{path}: piece {len(pieces)} cannot be read; give a whole llama2.c tokenizer file")
        pieces.append((_piece(path, len(pieces), content[place + 8 : end]), score))
        place = end
    _check_pieces(path, [text for text, _ in pieces])
    return pieces


def _piece(path: Path, number: int, raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: piece {number} is not UTF-8; give a whole llama2.c tokenizer file") from None
    return text.strip("\n") if number < len(SPECIAL) else text.replace(" ", BLANK)


def _check_pieces(path: Path, texts: list[str]) -> None:
    if tuple(texts[: len(SPECIAL)]) != SPECIAL or BYTES - set(texts):
        raise ValueError(f"{path}: pieces 0 to 2 must be {', '.join(SPECIAL)}, and all 256 bytes must be there")
    if len(set(texts)) < len(texts):
        twice = next(text for i, text in enumerate(texts) if text in texts[:i])
        raise ValueError(f"{path}: piece {twice!r} is there twice; give a tokenizer whose pieces differ")


def merges(path: Path, pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Return every pair of pieces whose joint text is a piece, the best score first.

    Of pieces with one score llama2.c makes the one furthest to the left in the text, which no order of pairs can say.
    For runs of one character (Llama-2's runs of blanks share a score) the longest first comes to the same.

    Raises:
        ValueError: two other pieces have one score.
    """
    scores = {text: score for text, score in pieces if text not in SPECIAL and text not in BYTES}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for text in scores:
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        if found := [(a, b) for a, b in splits if a in scores and b in scores]:
            pairs[text] = found
    ordered = sorted(pairs, key=lambda text: (-scores[text], -len(text)))
    for first, second in zip(ordered, ordered[1:], strict=False):
        if scores[first] == scores[second] and len(set(first + second)) > 1:
            raise ValueError(f"{path}: pieces {first!r} and {second!r} have one score; give each its own")
    return [pair for text in ordered for pair in pairs[text]]


def build_tokenizer(path: Path, max_length: int) -> PreTrainedTokenizerFast:
    """Return a llama2.c tokenizer file as a Hugging Face tokenizer that puts BOS in front of a text.

    Raises:
        FileNotFoundError, ValueError: see `read_pieces` and `merges`.
    """
    pieces = read_pieces(path)
    vocabulary = {text: number for number, (text, _) in enumerate(pieces)}
    bpe = models.BPE(vocab=vocabulary, merges=merges(path, pieces), unk_token=SPECIAL[0], byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(BLANK), normalizers.Replace(" ", BLANK)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 1)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    unk, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unk, bos_token=bos, eos_token=eos,
        model_max_length=max_length, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def convert(checkpoint: Path, tokenizer_file: Path, out: Path, overwrite: bool = False) -> LlamaForCausalLM:
    """Write the Hugging Face folder and return the model; nothing is written if anything is wrong with the files.

    Raises:
        FileNotFoundError: a file is missing.
        FileExistsError: the folder holds something and `overwrite` is not set.
        ValueError: a file is damaged or of another kind, or the two do not belong together.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not overwrite:
        raise FileExistsError(f"{out} is there already; choose another folder or give --overwrite")
    header, arrays = read_checkpoint(checkpoint)
    tokenizer = build_tokenizer(tokenizer_file, header.max_seq_len)
    if len(tokenizer) != abs(header.vocab_size):
        raise ValueError(
            f"{tokenizer_file} has {len(tokenizer)} pieces, and {checkpoint} a vocabulary of {abs(header.vocab_size)}; "
            "give the tokenizer that belongs to the checkpoint"
        )
    model = build_model(header, arrays)
    with quiet_transformers():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return model


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a llama2.c file of version 0")
    parser.add_argument("tokenizer", type=Path, help="its tokenizer, a .bin file")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds something already")
    args = parser.parse_args(arguments)
    try:
        model = convert(args.checkpoint, args.tokenizer, args.out, args.overwrite)
    except (ValueError, OSError) as problem:
        print(f"convert_llama2c: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{model.num_parameters():,} parameters, {model.config.vocab_size} pieces, under {args.out}")


if __name__ == "__main__":
    main()
