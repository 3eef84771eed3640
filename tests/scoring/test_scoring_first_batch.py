"""The first batch of a pool: which samples it has, and that score and detect refuse what it finds."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_huggingface import save_language
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Changed, Items, broken, tiny_items
from tiny_text import save_encoder, sentences, write_csv
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfOutput
from transformers.models.llama.modeling_llama import LlamaMLP

from vlmsel import cli
from vlmsel.scoring import first_batch
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.first_batch import check_first_batch


class Pool(Items):
    """Items as a data set with samples."""

    @property
    def samples(self):
        return [SimpleNamespace(images=item.images) for item in self.items]

    candidates = Items.usable

    def lengths_of(self, positions):
        return {position: len(self.items[position].input_ids) for position in positions}


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


def chosen(model, items):
    return first_batch._first_samples(model, Pool(items))


def test_samples_with_and_without_pictures_and_of_different_lengths_are_checked(model):
    items = tiny_items([2, 0, 0, 1, 1])
    lengths = [len(item.input_ids) for item in items]
    with_picture, without, longer = chosen(model, items)
    assert with_picture in (0, 3, 4) and without in (1, 2) and lengths[longer] > min(lengths)
    assert len(chosen(model, tiny_items([0, 0]))) == 2 and len(chosen(model, tiny_items([1]))) == 1
    assert len(chosen(model, [tiny_items([0])[0]] * 2)) == 1  # nothing is learnt from as long a sample


def test_samples_without_a_finite_loss_are_passed_over(model, capsys):
    items = tiny_items([0, 0, 0])
    assert 0 not in chosen(model, [broken(items[0], "loss"), *items[1:]])
    check_first_batch(model, model.blocks(), Pool([broken(items[0], "loss")]), Batching())
    assert "the first batch was not checked" in capsys.readouterr().out


@pytest.mark.parametrize("size", [None, 1, 3])
def test_a_right_model_passes(model, size, capsys):
    check_first_batch(model, model.blocks(), Pool(tiny_items()), Batching(max_samples=size))
    assert not capsys.readouterr().out


def test_samples_that_depend_on_each_other_pass_one_by_one_alone(model):
    subject = Changed(model, lambda one, batch: one.losses(batch) + one.losses(batch).std(correction=0))
    check_first_batch(subject, model.blocks(), Pool(tiny_items()), Batching(max_samples=1))
    with pytest.raises(ValueError, match="depend on what else is in a batch; set --batch_size 1"):
        check_first_batch(subject, model.blocks(), Pool(tiny_items()), Batching())
    check_first_batch(subject, model.blocks(), Pool(tiny_items()), Batching(), "none")


def test_what_does_not_fit_is_said(model, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(first_batch, "check_capture", full)
    check_first_batch(model, model.blocks(), Pool(tiny_items()), Batching())
    assert "was not checked" in capsys.readouterr().out


def without_call(self, x):
    return nn.functional.linear(self.act_fn(self.gate_proj(x)) * self.up_proj(x), self.down_proj.weight)


def test_score_refuses_a_weight_that_is_used_without_its_module(tmp_path, monkeypatch, capsys):
    model, pool = save_language(tmp_path / "model"), tmp_path / "pool.json"
    turns = [[{"from": "human", "value": "a" * i}, {"from": "gpt", "value": "b" * i}] for i in (2, 3, 5)]
    pool.write_text(json.dumps([{"id": str(i), "conversations": own} for i, own in enumerate(turns)]))
    words = ["score", "--model", str(model), "--pool", str(pool), "--targets.a", str(pool), "--scorers", "[TracIn]"]
    monkeypatch.setattr(LlamaMLP, "forward", without_call)
    monkeypatch.setattr(first_batch, "left_out", lambda model, spec, blocks: f"{spec} lacks something")
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "layers.1.mlp.down_proj.weight: its gradient as captured" in said.err and "last-block lacks some" in said.out
    assert cli.main([*words, "--out", str(tmp_path / "out"), "--check", "none"]) == 0
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2  # what is checked is no other configuration


def test_detect_refuses_rows_in_another_order(tmp_path, monkeypatch, capsys):
    forward = BertSelfOutput.forward

    def turned(self, *rows):
        return forward(self, *(own.flip(0) for own in rows)).flip(0)

    monkeypatch.setattr(BertSelfOutput, "forward", turned)
    model, data = save_encoder(tmp_path / "model"), write_csv(tmp_path / "train.csv", sentences(12))
    words = ["detect", "--model", str(model), "--train", str(data), "--validation", str(data)]
    words += ["--scorers", "[TracIn]", "--training.epochs", "1", "--blocks", "output.dense.weight", "--flip", "0"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "attention.output.dense.weight: its gradient as captured" in (said := capsys.readouterr().err)
    assert "not in the order of the samples" in said
