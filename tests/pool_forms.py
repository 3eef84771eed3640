"""One pool of pictures and words in every form that pools come in, written without any code of the package."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import yaml
from PIL import Image

COLOURS = {"a/red.png": (255, 0, 0), "a/green.png": (0, 255, 0), "b/blue.png": (0, 0, 255)}
ROUNDS = [  # images, question and answer of every round
    (["a/red.png"], [("What?", "red")]),
    ([], [("1 + 1?", "2"), ("And 2 + 2?", "4")]),
    (["a/green.png", "b/blue.png"], [("Which?", "both"), ("Sure?", "yes")]),
    (["a/red.png"], [("Again?", "red")]),
]
TEXT = datasets.Value("string")


def png(path: str) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 6), COLOURS[path]).save(content, "PNG")
    return content.getvalue()


def write_images(folder: Path) -> Path:
    """Write the pictures as files; return their folder."""
    for path in COLOURS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(path))
    return folder


def said(rounds: list[Any], marks: int, keys: tuple[str, str], names: tuple[str, str]) -> list[dict[str, str]]:
    texts = [(name, text) for pair in rounds for name, text in zip(names, pair, strict=True)]
    texts[0] = texts[0][0], "<image>" * marks + texts[0][1]
    return [{keys[0]: name, keys[1]: text} for name, text in texts]


def llava() -> list[dict[str, Any]]:
    """LLaVA's records: `image` a text or a list."""
    return [
        {
            "id": f"{number}",
            **({"image": images[0] if len(images) == 1 else images} if images else {}),
            "source": "mine",
            "conversations": said(rounds, len(images), ("from", "value"), ("human", "gpt")),
        }
        for number, (images, rounds) in enumerate(ROUNDS)
    ]


def messages(parts: bool, marks: bool = False) -> list[dict[str, Any]]:
    """Messages of text, with markers or without any, or of typed parts."""
    found = []
    for images, rounds in ROUNDS:
        chat = said(rounds, len(images) * marks, ("role", "content"), ("user", "assistant"))
        if parts:
            chat = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
            chat[0]["content"] = [{"type": "image"}] * len(images) + chat[0]["content"]
        found.append({"messages": chat, "images": images, "source": "mine"})
    return found


def rows(content: Callable[[str], Any]) -> list[dict[str, Any]]:
    """FineVision's rows; `content` gives what stands for a picture."""
    return [
        {
            "images": [content(path) for path in images],
            "texts": [{"user": question, "assistant": answer} for question, answer in rounds],
            "source": "mine",
        }
        for images, rounds in ROUNDS
    ]


def with_bytes(path: str) -> dict[str, Any]:
    return {"bytes": png(path), "path": path}


def finevision() -> datasets.Dataset:
    kinds = {"images": [datasets.Image()], "texts": [{"user": TEXT, "assistant": TEXT}], "source": TEXT}
    return datasets.Dataset.from_list(rows(with_bytes), features=datasets.Features(kinds))


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def write_parquet(path: Path, found: datasets.Dataset) -> Path:
    found.to_parquet(str(path))
    return path


def write_saved(path: Path, found: datasets.Dataset) -> Path:
    found.save_to_disk(str(path))
    return path


def write_shards(path: Path) -> Path:
    path.mkdir()
    for number in range(2):
        finevision().select(range(2 * number, 2 * number + 2)).to_parquet(str(path / f"train-{number}.parquet"))
    return path


def write_internvl(folder: Path) -> Path:
    write_lines(folder / "first.jsonl", llava()[:3])
    write_json(folder / "second.json", [{}, *llava()[3:], *llava()[:3]])
    parts = {
        "one": {"root": "images", "annotation": "first.jsonl", "repeat_time": 1, "length": 3},
        "two": {"root": str(folder / "images"), "annotation": "second.json", "repeat_time": 0.4},
    }
    (folder / "second.json").write_text(json.dumps(llava()[3:] + llava()[:2]))
    return write_json(folder / "meta.json", parts)


def write_llava_next(folder: Path) -> Path:
    write_lines(folder / "part.jsonl", llava()[:2])
    write_json(folder / "other.json", [{}, *llava()[2:]])
    parts = [{"json_path": "part.jsonl"}, {"json_path": str(folder / "other.json"), "sampling_strategy": "end:2"}]
    (folder / "mix.yaml").write_text(yaml.safe_dump({"datasets": parts}))
    return folder / "mix.yaml"


def alone(path: Path) -> list[Any]:
    """Read a pool with `json` or `datasets`, and no code of the package."""
    if path.is_dir():
        return datasets.load_from_disk(str(path)).data.to_pylist()
    if path.suffix == ".parquet":
        return datasets.Dataset.from_parquet(str(path)).data.to_pylist()
    text = path.read_text()
    if path.suffix in (".yaml", ".json") and not text.startswith("["):
        parts = yaml.safe_load(text)
        parts = parts["datasets"] if "datasets" in parts else parts.values()
        files = [part.get("json_path") or part["annotation"] for part in parts]
        return [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


FORMS: dict[str, Callable[[Path], Path]] = {
    "LLaVA JSON": lambda folder: write_json(folder / "llava.json", llava()),
    "LLaVA lines": lambda folder: write_lines(folder / "llava.jsonl", llava()),
    "messages": lambda folder: write_lines(folder / "messages.jsonl", messages(parts=False)),
    "messages with markers": lambda folder: write_json(folder / "marked.json", messages(parts=False, marks=True)),
    "messages of parts": lambda folder: write_json(folder / "parts.json", messages(parts=True)),
    "FineVision lines": lambda folder: write_lines(folder / "texts.jsonl", rows(str)),
    "parquet of paths": lambda folder: write_parquet(
        folder / "paths.parquet", datasets.Dataset.from_list(messages(parts=True))
    ),
    "parquet of bytes": lambda folder: write_parquet(folder / "bytes.parquet", finevision()),
    "parquet shards": lambda folder: write_shards(folder / "shards"),
    "datasets": lambda folder: write_saved(folder / "saved", finevision()),
    "InternVL": write_internvl,
    "LLaVA-NeXT": write_llava_next,
}
