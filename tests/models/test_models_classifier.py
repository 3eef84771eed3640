"""Classifiers: fresh heads from the seed, heads that do not fit, what trains, losses of samples alone, files."""

import json

import pytest
import torch
from naive_gradients import assert_same, loop_gradients
from safetensors.torch import load_file, save_file
from tiny_huggingface import save_classifier
from tiny_text import save_encoder, sentences, word_tokenizer

from vlmsel import runs
from vlmsel.data.text_batches import TextCollator, encode_texts
from vlmsel.gradients import per_sample_gradients, select_blocks
from vlmsel.models.classifier import (
    EncoderLora,
    adapt,
    default_blocks,
    load_classifier,
    load_trained,
    predict,
    sample_losses,
    save_trained,
    trained_parameters,
)

CLASSES = ("bad", "good", "odd")
HEAD = ("classifier.weight", "classifier.bias")
LORA = EncoderLora(r=2, alpha=4)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("encoder") / "model"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("three") / "model", head=CLASSES))


def head(classifier):
    return classifier.model.classifier.weight.detach().clone()


def texts(count=6, classes=3):
    drawn = sentences(count, classes=classes)
    labels = [CLASSES.index(name) for _, name in drawn]
    return encode_texts(word_tokenizer(), range(count), [(text,) for text, _ in drawn], labels, 20)


def test_a_fresh_head_follows_from_the_seed_and_the_encoder_does_not(encoder):
    state = torch.get_rng_state()
    one, again, other = (load_classifier(encoder, CLASSES, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.head == HEAD and not one.kept_head and one.model.classifier.out_features == 3
    assert torch.equal(head(one), head(again)) and not torch.equal(head(one), head(other))
    weights, held = one.model.bert.state_dict(), load_file(f"{encoder}/model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in held.items())


def test_a_head_for_these_classes_is_kept_unless_a_fresh_one_is_asked_for(three):
    held = load_file(f"{three}/model.safetensors")["classifier.weight"]
    kept, fresh, again = (load_classifier(three, CLASSES, 1, fresh_head=new) for new in (False, True, True))
    assert kept.kept_head and torch.equal(head(kept), held)
    assert not fresh.kept_head and not torch.equal(head(fresh), held) and torch.equal(head(fresh), head(again))


def test_a_head_of_another_width_is_refused_with_the_mend(three):
    with pytest.raises(
        ValueError, match=r"head has 3 classes \(classifier.weight is \[3, 16\]\), the data have 2; pass"
    ):
        load_classifier(three, ("bad", "good"))
    assert load_classifier(three, ("bad", "good"), fresh_head=True).model.classifier.weight.shape == (2, 16)


def test_a_head_with_the_classes_in_another_order_is_refused(three):
    with pytest.raises(ValueError, match="order bad, good, odd, the data's in odd, good, bad; pass --fresh_head true"):
        load_classifier(three, CLASSES[::-1])


def test_missing_encoder_weights_are_an_error_and_a_missing_pooler_is_part_of_the_head(tmp_path):
    with pytest.raises(ValueError, match="weights of the encoder are missing, the first is bert.encoder.layer.1"):
        load_classifier(str(save_encoder(tmp_path / "cut", drop="layer.1.attention.self")), CLASSES)
    found = load_classifier(str(save_encoder(tmp_path / "bare", drop="pooler")), CLASSES)
    assert found.head == (*HEAD, "bert.pooler.dense.weight", "bert.pooler.dense.bias")


def test_folders_without_weights_or_tokenizer_and_names_that_nobody_has(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a model's folder nor one that the hub gives"):
        load_classifier(str(tmp_path / "none"), CLASSES)
    (tmp_path / "half").mkdir()
    with pytest.raises(FileNotFoundError, match="half: no tokenizer"):
        load_classifier(str(tmp_path / "half"), CLASSES)
    weights = load_file(f"{encoder}/model.safetensors")
    word_tokenizer().save_pretrained(tmp_path / "other")
    config = runs.read_json(f"{encoder}/config.json")
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "intermediate_size": 30}))
    save_file(weights, tmp_path / "other/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"its configuration says \[30, 16\]; copy it again"):
        load_classifier(str(tmp_path / "other"), CLASSES)


@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_only_adapters_and_head_train(encoder, tune):
    found = load_classifier(encoder, CLASSES)
    model = adapt(found, tune, LORA)
    names = set(trained_parameters(model))
    heads = {name for name in names if "classifier" in name}
    assert len(heads) == 2 and all(".lora_" in name for name in names - heads)
    assert len(names - heads) == (8 if tune == "lora" else 0)  # 2 layers x query and value x A and B
    blocks = select_blocks(model, default_blocks(tune, found.head))
    assert {block.name for block in blocks} == (names - heads if tune == "lora" else heads)


def test_adapters_follow_from_the_seed_and_change_nothing_at_first(encoder):
    models = [adapt(load_classifier(encoder, CLASSES), "lora", LORA, seed) for seed in (0, 0, 1)]
    first = [next(p for n, p in trained_parameters(m).items() if "lora_A" in n) for m in models]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    plain, batch = load_classifier(encoder, CLASSES).model, TextCollator(0)(texts().items)
    assert torch.equal(sample_losses(models[0], batch), sample_losses(plain, batch))


def test_targets_that_are_not_there_list_those_that_are(encoder):
    with pytest.raises(ValueError, match=r"is called q_proj; the model has \['classifier', 'dense', 'key', 'query',"):
        adapt(load_classifier(encoder, CLASSES), "lora", EncoderLora(targets=("q_proj",)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_losses_and_gradients_are_those_of_each_sample_alone(kind, tune, tmp_path):
    folder = save_classifier(tmp_path / "model", kind, classes=3)
    found = load_classifier(str(folder), CLASSES, fresh_head=True, dtype=torch.float64)
    targets = ("q_proj", "v_proj") if kind == "llama" else ("query", "value")
    model = adapt(found, tune, EncoderLora(r=2, targets=targets)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in trained_parameters(model).values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    pad = found.tokenizer.pad_token_id or 256
    model.config.pad_token_id = pad
    words = [("short",), ("a longer text",), ("another, longer text still",)]
    data = encode_texts(found.tokenizer, range(3), words, [0, 1, 2], 40)
    batch, singles = TextCollator(pad)(data.items), [TextCollator(pad)([item]) for item in data.items]
    assert torch.allclose(sample_losses(model, batch), torch.cat([sample_losses(model, one) for one in singles]))
    assert predict(model, batch).tolist() == [int(predict(model, one)) for one in singles]
    blocks = select_blocks(model, default_blocks(tune, found.head))
    dense = per_sample_gradients(model, batch, sample_losses, blocks)
    assert_same(dense, loop_gradients(model, singles, sample_losses, blocks), 1e-10)


def test_what_was_trained_comes_back_and_other_settings_are_refused(encoder, tmp_path):
    model = adapt(load_classifier(encoder, CLASSES), "lora", LORA)
    for parameter in trained_parameters(model).values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    assert load_trained(model, tmp_path / "kept") is None
    save_trained(model, tmp_path / "kept", {"seed": 3})
    again = adapt(load_classifier(encoder, CLASSES, seed=5), "lora", LORA, seed=5)
    assert load_trained(again, tmp_path / "kept") == {"seed": 3}
    batch = TextCollator(0)(texts().items)
    assert torch.equal(sample_losses(again, batch), sample_losses(model, batch))
    wider = adapt(load_classifier(encoder, CLASSES), "lora", EncoderLora(r=3))
    with pytest.raises(ValueError, match="trained.safetensors: made with other settings"):
        load_trained(wider, tmp_path / "kept")
    (tmp_path / "kept/trained.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="trained.safetensors cannot be read"):
        load_trained(again, tmp_path / "kept")
