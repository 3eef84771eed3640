"""Our model as `LlavaForConditionalGeneration` and back: the same weights, the same logits."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import llava_7b, random_batch, save_backbones, tiny_vlm, wake_lora
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from vlmsel.data.encoding import generation_ids
from vlmsel.data.images import square
from vlmsel.data.sample import Turn
from vlmsel.models.assembly import build, load
from vlmsel.models.convert_export import Words, add_words, export, exported, llava_config
from vlmsel.models.convert_import import Given, read_huggingface
from vlmsel.models.convert_write import write_own
from vlmsel.models.language import quiet_transformers
from vlmsel.models.logits import logits_at
from vlmsel.models.presets import PRESETS
from vlmsel.models.vision import normalise

LAYOUTS = ["llava-hf", "llava-hf-5"]


def opened(folder, dtype=torch.float32):
    with quiet_transformers():
        model, info = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    return model.eval()


def naive_logits(model, batch, image):
    """Give HF's logits of every sample alone, in which each placeholder stands as often as there are patches."""
    places, rows = model.config.image_seq_length, []
    for row, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True):
        real = [token for token, there in zip(row, mask, strict=True) if there]
        rows.append([i for token in real for i in ([image] * places if token == -200 else [token])])
    found = []
    for index, ids in enumerate(rows):
        shown = batch.image_index[batch.image_samples == index]
        pixels = batch.pixel_values[shown] if len(shown) else None
        found.append(model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0])
    return found


@torch.no_grad()
def own_logits(model, batch):
    plan, embeddings = model.embed(batch)
    out = logits_at(model.language_model, plan.attention_mask, lambda states: states, inputs_embeds=embeddings)
    return [row[mask.bool()] for row, mask in zip(out, plan.attention_mask, strict=True)]


@pytest.fixture(params=[False, True], ids=["gelu", "quick_gelu"])
def model(request, tmp_path):
    model = tiny_vlm(tmp_path / "backbones")
    if request.param:
        save_backbones(tmp_path / "backbones", quick_gelu=True)
        model = build(model.vlm_config)
    wake_lora(model)
    return model.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_are_those_of_transformers_llava(model, layout, tmp_path):
    export(model, tmp_path / "hf", layout)
    theirs, batch = opened(tmp_path / "hf", torch.float64), random_batch(model)
    batch.pixel_values = batch.pixel_values.double()
    image = theirs.config.image_token_id
    for own, other in zip(own_logits(model.double(), batch), naive_logits(theirs, batch, image), strict=True):
        torch.testing.assert_close(own, other[:, : own.shape[1]].detach(), atol=1e-9, rtol=1e-9)


def weights(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name != "vision.visual.proj"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_way_there_and_back_keeps_every_bit(model, layout, tmp_path):
    model.merge_lora()
    export(model, tmp_path / "hf", layout)
    write_own(read_huggingface(tmp_path / "hf", Given()), tmp_path / "own")
    (tmp_path / "own").rename(tmp_path / "moved")  # it brings its backbones along
    again = load(tmp_path / "moved")
    before, after = weights(model), weights(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    batch = random_batch(model)
    with torch.no_grad():
        assert torch.equal(model.losses(batch), again.losses(batch))
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert again.vlm_config.template == model.vlm_config.template
    again.save(tmp_path / "tuned")  # which names the backbones where they are now
    assert torch.equal(load(tmp_path / "tuned").losses(batch), again.losses(batch))


def test_a_tied_head_stays_tied(tmp_path):
    model = build(PRESETS["tiny"])
    model.merge_lora()
    model.vlm_config = replace(model.vlm_config, projector_trained=True)
    export(model, tmp_path / "hf", "llava-hf")
    theirs = opened(tmp_path / "hf")
    assert theirs.lm_head.weight.data_ptr() == theirs.get_input_embeddings().weight.data_ptr()
    write_own(read_huggingface(tmp_path / "hf", Given()), tmp_path / "own")
    again = load(tmp_path / "own")
    assert all(torch.equal(tensor, weights(again)[name]) for name, tensor in weights(model).items())
    assert again.vlm_config.image_mode == "squash" and again.vlm_config.template == "pure"


def test_vocabulary_grows_to_a_multiple_of_64_with_rows_that_never_win(tmp_path):
    model = build(PRESETS["tiny"])
    words = add_words(model)
    assert (words.image, words.rows) == (643, 704)
    table = model.backbone.get_input_embeddings().weight
    state = dict(exported(model, words, "llava-hf"))
    head = state["language_model.lm_head.weight"]
    assert head.shape[0] == 704 and torch.equal(head[:643], table)
    torch.testing.assert_close(head[643:], table.mean(0).expand(61, -1))


@pytest.mark.parametrize(("layout", "mode"), [("llava-hf", "pad"), ("llava-hf-5", "crop"), ("llava-hf", "squash")])
def test_the_processor_shows_and_asks_as_we_do(layout, mode, tmp_path):
    model = tiny_vlm(tmp_path / "backbones")
    model.vlm_config = replace(model.vlm_config, image_mode=mode)
    export(model, tmp_path / "hf", layout)
    processor = AutoProcessor.from_pretrained(tmp_path / "hf")
    noise = np.random.default_rng(0).integers(0, 255, (23, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour is it?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=image, text=text, return_tensors="pt", add_special_tokens=False)
    turns = [Turn("human", "<image>\nWhich colour is it?")]
    own = generation_ids(turns, 1, model.tokenizer, model.vlm_config.template)
    token, places = opened(tmp_path / "hf").config.image_token_id, model.vision.patches
    assert inputs["input_ids"][0].tolist() == [i for t in own for i in ([token] * places if t == -200 else [t])]
    seen = normalise(square(image, 16, mode, model.vision.image_mean), model.vision.image_mean, model.vision.image_std)
    torch.testing.assert_close(inputs["pixel_values"][0], seen, atol=0.05, rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_of_llava_7b_is_there_without_any_being_made(layout):
    model = llava_7b(replace(PRESETS["llava-7b"], lora=None)).to("meta")
    words = Words(SimpleNamespace(convert_tokens_to_ids=lambda _: 32000, pad_token_id=32001), 32064)
    state = dict(exported(model, words, layout))
    assert all(tensor.is_meta for tensor in state.values())
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(llava_config(model, words))
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    plain = {in_memory(name): tensor.shape for name, tensor in state.items()}
    assert plain == shapes
    assert shapes["lm_head.weight"] == (32064, 4096) and theirs.config.image_seq_length == 576
    assert theirs.config.vision_config.hidden_act == "quick_gelu"


def in_memory(name):
    """Rename as transformers does on its way from the disk, by hand."""
    if name.startswith("vision_tower.vision_model."):
        return "model.vision_tower." + name[26:]
    if name.startswith("multi_modal_projector."):
        return "model." + name
    if name.startswith("language_model.lm_head."):
        return name[15:]
    return "model.language_model." + name[21:] if name.startswith("language_model.model.") else name


def test_refusals_of_the_export(tmp_path):
    model = tiny_vlm(tmp_path / "backbones")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files already"):
        export(model, tmp_path / "full", "llava-hf")
    with pytest.raises(ValueError, match="reads text only"):
        export(build(PRESETS["tiny-text"]), tmp_path / "out", "llava-hf")
    untrained = build(PRESETS["tiny"])
    with pytest.raises(ValueError, match="was never trained"):
        export(untrained, tmp_path / "out", "llava-hf")
    with pytest.raises(ValueError, match="projector holds 0.bias, 0.weight; two linear maps"):
        export(build(replace(model.vlm_config, projector="linear")), tmp_path / "out", "llava-hf")
    assert not (tmp_path / "out").exists()
