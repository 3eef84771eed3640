"""The embedded world as ordinary files: captions, an instruction pool, target sets, and four benchmarks in official
formats.

The pool is made like a real one, with shares fixed before any scorer was compared (and never tuned to one):

    source    share  what                                   use for the targets
    vqa        18 %  open, number and yes/no questions      VQAv2 style
    gqa        18 %  relations, places, choices             GQA style
    presence   12 %  is there a red circle?                 POPE style
    ocr        12 %  what does the sign say?                TextVQA style
    region     10 %  where is the red circle?               related, never asked
    caption    10 %  describe the image                     what alignment has already taught
    text       20 %  sums, spelling, small talk, no image   none

Flaws, drawn independently of the source: 15 % of the image samples carry a wrong answer of the right type, 5 % the
image of another scene; 10 % of all samples nearly repeat an earlier one (same scene drawn anew, same question). What is
wrong with each sample stands in `pool_truth.json`, which no scorer reads.

Target sets and benchmark questions come from scenes of their own. All ask in `questions.WORDINGS`.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vlmsel.data.world.questions import Asked, ask, ask_presence
from vlmsel.data.world.render import render
from vlmsel.data.world.scenes import NAMES, Scene, describe, draw_scene, weighted
from vlmsel.data.world.text import text_task

SOURCES = {"vqa": 18, "gqa": 18, "presence": 12, "ocr": 12, "region": 10, "caption": 10, "text": 20}
STYLE_OF = {"vqa": "vqav2", "gqa": "gqa", "presence": "pope", "ocr": "textvqa", "region": "region"}
TASKS = ("vqav2", "gqa", "pope", "textvqa")
POPE_SPLITS = ("random", "popular", "adversarial")
WRONG_SHARE, MISMATCH_SHARE, DUPLICATE_SHARE = 0.15, 0.05, 0.10
ANNOTATOR_ERROR = 0.06
CAPTION_PROMPT = "Describe the image."


@dataclass(frozen=True)
class WorldSizes:
    """How many samples each file holds."""

    captions: int = 3000
    pool: int = 4000
    target: int = 100
    questions: int = 300


def write_world(folder: str | Path, sizes: WorldSizes | None = None, seed: int = 0) -> None:
    """Write the whole world under `folder`; the same seed and sizes give the same bytes of JSON and the same pixels."""
    folder, sizes = Path(folder), sizes or WorldSizes()
    write_captions(folder, sizes.captions, random.Random(f"captions {seed}"))
    write_pool(folder, sizes.pool, random.Random(f"pool {seed}"))
    for task in TASKS:
        write_target(folder, task, sizes.target, random.Random(f"target {task} {seed}"))
        _BENCHMARKS[task](folder, sizes.questions, random.Random(f"test {task} {seed}"))
    _dump(folder / "world.json", {"seed": seed, **asdict(sizes), "sources": SOURCES, "wrong": WRONG_SHARE,
                                  "mismatch": MISMATCH_SHARE, "duplicate": DUPLICATE_SHARE})  # fmt: skip


def _dump(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def _save_image(folder: Path, relative: str, scene: Scene) -> None:
    path = folder / "images" / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    render(scene).save(path)


def save_sample(
    folder: Path, image: str, scene: Scene | None, identity: str, question: str, answer: str, source: str
) -> dict:
    """Save a sample's image in `folder/images`, if there is a scene, and return its record."""
    pictured = {}
    if scene is not None:
        _save_image(folder, image, scene)
        pictured, question = {"image": image}, f"<image>\n{question}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identity, **pictured, "source": source, "conversations": turns}


def draw_asked(style: str, rng: random.Random) -> tuple[Scene, Asked]:
    """Draw a scene that allows a question in a style of `STYLE_OF`, and the question."""
    while True:
        scene = draw_scene(rng)
        if (asked := ask(style, scene, rng)) is not None:
            return scene, asked


def write_captions(folder: Path, count: int, rng: random.Random) -> None:
    """Write `captions.json`: the alignment data."""
    records = []
    for index in range(count):
        scene = draw_scene(rng)
        image, texts = f"captions/{index:06d}.png", (CAPTION_PROMPT, describe(scene))
        records.append(save_sample(folder, image, scene, f"caption_{index:06d}", *texts, "captions"))
    _dump(folder / "captions.json", records)


def benchmark_files(folder: Path) -> dict[str, dict]:
    """Return, per task, where `write_world` puts its questions (a list, POPE has three files) and annotations."""
    test = folder / "test"
    return {
        "vqav2": {
            "questions": [str(test / "v2_OpenEnded_mscoco_world_questions.json")],
            "annotations": str(test / "v2_mscoco_world_annotations.json"),
        },
        "gqa": {"questions": [str(test / "gqa_world_questions.json")]},
        "pope": {"questions": [str(test / f"coco_pope_{split}.json") for split in POPE_SPLITS]},
        "textvqa": {"questions": [str(test / "TextVQA_0.5.1_world.json")]},
    }


# The instruction pool


@dataclass(frozen=True)
class _Item:
    source: str
    scene: Scene | None
    question: str
    answer: str
    wrong: str
    flaw: str = "none"


def _draw_item(source: str, rng: random.Random) -> _Item:
    if source == "text":
        question, answer = text_task(rng)
        return _Item(source, None, question, answer, answer)
    if source == "caption":
        scene = draw_scene(rng)
        return _Item(source, scene, CAPTION_PROMPT, describe(scene), describe(draw_scene(rng)))
    scene, asked = draw_asked(STYLE_OF[source], rng)
    return _Item(source, scene, asked.question, asked.answer, asked.wrong)


def _spoil(item: _Item, rng: random.Random) -> _Item:
    chance = rng.random()
    if item.scene is None or chance >= WRONG_SHARE + MISMATCH_SHARE:
        return item
    if chance < WRONG_SHARE:
        return replace(item, answer=item.wrong, flaw="wrong answer")
    return replace(item, scene=draw_scene(rng), flaw="other image")


def draw_pool(count: int, rng: random.Random) -> list[tuple[_Item, bool]]:
    """Draw the pool's items; the flag says whether an item nearly repeats an earlier one."""
    items: list[tuple[_Item, bool]] = []
    for _ in range(count):
        if items and rng.random() < DUPLICATE_SHARE:
            earlier = rng.choice(items)[0]
            again = earlier.scene and replace(earlier.scene, background=rng.randint(30, 110))
            items.append((replace(earlier, scene=again), True))
        else:
            items.append((_spoil(_draw_item(weighted(rng, SOURCES), rng), rng), False))
    return items


def write_pool(folder: Path, count: int, rng: random.Random) -> None:
    """Write `pool.json` and `pool_truth.json`."""
    records, truth = [], []
    for uid, (item, repeated) in enumerate(draw_pool(count, rng)):
        image, identity = f"pool/{uid:06d}.png", f"{item.source}_{uid:06d}"
        records.append(save_sample(folder, image, item.scene, identity, item.question, item.answer, item.source))
        truth.append({"uid": uid, "source": item.source, "flaw": item.flaw, "near_duplicate": repeated})
    _dump(folder / "pool.json", records)
    _dump(folder / "pool_truth.json", truth)


def write_target(folder: Path, task: str, count: int, rng: random.Random) -> None:
    """Write `targets/<task>.json`: clean instruction samples in the style of one benchmark."""
    records = []
    for index in range(count):
        scene, asked = draw_asked(task, rng)
        name = f"{task}_{index:05d}"
        records.append(save_sample(folder, f"targets/{name}.png", scene, name, asked.question, asked.answer, task))
    _dump(folder / "targets" / f"{task}.json", records)


# The four benchmarks, in the formats of their publishers


def _ten_answers(asked: Asked, rng: random.Random) -> list[str]:
    return [asked.wrong if rng.random() < ANNOTATOR_ERROR else asked.answer for _ in range(10)]


def _write_vqav2(folder: Path, count: int, rng: random.Random) -> None:
    questions, annotations = [], []
    head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "world"}
    for index in range(1, count + 1):
        scene, asked = draw_asked("vqav2", rng)
        _save_image(folder, f"test/vqav2/COCO_world_{index:012d}.png", scene)
        key = {"image_id": index, "question_id": index * 1000}
        answers = _ten_answers(asked, rng)
        kind = "yes/no" if asked.answer in ("yes", "no") else "number" if asked.answer.isdigit() else "other"
        questions.append({**key, "question": asked.question})
        annotations.append({
            **key,
            "question_type": " ".join(asked.question.lower().split()[:2]),
            "answer_type": kind,
            "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)],
        })  # fmt: skip
    task_type = {"task_type": "Open-Ended"}
    _dump(folder / "test/v2_OpenEnded_mscoco_world_questions.json", {**head, **task_type, "questions": questions})
    _dump(folder / "test/v2_mscoco_world_annotations.json", {**head, "annotations": annotations})


_GQA_STRUCTURE = {"relation": "verify", "side": "verify", "choose": "choose", "color_at": "query", "shape_at": "query"}


def _write_gqa(folder: Path, count: int, rng: random.Random) -> None:
    questions = {}
    for index in range(count):
        scene, asked = draw_asked("gqa", rng)
        _save_image(folder, f"test/gqa/n{index:06d}.png", scene)
        identity = f"{index:08d}"
        questions[identity] = {
            "question": asked.question, "answer": asked.answer, "fullAnswer": asked.answer, "imageId": f"n{index:06d}",
            "isBalanced": True, "groups": {"global": asked.family, "local": asked.family}, "entailed": [],
            "equivalent": [identity], "semantic": [], "semanticStr": "",
            "types": {"structural": _GQA_STRUCTURE[asked.family], "semantic": "attr", "detailed": asked.family},
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        }  # fmt: skip
    _dump(folder / "test/gqa_world_questions.json", questions)


def _absent_name(split: str, scene: Scene, rng: random.Random, frequent: list[str]) -> str:
    """Draw an absent object: any (random), one of the ten most frequent (popular), one sharing a word (adversarial)."""
    pool = {"random": NAMES, "popular": frequent, "adversarial": scene.near_names()}[split]
    return rng.choice(scene.absent(pool))


def _write_pope(folder: Path, count: int, rng: random.Random) -> None:
    counts = Counter(thing.name for _ in range(2000) for thing in draw_scene(rng).things)
    frequent = [name for name, _ in counts.most_common(10)]
    for split in POPE_SPLITS:
        lines = []
        for index in range(1, count // len(POPE_SPLITS) + 1):
            scene, truth = draw_scene(rng), index % 2 == 1
            name = rng.choice(scene.things).name if truth else _absent_name(split, scene, rng, frequent)
            image = f"{split}_{index:05d}.png"
            _save_image(folder, f"test/pope/{image}", scene)
            asked = ask_presence(rng, name, truth)
            lines.append({"question_id": index, "image": image, "text": asked.question, "label": asked.answer})
        path = folder / f"test/coco_pope_{split}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_textvqa(folder: Path, count: int, rng: random.Random) -> None:
    data = []
    for index in range(count):
        scene, asked = draw_asked("textvqa", rng)
        _save_image(folder, f"test/textvqa/w{index:06d}.png", scene)
        data.append({
            "question_id": index, "image_id": f"w{index:06d}", "question": asked.question, "set_name": "val",
            "question_tokens": asked.question.lower().rstrip("?").split(), "image_width": 48, "image_height": 48,
            "image_classes": ["sign"], "answers": _ten_answers(asked, rng),
        })  # fmt: skip
    _dump(folder / "test/TextVQA_0.5.1_world.json", {"dataset_type": "val", "dataset_name": "textvqa", "data": data})


_BENCHMARKS: dict[str, Callable[[Path, int, random.Random], None]] = {
    "vqav2": _write_vqav2,
    "gqa": _write_gqa,
    "pope": _write_pope,
    "textvqa": _write_textvqa,
}
