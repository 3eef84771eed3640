"""Fine-tuning a classifier: the same steps as a plain AdamW loop, repeatable, and quiet about global random state."""

import random

import numpy as np
import pytest
import torch
from tiny_text import save_encoder, sentences, word_tokenizer
from torch.nn.functional import cross_entropy

from vlmsel.data.text_batches import TextCollator, encode_texts
from vlmsel.models.classifier import EncoderLora, adapt, load_classifier, predict, trained_parameters
from vlmsel.training.classifier import FineTuning, fine_tune
from vlmsel.training.loop import EpochOrder

COLLATE = TextCollator(0)
SETTINGS = FineTuning(batch_size=8, epochs=2, warmup_ratio=0.25)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "model"))


def made(encoder, tune="lora", dropout=True):
    model = adapt(load_classifier(encoder, ("bad", "good")), tune, EncoderLora(r=2, alpha=4))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return model


def data(count=20):
    drawn = sentences(count)
    labels = [int(name == "good") for _, name in drawn]
    return encode_texts(word_tokenizer(), range(count), [(text,) for text, _ in drawn], labels, 20)


def plain_loop(model, items, rate):
    """Two epochs of AdamW with 2 of 6 steps of warm-up, gradients clipped to norm 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    order, losses = EpochOrder(len(items), 0, None), []
    for epoch in range(2):
        order.set_epoch(epoch)
        places = list(order)
        for start in range(0, len(places), 8):
            step = len(losses)
            optimizer.param_groups[0]["lr"] = rate * (step / 2 if step < 2 else (6 - step) / 4)
            batch = COLLATE([items[i] for i in places[start : start + 8]])
            inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "token_type_ids")}
            loss = cross_entropy(model(**inputs).logits, batch.labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_steps_are_those_of_a_plain_loop(encoder, tune):
    found, expected = made(encoder, tune, dropout=False), made(encoder, tune, dropout=False)
    losses = fine_tune(found, data(), COLLATE, SETTINGS, 0.01, seed=0)
    assert losses == pytest.approx(plain_loop(expected, data().items, 0.01), rel=1e-4)
    for name, parameter in trained_parameters(expected).items():
        assert torch.allclose(trained_parameters(found)[name], parameter, rtol=1e-3, atol=1e-5), name
    assert not found.training and all(p.grad is None for p in found.parameters())


def test_the_same_seed_gives_the_same_weights_and_another_one_others(encoder):
    weights = []
    for seed in (0, 0, 1):
        model = made(encoder)
        fine_tune(model, data(), COLLATE, SETTINGS, 0.01, seed)
        weights.append(torch.cat([p.detach().flatten() for p in trained_parameters(model).values()]))
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_global_random_states_are_left_as_they_were(encoder):
    model = made(encoder)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    fine_tune(model, data(), COLLATE, SETTINGS, 0.01, seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]


def test_it_learns_what_words_tell(encoder):
    model, samples = made(encoder), data(80)
    fine_tune(model, samples, COLLATE, FineTuning(batch_size=16, epochs=6), 0.02, seed=0)
    batch = COLLATE(samples.items)
    assert (predict(model, batch) == batch.labels).float().mean() > 0.9


def test_a_loss_that_is_not_finite_names_the_sample(encoder):
    model = made(encoder)
    model.get_base_model().bert.embeddings.word_embeddings.weight.data[4].fill_(torch.nan)
    with pytest.raises(ValueError, match=r"sample uid [\d, ]+: the loss is not finite at step 1; lower learning_rate"):
        fine_tune(model, data(), COLLATE, SETTINGS, 0.01, seed=0)


WRONG = {"batch_size": 0, "epochs": -1.0, "learning_rate": 0.0, "warmup_ratio": 1.0, "weight_decay": -1.0}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be(name):
    with pytest.raises(ValueError, match=name):
        FineTuning(**{name: WRONG[name]})
