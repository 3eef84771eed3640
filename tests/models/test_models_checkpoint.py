"""Saving and loading: one folder, complete, portable, refused when it does not fit."""

import json
import shutil
from dataclasses import replace
from importlib import metadata

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_batch, sample_losses, save_backbones, tiny_language, tiny_vlm, wake_lora
from torch import nn

from vlmsel.data.dataset import Reading
from vlmsel.models import checkpoint, config
from vlmsel.models.assembly import build, load
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.vlm import VLM


def changed(model):
    """Move every trainable weight away from its initial value."""
    wake_lora(model)
    for parameter in model.projector.parameters():
        parameter.data.mul_(1.5)
    return model


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    batch = random_batch(a)
    assert torch.equal(sample_losses(a, batch), sample_losses(b, batch))


@pytest.mark.parametrize("lora", [True, False])
def test_round_trip_is_exact(tmp_path, lora):
    model = changed(tiny_vlm(tmp_path / "backbones", lora=lora))
    checkpoint.save(model, tmp_path / "run" / "model")
    loaded = load(tmp_path / "run" / "model")
    same(model, loaded)
    assert loaded.vlm_config == model.vlm_config and not loaded.training
    assert loaded.tokenizer.encode("hello") == model.tokenizer.encode("hello")


def test_how_pictures_are_turned_is_saved_and_part_of_what_a_model_is(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones"))
    before = model.digest()
    model.turn_pictures(None)
    assert model.digest() == before and not model.pictures(Reading(tmp_path)).exif
    model.turn_pictures(True)
    checkpoint.save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.digest() == model.digest() != before and loaded.pictures(Reading(tmp_path)).exif
    with pytest.raises(ValueError, match="reads text only; leave --exif out"):
        VLM(replace(model.vlm_config, vision=None), None, nn.Sequential(), model.language_model).turn_pictures(True)


def test_folder_holds_safetensors_and_json_and_names_the_backbones(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones"))
    checkpoint.save(model, tmp_path / "model")
    files = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {"vlmsel_config.json", "projector.safetensors", "adapter/adapter_config.json"} <= files
    assert all(name.endswith((".json", ".safetensors", ".jinja")) for name in files)
    assert not (tmp_path / "model.part").exists()
    written = json.loads((tmp_path / "model" / "vlmsel_config.json").read_text())
    assert written["model"]["vision"] == f"local-dir:{tmp_path / 'backbones' / 'clip'}"
    assert written["environment"]["torch"] == metadata.version("torch")
    adapter = json.loads((tmp_path / "model" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["use_rslora"]) == (4, 8, True)


def test_peft_reads_the_adapter(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones"))
    checkpoint.save(model, tmp_path / "model")
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        loaded = peft.PeftModel.from_pretrained(tiny_language(), str(tmp_path / "model" / "adapter"))
    batch = random_batch(images_per_sample=[0, 0])
    torch.testing.assert_close(sample_losses(loaded, batch), sample_losses(model, batch))


def test_whole_language_model_is_stored_when_it_was_trained(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones", lora=False))
    for parameter in model.language_model.parameters():
        parameter.data.add_(0.1)
    model.mark_trained(["language model"])
    checkpoint.save(model, tmp_path / "model")
    same(model, load(tmp_path / "model"))


def test_adapters_on_a_trained_language_model(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones"))
    model.merge_lora()
    model.attach_lora(LoraSpec(r=2, alpha=4, targets=("q_proj", "o_proj")), seed=5)
    wake_lora(model, seed=9)
    checkpoint.save(model, tmp_path / "model")
    same(model, load(tmp_path / "model"))
    fresh = build(VLMConfig(model.vlm_config.vision, model.vlm_config.language, lora=model.vlm_config.lora))
    checkpoint.load_trained(fresh, tmp_path / "model")
    same(model, fresh)


def test_load_trained_brings_a_fresh_model_to_the_saved_state(tmp_path):
    model = changed(tiny_vlm(tmp_path / "backbones"))
    checkpoint.save(model, tmp_path / "model")
    fresh = tiny_vlm(tmp_path / "backbones")
    checkpoint.load_trained(fresh, tmp_path / "model")
    same(model, fresh)


def test_symbolic_backbones_follow_the_package(tmp_path, monkeypatch):
    save_backbones(tmp_path / "here")
    monkeypatch.setattr(config, "ASSETS", tmp_path / "here")
    model = build(VLMConfig("assets:clip", "assets:llama", quick_gelu=False, lora=LoraSpec(r=2, alpha=4)))
    checkpoint.save(model, tmp_path / "model")
    text = (tmp_path / "model" / "vlmsel_config.json").read_text()
    adapter = (tmp_path / "model" / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in text + adapter and "assets:clip" in text and "assets:llama" in adapter
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(config, "ASSETS", tmp_path / "there")
    same(model, load(tmp_path / "model"))
    monkeypatch.setattr(config, "ASSETS", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="assets:clip: no folder"):
        load(tmp_path / "model")


@pytest.mark.parametrize(("part", "word"), [("clip", "vision tower"), ("llama", "language model")])
def test_changed_backbones_are_refused(tmp_path, part, word):
    checkpoint.save(tiny_vlm(tmp_path / "backbones"), tmp_path / "model")
    file = next((tmp_path / "backbones" / part).glob("*.safetensors"))
    state = load_file(file)
    name = next(name for name, tensor in sorted(state.items()) if tensor.dim() == 1 and not name.startswith("text"))
    name = "visual.ln_pre.weight" if part == "clip" else name
    save_file({**state, name: state[name] * 1.1}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the {word} at .* is not the one this model was trained with"):
        load(tmp_path / "model")


def test_dtype_of_the_backbones_does_not_change_their_fingerprint(tmp_path):
    checkpoint.save(tiny_vlm(tmp_path / "backbones"), tmp_path / "model")
    loaded = load(tmp_path / "model", dtype=torch.bfloat16)
    assert loaded.language_model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert loaded.projector[0].weight.dtype == torch.float32


def test_missing_and_misfitting_files_are_named(tmp_path):
    model = tiny_vlm(tmp_path / "backbones")
    checkpoint.save(model, tmp_path / "model")
    projector = tmp_path / "model" / "projector.safetensors"
    state = load_file(projector)
    save_file({"0.weight": state["0.weight"]}, projector)
    with pytest.raises(ValueError, match="projector.safetensors does not fit the model: .*0.bias"):
        load(tmp_path / "model")
    projector.unlink()
    with pytest.raises(FileNotFoundError, match="projector.safetensors is missing"):
        load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="is not a saved model"):
        load(tmp_path)
    save_file(state, projector)
    adapter = tmp_path / "model" / "adapter" / "adapter_model.safetensors"
    weights = load_file(adapter)
    weights.pop(next(iter(weights)))
    save_file(weights, adapter)
    with pytest.raises(ValueError, match="does not fit the model's adapters at 1 places"):
        load(tmp_path / "model")


def test_unknown_settings_and_formats_are_refused(tmp_path):
    checkpoint.save(tiny_vlm(tmp_path / "backbones"), tmp_path / "model")
    file = tmp_path / "model" / "vlmsel_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "model": {**content["model"], "colour": "red"}}))
    with pytest.raises(ValueError, match=r"unknown keys \['colour'\]"):
        load(tmp_path / "model")
    file.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        load(tmp_path / "model")


DAMAGED = [
    "model/vlmsel_config.json",
    "model/projector.safetensors",
    "model/adapter/adapter_model.safetensors",
    "model/tokenizer/tokenizer.json",
    "model/tokenizer/tokenizer_config.json",
    "model/language_model/config.json",
    "model/language_model/model.safetensors",
    "clip/open_clip_config.json",
    "clip/open_clip_model.safetensors",
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a saved model that has every kind of file, and with the tower it names."""
    folder = tmp_path_factory.mktemp("stored")
    model = tiny_vlm(folder)
    model.mark_trained(["language model"])
    checkpoint.save(model, folder / "model")
    return folder


@pytest.mark.parametrize("damage", [lambda old: old[: len(old) // 2], lambda old: b"", lambda old: b"[1]"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_with_the_mend(stored, name, damage):
    file = stored / name
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    try:
        with pytest.raises(ValueError, match=f"{file}.*damaged or was cut off; copy its whole folder again") as error:
            load(stored / "model")
    finally:
        file.write_bytes(whole)
    assert "\n" not in str(error.value)
    load(stored / "model")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model/vlmsel_config.json", '{"format": 1}', "vlmsel_config.json: not a model configuration: expected an obj"),
        ("model/vlmsel_config.json", '{"format": 1, "fingerprints": 3}', "fingerprints must be an object"),
        (
            "model/tokenizer/tokenizer.json",
            "{}",
            "the tokenizer at .*tokenizer cannot be loaded.*copy its whole folder",
        ),
        (
            "clip/open_clip_config.json",
            '{"model_cfg": {"embed_dim": 4}}',
            "the vision tower at .*clip cannot be loaded",
        ),
    ],
)
def test_files_that_are_whole_and_wrong_are_named(stored, name, content, words):
    file = stored / name
    whole = file.read_bytes()
    file.write_text(content)
    try:
        with pytest.raises(ValueError, match=words):
            load(stored / "model")
    finally:
        file.write_bytes(whole)


def test_a_configuration_that_does_not_fit_the_weights_is_one_clear_error(tmp_path):
    _, llama = save_backbones(tmp_path)
    settings = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**settings, "hidden_size": 32}))
    with pytest.raises(ValueError, match=f"the language model at {llama} cannot be loaded .*do not belong together"):
        build(VLMConfig(f"local-dir:{tmp_path / 'clip'}", str(llama)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision": 3}, "not a model configuration: vision is 3"),
        ({"lora": {"rank": 3}}, r"not a LoRA configuration: unknown keys \['rank'\]"),
        ({"lora": {"r": "3"}}, "not a LoRA configuration: r is '3'"),
        ({"lora": 7}, "not a LoRA configuration: expected an object, got 7"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        VLMConfig.from_json({"vision": "a", "language": "b", **change})


def test_saving_replaces_a_model_and_nothing_else(tmp_path):
    model = tiny_vlm(tmp_path / "backbones")
    checkpoint.save(model, tmp_path / "model")
    checkpoint.save(changed(model), tmp_path / "model")
    same(model, load(tmp_path / "model"))
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("rain")
    with pytest.raises(FileExistsError, match="diary holds other files"):
        checkpoint.save(model, tmp_path / "diary")
    assert (tmp_path / "diary" / "monday.txt").read_text() == "rain"


def test_language_model_with_missing_weights_is_refused(tmp_path):
    _, llama = save_backbones(tmp_path)
    state = load_file(llama / "model.safetensors")
    state.pop("model.norm.weight")
    save_file(state, llama / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing, the first is model.norm.weight"):
        build(VLMConfig(f"local-dir:{tmp_path / 'clip'}", str(llama)))
