"""Classifiers: fresh heads from the seed, heads that do not fit, what trains, losses of samples alone, files."""

import json

import pytest
import torch
from naive_gradients import assert_same, loop_gradients
from safetensors.torch import load_file, save_file
from tiny_huggingface import save_classifier
from tiny_text import save_encoder, sentences, word_tokenizer

from vlmsel import runs
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.gradients import per_sample_gradients
from vlmsel.models.classifier import EncoderLora
from vlmsel.models.classifier_files import open_classifier
from vlmsel.models.open import open_subject

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


def said(uid, name, *texts):
    return Sample(uid, "mine", (), (*(Turn("human", text) for text in texts), Turn("gpt", name)))


SAMPLES = [said(uid, name, text) for uid, (text, name) in enumerate(sentences(6, classes=3))]


def texts(model, samples=SAMPLES):
    """The samples as a batch."""
    return model.collate([model.encode(one, Reading()) for one in samples])


def adapted(source, tune="lora", lora=LORA, seed=0, **settings):
    found = open_classifier(source, CLASSES, seed, **settings)
    found.adapt(tune, lora, seed)
    return found


def learnt(model, tune="lora"):
    """What trains, by name."""
    return {name: p for group in model.trained(tune).values() for name, p in group.items()}


def test_samples_are_texts_and_the_name_of_their_class(encoder):
    found = open_classifier(encoder, CLASSES)
    pair = found.encode(said(7, "odd", "good0 good1 good2 good3 good4", "bad0"), Reading(max_length=7))
    assert (pair.uid, pair.label, pair.cut) == (7, 2, True) and pair.token_types == [0, 0, 0, 0, 0, 1, 1]
    assert found.tokenizer.decode(pair.input_ids) == "[CLS] good0 good1 good2 [SEP] bad0 [SEP]"
    bad = [said(1, "good", "x"), said(2, "fine", "x"), said(3, "good")]
    bad.append(Sample(4, "mine", ("a.png",), bad[0].turns))
    bad.append(Sample(5, "mine", (), (Turn("system", "Be kind."), *bad[0].turns)))
    data = SampleDataset(bad, found, Reading())
    assert data.check() == {
        2: "its answer 'fine' is none of the classes bad, good, odd",
        3: "it has no text",
        4: "it has an image and this model reads text only",
        5: "it has a system turn, which a classifier does not read; put it into the question",
    }
    assert data.usable() == [0] and data.lengths() == [3, 0, 0, 0, 0]
    long = found.encode(said(5, "good", " ".join(["good0"] * 40)), Reading())
    assert len(long.input_ids) == found.limit == 20 and long.cut


def test_a_fresh_head_follows_from_the_seed_and_the_encoder_does_not(encoder):
    state = torch.get_rng_state()
    one, again, other = (open_classifier(encoder, CLASSES, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.head == HEAD and one.model.classifier.out_features == 3
    assert torch.equal(head(one), head(again)) and not torch.equal(head(one), head(other))
    weights, held = one.model.bert.state_dict(), load_file(f"{encoder}/model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in held.items())


def test_a_head_for_these_classes_is_kept_unless_a_fresh_one_is_asked_for(three):
    held = load_file(f"{three}/model.safetensors")["classifier.weight"]
    kept, fresh, again = (open_classifier(three, CLASSES, 1, fresh_head=new) for new in (False, True, True))
    assert torch.equal(head(kept), held)
    assert not torch.equal(head(fresh), held) and torch.equal(head(fresh), head(again))


def test_a_head_of_another_width_is_refused_with_the_mend(three):
    with pytest.raises(
        ValueError, match=r"head has 3 classes \(classifier.weight is \[3, 16\]\), the data have 2; pass"
    ):
        open_classifier(three, ("bad", "good"))
    assert open_classifier(three, ("bad", "good"), fresh_head=True).model.classifier.weight.shape == (2, 16)


def test_a_head_with_the_classes_in_another_order_is_refused(three):
    with pytest.raises(ValueError, match="order bad, good, odd, the data's in odd, good, bad; pass --fresh_head true"):
        open_classifier(three, CLASSES[::-1])


def test_missing_encoder_weights_are_an_error_and_a_missing_pooler_is_part_of_the_head(tmp_path):
    with pytest.raises(ValueError, match="weights of the encoder are missing, the first is bert.encoder.layer.1"):
        open_classifier(str(save_encoder(tmp_path / "cut", drop="layer.1.attention.self")), CLASSES)
    found = open_classifier(str(save_encoder(tmp_path / "bare", drop="pooler")), CLASSES)
    assert found.head == (*HEAD, "bert.pooler.dense.weight", "bert.pooler.dense.bias")


def test_folders_without_weights_or_tokenizer_and_names_that_nobody_has(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a model's folder nor one that the hub gives"):
        open_classifier(str(tmp_path / "none"), CLASSES)
    (tmp_path / "half").mkdir()
    with pytest.raises(FileNotFoundError, match="half: no tokenizer"):
        open_classifier(str(tmp_path / "half"), CLASSES)
    weights = load_file(f"{encoder}/model.safetensors")
    word_tokenizer().save_pretrained(tmp_path / "other")
    config = runs.read_json(f"{encoder}/config.json")
    (tmp_path / "other/config.json").write_text(json.dumps({**config, "intermediate_size": 30}))
    save_file(weights, tmp_path / "other/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"its configuration says \[30, 16\]; copy it again"):
        open_classifier(str(tmp_path / "other"), CLASSES)


@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_only_adapters_and_head_train(encoder, tune):
    model = adapted(encoder, tune)
    names = {name for name, p in model.module.named_parameters() if p.requires_grad}
    assert names == set(learnt(model, tune))
    heads = {name for name in names if "classifier" in name}
    assert len(heads) == 2 and all(".lora_" in name for name in names - heads)
    assert len(names - heads) == (8 if tune == "lora" else 0)  # 2 layers x query and value x A and B
    assert {block.name for block in model.blocks()} == (names - heads if tune == "lora" else heads)


def test_adapters_follow_from_the_seed_and_change_nothing_at_first(encoder):
    models = []
    for seed in (0, 0, 1):
        models.append(open_classifier(encoder, CLASSES))
        models[-1].adapt("lora", LORA, seed)
    first = [next(p for n, p in learnt(m).items() if "lora_A" in n) for m in models]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    plain = open_classifier(encoder, CLASSES)
    assert torch.equal(models[0].losses(texts(plain)), plain.losses(texts(plain)))
    assert models[0].digest() == models[1].digest() != models[2].digest()


def test_targets_that_are_not_there_list_those_that_are(encoder):
    with pytest.raises(ValueError, match=r"is called q_proj; the model has \['classifier', 'dense', 'key', 'query',"):
        adapted(encoder, lora=EncoderLora(targets=("q_proj",)))
    with pytest.raises(ValueError, match="tune must be one of lora, last-layer, got 'all'"):
        adapted(encoder, "all")
    with pytest.raises(ValueError, match="train is 'lora' and this classifier is tuned by last-layer"):
        adapted(encoder, "last-layer").trained("lora")


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("tune", ["lora", "last-layer"])
def test_losses_and_gradients_are_those_of_each_sample_alone(kind, tune, tmp_path):
    folder = save_classifier(tmp_path / "model", kind, classes=3)
    targets = ("q_proj", "v_proj") if kind == "llama" else ("query", "value")
    settings = {"fresh_head": True, "dtype": torch.float64}
    model = adapted(str(folder), tune, EncoderLora(r=2, targets=targets), **settings).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in learnt(model, tune).values():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    words = ["short", "a longer text", "another, longer text still"]
    samples = [said(uid, CLASSES[uid], text) for uid, text in enumerate(words)]
    batch, singles = texts(model, samples), [texts(model, [one]) for one in samples]
    assert torch.allclose(model.losses(batch), torch.cat([model.losses(one) for one in singles]))
    assert model.logits(batch).argmax(1).tolist() == [int(model.logits(one).argmax(1)) for one in singles]

    def losses(_, batch):
        return model.losses(batch)

    dense = per_sample_gradients(model.module, batch, losses, model.blocks())
    assert_same(dense, loop_gradients(model.module, singles, losses, model.blocks()), 1e-10)


def test_a_training_step_runs_in_parts_with_every_loss_at_its_row(encoder):
    model = adapted(encoder)
    batch = texts(model)
    expected = model.losses(batch)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    tokens = model(batch)
    assert tokens.rows.tolist() != list(range(6)) and model.supervised(batch).tolist() == [1] * 6
    torch.testing.assert_close(model.losses(batch), expected)


def test_what_was_trained_comes_back_and_other_settings_are_refused(encoder, tmp_path):
    model = adapted(encoder)
    for parameter in learnt(model).values():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    model.save(tmp_path / "kept")
    again = adapted(encoder, seed=5)
    again.load_trained(tmp_path / "kept")
    found = open_subject(str(tmp_path / "kept"), "cpu")
    for other in (again, found):
        assert torch.equal(other.losses(texts(model)), model.losses(texts(model)))
        assert other.digest() == model.digest()
    with pytest.raises(ValueError, match="trained.safetensors: made with other settings"):
        adapted(encoder, lora=EncoderLora(r=3)).load_trained(tmp_path / "kept")
    (tmp_path / "kept/trained.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="trained.safetensors cannot be read"):
        again.load_trained(tmp_path / "kept")
