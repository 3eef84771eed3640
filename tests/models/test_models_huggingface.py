"""Hugging Face folders: which kind lies in them, what is loaded, and damage that ends in one line naming the file."""

import json
import shutil

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_huggingface import CHAT, save_classifier, save_language, save_llava, tiny_llava, tiny_processor
from tiny_models import LORA, save_backbones, tiny_language, wake_lora
from transformers import LlavaForConditionalGeneration

from vlmsel.models import huggingface
from vlmsel.models.huggingface_vlm import complete
from vlmsel.models.image_text import ImageText
from vlmsel.models.language import load_language, quiet_transformers
from vlmsel.models.lora import attach_lora, quiet_peft
from vlmsel.models.losses import token_losses
from vlmsel.models.open import open_subject


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    save_llava(folder / "llava", CHAT)
    save_language(folder / "llama")
    save_classifier(folder / "bert")
    return folder


@pytest.fixture
def llava(home, tmp_path):
    """A copy to damage."""
    return shutil.copytree(home / "llava", tmp_path / "llava")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def refused(folder):
    """Opening the folder ends in one line, which is returned."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        open_subject(str(folder), "cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_kinds_of_folders(home):
    kinds = {name: huggingface.kind_of(home / name) for name in ("llava", "llama", "bert")}
    assert kinds == {"llava": "image-text", "llama": "causal", "bert": "classifier"}


def test_our_own_and_empty_folders_are_no_hugging_face_folders(home, tmp_path):
    clip, llama = save_backbones(tmp_path)
    folders = (clip, llama, tmp_path, home / "llava")
    assert [huggingface.kind_of(one) for one in folders] == [None, "causal", None, "image-text"]


def test_all_weights_are_loaded_as_they_were_saved(home):
    found = open_subject(str(home / "llava"), "cpu", "bfloat16")
    assert isinstance(found, ImageText)
    model, processor = found.model, found.processor
    wanted = tiny_llava().state_dict()
    assert model.state_dict().keys() == wanted.keys() and not model.training
    assert all(torch.equal(value, wanted[name].bfloat16()) for name, value in model.state_dict().items())
    assert processor.chat_template == CHAT and processor.image_token == "<image>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nonsense"}, "config.json: cannot take a model of type 'nonsense' (LlavaFor"),
        ({"model_type": None, "architectures": None}, "a model of type None (no architecture); give an image-text"),
        (
            {"architectures": ["LlavaLlamaForCausalLM"]},
            "convert LLaVA's own checkpoints first (vlmsel convert)",
        ),
    ],
)
def test_models_of_other_kinds_are_refused(llava, changes, message):
    edit(llava / "config.json", **changes)
    assert message in (error := refused(llava)) and str(llava) in error


OLD = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")


@pytest.mark.parametrize("kept", [(), OLD[1:2], OLD[2:]])
@pytest.mark.parametrize(("strategy", "places"), [("default", 4), ("full", 5)])
def test_an_older_processor_learns_from_its_model_what_an_image_takes(llava, strategy, places, kept):
    file = llava / "processor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in OLD or name in kept}))
    edit(llava / "config.json", vision_feature_select_strategy=strategy)
    subject = open_subject(str(llava), "cpu")
    inputs = subject.processor(images=[Image.new("RGB", (40, 30))], text=["<image>"], return_tensors="pt")
    assert (inputs["input_ids"] == 259).sum() == places
    assert subject.model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_a_processor_that_cannot_learn_it_is_refused():
    processor = tiny_processor()
    processor.patch_size = None
    with pytest.raises(ValueError, match="home: processor_config.json has no patch_size, and the model"):
        complete(processor, tiny_llava().config.text_config, "home")


@pytest.fixture
def adapted(home, tmp_path):
    """PEFT's adapters of the LLaVA, and what it is with them."""
    with quiet_transformers(), quiet_peft():
        base = LlavaForConditionalGeneration.from_pretrained(home / "llava").eval()
        torch.manual_seed(1)
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.merge_and_unload()


def test_adapters_of_an_image_text_model_are_asked(adapted):
    folder, expected = adapted
    subject = open_subject(str(folder), "cpu")
    assert type(subject) is ImageText and not subject.model.training
    ids = torch.tensor([[256, 5, 6, 7]])
    torch.testing.assert_close(subject.backbone(input_ids=ids).logits, expected(input_ids=ids).logits)
    learning = subject.trained("lora")["lora"]
    assert {name.rpartition(".lora_")[0].rpartition(".")[2] for name in learning} == {"q_proj"}


def test_adapters_bring_the_processor_that_lies_with_them(adapted, home):
    folder, _ = adapted
    for file in (home / "llava").glob("*"):
        if file.name.startswith(("processor", "token", "chat", "special")):
            shutil.copy(file, folder)
    (folder / "chat_template.jinja").write_text("own")
    assert open_subject(str(folder), "cpu").processor.chat_template == "own"


def test_a_model_of_another_kind_is_named_shortly(llava):
    with pytest.raises(ValueError, match="LlavaConfig is the configuration of another kind of model") as error:
        load_language(str(llava))
    assert len(str(error.value)) < 300 + len(str(llava))


def test_an_encoder_decoder_is_refused(llava):
    edit(llava / "config.json", is_encoder_decoder=True)
    assert "LlavaForConditionalGeneration is an encoder-decoder; give a decoder-only model" in refused(llava)


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ],
)
def test_a_file_that_was_cut_off_is_named(llava, name):
    cut(llava / name)
    error = refused(llava)
    assert str(llava / name) in error and "it is damaged or was cut off; copy its whole folder again" in error


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["model.safetensors"], "no .safetensors weights; copy them there"),
        (["processor_config.json"], "no image processor (processor_config.json, preprocessor_config.json)"),
        (["tokenizer.json", "tokenizer_config.json"], "no tokenizer (tokenizer.json,"),
    ],
)
def test_a_missing_file_is_named(llava, names, message):
    for name in names:
        (llava / name).unlink()
    assert refused(llava).startswith(f"{llava}: {message}")


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer"])
def test_text_models_without_weights_or_tokenizer(home, tmp_path, kind, name):
    folder = shutil.copytree(home / kind, tmp_path / kind)
    for file in folder.glob(f"{name}*"):
        file.unlink()
    wanted = "no .safetensors weights" if name == "model.safetensors" else "no tokenizer"
    assert refused(folder).startswith(f"{folder}: {wanted}")


def test_missing_weights_are_counted_and_named(llava):
    state = load_file(llava / "model.safetensors")
    kept = {name: weight for name, weight in state.items() if "linear_1" not in name}
    save_file(kept, llava / "model.safetensors", metadata={"format": "pt"})
    assert "2 weights are missing, the first is model.multi_modal_projector.linear_1.bias" in refused(llava)


def test_a_classifier_without_its_head_is_refused(home, tmp_path):
    folder = shutil.copytree(home / "bert", tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "2 weights are missing, the first is classifier.bias" in refused(folder)


def test_a_missing_shard_is_named(llava):
    (llava / "model.safetensors").unlink()
    with quiet_transformers():
        tiny_llava().save_pretrained(llava, max_shard_size="20KB")
    shard = sorted(llava.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert str(shard) in refused(llava)


# Adapters


@pytest.fixture
def adapter(home, tmp_path):
    """PEFT's folder of a model with adapters that matter, and that model."""
    model = attach_lora(tiny_language(), LORA)
    wake_lora(model)
    model.save_pretrained(tmp_path / "adapter")
    edit(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=str(home / "llama"))
    return tmp_path / "adapter", model.eval()


def test_an_adapter_folder_reads_text_with_its_adapters(home, adapter):
    folder, model = adapter
    found, plain = (open_subject(str(one), "cpu") for one in (folder, home / "llama"))
    ids = found.tokenizer("A dog", return_tensors="pt")["input_ids"]
    losses = [
        token_losses(one.language_model, ids, torch.ones_like(ids), input_ids=ids).losses for one in (found, plain)
    ]
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(dim=1)
    torch.testing.assert_close(-losses[0], logs.gather(1, ids[0, 1:, None])[:, 0])
    assert not torch.allclose(losses[0], losses[1], rtol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task_type": "SEQ_CLS"}, "adapters of task type SEQ_CLS cannot be evaluated; merge them into their model"),
        ({"base_model_name_or_path": "nowhere"}, "base_model_name_or_path is nowhere, and there is no such folder"),
    ],
)
def test_adapters_that_cannot_be_used(adapter, changes, message):
    folder, _ = adapter
    edit(folder / "adapter_config.json", **changes)
    assert refused(folder).startswith(f"{folder / 'adapter_config.json'}: {message}")


def test_damaged_adapters_are_named(adapter):
    folder, _ = adapter
    cut(folder / "adapter_model.safetensors")
    assert str(folder / "adapter_model.safetensors") in refused(folder)
    (folder / "adapter_model.safetensors").unlink()
    assert "no .safetensors weights" in refused(folder)
