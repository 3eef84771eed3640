"""Logits are the model's own, whatever it does to them after the head."""

from dataclasses import replace

import pytest
import torch
import transformers as hf
from naive_gradients import loop_gradients
from tiny_models import (
    one_sample,
    random_batch,
    row_samples,
    sample_losses,
    tiny_tokenizer,
    tiny_vlm,
    wake_lora,
)
from torch.nn.functional import cross_entropy

from vlmsel.gradients import capture, select_blocks
from vlmsel.models.assembly import assemble
from vlmsel.models.config import VLMConfig
from vlmsel.models.generation import generate, next_token_logits
from vlmsel.models.logits import changes_logits

SHAPE = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 12}
SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.02}
SHAPE |= {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
MAMBA = {"mamba_d_ssm": 24, "mamba_n_heads": 2, "mamba_d_head": 12, "mamba_n_groups": 1, "mamba_d_state": 4}
BERT = {"is_decoder": True, "max_position_embeddings": 64}

CHANGED = {
    "Gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, {"final_logit_softcapping": 30.0}),
    "Cohere": (hf.CohereConfig, hf.CohereForCausalLM, {"logit_scale": 0.0625}),
    "Granite": (hf.GraniteConfig, hf.GraniteForCausalLM, {"logits_scaling": 8.0}),
    "FalconH1": (hf.FalconH1Config, hf.FalconH1ForCausalLM, {"lm_head_multiplier": 0.0195, **MAMBA}),
    "RecurrentGemma": (
        hf.RecurrentGemmaConfig,
        hf.RecurrentGemmaForCausalLM,
        {"logits_soft_cap": 30.0, "lru_width": 24, "block_types": ["attention"], "attention_window_size": 64},
    ),
    "Bert": (hf.BertConfig, hf.BertLMHeadModel, BERT),
}
PLAIN = {
    "Llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
    "Gemma2 without its cap": (hf.Gemma2Config, hf.Gemma2ForCausalLM, {"final_logit_softcapping": None}),
    "FalconH1 by 1": (hf.FalconH1Config, hf.FalconH1ForCausalLM, {"lm_head_multiplier": 1.0, **MAMBA}),
    "GPT2": (hf.GPT2Config, hf.GPT2LMHeadModel, {"n_embd": 24, "n_head": 2, "n_layer": 1}),
}


def build(config, model, settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**{**SHAPE, **settings})).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [*CHANGED, *PLAIN])
def test_what_a_model_does_after_its_head_is_found(kind, dtype):
    model = build(*{**CHANGED, **PLAIN}[kind]).to(dtype).train()
    assert changes_logits(model) == (kind in CHANGED)
    assert model.training and not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", CHANGED)
def test_losses_are_those_of_the_models_own_logits(kind):
    model = build(*CHANGED[kind]).double()
    batch = random_batch(images_per_sample=[0, 0, 0])
    losses = sample_losses(model, batch)
    for row in range(3):
        alone = one_sample(batch, row)
        own = cross_entropy(model(input_ids=alone.input_ids).logits[0, :-1].double(), alone.labels[0, 1:])
        assert losses[row].item() == pytest.approx(own.item(), rel=1e-6)
    assert row_samples(model, batch) == {}


def test_a_head_that_is_not_called_is_none_that_changes_logits():
    class ByHand(hf.LlamaForCausalLM):
        def forward(self, input_ids=None, **inputs):
            hidden = self.model(input_ids=input_ids, attention_mask=inputs["attention_mask"]).last_hidden_state
            return hf.modeling_outputs.CausalLMOutput(logits=torch.nn.functional.linear(hidden, self.lm_head.weight))

    assert not changes_logits(build(hf.LlamaConfig, ByHand, {}))


def seeing(config, language, settings):
    """A vision-language model that speaks by this language model, with adapters that do something."""
    model = tiny_vlm()
    made = assemble(replace(model.vlm_config, language="memory"), model.vision, build(config, language, settings))
    wake_lora(made)
    return made


def test_a_model_that_sees_answers_by_its_own_logits():
    model = seeing(hf.Gemma2Config, hf.Gemma2ForCausalLM, {"final_logit_softcapping": 0.5})
    batch = random_batch(model, left=True)
    plan, embeddings = model.embed(batch, left=True)
    own = model.language_model(inputs_embeds=embeddings, attention_mask=plan.attention_mask).logits[:, -1]
    found = next_token_logits(model, batch)
    assert float(found.abs().max()) <= 0.5
    torch.testing.assert_close(found, own.float(), rtol=1e-5, atol=1e-6)
    assert len(generate(model, batch, tiny_tokenizer(), 2)) == len(batch.input_ids)


def test_gradients_of_samples_are_those_of_each_alone():
    settings = {"logits_scaling": 0.01, "tie_word_embeddings": False}
    model = seeing(hf.GraniteConfig, hf.GraniteForCausalLM, settings).double()
    batch = random_batch(model)
    blocks = select_blocks(model, "projector|lora_|down_proj|lm_head")
    assert all(any(part in block.name for block in blocks) for part in ("lora_A", "down_proj", "lm_head"))
    with capture(model, blocks, len(batch.uids), row_samples(model, batch)) as captured:
        sample_losses(model, batch).sum().backward()
    alone = (one_sample(batch, row) for row in range(len(batch.uids)))
    expected = loop_gradients(model, alone, sample_losses, blocks)
    for name, factor in captured.factors().items():
        torch.testing.assert_close(factor.dense(), expected[name])


def test_a_text_model_trains_on_its_own_logits():
    language = build(*CHANGED["FalconH1"])
    model = assemble(VLMConfig(None, "memory"), None, language, tiny_tokenizer())
    model.trained("lm")
    batch = random_batch(images_per_sample=[0, 0])
    model.losses(batch).sum().backward()
    mine = {name: p.grad.clone() for name, p in language.named_parameters()}
    model.zero_grad()
    for row in range(2):
        alone = one_sample(batch, row)
        cross_entropy(language(input_ids=alone.input_ids).logits[0, :-1], alone.labels[0, 1:]).backward()
    for name, p in language.named_parameters():
        torch.testing.assert_close(mine[name], p.grad, rtol=1e-3, atol=1e-5)
