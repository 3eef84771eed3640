"""Hugging Face image-text models of every class: read, batched, differentiated and saved, against samples alone."""

import json

import numpy as np
import peft
import pytest
import torch
from naive_gradients import assert_same, loop_gradients
from PIL import Image
from tiny_vlms import CLASSES, IM_MASKED, qwen2_5_vl, save_vlm, tiny_vlm
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, ProcessorMixin

from vlmsel.data.chat import parts
from vlmsel.data.dataset import Reading, SampleDataset
from vlmsel.data.sample import Sample, Turn
from vlmsel.gradients.capture import capture
from vlmsel.gradients.check import check_capture
from vlmsel.gradients.persample import evaluating
from vlmsel.models.config import LoraSpec
from vlmsel.models.image_text import ImageText
from vlmsel.models.image_text_reader import ProcessorReader
from vlmsel.models.language import quiet_transformers
from vlmsel.models.lora import adapted_modules, quiet_peft
from vlmsel.models.open import open_subject
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import train_phase

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor

NAMES = list(CLASSES)
TUNED = [("qwen3_vl", "projector+lora"), ("smolvlm", "projector+lora"), ("llava", "lora")]
MORE = [("llava", "projector+lora"), ("qwen2_5_vl", "projector+lora"), ("gemma3", "projector+lora")]
MORE += [(name, "lora") for name in ("qwen2_5_vl", "smolvlm", "qwen3_vl")]
TUNED += [pytest.param(*one, marks=pytest.mark.slow) for one in MORE]
COMMON = ("llava", "qwen2_5_vl", "smolvlm", "gemma3", "mllama")  # kinds of their own; the others are like one of them
LORA = LoraSpec(r=2, alpha=4)
ENDS = {"smolvlm": "<end_of_utterance>", "idefics3": "<end_of_utterance>", "gemma3": "<end_of_turn>"}
ENDS |= {"paligemma": "<eos>", "mllama": "<|eot_id|>"}
SAMPLES = (
    Sample(7, "a", ("0.png", "1.png"), (
        Turn("human", "<image>\n<image>\nWhat?"), Turn("gpt", "Red."),
        Turn("human", "And?"), Turn("gpt", "Blue, I say."),
    )),
    Sample(8, "a", (), (Turn("human", "Say it."), Turn("gpt", "It."))),
    Sample(9, "a", ("2.png",), (Turn("human", "<image>\nWho?"), Turn("gpt", "Nobody at all."))),
    Sample(10, "a", ("1.png",), (Turn("human", "Why?\n<image>"), Turn("gpt", "No."))),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of different shapes."""
    place, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, (width, height) in enumerate(((40, 30), (30, 60), (20, 33))):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return place


def opened(name, lora=True, dtype=torch.float64):
    model, processor = tiny_vlm(name)
    subject = ImageText(model.to(dtype), processor, None, name).eval()
    if lora:
        subject.attach_lora(LORA)
        for key, parameter in subject.named_parameters():
            if ".lora_" in key:
                generator = torch.Generator().manual_seed(len(key))
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return subject


def usable(name, samples=SAMPLES):
    """PaliGemma's processor takes no text without a picture."""
    return [sample for sample in samples if sample.images or name != "paligemma"]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_read_as_the_processor_reads_them(name, folder):
    subject, reading = opened(name, lora=False, dtype=torch.float32), Reading(folder)
    for sample in usable(name):
        item = subject.encode(sample, reading)
        roles = {"human": "user", "gpt": "assistant"}
        messages = [{"role": roles[turn.role], "content": parts(turn.text)} for turn in sample.turns]
        text = subject.processor.apply_chat_template(messages)
        images = [[Image.open(folder / image) for image in sample.images]] if sample.images else None
        begun = (bos := subject.tokenizer.bos_token) is not None and text.startswith(bos)
        expected = subject.processor(images=images, text=[text], add_special_tokens=not begun, return_tensors="pt")
        assert item.input_ids == expected["input_ids"][0].tolist()
        assert subject.size(sample, reading).tokens == len(item.input_ids)
        said = [label for label in item.labels if label >= 0]
        assert subject.size(sample, reading).supervised == len(said)
        own = "".join(turn.text + ENDS.get(name, "<|im_end|>") for turn in sample.turns if turn.role == "gpt")
        assert subject.tokenizer.decode(said).replace(" ", "") == own.replace(" ", "")
        for key, tensor in {**item.sample, **item.packed}.items():
            assert torch.equal(tensor.reshape(expected[key].shape), expected[key]), key


@pytest.mark.parametrize("name", [n if n in COMMON else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_gradients_of_a_batch_are_those_of_its_samples_alone(name, folder):
    subject, reading = opened(name), Reading(folder)
    items = [subject.encode(sample, reading) for sample in usable(name)]
    singles = [subject.collate([item]) for item in items]
    for order in (items, items[::-1]):
        batch = subject.collate(order)
        alone = torch.cat([subject.losses(one) for one in (singles if order is items else singles[::-1])])
        torch.testing.assert_close(subject.losses(batch), alone, rtol=1e-9, atol=0)
    batch = subject.collate(items)
    halves = torch.cat([subject.losses(half) for half in batch.halves()])
    torch.testing.assert_close(halves, subject.losses(batch), rtol=1e-9, atol=0)
    # Gemma's norms compute in float32, whatever the model's dtype
    tolerance = 1e-6 if name in ("gemma3", "paligemma") else 1e-9
    for spec in ("lora", "projector", "last-block"):
        blocks = subject.blocks(spec)
        with torch.enable_grad(), capture(subject, blocks, len(items), subject.row_samples(batch)) as captured:
            captured.backward(subject.losses(batch))
        found = {key: factor.dense() for key, factor in captured.factors().items()}
        expected = loop_gradients(subject, singles, lambda model, one: subject.losses(one), blocks)
        assert_same(found, expected, tolerance)
        check_capture(
            subject, batch, lambda model, one: subject.losses(one), blocks, subject.row_samples(batch), singles
        )


@pytest.mark.parametrize("name", [*NAMES, "paligemma vicuna_v1"])
def test_no_token_sees_what_it_is_to_say(name, folder):
    """The last token of an answer changes no loss but its own."""
    model, processor = tiny_vlm(name.split()[0])
    subject = ImageText(model.double(), processor, "vicuna_v1" if " " in name else None, name).eval()
    for sample in SAMPLES if " " in name else usable(name):
        batch = subject.collate([subject.encode(sample, Reading(folder))])
        before = subject.token_losses(batch).losses
        last = int((batch.labels[0] >= 0).nonzero()[-1])
        batch.input_ids[0, last] = batch.labels[0, last] = 65
        after = subject.token_losses(batch).losses
        torch.testing.assert_close(after[:-1], before[:-1], rtol=1e-6, atol=0)
        assert abs(after[-1] - before[-1]) > 1e-3


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (3, 2)])
def test_mllama_alone_is_what_transformers_computes(numbers, folder):
    """The hook that keeps a batch's samples apart changes nothing where they have equally many pictures."""
    subject, (plain, _) = opened("mllama", lora=False), tiny_vlm("mllama")
    batch = subject.collate([subject.encode(SAMPLES[number], Reading(folder)) for number in numbers])
    own = {name: x.double() if x.is_floating_point() else x for name, x in batch.inputs().items()}
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **own}
    with torch.no_grad():
        expected, found = plain.double()(**inputs).logits, subject.backbone(**inputs).logits
    assert torch.equal(found[batch.attention_mask.bool()], expected[batch.attention_mask.bool()])


def test_images_are_never_cut_and_text_is(folder):
    subject, reading = opened("qwen2_5_vl", lora=False), Reading(folder)
    whole = subject.encode(SAMPLES[0], reading)
    cut = subject.encode(SAMPLES[0], Reading(folder, len(whole.input_ids) - 5))
    assert cut.input_ids == whole.input_ids[:-5] and cut.labels == whole.labels[:-5]
    assert torch.equal(cut.packed["pixel_values"], whole.packed["pixel_values"])
    for limit, reason in ((20, "its images take 52 places up to the"), (80, "no supervised token is left within 80")):
        for read in (subject.encode, subject.size):
            with pytest.raises(ValueError, match=reason):
                read(SAMPLES[0], Reading(folder, limit))


def test_data_set_reports_what_cannot_be_used(folder):
    bad = (
        Sample(1, "a", ("none.png",), SAMPLES[2].turns),
        Sample(2, "a", ("0.png",), (Turn("human", "No marker"), Turn("gpt", "A."))),
        Sample(3, "a", (), (Turn("human", "Spelt <|im_end|>"), Turn("gpt", "A."))),
    )
    data = SampleDataset([*SAMPLES, *bad], opened("qwen2_5_vl", lora=False), Reading(folder))
    problems = data.check()
    assert data.usable() == [0, 1, 2, 3] and list(problems) == [1, 2, 3]
    assert "'none.png' is missing" in problems[1] and "0 <image> markers for 1 images" in problems[2]
    assert "turn 1 spells '<|im_end|>', which the tokenizer reads as a special token" in problems[3]


def test_marks_of_the_template_tell_the_same_as_prefixes(folder):
    (_, marked), (_, plain) = qwen2_5_vl(IM_MASKED), qwen2_5_vl()
    readers = [ProcessorReader(processor, None, "m") for processor in (marked, plain)]
    for sample in SAMPLES:
        images = [Image.open(folder / image) for image in sample.images]
        first, second = (reader.encode(sample, images, Reading(), 1000) for reader in readers)
        assert (first.input_ids, first.labels) == (second.input_ids, second.labels)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "smolvlm"])
def test_our_template_stands_in_for_the_processors(name, folder):
    model, processor = tiny_vlm(name)
    subject = ImageText(model, processor, "vicuna_v1", name).eval()
    items = [subject.encode(sample, Reading(folder)) for sample in SAMPLES]
    for sample, item in zip(SAMPLES, items, strict=True):
        assert subject.size(sample, Reading(folder)).tokens == len(item.input_ids)
        assert "ASSISTANT:" in subject.tokenizer.decode(item.input_ids)
    alone = torch.cat([subject.losses(subject.collate([item])) for item in items])
    torch.testing.assert_close(subject.losses(subject.collate(items)), alone)


def test_all_linear_layers_are_those_of_the_part_that_reads_text():
    subject = opened("qwen2_5_vl", lora=False)
    subject.attach_lora(LoraSpec(r=2, alpha=4, targets="all-linear"))
    names, decoder = adapted_modules(subject.model), subject.backbone.get_decoder()
    inside = [name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)]
    inside = [name for name in inside if ".lora_" not in name and name.endswith("base_layer")]
    assert len(names) == len(inside) > 0 and "visual" not in "".join(names) and "lm_head" not in "".join(names)


@pytest.mark.parametrize(("name", "parts_"), TUNED)
def test_what_is_tuned_opens_in_transformers_and_here(name, parts_, folder, tmp_path):
    save_vlm(tmp_path / "base", name)
    subject = open_subject(str(tmp_path / "base"), "cpu")
    subject.attach_lora(LORA)
    data = SampleDataset(list(SAMPLES), subject, Reading(folder))
    batch = subject.collate([data[i] for i in range(len(data))])
    with torch.no_grad(), evaluating(subject):
        before = subject.losses(batch)
    settings = PhaseSettings(train=parts_, learning_rate=1e-2, batch_size=4, max_steps=6, save_every=None)
    result = train_phase(subject, data, settings, tmp_path / "run")
    with torch.no_grad(), evaluating(subject):
        after = subject.losses(batch)
    assert after.mean() < before.mean()
    with quiet_transformers(), quiet_peft():  # PEFT warns of missing keys, which is an error here
        theirs = AutoModelForImageTextToText.from_pretrained(result.model).eval()
        base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
        loaded = peft.PeftModel.from_pretrained(base, result.model).eval()
        AutoProcessor.from_pretrained(result.model)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, **batch.inputs()}
    with torch.no_grad(), evaluating(subject):
        expected = subject.backbone(**inputs).logits
        for other in (theirs, loaded):
            torch.testing.assert_close(other(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    again = open_subject(str(tmp_path / "run"), "cpu")
    with torch.no_grad():
        torch.testing.assert_close(again.losses(batch), after)
    assert again.digest() == open_subject(str(result.model), "cpu").digest()
    assert again.digest() != open_subject(str(tmp_path / "base"), "cpu").digest()
    card = (result.model / "README.md").read_text()
    assert f"Base model: {tmp_path / 'base'}" in card and "transformers" in card
    subject.load_trained(result.model)
    again.save(tmp_path / "twice")
    third = open_subject(str(tmp_path / "twice"), "cpu")
    with torch.no_grad():
        torch.testing.assert_close(third.losses(batch), after)


def test_a_whole_language_model_is_saved_whole(folder, tmp_path):
    save_vlm(tmp_path / "base", "qwen2_5_vl")
    subject = open_subject(str(tmp_path / "base"), "cpu")
    data = SampleDataset(list(SAMPLES), subject, Reading(folder))
    settings = PhaseSettings(train="projector+lm", learning_rate=1e-3, batch_size=4, max_steps=2, save_every=None)
    result = train_phase(subject, data, settings, tmp_path / "run")
    again = open_subject(str(result.model), "cpu")
    wanted = subject.backbone.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in again.backbone.state_dict().items())
    subject.load_trained(result.model)


def test_adapters_lie_in_the_language_model_only():
    subject = opened("llava")
    names = [name for name, _ in subject.named_parameters() if ".lora_" in name]
    assert names and all(".language_model." in name for name in names)


def test_adapters_of_other_weights_are_refused(tmp_path):
    save_vlm(tmp_path / "base", "llava")
    subject = open_subject(str(tmp_path / "base"), "cpu")
    subject.attach_lora(LORA)
    subject.save(tmp_path / "adapters")
    save_vlm(tmp_path / "base", "llava", seed=1)
    with pytest.raises(ValueError, match="base is not the one that these adapters were trained on"):
        open_subject(str(tmp_path / "adapters"), "cpu")
    save_vlm(tmp_path / "other", "idefics3")
    file = tmp_path / "adapters/adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(ValueError, match=f"adapters of {tmp_path / 'other'}, which adapter_config.json names, were"):
        open_subject(str(tmp_path / "adapters"), "cpu")


def test_a_model_without_chat_template_says_what_to_do(folder):
    model, processor = tiny_vlm("llava")
    processor.chat_template = processor.tokenizer.chat_template = None
    subject = ImageText(model, processor, None, "here").eval()
    with pytest.raises(ValueError, match="here: the processor has no chat template; name one with --template"):
        subject.encode(SAMPLES[0], Reading(folder))


def test_a_processor_that_does_not_say_what_stands_for_an_image_is_refused(folder):
    class Older(LlavaProcessor):
        replace_image_token = ProcessorMixin.replace_image_token  # as classes have it that were not brought over yet

    class Oldest(LlavaProcessor):
        replace_image_token = None

    model, processor = tiny_vlm("llava")
    for kind in (Older, Oldest):
        processor.__class__ = kind
        subject = ImageText(model, processor, None, "here").eval()
        with pytest.raises(
            ValueError, match=rf"^here: {kind.__name__} of transformers .* from 5.17 on; update trans.*$"
        ):
            subject.encode(SAMPLES[2], Reading(folder))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "mllama"])
def test_embeddings_and_states_are_the_means_of_what_is_read(name, folder):
    subject, reading = opened(name), Reading(folder)
    items = [subject.encode(sample, reading) for sample in usable(name)]
    states, mask = subject.hidden(subject.collate(items[:1]))
    assert states.shape[:2] == mask.shape and bool(mask.all())
    words, seen = subject.embedding(subject.collate(items))
    alone = [subject.embedding(subject.collate([item])) for item in items]
    torch.testing.assert_close(words, torch.cat([one[0] for one in alone]))
    torch.testing.assert_close(seen, torch.cat([one[1] for one in alone]))
    assert not seen[1].any() and bool(seen[0].any())
