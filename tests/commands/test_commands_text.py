"""Text models through the commands: tuned, scored, selected for, tuned again and evaluated, and what is refused."""

import json
import shutil

import huggingface_hub
import naive_scorers
import pytest
import torch
from naive_gradients import loop_gradients
from tiny_huggingface import save_classifier, save_language
from tiny_models import sample_losses

from vlmsel import cli, runs
from vlmsel.data.dataset import Reading
from vlmsel.evaluation.engines.open import engine_of
from vlmsel.gradients import select_blocks
from vlmsel.models.lora import lora_parameters
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.scoring.table import read_table

LORA = ("--lora.r", "4", "--lora.alpha", "8", "--lora.targets", "[q_proj,v_proj]")
FAST = ("--settings.epochs", "1", "--settings.batch_size", "4", "--settings.learning_rate", "0.05")
SCORERS = "[TracIn,DataInf(damping=0.1),HyperINF(damping=0.1)]"

GQA = {
    **{"question": "What is it?", "imageId": "a", "answer": "cat", "isBalanced": True},
    **{"types": {"structural": "query", "semantic": "obj", "detailed": "x"}, "groups": {"global": None}},
    **{"entailed": [], "equivalent": [], "semantic": [], "fullAnswer": "a cat"},
}


def said(number):
    turns = [("human", f"What comes after {number}?"), ("gpt", f"It is {number + 1}.")]
    return {"id": number, "source": "sums", "conversations": [{"from": who, "value": text} for who, text in turns]}


def run(*words):
    return cli.main([str(word) for word in words])


def refused(*words, capsys):
    """Return the one line that a command ends with."""
    capsys.readouterr()
    assert run(*words) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.rstrip().endswith("sample]")]
    assert line.startswith("error: ")
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A language model, pool.json, target.json, mixed.json (one sample has an image), questions.jsonl."""
    folder = tmp_path_factory.mktemp("text")
    save_language(folder / "llama", max_position_embeddings=256)
    save_classifier(folder / "bert")
    records = [said(number) for number in range(12)]
    (folder / "pool.json").write_text(json.dumps(records))
    (folder / "target.json").write_text(json.dumps([said(20), said(30)]))
    seen = {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It"}],
    }
    (folder / "mixed.json").write_text(json.dumps([*records[:3], seen, *records[3:5]]))
    questions = [{"goal": f"After {n}?", "sol1": f"{n}", "sol2": f"{n + 1}", "label": 1} for n in range(6)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    return folder


@pytest.fixture(scope="module")
def warm(home, tmp_path_factory):
    """The run folder of a warm-up with fresh adapters."""
    out = tmp_path_factory.mktemp("runs") / "warm"
    data = ("--model", home / "llama", "--data", home / "pool.json", "--out", out)
    assert run("tune", *data, "--preset", "tiny-llm", *FAST, *LORA) == 0
    return out


def test_the_whole_chain(home, warm, tmp_path):
    files = ("--pool", home / "pool.json", "--targets.sums", home / "target.json")
    assert run("score", "--model", warm, *files, "--scorers", SCORERS, "--out", tmp_path / "score") == 0
    table, about = read_table(tmp_path / "score/scores.parquet", home / "pool.json")
    assert about["blocks"] == "lora"
    scores = table["HyperINF/sums"].tolist()
    assert all(value == value and value != 0 for value in scores)
    chosen = tmp_path / "chosen.json"
    pick = ("--scores", tmp_path / "score/scores.parquet", "--pool", home / "pool.json", "--fraction", "0.5")
    assert run("select", *pick, "--rule", "top", "--out", chosen) == 0
    lowest = sorted(range(12), key=scores.__getitem__)[:6]
    assert [record["id"] for record in runs.read_json(chosen)] == sorted(lowest)
    again = ("--model", home / "llama", "--data", chosen, "--out", tmp_path / "tune")
    assert run("tune", *again, "--preset", "tiny-llm", *FAST, *LORA) == 0
    asked = ("--task", "piqa", "--questions", home / "questions.jsonl", "--out", tmp_path / "evaluate")
    assert run("evaluate", "--model", tmp_path / "tune", *asked) == 0
    answers = [json.loads(line) for line in (tmp_path / "evaluate/predictions.jsonl").read_text().splitlines()]
    right = [one["loglikelihoods"][1] > one["loglikelihoods"][0] for one in answers]  # the second choice is
    assert len(right) == 6 and any(one["loglikelihoods"][0] != one["loglikelihoods"][1] for one in answers)
    assert runs.read_json(tmp_path / "evaluate/metrics.json")["metrics"]["acc"] == pytest.approx(sum(right) / 6)


@pytest.mark.parametrize(
    ("blocks", "loss_on"),
    [
        ("lora", "answers"),
        ("last-block", "all"),
        pytest.param("lora", "all", marks=pytest.mark.slow),
        pytest.param("last-block", "answers", marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_a_plain_float64_twin(home, warm, tmp_path, blocks, loss_on):
    files = ("--pool", home / "pool.json", "--targets.sums", home / "target.json", "--out", tmp_path / "score")
    words = ("--scorers", SCORERS, "--blocks", blocks, "--loss_on", loss_on, "--scale_samples", "null")
    assert run("score", "--model", warm, *files, *words) == 0
    found, _ = read_table(tmp_path / "score/scores.parquet")
    model = open_subject(str(warm), "cpu").double()
    chosen = select_blocks(model, blocks)

    def gradients(file):
        data = open_pool(model, home / file, Reading(loss_on=loss_on)).samples
        singles = [model.collate([data[i]]) for i in range(len(data))]
        return loop_gradients(model, singles, sample_losses, chosen)

    pool, target = gradients("pool.json"), gradients("target.json")
    twins = {
        "TracIn": naive_scorers.tracin,
        "DataInf": lambda g, v: naive_scorers.datainf(g, v, 0.1),
        "HyperINF": lambda g, v: naive_scorers.hyperinf(g, v, 0.1, "cols" if v.shape[1] >= v.shape[0] else "rows"),
    }
    for name, twin in twins.items():
        directions = {block: twin(g, target[block].mean(dim=0)) for block, g in pool.items()}
        expected = sum(torch.tensor(naive_scorers.scores(pool[b], h)) for b, h in directions.items())
        got = torch.tensor(found[f"{name}/sums"])
        assert (got - expected).abs().max() < 2e-3 * expected.abs().max(), name


def test_the_whole_model_is_scored_on_its_last_block_unless_told(home, tmp_path):
    files = ("--pool", home / "pool.json", "--targets.sums", home / "target.json", "--out", tmp_path / "score")
    assert run("score", "--model", home / "llama", *files, "--scorers", "[TracIn]") == 0
    assert read_table(tmp_path / "score/scores.parquet")[1]["blocks"] == "last-block"


def test_samples_with_images_are_left_out_with_their_reason(home, warm, tmp_path):
    files = ("--targets.sums", home / "target.json", "--scorers", "[TracIn]")
    assert run("score", "--model", warm, "--pool", home / "mixed.json", *files, "--out", tmp_path / "score") == 0
    (left_out,) = runs.read_json(tmp_path / "score/skipped.json")
    assert left_out == {"uid": 3, "reason": "it has an image and this model reads text only"}
    found, _ = read_table(tmp_path / "score/scores.parquet")
    assert [value == value for value in found["TracIn/sums"]] == [True, True, True, False, True, True]
    data = ("--model", warm, "--data", home / "mixed.json", "--settings.train", "lora", *FAST)
    assert run("tune", *data, "--out", tmp_path / "tune") == 0
    assert runs.read_json(tmp_path / "tune/skipped.json") == [left_out]


def test_dense_tuning_changes_the_whole_model_and_keeps_its_template(home, tmp_path):
    data = ("--model", home / "llama", "--data", home / "pool.json", "--out", tmp_path / "dense")
    assert run("tune", *data, "--settings.train", "lm", *FAST, "--template", "pure", "--loss_on", "all") == 0
    model = open_subject(str(tmp_path / "dense"), "cpu")
    before = open_subject(str(home / "llama"), "cpu")
    config = model.vlm_config
    assert (config.vision, config.template, config.language_trained, config.lora) == (None, "pure", True, None)
    assert not (tmp_path / "dense/model/projector.safetensors").exists()
    trained = dict(model.named_parameters())
    assert all(not torch.equal(p, trained[name]) for name, p in before.named_parameters())


def test_fresh_adapters_come_from_the_seed(home, tmp_path):
    data = ("--model", home / "llama", "--data", home / "pool.json", "--settings.train", "lora", *FAST, *LORA)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ("--settings.seed", seed, "--settings.max_steps", 1, "--out", tmp_path / name)
        assert run("tune", *data, *words) == 0
    a, b, c = (
        {k: p.detach() for k, p in lora_parameters(open_subject(str(tmp_path / n), "cpu")).items()} for n in "abc"
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a if ".lora_A." in name)


def test_evaluation_equals_that_of_the_adapted_hugging_face_model(home, warm, tmp_path):
    asked = ("--task", "piqa", "--questions", home / "questions.jsonl")
    assert run("evaluate", "--model", warm, *asked, "--out", tmp_path / "ours") == 0
    assert run("evaluate", "--model", warm / "model/adapter", *asked, "--out", tmp_path / "peft") == 0
    adapted = open_subject(str(warm / "model/adapter"), "cpu")
    adapted.language_model.merge_and_unload().save_pretrained(tmp_path / "merged")
    adapted.tokenizer.save_pretrained(tmp_path / "merged")
    assert run("evaluate", "--model", tmp_path / "merged", *asked, "--out", tmp_path / "whole") == 0
    lines = {
        name: (tmp_path / name / "predictions.jsonl").read_text().splitlines() for name in ("ours", "peft", "whole")
    }
    values = {name: [json.loads(line) for line in found] for name, found in lines.items()}
    assert values["ours"] == values["peft"]
    base = engine_of(open_subject(str(home / "llama"), "cpu"))
    plain = base.loglikelihoods([("Question: After 0?\nAnswer:", " 1")])
    pairs = [
        (one["loglikelihoods"], other["loglikelihoods"])
        for one, other in zip(values["ours"], values["whole"], strict=True)
    ]
    for one, other in pairs:
        assert one == pytest.approx(other, abs=1e-3)
    assert pairs[0][0][1] != pytest.approx(plain[0], abs=1e-3)


def test_refusals(home, warm, aligned, world, tmp_path, capsys):
    data = ("--data", home / "pool.json", "--out", tmp_path / "run")
    llama, lora = ("--model", home / "llama"), ("--settings.train", "lora")
    text = "this model reads text only"
    score = ("score", "--pool", home / "pool.json", "--targets.sums", home / "target.json", "--out", tmp_path / "s")
    (tmp_path / "gqa.json").write_text(json.dumps({"7": GQA}))
    gqa = ("--task", "gqa", "--questions", tmp_path / "gqa.json", "--images", tmp_path)
    shutil.copy(next((world / "images/captions").iterdir()), tmp_path / "a.jpg")
    cases = [
        (("tune", *llama, *data), "train is 'projector+lora' and the model reads text only: set settings.train"),
        (("tune", *llama, *data, *lora), "the model has no LoRA adapters; attach some (--lora.r 16)"),
        (("tune", "--model", warm, *data, *lora, *LORA), f"{warm} has LoRA adapters already; leave --lora out"),
        (("tune", *llama, *data, "--settings.train", "lm", *LORA), "settings.train is lm"),
        (("tune", *llama, *data, *lora, "--lora.targets", "[nothing]"), "no linear module is called nothing"),
        (("tune", *llama, *data, *lora, *LORA, "--template", "v9"), "no template is called 'v9'"),
        (("tune", "--model", warm, *data, *lora, "--template", "pure"), "has the template text; leave --template out"),
        (("tune", "--model", home / "bert", *data), "a Hugging Face classifier model can be evaluated, not trained"),
        (("align", *llama, *data, "--images", home), "reads text only and has no projector to align"),
        ((*score, "--model", warm, "--features", tmp_path / "f"), f"{text} and has no features of images"),
        ((*score, "--model", warm, "--blocks", "projector"), "blocks 'projector' match no parameter"),
        ((*score, "--model", aligned, "--pool", world / "pool.json"), "samples have images; name their folder"),
    ]  # fmt: skip
    for words, expected in cases:
        assert expected in refused(*words, capsys=capsys), words
    line = refused("evaluate", "--model", warm, *gqa, "--out", tmp_path / "e", capsys=capsys)
    assert line == "error: a causal language model cannot read images; evaluate a vision-language model on this task"


def test_a_missing_folder_that_could_be_a_name_on_the_hub_says_both(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text("[]")
    words = ("tune", "--model", "nobody/nothing-at-all", "--data", "d.json", "--out", "run")
    line = refused(*words, capsys=capsys)
    assert "nobody/nothing-at-all: no such folder, and no model of this name can be loaded from the hub" in line


def test_checkpoints_of_text_models_are_summed(home, warm, tmp_path):
    files = ("--pool", home / "pool.json", "--targets.sums", home / "target.json", "--out", tmp_path / "score")
    words = ("--scorers", "[TracIn]", "--checkpoints", f"[{warm},{warm}]", "--checkpoint_lrs", "[0.5,0.25]")
    assert run("score", "--model", warm, *files, *words) == 0
    found, _ = read_table(tmp_path / "score/scores.parquet")
    expected = [0.75 * value for value in found["TracIn/sums"]]
    assert found["TracIn.CP/sums"] == pytest.approx(expected, rel=1e-5)


def test_a_moved_model_says_what_is_missing(home, warm, tmp_path):
    shutil.copytree(warm / "model", tmp_path / "model")
    (tmp_path / "model/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is missing"):
        open_subject(str(tmp_path / "model"), "cpu")


@pytest.mark.slow
def test_language_models_are_retrained_and_judged_by_their_loss(home, tmp_path, capsys):
    pool, more = home / "pool.json", ("--device", "cpu")
    words = ("--model", home / "llama", "--pool", pool, *LORA, *FAST, "--settings.train", "lora", "--least", 4, *more)
    assert run("warmup", *words, "--out", tmp_path / "warmup") == 0
    words = ("--model", tmp_path / "warmup", "--pool", pool, "--targets.sums", home / "target.json", *more)
    assert run("score", *words, "--scorers", SCORERS, "--out", tmp_path / "score") == 0
    validate = ("validate", "--run", tmp_path / "score", "--seeds", 1, *more)
    assert run(*validate, "--study", "lds", "--subsets", 2, "--out", tmp_path / "lds") == 0
    rows = runs.read_json(tmp_path / "lds/validate.json")["rows"]
    assert list(rows) == ["TracIn", "DataInf", "HyperINF", "Loss", "Length", "gradient norm"]
    assert run(*validate, "--count", 3, "--draws", 1, "--scorers", "[TracIn]", "--out", tmp_path / "duel") == 0
    assert runs.read_json(tmp_path / "duel/validate.json")["measure"] == "loss"
    asked = (*validate, "--count", 3, "--metric", "exact_match", "--out", tmp_path / "asked")
    assert "evaluate a vision-language model on this task" in refused(*asked, capsys=capsys)
    assert not (tmp_path / "asked/seed0").exists()
