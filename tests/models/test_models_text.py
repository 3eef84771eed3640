"""Text models: Hugging Face folders and adapters taken in, saved and loaded alike, and what cannot be kept refused."""

import json
import shutil

import pytest
import torch
from tiny_huggingface import save_language
from tiny_models import sample_losses, tiny_vlm, wake_lora

from vlmsel.data.batches import Collator, Item
from vlmsel.models import checkpoint
from vlmsel.models.assembly import build, load
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.generation import generate
from vlmsel.models.huggingface import load_adapter, load_causal
from vlmsel.models.losses import token_losses
from vlmsel.models.presets import preset
from vlmsel.models.text import open_text
from vlmsel.training.phases import phase_preset, trained_groups

IDS = [[256, 3, 4, 5, 6], [256, 9, 8, 7]]
SPEC = LoraSpec(r=3, alpha=6, targets=("q_proj", "down_proj"), dropout=0.1)


def batch():
    return Collator(258)([Item(i, ids, [-100, *ids[1:]], (), ()) for i, ids in enumerate(IDS)])


def losses(model):
    with torch.no_grad():
        return sample_losses(model, batch())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_language(tmp_path_factory.mktemp("home") / "llama")


@pytest.fixture
def adapted(llama, tmp_path):
    """A text model with adapters that change something, and PEFT's folder of them."""
    model = open_text(str(llama))
    model.attach_lora(SPEC)
    wake_lora(model)
    checkpoint.save(model, tmp_path / "saved")
    return model, tmp_path / "saved/adapter"


def test_losses_are_those_of_the_hugging_face_model(llama):
    model, (plain, _) = open_text(str(llama)), load_causal(str(llama))
    one = batch()
    expected = token_losses(plain, one.labels, one.attention_mask, input_ids=one.input_ids)
    assert torch.equal(model(one).losses, expected.losses)
    assert model.vision is None and list(model.projector.parameters()) == []
    model.require_ready()


def test_a_saved_model_answers_alike(adapted, tmp_path):
    model, _ = adapted
    found = load(tmp_path / "saved")
    assert found.vlm_config == model.vlm_config and found.vlm_config.vision is None
    assert torch.equal(losses(found), losses(model))
    answers = [generate(one, batch(), one.tokenizer, 4) for one in (model, found)]
    assert answers[0] == answers[1]
    assert not (tmp_path / "saved" / checkpoint.PROJECTOR).exists()
    assert VLMConfig.from_json(json.loads(json.dumps(model.vlm_config.as_json()))) == model.vlm_config


def test_a_trained_language_model_is_saved_whole(llama, tmp_path):
    model = open_text(str(llama), "pure")
    with torch.no_grad():
        next(model.language_model.parameters()).add_(0.1)
    model.mark_trained(["language model"])
    checkpoint.save(model, tmp_path / "saved")
    found = load(tmp_path / "saved")
    assert torch.equal(losses(found), losses(model)) and found.vlm_config.template == "pure"
    assert not torch.equal(losses(found), losses(open_text(str(llama))))


def test_adapters_are_taken_in_as_our_own(adapted, llama):
    model, folder = adapted
    found, (peft, _) = open_text(str(folder)), load_adapter(str(folder))
    assert found.vlm_config.lora == LoraSpec(3, 6, True, ("down_proj", "q_proj"), 0.1)
    one = batch()
    expected = token_losses(peft, one.labels, one.attention_mask, input_ids=one.input_ids).losses
    assert torch.equal(found(one).losses, expected) and torch.equal(losses(found), losses(model))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"use_dora": True}, "adapters with use_dora True cannot be kept; merge them into their model"),
        ({"rank_pattern": {"q_proj": 2}}, "adapters with rank_pattern"),
        ({"peft_type": "IA3"}, "adapters with peft_type 'IA3'"),
        ({"bias": "all"}, "adapters with bias 'all'"),
        ({"modules_to_save": ["lm_head"]}, "adapters with modules_to_save"),
        ({"target_modules": ".*q_proj"}, "adapters with target_modules"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "base_model_name_or_path is /nowhere/at/all"),
        ({"r": 2}, "does not fit the model's adapters"),
    ],
)
def test_adapters_of_a_kind_that_cannot_be_kept_are_refused(change, line, adapted, tmp_path):
    folder = shutil.copytree(adapted[1], tmp_path / "copy")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((ValueError, FileNotFoundError)) as problem:
        open_text(str(folder))
    assert line in str(problem.value)


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors"])
def test_what_a_folder_lacks_is_named(lost, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    for file in (folder / lost, folder / "tokenizer_config.json" if "tok" in lost else folder / lost):
        file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{folder}: no (tokenizer|.safetensors weights)"):
        open_text(str(folder))


def test_images_are_refused_in_words(llama):
    with pytest.raises(ValueError, match="this model reads text only; give it no images"):
        open_text(str(llama)).project(torch.zeros(1, 3, 8, 8), torch.tensor([0]))


def test_a_model_that_sees_and_one_that_does_not_never_take_each_others_weights(adapted, tmp_path):
    model, _ = adapted
    seeing = tiny_vlm(tmp_path)
    checkpoint.save(seeing, tmp_path / "seeing")
    for one, folder in ((model, "seeing"), (seeing, "saved")):
        with pytest.raises(ValueError, match="does not fit the model: one of the two reads text only"):
            checkpoint.load_trained(one, tmp_path / folder)


def test_the_text_presets_are_the_language_models_of_the_others():
    assert preset("tiny-text").language == preset("tiny").language
    model = build(preset("llama2-7b"), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616


def test_what_a_text_model_can_train(llama, adapted):
    plain = open_text(str(llama))
    assert list(trained_groups(plain, "lm")) == ["language model"]
    assert list(trained_groups(adapted[0], "lora")) == ["lora"]
    for train in ("projector", "projector+lora", "projector+lm"):
        with pytest.raises(ValueError, match="reads text only: set settings.train to lora or lm"):
            trained_groups(plain, train)
    with pytest.raises(ValueError, match="no LoRA adapters; attach some"):
        trained_groups(plain, "lora")
    presets = [phase_preset(name) for name in ("hyperinf-llm-lora", "hyperinf-llm-dense")]
    assert [(one.train, one.epochs, one.learning_rate) for one in presets] == [("lora", 5, 2e-5), ("lm", 3, 2e-5)]
