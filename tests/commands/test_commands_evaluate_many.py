"""Several models and benchmarks, answers that lie in files, several processes, and many questions; small files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_huggingface import save_classifier
from tiny_models import save_backbones, tiny_vlm, wake_lora

from vlmsel import cli
from vlmsel.data.world.files import WorldSizes, benchmark_files, write_world
from vlmsel.evaluation import harness
from vlmsel.evaluation.engines.open import engine_of
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task
from vlmsel.models import checkpoint
from vlmsel.models.assembly import build
from vlmsel.models.open import open_subject
from vlmsel.models.presets import PRESETS

SOLUTIONS = [("stir it", "boil the café"), ("a", "an answer of some length"), ("naïve", "plain"), ("up", "down")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Our model, a Llama, a BERT, and files of three benchmarks."""
    folder = tmp_path_factory.mktemp("home")
    write_world(folder / "world", WorldSizes(captions=0, pool=0, target=0, questions=9))
    model = tiny_vlm(folder / "parts")
    wake_lora(model)
    checkpoint.save(model, folder / "vlm")
    shutil.copytree(save_backbones(folder / "other", seed=3)[1], folder / "llama")
    save_classifier(folder / "bert")
    lines = [{"goal": f"to do {i}", "sol1": a, "sol2": b} for i, (a, b) in enumerate(SOLUTIONS)]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    (folder / "piqa.lst").write_text("0\n1\n1\n0\n")
    rows = [f"a film{' so' * i} fine \t{i % 2}" for i in range(5)]
    (folder / "sst2.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


def tasks(home):
    vqav2 = benchmark_files(home / "world")["vqav2"]
    return {
        "piqa": {"questions": f"{home}/piqa.jsonl", "annotations": f"{home}/piqa.lst"},
        "sst2": {"questions": f"{home}/sst2.tsv"},
        "mine": {
            "task": "vqav2",
            "questions": vqav2["questions"][0],
            "annotations": vqav2["annotations"],
            "images": f"{home}/world/images/test/vqav2",
        },
    }


def options(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def arguments(home, out, task, **more):
    files = {"task": "vqav2" if task == "mine" else task, **tasks(home)[task]}
    return ["evaluate", *options({**files, "out": out, "device": "cpu", "max_new_tokens": 3, **more})]


def evaluate(home, out, task, **more):
    return cli.main(arguments(home, out, task, **more))


def result(folder):
    return json.loads((folder / "metrics.json").read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(call, capsys):
    """The call ends with code 2 and one line, which is returned."""
    capsys.readouterr()
    assert call() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


# Text tasks, from files to metrics


def test_piqa_is_what_each_choice_is_worth_alone(home, tmp_path):
    assert evaluate(home, tmp_path / "run", "piqa", model=home / "llama") == 0
    engine = engine_of(open_subject(f"{home}/llama", "cpu"))
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    for i, (choices, label) in enumerate(zip(SOLUTIONS, (0, 1, 1, 0), strict=True)):
        logs = [engine.loglikelihoods([(f"Question: to do {i}\nAnswer:", f" {one}")])[0] for one in choices]
        for rule, length in (("acc", lambda _: 1), ("acc_norm", len), ("acc_bytes", lambda text: len(text.encode()))):
            first, second = (value / length(text) for value, text in zip(logs, choices, strict=True))
            right[rule].append((second > first) == label)
        (line,) = (one for one in lines(tmp_path / "run/predictions.jsonl") if one["question_id"] == str(i))
        assert line["loglikelihoods"] == pytest.approx(logs, rel=1e-5)
    assert result(tmp_path / "run")["metrics"] == {rule: sum(own) / 4 for rule, own in right.items()}


def test_sst2_is_the_classifiers_choice_for_each_text_alone(home, tmp_path):
    assert evaluate(home, tmp_path / "run", "sst2", model=home / "bert") == 0
    subject = open_subject(f"{home}/bert", "cpu")
    model, tokenizer = subject.module, subject.tokenizer
    texts = [f"a film{' so' * i} fine " for i in range(5)]
    chosen = [int(model.eval()(**tokenizer(text, return_tensors="pt")).logits.argmax()) for text in texts]
    found = result(tmp_path / "run")
    assert found["metrics"] == {"accuracy": sum(own == i % 2 for i, own in enumerate(chosen)) / 5}
    assert found["protocol"]["prompt"] == "the texts alone" and found["questions"] == 5


# Several models, several benchmarks


def write_yaml(home, path, **more):
    models = {"one": f"{home}/vlm", "two": f"{home}/vlm"}
    path.write_text(
        yaml.safe_dump({"models": models, "tasks": tasks(home), "max_new_tokens": 3, **more}, sort_keys=False)
    )
    return ["evaluate", "--config", str(path), "--device", "cpu"]


@pytest.mark.slow
def test_every_model_on_every_task_and_a_table(home, tmp_path, capsys, monkeypatch):
    call = write_yaml(home, tmp_path / "all.yaml")
    out = tmp_path / "run"
    assert cli.main([*call, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    for model in ("one", "two"):
        for task in tasks(home):
            assert evaluate(home, tmp_path / model / task, task, model=home / "vlm") == 0
            single, own = result(tmp_path / model / task), result(out / model / task)
            assert own["metrics"] == single["metrics"] and own["protocol"] == single["protocol"]
            assert own["task"] == task
        assert (out / model / "mine/vqav2_results.json").is_file()  # in the benchmark's own format under any name
    found = {task: result(out / "two" / task) for task in tasks(home)}
    head, _, first, second = (out / "table.md").read_text().splitlines()
    assert head == "| model | piqa (acc) | sst2 (accuracy) | mine (accuracy) |"
    values = [(f["metrics"][f["headline"]], f["standard_errors"][f["headline"]]) for f in found.values()]
    assert second == "| two | " + " | ".join(f"{100 * v:.1f} ± {100 * e:.1f}" for v, e in values) + " |"
    assert first == second.replace("two", "one") and "in %, ± standard error over questions" in shown
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def nothing(*_):
        raise AssertionError("asked again")

    monkeypatch.setattr(harness, "_append", nothing)
    assert cli.main([*call, "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_several_models_by_their_options(home, tmp_path):
    models = {"models.a": home / "llama", "models.b": home / "vlm"}
    assert evaluate(home, tmp_path / "run", "piqa", **models) == 0
    assert {path.parent.parent.name for path in tmp_path.glob("run/*/piqa/metrics.json")} == {"a", "b"}


def test_one_question_has_no_standard_error_in_the_table(home, tmp_path):
    (tmp_path / "one.tsv").write_text("sentence\tlabel\nfine \t1\n")
    given = json.dumps({"sst2": {"questions": f"{tmp_path}/one.tsv"}})
    assert cli.main(["evaluate", "--model", f"{home}/bert", "--tasks", given, "--out", f"{tmp_path}/run"]) == 0
    assert "nan" not in (tmp_path / "run/table.md").read_text() + (tmp_path / "run/model/sst2/metrics.json").read_text()


def test_a_fault_names_the_model_and_the_task(home, tmp_path, capsys):
    models = {"models.ours": home / "vlm", "models.words": home / "llama"}
    error = refused(lambda: evaluate(home, tmp_path / "run", "mine", **models), capsys)
    assert "words: vqav2: a causal language model cannot read images" in error


def given_tasks(home, tmp_path, entries, *more):
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    return cli.main(["evaluate", "--model", f"{home}/vlm", "--tasks", json.dumps(entries), *out, *more])


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        (
            {"okvqa": {"questions": "a"}},
            [],
            "no task is called 'okvqa'; there are vqav2, gqa, pope, textvqa, mmbench, scienceqa, qasc",
        ),
        ({"okvqa": {"questions": "a"}}, [], "; set task to one of them"),
        ({"piqa": {"question": "a"}}, [], "tasks.piqa has no setting 'question'; there are questions, images,"),
        ({"piqa": {"annotations": "a"}}, [], "tasks.piqa has no questions; name the benchmark's file"),
        ({"piqa": {"questions": 3}}, [], "tasks.piqa.questions must be text, got 3"),
        ({"piqa": "a"}, [], "tasks must be dict or null"),
        ({"a/b": {"questions": "a", "task": "piqa"}}, [], "'a/b' cannot be the name of a folder of results"),
        ({"..": {"questions": "a", "task": "piqa"}}, [], "'..' cannot be the name of a folder of results"),
        ({"mine": {"questions": "nowhere", "task": "piqa"}}, [], "mine: nowhere: no such file"),
        ({"piqa": {"questions": "a"}}, ["--task", "piqa"], "--task and --questions, or several with --tasks, not both"),
        ({"piqa": {"questions": "a"}}, ["--images", "a"], "or several with --tasks, not both"),
        (
            {"piqa": {"questions": "a", "images": "b"}},
            [],
            "piqa has no images; leave images (b) out",
        ),
        ({"gqa": {"questions": "a"}}, [], "gqa asks about images; give the folder that they are in"),
        ({"piqa": {"questions": "a"}}, ["--pope_mode", "logit"], "pope_mode logit is for the task pope; leave it out"),
        (
            {"piqa": {"questions": "a"}},
            ["--models.b", "c"],
            "give one of --model, --models and --predictions, got model",
        ),
    ],
)
def test_wrong_entries_end_with_one_line(home, tmp_path, capsys, entries, more, message):
    assert message in refused(lambda: given_tasks(home, tmp_path, entries, *more), capsys)


# Answers that lie in files


def vqav2(home):
    return load_task("vqav2", TaskFiles(**benchmark_files(home / "world")["vqav2"]))


def write_answers(home, path, shape):
    """Answer every other question rightly, in a shape."""
    task = vqav2(home)
    texts = {q.id: q.references[0] if i % 2 else "nothing" for i, q in enumerate(task.questions)}
    if shape == "server":
        path.write_text(json.dumps([{"question_id": int(i), "answer": text} for i, text in texts.items()]))
    else:
        entries = [{"question_id": int(i), "prompt": "x", "text": t, "model_id": "m"} for i, t in texts.items()]
        path.write_text("".join(json.dumps(one) + "\n" for one in entries))
    return task, texts


def scored(home, tmp_path, *paths, task="mine"):
    files = {**tasks(home)[task], "task": "vqav2", "predictions": json.dumps([str(path) for path in paths])}
    files.pop("images")
    return cli.main(["evaluate", *options({**files, "out": tmp_path / "run"})])


@pytest.mark.parametrize("shape", ["server", "llava"])
def test_answers_in_files_are_scored(home, tmp_path, capsys, shape):
    task, texts = write_answers(home, tmp_path / "answers.json", shape)
    assert scored(home, tmp_path, tmp_path / "answers.json") == 0
    found = result(tmp_path / "run")
    assert found["metrics"] == task.score(texts) and 0 < found["metrics"]["accuracy"] < 1
    assert found["protocol"]["predictions"] == [str(tmp_path / "answers.json")]
    assert {"benchmark", "prompt", "template", "image_mode", "decoding", "normalize"} <= set(found["protocol"])
    assert capsys.readouterr().out.startswith("vqav2: accuracy ")


def test_a_runs_own_files_score_as_the_run(home, tmp_path):
    assert evaluate(home, tmp_path / "a", "mine", model=home / "vlm") == 0
    for name in ("predictions.jsonl", "vqav2_results.json"):
        assert scored(home, tmp_path / name, tmp_path / "a" / name) == 0
        assert result(tmp_path / name / "run")["metrics"] == result(tmp_path / "a")["metrics"]


def test_files_of_answers_that_do_not_fit_end_with_the_count(home, tmp_path, capsys):
    path = tmp_path / "answers.json"
    write_answers(home, path, "server")
    whole = json.loads(path.read_text())

    def error_of(entries):
        path.write_text(json.dumps(entries))
        return refused(lambda: scored(home, tmp_path, path), capsys)

    assert f"2 of 9 questions have no answer in {path}, the first: 1000" in error_of(whole[2:])
    doubled = [*whole, {**whole[0], "answer": "another"}]
    assert f"1 of 9 questions have different answers in {path}, the first: 1000" in error_of(doubled)
    others = [{**one, "question_id": one["question_id"] + 1} for one in whole]
    assert f"9 of 9 answers in {path} are to questions that the questions given do not have" in error_of(others)
    assert not (tmp_path / "run/metrics.json").exists()
    path.write_text(json.dumps(whole))
    assert scored(home, tmp_path, path) == 0  # the mended file may have the folder


def test_answers_in_files_are_texts_to_one_benchmark(home, tmp_path, capsys):
    given = {"predictions": home / "piqa.jsonl"}
    error = refused(lambda: evaluate(home, tmp_path / "run", "piqa", **given), capsys)
    assert "--predictions scores texts: those of tasks with images" in error
    call = ["evaluate", "--predictions", "a", "--tasks", json.dumps(tasks(home)), "--out", f"{tmp_path}/b"]
    assert "give --task instead of --tasks" in refused(lambda: cli.main(call), capsys)


# Several processes


def launch(words, processes):
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    return subprocess.run([*start, "-m", "vlmsel", *words], capture_output=True, text=True, timeout=300)


def by_id(path):
    found = {line["question_id"]: line for line in lines(path)}
    assert len(found) == len(lines(path))
    return found


@pytest.mark.slow
def test_two_processes_find_what_one_finds(home, tmp_path):
    call = write_yaml(home, tmp_path / "all.yaml", batch_size=2)
    ended = launch([*call, "--out", str(tmp_path / "two")], 2)
    assert ended.returncode == 0, ended.stderr
    assert cli.main([*call, "--out", str(tmp_path / "one")]) == 0
    folders = [path.parent.relative_to(tmp_path / "one") for path in (tmp_path / "one").glob("*/*/metrics.json")]
    assert len(folders) == 6
    for folder in folders:
        own, other = tmp_path / "one" / folder, tmp_path / "two" / folder
        assert by_id(own / "predictions.jsonl") == by_id(other / "predictions.jsonl")
        assert result(own) == result(other) and not (other / "predictions.1.jsonl").exists()
    assert (tmp_path / "one/table.md").read_text() == (tmp_path / "two/table.md").read_text()
    assert ended.stdout.count("± standard error over questions") == 1


@pytest.mark.slow
def test_a_fault_of_all_processes_is_told_once(home, tmp_path):
    """Nobody waits for a process that has ended, which torch would do for longer than `launch` lets it."""
    ended = launch(arguments(home, tmp_path / "run", "mine", model=home / "vlm", protocol="long"), 2)
    assert ended.returncode != 0
    assert ended.stderr.count("error: protocol must be one of llava15, prismatic, bare; got 'long'") == 1
    assert "vlmsel/commands" not in ended.stderr  # no traceback of ours


# Many questions, with the shipped backbones

MANY = 1000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_world(folder / "world", WorldSizes(captions=0, pool=0, target=0, questions=MANY))
    model = build(PRESETS["tiny"])
    model.mark_trained(["projector"])
    checkpoint.save(model, folder / "vlm")
    assert evaluate(folder, folder / "8", "mine", model=folder / "vlm", batch_size=8) == 0
    assert len(set(texts(folder / "8").values())) > 10  # else the tests would say nothing
    return folder


def texts(out):
    return {identity: line["text"] for identity, line in by_id(out / "predictions.jsonl").items()}


@pytest.mark.slow
def test_a_thousand_answers_are_the_same_in_batches_of_any_size(many, tmp_path):
    for size in (1, 64):
        assert evaluate(many, tmp_path / str(size), "mine", model=many / "vlm", batch_size=size) == 0
        assert texts(tmp_path / str(size)) == texts(many / "8") and len(texts(many / "8")) == MANY
        assert result(tmp_path / str(size)) == result(many / "8")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_answers(many, tmp_path):
    call = arguments(many, tmp_path / "run", "mine", model=many / "vlm", batch_size=8)
    path = tmp_path / "run/predictions.jsonl"
    run = subprocess.Popen([sys.executable, "-m", "vlmsel", *call], stderr=subprocess.DEVNULL)
    while not path.is_file() or path.read_bytes().count(b"\n") < MANY // 2:
        assert run.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    assert MANY // 2 <= path.read_bytes().count(b"\n") < MANY
    assert cli.main(call) == 0
    assert texts(tmp_path / "run") == texts(many / "8") and result(tmp_path / "run") == result(many / "8")
