"""Phase settings, presets, and which parameters a phase trains."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from tiny_models import tiny_vlm

from vlmsel.training.phases import PRESETS, PhaseSettings, optimizer_groups, phase_preset

# train, batch, rate, projector's rate, decay, warm-up rounding
PUBLISHED = {
    "llava15-align": ("projector", 256, 1e-3, None, 0.0, "ceil"),
    "llava15-tune": ("projector+lm", 128, 2e-5, None, 0.0, "ceil"),
    "llava15-lora": ("projector+lora", 128, 2e-4, 2e-5, 0.0, "ceil"),
    "prismatic-align": ("projector", 256, 1e-3, None, 0.0, "floor"),
    "prismatic-tune": ("projector+lm", 128, 2e-5, None, 0.1, "floor"),
    "hyperinf-align": ("projector", 32, 1e-3, None, 0.0, "floor"),
    "hyperinf-tune": ("projector+lora", 8, 2e-5, None, 0.1, "floor"),
    "hyperinf-llm-lora": ("lora", 8, 2e-5, None, 0.1, "floor"),
    "hyperinf-llm-dense": ("lm", 8, 2e-5, None, 0.1, "floor"),
}
EPOCHS = {"hyperinf-llm-lora": 5.0, "hyperinf-llm-dense": 3.0}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_published_ones(name):
    s = phase_preset(name)
    found = (s.train, s.batch_size, s.learning_rate, s.projector_learning_rate, s.weight_decay, s.warmup_rounding)
    assert found == PUBLISHED[name]
    assert (s.epochs, s.max_grad_norm, s.warmup_ratio) == (EPOCHS.get(name, 1.0), 1.0, 0.03)
    assert s.batch_size % s.gradient_accumulation == 0


def test_every_other_preset_is_for_the_embedded_model_and_teaches_it_on_a_cpu():
    assert set(PRESETS) - set(PUBLISHED) == {"tiny-align", "tiny-tune", "tiny-llm"}
    for name in ("tiny-align", "tiny-tune"):
        s = phase_preset(name)
        found = (s.train, s.precision, s.gradient_checkpointing, s.gradient_accumulation, s.workers)
        assert found == ("projector+lora", "float32", False, 1, 0)
    # the values that the recipes' expected tables were measured with
    assert (phase_preset("tiny-align").learning_rate, phase_preset("tiny-align").epochs) == (2e-3, 1.0)
    assert (phase_preset("tiny-tune").learning_rate, phase_preset("tiny-tune").epochs) == (1e-3, 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "all"}, "train must be one of projector, .*; got 'all'"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16; got 'float16'"),
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"warmup_ratio": 1.0}, r"warmup_ratio must be in \[0, 1\)"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PhaseSettings(), **change)


def test_settings_are_frozen_and_unknown_presets_listed():
    with pytest.raises(FrozenInstanceError):
        PhaseSettings().seed = 1
    with pytest.raises(ValueError, match="'huge'; choose one of llava15-align"):
        phase_preset("huge")


@pytest.mark.parametrize(
    ("train", "lora", "parts"),
    [
        ("projector", True, {"projector"}),
        ("projector+lora", True, {"projector", "lora"}),
        ("lora", True, {"lora"}),
        ("projector+lm", False, {"projector", "language"}),
    ],
)
def test_exactly_the_named_parts_train(train, lora, parts):
    model = tiny_vlm(lora=lora)
    model.trained(train)

    def part(name):
        return "lora" if ".lora_" in name else name.split(".")[0].removesuffix("_model")

    assert {part(name) for name, p in model.named_parameters() if p.requires_grad} == parts
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert not {part(name) for name in frozen} & parts


def test_groups_name_every_trained_parameter_once():
    model = tiny_vlm(lora=False)
    groups = model.trained("projector+lm")
    named = {name: p for group in groups.values() for name, p in group.items()}
    assert named == {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_trained_weights_become_float32_and_frozen_ones_stay():
    model = tiny_vlm(lora=False).bfloat16()
    model.trained("projector+lm")
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.vision.parameters()} == {torch.bfloat16}


def test_missing_adapters_are_refused_and_those_in_the_way_become_weights():
    with pytest.raises(ValueError, match="'projector\\+lora' and the model has no LoRA adapters; attach"):
        tiny_vlm(lora=False).trained("projector+lora")
    with pytest.raises(ValueError, match="'last-layer', which is for classifiers"):
        tiny_vlm().trained("last-layer")
    model = tiny_vlm()
    assert list(model.trained("projector+lm")) == ["projector", "language model"] and model.vlm_config.lora is None


def test_vectors_are_not_decayed_and_the_projector_has_its_own_rate():
    settings = PhaseSettings(train="projector+lm", learning_rate=1e-2, projector_learning_rate=1e-3, weight_decay=0.1)
    groups = tiny_vlm(lora=False).trained(settings.train)
    made = optimizer_groups(groups, settings)
    assert [(g["lr"], g["weight_decay"]) for g in made] == [(1e-3, 0.1), (1e-3, 0.0), (1e-2, 0.1), (1e-2, 0.0)]
    assert all((p.dim() > 1) == (g["weight_decay"] > 0) for g in made for p in g["params"])
    assert sum(len(g["params"]) for g in made) == sum(map(len, groups.values()))
