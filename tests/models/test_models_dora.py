"""DoRA as PEFT has it: per-sample gradients against a loop; tuned, saved, opened and merged against PEFT's logits."""

import json

import peft
import pytest
import torch
from naive_gradients import assert_same, loop_gradients
from tiny_huggingface import save_language
from tiny_models import one_sample, random_batch, sample_losses, tiny_language, tiny_vlm, wake_lora
from tiny_vlms import save_vlm
from transformers import AutoModelForImageTextToText, GPT2Config, GPT2LMHeadModel

from vlmsel.data.batches import Collator, Item
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.gradients import select_blocks
from vlmsel.gradients.capture import capture
from vlmsel.gradients.check import check_capture
from vlmsel.gradients.persample import evaluating
from vlmsel.models.config import LoraSpec
from vlmsel.models.language import load_language, quiet_transformers
from vlmsel.models.lora import attach_lora, lora_parameters, merge_lora, quiet_peft
from vlmsel.models.open import open_subject
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import train_phase

SPEC = LoraSpec(r=2, alpha=4, rslora=True, dora=True, targets=("q_proj", "down_proj"))
SETTINGS = PhaseSettings(train="lora", learning_rate=1e-2, batch_size=4, max_steps=6, save_every=None)


def wake(model):
    """Give B and the magnitudes values of their own."""
    wake_lora(model)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


def gpt2():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    return attach_lora(GPT2LMHeadModel(config), LoraSpec(r=2, alpha=4, dora=True, targets=("c_attn",))).double()


def biased():
    return attach_lora(tiny_language(attention_bias=True), SPEC).double()


@pytest.mark.parametrize("make", [gpt2, biased])
def test_gradients_of_matrices_and_magnitudes_are_each_sample_s_own(make):
    model, batch = wake(make()).eval(), random_batch(images_per_sample=[0, 0, 0])
    blocks = select_blocks(model, "lora")
    assert sum("magnitude" in block.name for block in blocks) * 3 == len(blocks) > 0
    with torch.enable_grad(), capture(model, blocks, 3) as captured:
        captured.backward(sample_losses(model, batch))
    found = {name: factor.dense() for name, factor in captured.factors().items()}
    singles = [one_sample(batch, row) for row in range(3)]
    assert_same(found, loop_gradients(model, singles, sample_losses, blocks), 1e-9)
    check_capture(model, batch, sample_losses, blocks, {}, singles)


def test_a_model_that_sees_takes_it_too(tmp_path):
    model = tiny_vlm(tmp_path, torch.float64, lora=False)
    model.attach_lora(SPEC)
    wake(model.double())
    assert any("magnitude" in block.name for block in model.blocks())
    batch = random_batch(model)
    before = sample_losses(model, batch)
    model.save(tmp_path / "saved")
    again = open_subject(str(tmp_path / "saved"), "cpu")
    torch.testing.assert_close(sample_losses(again.double(), batch), before, rtol=1e-5, atol=0)
    model.merge_lora()
    torch.testing.assert_close(sample_losses(model, batch), before, rtol=1e-9, atol=0)


def test_logits_are_peft_s(tmp_path):
    """Ours against PEFT's own model with the same numbers; fresh adapters change nothing, merged ones no more."""
    settings = {
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "use_dora": True,
        "target_modules": ["q_proj", "down_proj"],
    }
    with quiet_peft():
        theirs = peft.get_peft_model(tiny_language(), peft.LoraConfig(**settings)).eval()
    ours, ids = attach_lora(tiny_language(), SPEC).eval(), torch.tensor([[256, 3, 4, 5]])
    torch.testing.assert_close(ours(ids).logits, tiny_language()(ids).logits, rtol=1e-4, atol=1e-4)
    wake(ours)
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert len(lora_parameters(ours)) == 3 * 4
    merged = merge_lora(ours)
    torch.testing.assert_close(merged(ids).logits, theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_text_model_is_tuned_saved_and_opened_again(tmp_path):
    llama = save_language(tmp_path / "llama")
    subject = open_subject(str(llama), "cpu")
    subject.attach_lora(SPEC)
    items = [Item(i, [256, 3 + i, 4, 5], [-100, 3 + i, 4, 5], (), ()) for i in range(4)]
    batch = Collator(258)(items)
    before = {name: p.clone() for name, p in lora_parameters(subject).items()}
    result = train_phase(subject, items, SETTINGS, tmp_path / "run")
    changed = {name for name, p in lora_parameters(subject).items() if not torch.equal(p, before[name])}
    assert changed == set(before) and any("magnitude" in name for name in changed)
    assert result.losses[-1] < result.losses[0]
    again = open_subject(str(tmp_path / "run"), "cpu")
    assert again.vlm_config.lora == SPEC
    with torch.no_grad():
        assert torch.equal(again.losses(batch), subject.losses(batch))
    adapter = tmp_path / "run/model/adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["use_dora"] is True
    with quiet_peft(), torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(load_language(str(llama)), str(adapter)).eval()
        found = open_subject(str(adapter), "cpu")
        assert torch.equal(theirs(batch.input_ids).logits, subject.language_model(batch.input_ids).logits)
        assert torch.equal(theirs(batch.input_ids).logits, found.language_model(batch.input_ids).logits)
    assert found.vlm_config.lora == LoraSpec(2, 4, True, ("down_proj", "q_proj"), dora=True)
    assert set(found.trained("lora")["lora"]) == set(before)


def test_a_hugging_face_vlm_is_tuned_scored_and_opened_by_peft(tmp_path):
    save_vlm(tmp_path / "base", "llava")
    subject = open_subject(str(tmp_path / "base"), "cpu")
    subject.attach_lora(SPEC)
    talks = [(Turn("human", f"Say {i}."), Turn("gpt", "Yes." * (i + 1))) for i in range(3)]
    data = SampleDataset([Sample(i, "a", (), turns) for i, turns in enumerate(talks)], subject, Reading(tmp_path))
    result = train_phase(subject, data, SETTINGS, tmp_path / "run")
    assert result.losses[-1] < result.losses[0]
    again = open_subject(str(tmp_path / "run"), "cpu")
    assert sum("magnitude" in name for name in again.trained("lora")["lora"]) == 4
    singles = [again.collate([data[i]]) for i in range(3)]
    batch, blocks = again.collate([data[i] for i in range(3)]), again.blocks("lora")
    check_capture(again, batch, lambda model, one: again.losses(one), blocks, again.row_samples(batch), singles)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with quiet_transformers(), quiet_peft(), torch.no_grad(), evaluating(subject):
        base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, result.model).eval()
        expected = theirs(**inputs).logits
        torch.testing.assert_close(again.backbone(**inputs).logits, expected)
        torch.testing.assert_close(subject.backbone(**inputs).logits, expected)
