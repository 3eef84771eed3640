"""Fine-tuning a classifier: the same steps as a plain AdamW loop, repeatable, and quiet about global random state."""

import random

import numpy as np
import pytest
import torch
from tiny_text import save_encoder, sentences
from torch.nn.functional import cross_entropy

from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.models.classifier import EncoderLora
from vlmsel.models.classifier_files import open_classifier
from vlmsel.training.fine_tuning import FineTuning
from vlmsel.training.loop import EpochOrder
from vlmsel.training.trainer import train_phase

SETTINGS = {"learning_rate": 0.01, "batch_size": 8, "epochs": 2, "warmup_ratio": 0.25}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "model"))


def made(encoder, tune="lora", dropout=True):
    model = open_classifier(encoder, ("bad", "good"))
    model.adapt(tune, EncoderLora(r=2, alpha=4))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


def data(model, count=20):
    drawn = enumerate(sentences(count))
    samples = [Sample(uid, "mine", (), (Turn("human", text), Turn("gpt", name))) for uid, (text, name) in drawn]
    return SampleDataset(samples, model, Reading())


def fine_tune(model, samples, out, seed=0, **changes):
    settings = FineTuning(**{**SETTINGS, **changes}).phase(model.tune, seed)
    return train_phase(model, samples, settings, out)


def learnt(model):
    return {name: p for group in model.trained(model.tune).values() for name, p in group.items()}


def plain_loop(model, samples, rate):
    """Two epochs of AdamW with 2 of 6 steps of warm-up, gradients clipped to norm 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    order, losses = EpochOrder(len(samples), 0, None, 1), []
    for epoch in range(2):
        order.set_epoch(epoch)
        places = list(order)
        for start in range(0, len(places), 8):
            step = len(losses)
            optimizer.param_groups[0]["lr"] = rate * (step / 2 if step < 2 else (6 - step) / 4)
            batch = model.collate([samples[i] for i in places[start : start + 8]])
            inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
            loss = cross_entropy(model.module(**inputs).logits, batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_steps_are_those_of_a_plain_loop(encoder, tune, tmp_path):
    found, expected = made(encoder, tune, dropout=False), made(encoder, tune, dropout=False)
    result = fine_tune(found, data(found), tmp_path)
    assert result.losses == pytest.approx(plain_loop(expected, data(expected), 0.01), rel=1e-4)
    for name, parameter in learnt(expected).items():
        assert torch.allclose(learnt(found)[name], parameter, rtol=1e-3, atol=1e-5), name
    assert not found.training and all(p.grad is None for p in found.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(encoder, tmp_path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model = made(encoder)
        fine_tune(model, data(model), tmp_path / name, seed)
        weights.append(torch.cat([p.detach().flatten() for p in learnt(model).values()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_global_random_states_are_left_as_they_were(encoder, tmp_path):
    model = made(encoder)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    fine_tune(model, data(model), tmp_path, seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_it_learns_what_words_tell_and_is_not_done_again(encoder, tmp_path):
    model = made(encoder)
    samples = data(model, 80)
    settings = {"batch_size": 16, "epochs": 6, "learning_rate": 0.02}
    result = fine_tune(model, samples, tmp_path, **settings)
    batch = model.collate([samples[i] for i in range(80)])
    assert (model.logits(batch).argmax(1) == batch.labels).float().mean() > 0.9
    assert {path.name for path in tmp_path.iterdir()} == {"phase.json", "model"}
    again = made(encoder)
    assert fine_tune(again, data(again, 80), tmp_path, **settings) == result and again.digest() == model.digest()


def test_a_loss_that_is_not_finite_names_the_sample(encoder, tmp_path):
    model = made(encoder)
    model.backbone.bert.embeddings.word_embeddings.weight.data[4].fill_(torch.nan)
    with pytest.raises(ValueError, match=r"sample uid [\d, ]+: the loss is not finite at step 1; lower learning_rate"):
        fine_tune(model, data(model), tmp_path)


WRONG = {"batch_size": 0, "epochs": -1.0, "learning_rate": 0.0, "warmup_ratio": 1.0, "weight_decay": -1.0}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be(name):
    with pytest.raises(ValueError, match=name):
        FineTuning(**{name: WRONG[name]})
