"""LLaVA-1.5's own checkpoints and Prismatic's become models of ours with the same weights."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_batch, tiny_vlm, wake_lora

from vlmsel.cli import main
from vlmsel.models.assembly import load
from vlmsel.models.checkpoint import own_weights, save_adapter
from vlmsel.models.convert import convert
from vlmsel.models.convert_export import write_tower
from vlmsel.models.convert_import import Given


@pytest.fixture
def model(tmp_path):
    """A model with adapters that do something, saved in `own`."""
    model = tiny_vlm(tmp_path / "backbones")
    model.vlm_config = replace(model.vlm_config, image_mode="pad")
    wake_lora(model)
    model.save(tmp_path / "own")
    write_tower(model.vision, tmp_path / "tower")
    return model.eval()


def weights(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name != "vision.visual.proj"}


def assert_same(first, second):
    before, after = weights(first), weights(second)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    batch = random_batch(first)
    with torch.no_grad():
        assert torch.equal(first.losses(batch), second.losses(batch))


def llava_config(folder, tower, **changes):
    """Write what LLaVA's code leaves beside its weights."""
    own = {"model_type": "llava_llama", "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": str(tower)}
    own |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**own, **changes}))
    return folder


def projector(model, prefix):
    return {f"{prefix}{name}": tensor.clone() for name, tensor in model.projector.state_dict().items()}


def test_a_whole_model_goes_there_and_back(model, tmp_path):
    convert(str(tmp_path / "own"), "llava-1.5", tmp_path / "llava", Given())
    stored = load_file(tmp_path / "llava" / "model.safetensors")
    assert {"model.mm_projector.0.weight", "model.mm_projector.2.bias", "model.embed_tokens.weight"} <= set(stored)
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["mm_projector_type"] == "mlp2x_gelu"
    convert(str(tmp_path / "llava"), "own", tmp_path / "again", Given())
    model.merge_lora()
    again = load(tmp_path / "again")
    assert_same(model, again)
    assert again.vlm_config.image_mode == "pad" and again.vlm_config.template == "vicuna_v1"


def test_a_tower_within_the_checkpoint_is_taken_from_there(model, tmp_path):
    convert(str(tmp_path / "own"), "llava-1.5", tmp_path / "llava", Given())
    file, prefix = tmp_path / "llava" / "model.safetensors", "model.vision_tower.vision_tower."
    tower = load_file(tmp_path / "tower" / "model.safetensors")
    torch.save({**load_file(file), **{prefix + n: 2 * t for n, t in tower.items()}}, file.parent / "pytorch_model.bin")
    file.unlink()
    convert(str(tmp_path / "llava"), "own", tmp_path / "again", Given())
    again = load(tmp_path / "again")
    assert torch.equal(again.vision.visual.conv1.weight, 2 * model.vision.visual.conv1.weight)


@pytest.mark.parametrize("prefix", ["base_model.model.model.mm_projector.", "model.mm_projector."])
def test_adapters_with_their_projector(model, prefix, tmp_path):
    folder = llava_config(tmp_path / "lora", tmp_path / "tower")
    save_adapter(model.language_model, tmp_path / "adapter", model.vlm_config.language)
    for file in (tmp_path / "adapter").iterdir():
        file.rename(folder / file.name)
    torch.save(projector(model, prefix), folder / "non_lora_trainables.bin")
    convert(str(folder), "own", tmp_path / "again", Given())
    assert_same(model, load(tmp_path / "again"))


def test_stage_one_needs_to_know_its_language_model(model, tmp_path, capsys):
    model.merge_lora()
    folder = llava_config(tmp_path / "one", tmp_path / "tower")
    torch.save(projector(model, "model.mm_projector."), folder / "mm_projector.bin")
    arguments = ["convert", "--model", str(folder), "--to", "own", "--out", str(tmp_path / "again")]
    assert main(arguments) == 2
    assert "give --language FOLDER or NAME" in capsys.readouterr().err
    assert main([*arguments, "--language", str(tmp_path / "backbones" / "llama")]) == 0
    assert "to: own" in (tmp_path / "again" / "vlmsel_convert.yaml").read_text()
    again = load(tmp_path / "again")
    assert all(torch.equal(t, again.projector.state_dict()[n]) for n, t in model.projector.state_dict().items())
    assert again.vlm_config.language == str((tmp_path / "backbones" / "llama").resolve())


@pytest.mark.parametrize("stage", ["align", "finetune"])
def test_prismatic(model, stage, tmp_path):
    model.merge_lora()
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    about = {"llm_backbone_id": "llama2-7b-pure", "image_resize_strategy": "resize-naive"}
    (run / "config.json").write_text(json.dumps({"model": {**about, "vision_backbone_id": "clip-vit-l-336px"}}))
    tables = {"projector": projector(model, "projector.")}
    if stage == "finetune":
        tables["llm_backbone"] = {f"llm.{n}": 2 * t for n, t in own_weights(model.language_model).items()}
    torch.save({"model": tables}, run / "checkpoints" / "latest-checkpoint.pt")
    given = Given(language=str(tmp_path / "backbones" / "llama"), vision=str(tmp_path / "tower"))
    convert(str(run), "own", tmp_path / "again", given)
    again = load(tmp_path / "again")
    config = again.vlm_config
    assert (config.template, config.image_mode) == ("pure", "squash")
    assert torch.equal(again.projector[2].weight, model.projector[2].weight)
    factor, norm = 2 if stage == "finetune" else 1, load(tmp_path / "own").backbone.model.norm.weight
    assert torch.equal(again.backbone.model.norm.weight, factor * norm)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/never-made"),)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda one: (one / "mm_projector.bin").write_bytes(pickle.dumps(Evil())), "holds more than weights"),
        (lambda one: (one / "mm_projector.bin").write_bytes(b"PK\3\4"), "cannot be read|holds more than weights"),
        (
            lambda one: torch.save({"model.mm_projector.0.weight": torch.ones(2, 2)}, one / "mm_projector.bin"),
            "0.weight; two",
        ),
        (lambda one: torch.save({"lamp.weight": torch.ones(2)}, one / "mm_projector.bin"), "lamp.weight is no weight"),
        (
            lambda one: torch.save({"model.mm_projector.0.weight": 3}, one / "mm_projector.bin"),
            "other things than weights",
        ),
        (lambda one: torch.save([1], one / "mm_projector.bin"), "holds a list"),
        (lambda one: (one / "mm_projector.bin").unlink(), "no LLaVA checkpoint"),
        (lambda one: llava_config(one, "/no/tower"), "its vision tower is '/no/tower'; give --vision"),
        (lambda one: llava_config(one, one, mm_use_im_start_end=True), "mm_use_im_start_end is True"),
        (lambda one: (one / "config.json").write_text("{"), "config.json"),
    ],
)
def test_refusals(model, change, match, tmp_path):
    one = llava_config(tmp_path / "one", tmp_path / "tower")
    torch.save(projector(model, "model.mm_projector."), one / "mm_projector.bin")
    change(one)
    with pytest.raises(ValueError, match=match):
        convert(str(one), "own", tmp_path / "again", Given(language=str(tmp_path / "backbones" / "llama")))
    assert not (tmp_path / "again").exists() and not Path("/tmp/never-made").exists()


def test_adapters_without_their_projector_are_refused(model, tmp_path):
    folder = llava_config(tmp_path / "lora", tmp_path / "tower")
    save_adapter(model.language_model, tmp_path / "adapter", model.vlm_config.language)
    for file in (tmp_path / "adapter").iterdir():
        file.rename(folder / file.name)
    with pytest.raises(FileNotFoundError, match="no non_lora_trainables.bin"):
        convert(str(folder), "own", tmp_path / "again", Given())
    torch.save(projector(model, "model.mm_projector."), folder / "non_lora_trainables.bin")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "init_lora_weights": "pissa"}))
    with pytest.raises(ValueError, match="init_lora_weights 'pissa' cannot be kept"):
        convert(str(folder), "own", tmp_path / "again", Given())


def test_a_language_model_that_lacks_a_weight_is_refused(model, tmp_path):
    convert(str(tmp_path / "own"), "llava-hf", tmp_path / "hf", Given())
    file = tmp_path / "hf" / "model.safetensors"
    stored = load_file(file)
    del stored["language_model.model.norm.weight"]
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match="1 weights of the language model do not fit config.json; model.norm.weight is"
    ):
        convert(str(tmp_path / "hf"), "own", tmp_path / "again", Given())
    with pytest.raises(ValueError, match="to our own form first"):
        convert(str(tmp_path / "hf"), "llava-1.5", tmp_path / "again", Given())
    with pytest.raises(ValueError, match="is a model of ours already"):
        convert(str(tmp_path / "own"), "own", tmp_path / "again", Given())
    with pytest.raises(ValueError, match="are for --to own"):
        convert(str(tmp_path / "own"), "llava-hf", tmp_path / "again", Given(template="pure"))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(str(tmp_path / "nothing"), "own", tmp_path / "again", Given())
