"""Convert easy-VQA (github.com/vzhou842/easy-VQA, MIT) into the files that `vlmsel` reads.

    python tools/convert_easy_vqa.py easy_vqa.tar.gz --out easy_vqa --seed 0

writes, under --out: `images/`, `captions.json` (alignment: "a blue rectangle.", put together from the answers),
`pool.json` (LLaVA format; a seeded share of answers is replaced by a wrong one of the same type, see
`pool_truth.json`), `target.json` (clean, from images that are not in the pool) and the test questions
and annotations in VQAv2's format.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from pathlib import Path

SHAPES = ("circle", "rectangle", "triangle")
COLORS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
TARGET_IMAGES = 400  # the last training images are kept out of the pool for the target set


def read_archive(path: Path) -> tuple[dict[str, list], dict[str, bytes]]:
    """Return the questions per split and the PNG files by `split/number`."""
    questions, images = {}, {}
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if not member.isfile() or len(parts) < 3:
                continue
            content = archive.extractfile(member)
            assert content is not None
            if parts[-1] == "questions.json":
                questions[parts[-2]] = json.load(io.TextIOWrapper(content, "utf-8"))
            elif parts[-1].endswith(".png"):
                images[f"{parts[-3]}/{Path(parts[-1]).stem}"] = content.read()
    return questions, images


def same_type(answer: str) -> tuple[str, ...]:
    """Return all answers of the same type as `answer`."""
    return next(kind for kind in (SHAPES, COLORS, ("yes", "no")) if answer in kind)


def wrong_answer(answer: str, rng: random.Random) -> str:
    return rng.choice([other for other in same_type(answer) if other != answer])


def source(answer: str) -> str:
    return {SHAPES: "shape", COLORS: "color"}.get(same_type(answer), "yes_no")


def record(identity: str, image: str, question: str, answer: str, source: str) -> dict:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, "image": image, "source": source, "conversations": turns}


def as_sentence(question: str) -> str:
    return question[0].upper() + question[1:]


def captions(questions: list) -> list[dict]:
    """One caption per image whose questions give away both colour and shape."""
    facts: dict[int, dict[str, str]] = {}
    for _, answer, image in questions:
        if source(answer) != "yes_no":
            facts.setdefault(image, {})[source(answer)] = answer
    return [
        record(
            f"caption_{image}", f"train/{image}.png", "Describe the image.", f"a {f['color']} {f['shape']}.", "caption"
        )
        for image, f in sorted(facts.items())
        if len(f) == 2
    ]


def pool(questions: list, size: int, wrong_share: float, rng: random.Random) -> tuple[list[dict], list[dict]]:
    """Draw `size` questions and spoil `wrong_share` of the answers; return records and what was spoilt."""
    records, truth = [], []
    for uid, (question, answer, image) in enumerate(rng.sample(questions, size)):
        flaw = "wrong answer" if rng.random() < wrong_share else "none"
        given = wrong_answer(answer, rng) if flaw != "none" else answer
        records.append(record(f"easy_{uid}", f"train/{image}.png", as_sentence(question), given, source(answer)))
        truth.append({"uid": uid, "source": source(answer), "flaw": flaw})
    return records, truth


def vqav2(questions: list) -> tuple[dict, dict]:
    """Return questions and annotations in VQAv2's format (ten equal answers)."""
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "easyvqa"}
    asked, noted = [], []
    for index, (question, answer, image) in enumerate(questions):
        key = {"question_id": index, "image_id": image}
        kind = "yes/no" if source(answer) == "yes_no" else "other"
        answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
        asked.append({**key, "question": as_sentence(question)})
        noted.append(
            {
                **key,
                "question_type": source(answer),
                "answer_type": kind,
                "multiple_choice_answer": answer,
                "answers": answers,
            }
        )
    return {**head, "task_type": "Open-Ended", "questions": asked}, {**head, "annotations": noted}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def convert(
    archive: Path,
    out: Path,
    seed: int = 0,
    size: int = 4000,
    wrong: float = 0.2,
    test: int = 1000,
    targets: int = 200,
) -> None:
    """Write one seed's files: `size` questions in the pool, a share `wrong` of answers spoilt, `targets` that choose,
    and `test` asked."""
    questions, images = read_archive(archive)
    rng = random.Random(f"easy-VQA {seed}")
    first_target = max(image for _, _, image in questions["train"]) + 1 - TARGET_IMAGES
    trained = [q for q in questions["train"] if q[2] < first_target]
    held = [q for q in questions["train"] if q[2] >= first_target]
    for name, content in images.items():
        split, number = name.split("/")
        relative = f"train/{number}.png" if split == "train" else f"test/COCO_easyvqa_{int(number):012d}.png"
        (out / "images" / relative).parent.mkdir(parents=True, exist_ok=True)
        (out / "images" / relative).write_bytes(content)
    records, truth = pool(trained, size, wrong, rng)
    write(out / "captions.json", captions(trained))
    write(out / "pool.json", records)
    write(out / "pool_truth.json", truth)
    write(out / "target.json", pool(held, targets, 0.0, rng)[0])
    asked, noted = vqav2(random.Random(0).sample(questions["test"], test))
    write(out / "questions.json", asked)
    write(out / "annotations.json", noted)
    print(f"{len(records)} pool samples, {sum(t['flaw'] != 'none' for t in truth)} with wrong answers, under {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=4000, help="questions in the pool")
    parser.add_argument("--wrong", type=float, default=0.2, help="share of wrong answers in the pool")
    parser.add_argument("--test", type=int, default=1000, help="test questions (drawn with a fixed seed)")
    parser.add_argument("--targets", type=int, default=200, help="questions in the target file")
    args = parser.parse_args()
    convert(args.archive, args.out, args.seed, args.pool, args.wrong, args.test, args.targets)


if __name__ == "__main__":
    main()
