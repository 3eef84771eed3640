"""`vlmsel evaluate` from files to metrics, with a random model of a few thousand parameters."""

import gzip
import json
import math
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_vlm, wake_lora

from vlmsel import cli
from vlmsel.data.world.files import TASKS, WorldSizes, benchmark_files, write_world
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task
from vlmsel.models import checkpoint
from vlmsel.models.assembly import build
from vlmsel.models.presets import PRESETS

QUESTIONS = 18


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A world with a few questions and a saved model."""
    folder = tmp_path_factory.mktemp("home")
    write_world(folder / "world", WorldSizes(captions=0, pool=0, target=0, questions=QUESTIONS))
    model = tiny_vlm(folder)
    wake_lora(model)
    checkpoint.save(model, folder / "model")
    return folder


def evaluate(home, out, task, *more, images=None):
    files = benchmark_files(home / "world")[task]
    arguments = ["evaluate", "--model", str(home / "model"), "--task", task, "--out", str(out), "--device", "cpu"]
    several = len(files["questions"]) > 1
    arguments += ["--questions", json.dumps(files["questions"]) if several else files["questions"][0]]
    arguments += ["--annotations", files["annotations"]] if "annotations" in files else []
    arguments += ["--images", str(images or home / "world/images/test" / task), "--max_new_tokens", "3"]
    return cli.main([*arguments, *more])


def answers(out):
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len({line["question_id"] for line in lines}) == len(lines)
    return {line["question_id"]: line["text"] for line in lines}


def result(out):
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.parametrize("task", TASKS)
def test_from_files_to_metrics(home, tmp_path, task, capsys):
    assert evaluate(home, tmp_path / "run", task, "--protocol", "bare") == 0
    found, given = result(tmp_path / "run"), answers(tmp_path / "run")
    benchmark = load_task(task, TaskFiles(**benchmark_files(home / "world")[task]))
    constant, majority = benchmark.majority()
    assert len(given) == found["questions"] == QUESTIONS
    assert found["groups"] == Counter(question.group for question in benchmark.questions)
    assert found["metrics"] == benchmark.score(given)
    assert (found["majority_answer"], found["majority"]) == (constant, majority)
    shown = capsys.readouterr().out
    assert shown.startswith(f"{task}: ") and f"{found['headline']} {100 * majority[found['headline']]:.1f}" in shown


@pytest.mark.parametrize("task", ["gqa", pytest.param("pope", marks=pytest.mark.slow)])
def test_some_of_the_questions_are_asked_as_all_of_them_are(home, tmp_path, task, capsys):
    assert evaluate(home, tmp_path / "all", task) == 0
    for name in ("some", "again"):
        assert evaluate(home, tmp_path / name, task, "--limit", "7") == 0
    every, some = answers(tmp_path / "all"), answers(tmp_path / "some")
    assert len(some) == 7 == result(tmp_path / "some")["questions"] and some.items() <= every.items()
    assert (
        answers(tmp_path / "again") == some and f"{task}: 7 of {QUESTIONS} questions, drawn" in capsys.readouterr().out
    )
    assert evaluate(home, tmp_path / "more", task, "--limit", "0") == 2


def test_batches_change_no_answer(home, tmp_path):
    given = []
    for size in (1, 3, 16):
        assert evaluate(home, tmp_path / str(size), "vqav2", "--batch_size", str(size)) == 0
        given.append(answers(tmp_path / str(size)))
    assert given[0] == given[1] == given[2]
    assert len(set(given[0].values())) > 1  # else the model says the same to everything, and the test would say nothing


def test_a_run_goes_on_from_half_of_its_answers(home, tmp_path):
    out = tmp_path / "run"
    assert evaluate(home, out, "gqa", "--protocol", "bare") == 0
    before, given = result(out), answers(out)
    whole = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text("".join(whole[: QUESTIONS // 2]) + whole[QUESTIONS // 2][:15])
    (out / "metrics.json").unlink()
    assert evaluate(home, out, "gqa", "--protocol", "bare") == 0
    assert result(out) == before and answers(out) == given


@pytest.mark.parametrize("what", ["model", "images", "questions"])
def test_answers_of_another_model_or_to_other_pictures_are_not_gone_on_from(home, tmp_path, capsys, what):
    there = tmp_path / "home"
    for name in ("model", "world"):
        shutil.copytree(home / name, there / name)
    assert evaluate(there, tmp_path / "run", "gqa") == 0
    (tmp_path / "run/metrics.json").unlink()
    if what == "model":
        weights = load_file(there / "model/projector.safetensors")
        save_file({name: 2 * tensor for name, tensor in weights.items()}, there / "model/projector.safetensors")
    elif what == "images":
        picture = next((there / "world/images/test/gqa").rglob("*.*"))
        Image.new("RGB", (40, 30), "red").save(picture)
    else:
        file = Path(benchmark_files(there / "world")["gqa"]["questions"][0])
        file.write_text(file.read_text() + "\n")
    capsys.readouterr()
    error = refused(lambda: evaluate(there, tmp_path / "run", "gqa"), capsys)
    assert f"the {what}" in error and "changed since this run began; choose another --out" in error


def test_what_was_asked_how_is_recorded(home, tmp_path):
    for protocol in ("bare", "llava15"):
        assert evaluate(home, tmp_path / protocol, "textvqa", "--protocol", protocol) == 0
    bare, short = result(tmp_path / "bare")["protocol"], result(tmp_path / "llava15")["protocol"]
    assert bare.pop("prompt") == "bare" and short.pop("prompt") == "llava15"
    assert bare == short
    assert (
        bare["max_new_tokens"] == 3
        and bare["headline"] == "without OCR tokens"
        and {"template", "image_mode"} <= set(bare)
    )


def test_another_protocol_in_the_same_folder_is_refused(home, tmp_path, capsys):
    assert evaluate(home, tmp_path / "run", "gqa", "--protocol", "bare") == 0
    capsys.readouterr()
    assert evaluate(home, tmp_path / "run", "gqa", "--protocol", "llava15") == 2
    error = capsys.readouterr().err
    assert "protocol: bare" in error and "protocol: llava15" in error and error.count("\n") == 1


def refused(call, capsys):
    """The call ends with code 2 and one line, which is returned."""
    capsys.readouterr()
    assert call() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_missing_image_folder(home, tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    error = refused(lambda: evaluate(home, tmp_path / "run", "gqa", images=nowhere), capsys)
    assert f"{nowhere}: no such image folder" in error


def test_a_missing_image_is_found_before_anything_is_asked(home, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(home / "world/images/test/gqa", images)
    (images / f"n{QUESTIONS - 1:06d}.png").unlink()
    error = refused(lambda: evaluate(home, tmp_path / "run", "gqa", images=images), capsys)
    assert f"question {QUESTIONS - 1:08d}: image 'n{QUESTIONS - 1:06d}.jpg' is missing in {images}" in error
    assert not (tmp_path / "run/predictions.jsonl").exists()


def test_a_broken_image_names_its_question_and_can_be_mended(home, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(home / "world/images/test/gqa", images)
    (images / "n000003.png").write_bytes(b"no picture")
    error = refused(lambda: evaluate(home, tmp_path / "run", "gqa", images=images), capsys)
    assert "question 00000003: image 'n000003.jpg' cannot be read" in error
    shutil.copy(home / "world/images/test/gqa/n000003.png", images)
    assert evaluate(home, tmp_path / "run", "gqa", images=images) == 0


def test_a_questions_file_of_another_task(home, tmp_path, capsys):
    questions = ["--questions", json.dumps(benchmark_files(home / "world")["gqa"]["questions"])]
    error = refused(lambda: evaluate(home, tmp_path / "run", "textvqa", *questions), capsys)
    assert "gqa_world_questions.json: no 'data'; is this the benchmark's official file?" in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--task", "okvqa", "no task is called 'okvqa'; there are vqav2"),
        ("--protocol", "long", "protocol must be one of llava15, prismatic, bare; got 'long'"),
        ("--batch_size", "0", "must be at least 1, got 0 and 3"),
        ("--max_new_tokens", "0", "must be at least 1, got 32 and 0"),
        ("--model", "nowhere", "nowhere: no model"),
    ],
)
def test_wrong_options_end_with_one_line(home, tmp_path, capsys, option, value, message):
    assert message in refused(lambda: evaluate(home, tmp_path / "run", "gqa", option, value), capsys)


# One's own questions


def test_own_questions_with_and_without_images_by_a_metric(home, tmp_path, capsys):
    picture = next((home / "world/images/test/gqa").glob("*.png")).name
    choices = ["red", "blue"]
    records = [{"question": f"Which {i}?", "choices": choices, "answer": "red"} for i in range(5)]
    records[2]["image"] = records[4]["image"] = picture
    (tmp_path / "mine.json").write_text(json.dumps(records))
    given = ["--model", str(home / "model"), "--questions", str(tmp_path / "mine.json"), "--metric", "choice"]
    given = ["evaluate", *given, "--out", str(tmp_path / "run"), "--max_new_tokens", "3", "--device", "cpu"]
    error = refused(lambda: cli.main(given), capsys)
    assert "2 of 5 questions have images; name their folder as images" in error
    assert cli.main([*given, "--images", str(home / "world/images/test/gqa"), "--batch_size", "2"]) == 0
    found, said = result(tmp_path / "run"), answers(tmp_path / "run")
    assert found["task"] == "mine" and len(said) == 5
    # a random model says nonsense
    assert found["metrics"]["accuracy"] == 0 and found["fit_no_label"] == {"no option": 5}
    assert capsys.readouterr().out.startswith("mine: accuracy ")
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == ["0", "1", "3", "2", "4"]  # those without an image come first
    again = ["evaluate", "--questions", str(tmp_path / "mine.json"), "--metric", "choice", "--predictions"]
    assert cli.main([*again, str(tmp_path / "run/predictions.jsonl"), "--out", str(tmp_path / "again")]) == 0
    assert result(tmp_path / "again")["metrics"] == found["metrics"]


# POPE off probabilities, TextVQA with OCR tokens


def test_prismatic_reads_pope_off_probabilities(home, tmp_path):
    """With the shipped tokenizer, in which Yes and No begin with tokens of their own."""
    model = build(PRESETS["tiny"])
    model.mark_trained(["projector"])
    checkpoint.save(model, tmp_path / "tiny")
    given = ["--model", str(tmp_path / "tiny"), "--protocol", "prismatic"]
    assert evaluate(home, tmp_path / "run", "pope", *given) == 0
    found = result(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    given = {line["question_id"]: line["logprobs"] for line in lines}
    benchmark = load_task("pope", TaskFiles(**benchmark_files(home / "world")["pope"]), "logit")
    right = [(given[q.id][0] >= given[q.id][1]) == (q.references[0] == "yes") for q in benchmark.questions]
    assert found["metrics"] == benchmark.score(given) and {"auroc", "aupr"} <= set(found["metrics"])
    assert found["headline"] == "accuracy" and found["metrics"]["accuracy"] == pytest.approx(sum(right) / QUESTIONS)
    assert all(lines[0]["prompt"].startswith("\n") and sum(map(math.exp, pair)) <= 1 for pair in given.values())
    assert found["protocol"]["decoding"] == "probabilities of the first token"
    assert not list((tmp_path / "run").glob("*_results.json"))  # the official script reads texts


def test_prismatic_with_text_parses_popes_answers(home, tmp_path):
    assert evaluate(home, tmp_path / "run", "pope", "--protocol", "prismatic", "--pope_mode", "text") == 0
    assert result(tmp_path / "run")["headline"] == "f1" and len(answers(tmp_path / "run")) == QUESTIONS


def test_textvqa_is_asked_without_and_with_ocr_tokens(home, tmp_path):
    (file,) = benchmark_files(home / "world")["textvqa"]["questions"]
    with open(file) as questions:
        data = [
            {"image_id": f"w{i:06d}", "ocr_tokens": ["one", str(i)]} for i in range(len(json.load(questions)["data"]))
        ]
    (tmp_path / "ocr.json").write_text(json.dumps({"data": data}))
    assert evaluate(home, tmp_path / "run", "textvqa", "--ocr", str(tmp_path / "ocr.json")) == 0
    found = result(tmp_path / "run")
    assert found["headline"] == "textvqa_ocr" and set(found["metrics"]) == {"textvqa_ocr", "textvqa_pure"}
    assert found["questions"] == 2 * QUESTIONS and found["groups"] == {"ocr": QUESTIONS, "pure": QUESTIONS}
    lines = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").read_text().splitlines()]
    assert sum("\nReference OCR token: one, " in line["prompt"] for line in lines) == QUESTIONS
    given = answers(tmp_path / "run")
    for name, ending in (("pure", ""), ("ocr", "/ocr")):
        entries = json.loads((tmp_path / f"run/textvqa_{name}_results.json").read_text())
        assert {f"{one['question_id']}{ending}": one["answer"] for one in entries} == {
            identity: text for identity, text in given.items() if identity.endswith("/ocr") == bool(ending)
        }


# Files and options as a new user may give them


def given(home, tmp_path, **settings):
    """Evaluate with all of VQAv2's options, some of them changed, or left out where they are None."""
    files = benchmark_files(home / "world")["vqav2"]
    usual = {"model": home / "model", "task": "vqav2", "out": tmp_path / "run", "questions": files["questions"][0]}
    usual |= {"annotations": files["annotations"], "images": home / "world/images/test/vqav2"}
    kept = {key: value for key, value in {**usual, **settings}.items() if value is not None}
    return cli.main(["evaluate", "--device", "cpu", *(str(w) for k, v in kept.items() for w in (f"--{k}", v))])


NO_ANSWERS = 'line 1: not {"question_id", "answer"}'
MESSAGES = {  # where they differ from those of a questions file
    ("annotations", b'{"questions": []}'): "no 'annotations'; is this the benchmark's official file?",
    ("annotations", b'{"data_subtype": "val2014", "questions": []}'): "no 'annotations'; is this the benchmark's",
    ("predictions", b"{"): "line 1: not JSON",
    ("predictions", b"\xff\xfe\x00"): "not a text file",
    ("predictions", b'{"questions": []}'): NO_ANSWERS,
    ("predictions", b'{"data_subtype": "val2014", "questions": []}'): NO_ANSWERS,
}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "a folder; name the file in it"),
        (b"", "the file is empty; take the official file"),
        (gzip.compress(b"{}", mtime=0), "a compressed file; unpack it first"),
        (b"PK\x03\x04", "a compressed file; unpack it first"),
        (b"{", "not a JSON file"),
        (b"\xff\xfe\x00", "not a JSON file"),
        (b'{"questions": []}', "no 'data_subtype'; is this the benchmark's official file?"),
        (b'{"data_subtype": "val2014", "questions": []}', "no question in it; is this the benchmark's official file?"),
    ],
)
@pytest.mark.parametrize("option", ["questions", "annotations", "predictions"])
def test_files_that_cannot_be_read(home, tmp_path, capsys, option, content, message):
    path = tmp_path / "file"
    path.mkdir() if content is None else path.write_bytes(content)
    changed = {"model": None} if option == "predictions" else {}
    error = refused(lambda: given(home, tmp_path, **changed, **{option: path}), capsys)
    assert str(path) in error and MESSAGES.get((option, content), message) in error
    if content == b"":  # the mended command may have the folder
        assert given(home, tmp_path, max_new_tokens=2) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"questions": "nowhere.json"}, "nowhere.json: no such file"),
        ({"questions": None}, "name a benchmark with --task and its file with --questions, or several with --tasks"),
        ({"task": None}, "name a benchmark with --task and its file with --questions, or several with --tasks"),
        ({"task": "gqa"}, "gqa has no annotations file"),
        (
            {"annotations": None},
            "vqav2 needs an annotations file, v2_mscoco_*_annotations.json; give it as annotations",
        ),
        ({"images": None}, "vqav2 asks about images; give the folder that they are in as images"),
        ({"ocr": __file__}, "vqav2 has no file of OCR tokens; leave ocr ("),
        ({"model": None}, "give one of --model, --models and --predictions, got none"),
        ({"predictions": "a"}, "give one of --model, --models and --predictions, got model and predictions"),
        ({"models.a": "a"}, "give one of --model, --models and --predictions, got model and models"),
        ({"models.../a": "a", "model": None}, "'../a' cannot be the name of a folder of results"),
        ({"pope_mode": "text"}, "pope_mode text is for the task pope; leave it out"),
        ({"out": __file__}, "exists but is not a run folder (no config.yaml); choose another --out"),
        ({"model": "tiny"}, "the projector of tiny was never trained"),
        ({"device": "gpu"}, "no device is called 'gpu'"),
    ],
)
def test_options_that_do_not_go_together(home, tmp_path, capsys, settings, message):
    assert message in refused(lambda: given(home, tmp_path, **settings), capsys)


def test_images_are_found_before_a_model_is_loaded(home, tmp_path, capsys):
    error = refused(lambda: given(home, tmp_path, model="nowhere", images=tmp_path), capsys)
    assert f"question 1000: image 'COCO_world_000000000001.jpg' is missing in {tmp_path} (18 of 18 questions" in error
