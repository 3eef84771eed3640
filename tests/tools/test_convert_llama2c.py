"""llama2.c files made here, their forward pass and their tokenisation written out plainly, against the conversion."""

import random
import struct

import numpy as np
import pytest
import torch

from tools import convert_llama2c
from vlmsel.models.language import load_language, load_tokenizer

DIM, HIDDEN, LAYERS, HEADS, SEQUENCE = 16, 24, 2, 4, 12
HEAD = DIM // HEADS
# after the special tokens and bytes: pieces that merge, best first, then single characters
MERGED = [" a", "ab", " ab", "cab", "bc", " abc", "aa"]
RUNS = ["  ", "     ", "   "]  # of one score, as in Llama-2
SINGLE = [" ", "a", "b", "c", "ö"]
PIECES = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{i:02X}>" for i in range(256)), *MERGED, *RUNS, *SINGLE]
SCORES = [0.0] * 259 + [-float(i) for i in range(len(MERGED))] + [-1e9] * len(RUNS) + [-1e8 - 99 * i for i in range(5)]
VOCABULARY = len(PIECES)


def write_tokenizer(path, pieces=PIECES, scores=SCORES):
    raw = [piece.encode() for piece in pieces]
    body = [struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(raw, scores, strict=True)]
    path.write_bytes(struct.pack("<i", max(map(len, raw))) + b"".join(body))
    return path


def random_arrays(kv_heads, separate, seed=0):
    rng, keys = np.random.default_rng(seed), HEAD * kv_heads
    shapes = {
        "emb": (VOCABULARY, DIM), "norm1": (LAYERS, DIM), "wq": (LAYERS, DIM, DIM), "wk": (LAYERS, keys, DIM),
        "wv": (LAYERS, keys, DIM), "wo": (LAYERS, DIM, DIM), "norm2": (LAYERS, DIM), "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN), "w3": (LAYERS, HIDDEN, DIM), "norm": (DIM,),
    }  # fmt: skip
    arrays = {name: rng.normal(0, 0.5, shape).astype("<f4") for name, shape in shapes.items()}
    angles = np.outer(np.arange(SEQUENCE), [10000.0 ** (-2 * i / HEAD) for i in range(HEAD // 2)])
    arrays |= {"cos": np.cos(angles).astype("<f4"), "sin": np.sin(angles).astype("<f4")}
    return arrays | ({"out": rng.normal(0, 0.5, shapes["emb"]).astype("<f4")} if separate else {})


def write_checkpoint(path, kv_heads=2, separate=False, header=None, **changes):
    arrays = random_arrays(kv_heads, separate) | changes
    sign = -1 if separate else 1
    numbers = header or [DIM, HIDDEN, LAYERS, HEADS, kv_heads, sign * VOCABULARY, SEQUENCE]
    path.write_bytes(struct.pack("<7i", *numbers) + b"".join(array.tobytes() for array in arrays.values()))
    return path


def rms(x, weight):
    return x / np.sqrt((x * x).mean() + 1e-5) * weight


def turned(vector, position):
    """Turn neighbouring pairs of every head."""
    out = vector.copy()
    for i in range(0, len(vector), 2):
        angle = position * 10000.0 ** (-(i % HEAD) / HEAD)
        a, b = vector[i], vector[i + 1]
        out[i], out[i + 1] = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return out


def naive_logits(arrays, kv_heads, tokens):
    """llama2.c's forward pass, one token after the other, float64. [t, vocabulary]"""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}
    keys, values = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)]
    rows = []
    for position, token in enumerate(tokens):
        x = w["emb"][token]
        for layer in range(LAYERS):
            h = rms(x, w["norm1"][layer])
            query = turned(w["wq"][layer] @ h, position)
            keys[layer].append(turned(w["wk"][layer] @ h, position))
            values[layer].append(w["wv"][layer] @ h)
            mixed = np.zeros(DIM)
            for head in range(HEADS):
                own, shared = slice(head * HEAD, (head + 1) * HEAD), head // (HEADS // kv_heads)
                other = slice(shared * HEAD, (shared + 1) * HEAD)
                scores = np.array([query[own] @ key[other] for key in keys[layer]]) / np.sqrt(HEAD)
                shares = np.exp(scores - scores.max())
                mixed[own] = sum(s * v[other] for s, v in zip(shares / shares.sum(), values[layer], strict=True))
            x = x + w["wo"][layer] @ mixed
            h = rms(x, w["norm2"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        rows.append(w.get("out", w["emb"]) @ rms(x, w["norm"]))
    return np.array(rows)


def logits_of(model, tokens):
    with torch.no_grad():
        return model.double()(torch.tensor([tokens])).logits[0].numpy()


TOKENS = [1, *random.Random(0).choices(range(VOCABULARY), k=SEQUENCE - 1)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("separate", [False, True])
def test_the_model_computes_what_llama2c_does(tmp_path, kv_heads, separate):
    checkpoint = write_checkpoint(tmp_path / "m.bin", kv_heads, separate)
    convert_llama2c.convert(checkpoint, write_tokenizer(tmp_path / "t.bin"), tmp_path / "out")
    model = load_language(str(tmp_path / "out"))
    expected = naive_logits(random_arrays(kv_heads, separate), kv_heads, TOKENS)
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-5)
    assert model.config.tie_word_embeddings is not separate
    assert model.config.max_position_embeddings == SEQUENCE


def test_the_comparison_sees_the_order_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_llama2c, "halves", lambda weight, heads: weight)
    model = convert_llama2c.build_model(*convert_llama2c.read_checkpoint(write_checkpoint(tmp_path / "m.bin")))
    assert np.abs(logits_of(model, TOKENS) - naive_logits(random_arrays(2, False), 2, TOKENS)).max() > 0.1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    files = write_checkpoint(folder / "m.bin"), write_tokenizer(folder / "t.bin")
    convert_llama2c.convert(*files, folder / "out")
    return load_tokenizer(str(folder / "out"))


def ids(*pieces):
    return [1, *(PIECES.index(piece) for piece in pieces)]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("", []),
        ("ab", [" ab"]),
        ("abc", [" abc"]),
        ("cab", [" ", "cab"]),
        ("aab", [" a", "ab"]),
        (" a", [" ", " a"]),
        ("a  a", [" a", " ", " a"]),
        ("b  b", [" ", "b", "  ", "b"]),
        ("a       b", [" a", "     ", "  ", "b"]),
        ("abö", [" ab", "ö"]),
        ("a\n", [" a", "<0x0A>"]),
        ("é", [" ", "<0xC3>", "<0xA9>"]),
    ],
)
def test_known_splits(tokenizer, text, pieces):
    assert tokenizer(text)["input_ids"] == ids(*pieces)
    assert tokenizer.decode(ids(*pieces), skip_special_tokens=True) == text


def greedy(text):
    """llama2.c's encoder: join the neighbours whose joint piece scores best until none is a piece."""
    number = {piece: i for i, piece in enumerate(PIECES)}
    found = [number[" "]] if text else []
    for letter in text:
        found += [number[letter]] if letter in number else [byte + 3 for byte in letter.encode()]
    while True:
        joint = [number.get(PIECES[a] + PIECES[b]) for a, b in zip(found, found[1:], strict=False)]
        best = max(
            (i for i, n in enumerate(joint) if n is not None), key=lambda i: (SCORES[joint[i]], -i), default=None
        )
        if best is None:
            return [1, *found]
        found[best : best + 2] = [joint[best]]


def test_random_texts_split_as_by_llama2c(tokenizer):
    rng = random.Random(0)
    alphabets = ["aabbcc  ö\né", "a    "]
    texts = ["".join(rng.choices(letters, k=rng.randint(1, 20))) for letters in alphabets for _ in range(300)]
    assert [tokenizer(text)["input_ids"] for text in texts] == [greedy(text) for text in texts]
    assert [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in texts] == texts


def test_special_tokens(tokenizer):
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == VOCABULARY and tokenizer.model_max_length == SEQUENCE
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == ids(" ab")[1:]


def run(tmp_path, *options):
    files = [str(tmp_path / name) for name in ("m.bin", "t.bin", "out")]
    convert_llama2c.main([*files, *options])


def require_one_line(tmp_path, capsys, message):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and message in said
    assert not (tmp_path / "out").exists()


def test_the_command_writes_a_folder_once(tmp_path, capsys):
    write_checkpoint(tmp_path / "m.bin"), write_tokenizer(tmp_path / "t.bin")
    run(tmp_path)
    assert f"{VOCABULARY} pieces" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= names
    with pytest.raises(SystemExit):
        run(tmp_path)
    assert "is there already; choose another folder or give --overwrite" in capsys.readouterr().err
    run(tmp_path, "--overwrite")


GOOD = [DIM, HIDDEN, LAYERS, HEADS, 2, VOCABULARY, SEQUENCE]


@pytest.mark.parametrize(
    "header, message",
    [
        ([convert_llama2c.MAGIC, 1, *GOOD[:5]], "a llama2.c file of version 1; export it as version 0"),
        ([0, *GOOD[1:]], "is no llama2.c header"),
        ([18, *GOOD[1:]], "is no llama2.c header"),
        ([*GOOD[:4], 3, *GOOD[5:]], "is no llama2.c header"),
        ([*GOOD[:5], 0, SEQUENCE], "is no llama2.c header"),
        ([*GOOD[:6], SEQUENCE + 1], "bytes, but its header"),
        ([*GOOD[:5], -VOCABULARY, SEQUENCE], "bytes, but its header"),
    ],
)
def test_wrong_headers_are_refused(tmp_path, capsys, header, message):
    write_checkpoint(tmp_path / "m.bin", header=header), write_tokenizer(tmp_path / "t.bin")
    require_one_line(tmp_path, capsys, message)


@pytest.mark.parametrize(
    "kept, message", [(0, "0 bytes are too few"), (27, "27 bytes are too few"), (-4, "but its header")]
)
def test_a_cut_checkpoint_is_refused(tmp_path, capsys, kept, message):
    path = write_checkpoint(tmp_path / "m.bin")
    path.write_bytes(path.read_bytes()[:kept])
    write_tokenizer(tmp_path / "t.bin")
    require_one_line(tmp_path, capsys, message)


def test_other_rotations_are_refused(tmp_path, capsys):
    write_checkpoint(tmp_path / "m.bin", sin=-random_arrays(2, False)["sin"]), write_tokenizer(tmp_path / "t.bin")
    require_one_line(tmp_path, capsys, "its RoPE sines are not those of base 10000")


def test_missing_files_are_named(tmp_path, capsys):
    require_one_line(tmp_path, capsys, "m.bin: no such file")
    write_checkpoint(tmp_path / "m.bin")
    require_one_line(tmp_path, capsys, "t.bin: no such file")


@pytest.mark.parametrize(
    "pieces, scores, message",
    [
        (PIECES[:-1], SCORES[:-1], f"has {VOCABULARY - 1} pieces, and"),
        ([*PIECES, "d"], [*SCORES, -99.0], f"a vocabulary of {VOCABULARY}; give the tokenizer that belongs"),
        (PIECES[1:], SCORES[1:], "pieces 0 to 2 must be <unk>, <s>, </s>"),
        (["d" if piece == "<0x41>" else piece for piece in PIECES], SCORES, "all 256 bytes must be there"),
        (["a" if piece == "ö" else piece for piece in PIECES], SCORES, "piece 'a' is there twice"),
        (PIECES, [0.0] * VOCABULARY, "have one score; give each its own"),
    ],
)
def test_wrong_tokenizers_are_refused(tmp_path, capsys, pieces, scores, message):
    write_checkpoint(tmp_path / "m.bin"), write_tokenizer(tmp_path / "t.bin", pieces, scores)
    require_one_line(tmp_path, capsys, message)


@pytest.mark.parametrize("kept", [2, -1, -5, -9])
def test_a_cut_tokenizer_is_refused(tmp_path, capsys, kept):
    write_checkpoint(tmp_path / "m.bin")
    path = write_tokenizer(tmp_path / "t.bin")
    path.write_bytes(path.read_bytes()[:kept])
    message = "pieces 0 to 2 must be" if kept == 2 else f"piece {VOCABULARY - 1} cannot be read"
    require_one_line(tmp_path, capsys, message)
