"""A model made from scratch learns one answer by heart: exact match and loss are those worked out by hand."""

import json

import pytest
import torch
from tiny_huggingface import save_language
from transformers import AutoModelForCausalLM

from tools import exact_match, new_llama
from vlmsel.cli import main
from vlmsel.models.open import open_subject


def write(path, answers):
    turns = [
        {"source": kind, "conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": answer}]}
        for kind, answer in answers
    ]
    path.write_text(json.dumps(turns))
    return path


def run(monkeypatch, module, *words):
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, words)])
    module.main()


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """A fresh model that was tuned until it says "ab" whatever it is asked."""
    folder = tmp_path_factory.mktemp("learnt")
    new_llama.new_llama(str(save_language(folder / "words")), folder / "fresh", 32, 1, 2, 0)
    data = write(folder / "data.json", [("a", "ab")] * 8)
    words = ("--settings.train", "lm", "--settings.max_steps", "40", "--settings.learning_rate", "0.01")
    paths = ("--model", folder / "fresh", "--data", data, "--out", folder / "tune")
    assert main(["tune", "--preset", "tiny-llm", *map(str, paths), *words]) == 0
    return folder / "tune"


def test_exact_match_counts_by_source_and_shows_what_is_wrong(learnt, tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "test.json", [("a", "ab"), ("a", "ab"), ("b", "ba"), ("b", "ab")])
    run(monkeypatch, exact_match, learnt, data, "--examples", 1, "--batch_size", 3)
    out = capsys.readouterr().out
    shares = {line.split()[0]: line.split()[1:] for line in out.splitlines() if " of " in line and line[0] in "ab"}
    assert shares == {"a": ["2", "of", "2"], "b": ["1", "of", "2"]}
    assert "exact match 3 of 4, mean loss" in out and "b: 'ab' instead of 'ba'" in out


def test_the_loss_is_the_mean_over_samples(learnt):
    model = open_subject(str(learnt))
    item = exact_match.Item(0, [3, 5, 7, 9], [-100, -100, 7, 9])
    other = exact_match.Item(1, [3, 5, 7], [-100, 5, 7])
    logs = [
        model.language_model(input_ids=torch.tensor([one.input_ids])).logits[0].log_softmax(-1) for one in (item, other)
    ]
    first, second = -(logs[0][1, 7] + logs[0][2, 9]) / 2, -(logs[1][0, 5] + logs[1][1, 7]) / 2
    assert exact_match.mean_loss(model, [item, other], 1) == pytest.approx(float(first + second) / 2, rel=1e-4)


def test_a_new_model_has_the_shape_asked_for_and_the_seed_decides(tmp_path):
    words = str(save_language(tmp_path / "words"))
    sizes = {
        new_llama.new_llama(words, tmp_path / name, 32, 2, 4, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    }
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "abc")
    assert sizes == {a.num_parameters()} and (a.config.hidden_size, a.config.num_hidden_layers) == (32, 2)
    weights = [one.model.layers[1].mlp.up_proj.weight for one in (a, b, c)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_width_that_heads_do_not_divide_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, new_llama, "words", tmp_path / "out", "--width", 30, "--heads", 4)
    assert "width 30 must be a multiple of twice the 4 heads" in capsys.readouterr().err
