"""Text models: Hugging Face folders and adapters taken in, saved and loaded alike, and what cannot be kept refused."""

import json
import shutil
from dataclasses import asdict

import peft
import pytest
import torch
from tiny_huggingface import byte_tokenizer, save_language
from tiny_models import llava_7b, sample_losses, tiny_language, tiny_vlm, wake_lora
from transformers import GPT2Config, GPT2LMHeadModel

from vlmsel.data.batches import Collator, Item
from vlmsel.data.dataset import Reading
from vlmsel.models import checkpoint
from vlmsel.models.assembly import load
from vlmsel.models.config import LoraSpec, VLMConfig
from vlmsel.models.generation import generate
from vlmsel.models.language import load_language, positions
from vlmsel.models.lora import quiet_peft
from vlmsel.models.losses import token_losses
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.presets import PRESETS
from vlmsel.models.vlm import VLM
from vlmsel.training.phases import phase_preset

IDS = [[256, 3, 4, 5, 6], [256, 9, 8, 7]]
SPEC = LoraSpec(r=3, alpha=6, rslora=True, targets=("q_proj", "down_proj"), dropout=0.1)


def batch():
    return Collator(258)([Item(i, ids, [-100, *ids[1:]], (), ()) for i, ids in enumerate(IDS)])


def losses(model):
    with torch.no_grad():
        return sample_losses(model, batch())


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_language(tmp_path_factory.mktemp("home") / "llama")


def peft_model(llama, folder):
    """Adapters as PEFT itself loads them."""
    with quiet_peft():
        return peft.PeftModel.from_pretrained(load_language(str(llama)), str(folder)).eval()


@pytest.fixture
def adapted(llama, tmp_path):
    """A text model with adapters that change something, and PEFT's folder of them."""
    model = open_subject(str(llama), "cpu")
    model.attach_lora(SPEC)
    wake_lora(model)
    checkpoint.save(model, tmp_path / "saved")
    return model, tmp_path / "saved/adapter"


def test_losses_are_those_of_the_hugging_face_model(llama):
    model, plain = open_subject(str(llama), "cpu"), load_language(str(llama))
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
    assert VLMConfig.from_json(json.loads(json.dumps(asdict(model.vlm_config)))) == model.vlm_config


def test_a_trained_language_model_is_saved_whole(llama, tmp_path):
    model = open_subject(str(llama), "cpu", template="pure")
    with torch.no_grad():
        next(model.language_model.parameters()).add_(0.1)
    model.mark_trained(["language model"])
    checkpoint.save(model, tmp_path / "saved")
    found = load(tmp_path / "saved")
    assert torch.equal(losses(found), losses(model)) and found.vlm_config.template == "pure"
    assert not torch.equal(losses(found), losses(open_subject(str(llama), "cpu")))


def test_adapters_are_taken_in_as_our_own(adapted, llama):
    model, folder = adapted
    found = open_subject(str(folder), "cpu")
    plain = peft_model(llama, folder)
    assert found.vlm_config.lora == LoraSpec(3, 6, True, ("down_proj", "q_proj"), 0.1)
    one = batch()
    expected = token_losses(plain, one.labels, one.attention_mask, input_ids=one.input_ids).losses
    assert torch.equal(found(one).losses, expected) and torch.equal(losses(found), losses(model))


def edited(folder, copy, **changes):
    """A copy of adapters with another configuration."""
    shutil.copytree(folder, copy)
    file = copy / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return copy


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base_model_name_or_path": "/nowhere/at/all"}, "base_model_name_or_path is /nowhere/at/all"),
        ({"task_type": "SEQ_CLS"}, "adapters of task type SEQ_CLS cannot be evaluated; merge them into their model"),
        ({"r": 2}, "the adapters at .* cannot be loaded .*do not belong together"),
        ({"use_dora": True}, "does not fit the model's adapters at 4 places"),
    ],
)
def test_adapters_whose_files_do_not_fit_are_refused(changes, line, adapted, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=line):
        open_subject(str(edited(adapted[1], tmp_path / "copy", **changes)), "cpu")


OTHERS = [
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern {'q_proj': 2}"),
    ({"bias": "all"}, "bias 'all'"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
    ({"target_modules": ".*q_proj"}, "target_modules '.*q_proj'"),
    ({"target_modules": ["layers.0.self_attn.q_proj"]}, "target_modules ['layers.0.self_attn.q_proj']"),
    ({"target_modules": ["embed_tokens"]}, "target_modules ['embed_tokens']"),
    ({"layers_to_transform": 0}, "layers_to_transform 0"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ({"init_lora_weights": "olora"}, "init_lora_weights 'olora'"),
]


@pytest.mark.parametrize(("settings", "line"), OTHERS)
def test_adapters_of_other_kinds_answer_as_peft_loads_them_and_cannot_be_kept(settings, line, llama, tmp_path):
    config = peft.LoraConfig(**{"r": 3, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
    with quiet_peft():
        made = peft.get_peft_model(load_language(str(llama)), config)
    wake_lora(made)
    for name, parameter in made.named_parameters():
        if "lora_embedding_A" in name:
            parameter.data.fill_(0.3)
    made.save_pretrained(tmp_path / "made", save_embedding_layers=False)
    folder = edited(tmp_path / "made", tmp_path / "adapter", base_model_name_or_path=str(llama))
    found, plain = open_subject(str(folder), "cpu"), peft_model(llama, folder)
    assert isinstance(found, VLM) and not found.training
    ids = torch.tensor(IDS[:1])
    with torch.no_grad():
        assert torch.equal(found.language_model(ids).logits, plain(ids).logits)
        assert not torch.allclose(plain(ids).logits, load_language(str(llama))(ids).logits)
    refusals = (found.blocks, found.default_blocks, lambda: found.trained("lora"), lambda: found.save(tmp_path / "s"))
    for refused in refusals:
        with pytest.raises(ValueError) as problem:
            refused()
        assert f"adapters with {line} cannot be kept; merge them into their model" in str(problem.value)


def test_settings_that_nobody_knows_yet_are_not_taken_for_plain_ones(adapted, tmp_path):
    folder = edited(adapted[1], tmp_path / "copy", use_future_method=True)
    with pytest.warns(UserWarning, match="use_future_method"):
        found = open_subject(str(folder), "cpu")
    with pytest.raises(ValueError, match="adapters with use_future_method True cannot be kept"):
        found.default_blocks()


@pytest.mark.parametrize("lost", ["tokenizer.json", "model.safetensors"])
def test_what_a_folder_lacks_is_named(lost, llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "copy")
    for file in (folder / lost, folder / "tokenizer_config.json" if "tok" in lost else folder / lost):
        file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match=f"{folder}: no (tokenizer|.safetensors weights)"):
        open_subject(str(folder), "cpu")


def test_images_are_refused_in_words(llama):
    with pytest.raises(ValueError, match="this model reads text only; give it no images"):
        open_subject(str(llama), "cpu").project(torch.zeros(1, 3, 8, 8), torch.tensor([0]))


def test_a_model_that_sees_and_one_that_does_not_never_take_each_others_weights(adapted, tmp_path):
    model, _ = adapted
    seeing = tiny_vlm(tmp_path)
    checkpoint.save(seeing, tmp_path / "seeing")
    for one, folder in ((model, "seeing"), (seeing, "saved")):
        with pytest.raises(ValueError, match="does not fit the model: one of the two reads text only"):
            checkpoint.load_trained(one, tmp_path / folder)


def test_the_text_presets_are_the_language_models_of_the_others():
    assert PRESETS["tiny-text"].language == PRESETS["tiny"].language
    model = llava_7b(PRESETS["llama2-7b"])
    assert sum(p.numel() for p in model.parameters()) == 6_738_415_616


def test_what_a_text_model_can_train(llama, adapted):
    plain = open_subject(str(llama), "cpu")
    assert list(plain.trained("lm")) == ["language model"]
    assert list(adapted[0].trained("lora")) == ["lora"]
    for train in ("projector", "projector+lora", "projector+lm"):
        with pytest.raises(ValueError, match="reads text only: set settings.train to lora or lm"):
            plain.trained(train)
    with pytest.raises(ValueError, match="no LoRA adapters; attach some"):
        plain.trained("lora")
    presets = [phase_preset(name) for name in ("hyperinf-llm-lora", "hyperinf-llm-dense")]
    assert [(one.train, one.epochs, one.learning_rate) for one in presets] == [("lora", 5, 2e-5), ("lm", 3, 2e-5)]


def gpt2():
    """A GPT-2 of 64 positions, which it learns one by one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2))


@pytest.mark.parametrize("make", [gpt2, lambda: tiny_language(max_position_embeddings=64)])
def test_samples_are_cut_at_the_model_s_own_positions(make, tmp_path, capsys):
    make().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    subject = open_subject(str(tmp_path / "model"), "cpu")
    talks = [("Short?", "yes"), ("What?", "very " * 30 + "old"), ("Long " * 20 + "?", "no")]
    turns = [[{"from": "human", "value": ask}, {"from": "gpt", "value": answer}] for ask, answer in talks]
    (tmp_path / "pool.json").write_text(json.dumps([{"conversations": one} for one in turns]))
    found = open_pool(subject, tmp_path / "pool.json", Reading(max_length=2048))
    assert subject.positions == 64 and found.samples.lengths()[1:] == [64, 0]
    assert found.problems == {2: "no supervised token is left within 64 positions"}
    line = "1 of 3 samples fill the model's 64 positions; what is longer is cut there, before max_length 2048"
    pool = tmp_path / "pool.json"
    assert capsys.readouterr().out == f"{pool}: read with text\n{pool}: {line}\n"
    losses = subject.losses(subject.collate([found.samples[0], found.samples[1]]))
    cut = open_pool(subject, tmp_path / "pool.json", Reading(max_length=64))
    assert torch.equal(losses, subject.losses(subject.collate([cut.samples[0], cut.samples[1]])))
    assert losses.isfinite().all() and capsys.readouterr().out == f"{pool}: read with text\n"


def test_positions_are_those_that_rotary_ones_are_stretched_to():
    def limit(**settings):
        return positions(tiny_language(max_position_embeddings=64, **settings))

    assert limit() == 64
    assert limit(rope_scaling={"rope_type": "linear", "factor": 4.0}) == 256
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert limit(rope_scaling=yarn) == 128
    assert limit(rope_scaling=yarn | {"factor": 1.5}) == 64


def test_kept_sizes_depend_on_the_chat_template(tmp_path):
    """Of a large pool they are found once; a template changed in the same folder must not be given those of the old."""
    folder, told = save_language(tmp_path / "llama"), []
    form = "{% for m in messages %}" + "{{ 'MARK' + m['content'] + eos_token }}" + "{% endfor %}"
    for mark in ("a", "longer"):
        (folder / "chat_template.jinja").write_text(form.replace("MARK", mark))
        told.append(open_subject(str(folder), "cpu").measures())
    assert told[0] != told[1]
