"""Engines of every kind on random checkpoints: batches against questions alone, and against loops without a cache."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_huggingface import (
    CHAT,
    WORDS,
    byte_tokenizer,
    save_classifier,
    save_language,
    save_llava,
    tiny_classifier,
    tiny_llava,
    tiny_processor,
)
from tiny_models import tiny_clip, tiny_language, tiny_vlm

from vlmsel import cli
from vlmsel.data.templates import CURIOUS
from vlmsel.data.world.files import WorldSizes, benchmark_files, write_world
from vlmsel.evaluation.engines.base import Ask, first_ids
from vlmsel.evaluation.engines.classifier import ClassifierEngine
from vlmsel.evaluation.engines.image_text import ImageTextEngine, put_images
from vlmsel.evaluation.engines.likelihood import LanguageEngine
from vlmsel.evaluation.engines.open import ENGINES, engine_of
from vlmsel.evaluation.engines.vlm import VLMEngine
from vlmsel.evaluation.harness import read_lines
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task
from vlmsel.models.assembly import assemble
from vlmsel.models.classifier import Classifier
from vlmsel.models.config import VLMConfig
from vlmsel.models.open import open_subject
from vlmsel.models.subject import OnlyEvaluated
from vlmsel.models.vision import VisionTower

BOS, EOS, PAD, IMAGE = 256, 257, 258, 259
BOS_CHAT = "{{ bos_token }}" + CHAT
PROMPTS = ("Red?", "What color is the cube?", "Is it\nthere?", "How many things are there in all of it?", "Who")
YES_NO = (("Yes", "yes"), ("No", "no"))
RENDERED = {
    "chat": "USER: <image>\n{} ASSISTANT:",
    "bos chat": "<s>USER: <image>\n{} ASSISTANT:",
    "vicuna_v1": CURIOUS + "USER: <image>\n{} ASSISTANT:",
    "pure": "<image>In: {}\nOut:",
}


@pytest.fixture(scope="module")
def asks(tmp_path_factory):
    """Questions of different lengths about pictures of different shapes."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(len(PROMPTS)):
        pixels = random.integers(0, 256, (20 + 3 * i, 40 - 5 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return [Ask(str(i), prompt, folder, f"{i}.png") for i, prompt in enumerate(PROMPTS)]


def open_engine(folder, template=None):
    return engine_of(open_subject(str(folder), "cpu", template=template), template, str(folder))


def llava_engine(way, dtype=torch.float64, words=WORDS, **text):
    processor = tiny_processor({"chat": CHAT, "bos chat": BOS_CHAT}.get(way), words)
    return ImageTextEngine(tiny_llava(**text).to(dtype), processor, None if "chat" in way else way)


def alone(way, ask, model, processor):
    """One question as the model reads it, from the prompt written out: ids [1, t] and pixels."""
    text = RENDERED[way].format(ask.prompt).removeprefix("<s>").replace("<image>", 4 * "<image>")
    ids = [BOS, *processor.tokenizer(text, add_special_tokens=False)["input_ids"]]
    pixels = processor.image_processor(Image.open(ask.images / ask.image), return_tensors="pt")["pixel_values"]
    return torch.tensor([ids]), pixels.to(model.dtype)


@torch.no_grad()
def naive_ids(model, ids, pixels, steps, ends=(EOS,)):
    """Full forward passes, the best next token each time, until an end."""
    start = ids.shape[1]
    for _ in range(steps):
        token = model(input_ids=ids, pixel_values=pixels, use_cache=False).logits[0, -1].argmax()
        if int(token) in ends:
            break
        ids = torch.cat([ids, token[None, None]], dim=1)
    return ids[0, start:].tolist()


def naive_answer(engine, way, ask, steps, ends=(EOS,)):
    ids = naive_ids(engine.model, *alone(way, ask, engine.model, engine.processor), steps, ends)
    return engine.tokenizer.decode(ids, skip_special_tokens=True).strip()


def in_batches(engine, asks, size, answer):
    return [a for i in range(0, len(asks), size) for a in answer(engine.prepare(asks[i : i + size]))]


# Images and text


@pytest.mark.parametrize("way", RENDERED)
def test_llava_answers_as_a_loop_without_cache_padding_and_batches(asks, way):
    engine = llava_engine(way)
    found = engine.generate(engine.prepare(asks), 8)
    assert found == [naive_answer(engine, way, ask, 8) for ask in asks]
    assert len(set(found)) > 1


@pytest.mark.parametrize("template", [None, "vicuna_v1", "pure"])
def test_a_llava_folder_answers_alike_in_batches_of_any_size(asks, tmp_path, template):
    engine = open_engine(save_llava(tmp_path / "llava", CHAT), template)
    assert isinstance(engine, ImageTextEngine)
    found = [in_batches(engine, asks, size, lambda batch: engine.generate(batch, 8)) for size in (1, 2, 5)]
    assert found[0] == found[1] == found[2] and len(set(found[0])) > 1
    assert engine.about["template"] == (template or "chat template of the processor")


@pytest.mark.parametrize("way", RENDERED)
def test_every_prompt_begins_with_one_bos_and_is_what_the_template_says(asks, way):
    engine = llava_engine(way)
    batch = engine.prepare(asks)
    for ask, ids, mask in zip(asks, batch["input_ids"], batch["attention_mask"], strict=True):
        real = ids[mask.bool()]
        assert (real == BOS).nonzero().tolist() == [[0]] and (real == IMAGE).sum() == 4
        assert torch.equal(real[None], alone(way, ask, engine.model, engine.processor)[0])
        assert not mask[: len(ids) - len(real)].any() and mask[len(ids) - len(real) :].all()


def test_a_tokenizer_that_puts_no_bos_gets_one_in_our_templates_only(asks):
    processor = tiny_processor(CHAT)
    processor.tokenizer.backend_tokenizer.post_processor = None
    prompts = {name: ImageTextEngine(tiny_llava(), processor, name).prepare(asks[:1]) for name in (None, "pure")}
    assert BOS not in prompts[None]["input_ids"]
    assert prompts["pure"]["input_ids"][0].tolist()[:5] == [BOS, *[IMAGE] * 4]


def test_the_processors_way_of_handling_images_is_kept_with_our_template(asks):
    pixels = [llava_engine(way).prepare(asks)["pixel_values"] for way in ("chat", "pure")]
    assert torch.equal(*pixels) and pixels[0].shape == (5, 3, 16, 16)


def test_values_by_token_follow_the_image_into_the_prompt():
    marked = {
        "input_ids": torch.tensor([[PAD, 7, 8], [7, 7, 8]]),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 2], [1, 1, 2]]),
        "pixel_values": torch.arange(6).view(2, 3),
    }
    found = put_images(marked, [[BOS, -200, 3, 4], [-200, 5]], PAD)
    assert found["input_ids"].tolist() == [[BOS, 7, 8, 3, 4], [PAD, 7, 7, 8, 5]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert found["mm_token_type_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 1, 2, 0]]
    assert found["pixel_values"] is marked["pixel_values"] and "token_type_ids" not in found


def test_padding_without_a_padding_token(asks):
    processor = tiny_processor(CHAT)
    processor.tokenizer.pad_token = None
    engine = ImageTextEngine(tiny_llava().double(), processor)
    assert engine.generate(engine.prepare(asks), 6) == (same := llava_engine("chat")).generate(same.prepare(asks), 6)


@pytest.mark.parametrize("way", ["chat", "pure"])
def test_any_of_several_ends_ends_an_answer(asks, way):
    engine = llava_engine(way)
    free = engine.generate(engine.prepare(asks), 8)
    third = [naive_ids(engine.model, *alone(way, ask, engine.model, engine.processor), 3)[2] for ask in asks[:2]]
    engine.model.generation_config.eos_token_id = ends = [EOS, *third]
    found = engine.generate(engine.prepare(asks), 8)
    assert found == [naive_answer(engine, way, ask, 8, ends) for ask in asks]
    assert found != free
    assert engine.model.generation_config.eos_token_id == ends  # as it was


def test_the_models_own_settings_are_put_aside(asks):
    engine, plain = llava_engine("chat"), llava_engine("chat")
    own = engine.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_new_tokens = True, 5.0, 9.0, 1
    assert engine.generate(engine.prepare(asks), 6) == plain.generate(plain.prepare(asks), 6)
    assert engine.model.generation_config is own


def test_without_any_template_there_is_one_error():
    with pytest.raises(ValueError, match="no chat template; name one with --template"):
        ImageTextEngine(tiny_llava(), tiny_processor())


def test_problems_with_a_chat_template_and_a_prompt(asks):
    with pytest.raises(ValueError, match="chat template cannot be used"):
        ImageTextEngine(tiny_llava(), tiny_processor(CHAT[:-20]))
    spelt = Ask("7", "What is <image>?", asks[0].images, asks[0].image)
    with pytest.raises(ValueError, match="^question 7: the prompt spells the image token <image>"):
        llava_engine("chat").prepare([asks[0], spelt])
    with pytest.raises(ValueError, match="^question 7: the turns hold 2 <image> markers for 1 images"):
        llava_engine("pure").prepare([asks[0], spelt])
    with pytest.raises(ValueError, match="^question 9: image 'no.png' is missing"):
        llava_engine("pure").prepare([asks[0], Ask("9", "?", asks[0].images, "no.png")])


def test_a_prompt_without_room_for_an_answer_is_named(asks):
    engine = VLMEngine(tiny_vlm())
    fitting, long = (Ask("8", "a" * count, asks[0].images, asks[0].image) for count in (10, 600))
    assert len(engine.prepare([fitting]).uids) == 1
    with pytest.raises(ValueError, match="^question 8: its prompt takes [0-9]+ positions, the model has 512; take"):
        engine.prepare([fitting, long])


# The same weights in our format and Hugging Face's


def own_model(template):
    config = VLMConfig(vision="memory", language="memory", template=template, projector_trained=True)
    parts = VisionTower(tiny_clip().visual), tiny_language()
    return assemble(config, *parts, byte_tokenizer(WORDS)).double()


def hugging_face_twin(model):
    """Map our weights to Hugging Face's names."""
    twin = tiny_llava().double()
    tower = {}
    for name, weight in model.vision.visual.state_dict().items():
        if name.startswith("transformer.resblocks."):
            layer, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
            tower |= {f"encoder.layers.{layer}.{k}": v for k, v in clip_block(rest, weight).items()}
        elif name in CLIP_NAMES:
            tower[CLIP_NAMES[name]] = weight
    names = {k.removeprefix("vision_model."): k for k in twin.model.vision_tower.state_dict()}
    twin.model.vision_tower.load_state_dict({names[k]: v for k, v in tower.items()})
    linear = {"0": "linear_1", "2": "linear_2"}
    projector = {f"{linear[k[0]]}{k[1:]}": v for k, v in model.projector.state_dict().items()}
    twin.model.multi_modal_projector.load_state_dict(projector)
    twin.model.language_model.load_state_dict(model.language_model.model.state_dict())
    twin.lm_head.load_state_dict(model.language_model.lm_head.state_dict())
    return twin


CLIP_NAMES = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    **{f"ln_pre.{k}": f"pre_layrnorm.{k}" for k in ("weight", "bias")},
    **{f"ln_post.{k}": f"post_layernorm.{k}" for k in ("weight", "bias")},
}


def clip_block(name, weight):
    part, kind = name.rsplit(".", 1) if "in_proj" not in name else ("in_proj", name.rsplit("_", 1)[1])
    if part == "in_proj":
        return {f"self_attn.{p}_proj.{kind}": w for p, w in zip("qkv", weight.chunk(3), strict=True)}
    other = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    return {f"{({**other, 'mlp.c_fc': 'mlp.fc1', 'mlp.c_proj': 'mlp.fc2'})[part]}.{kind}": weight}


@pytest.mark.parametrize("template", ["vicuna_v1", "pure"])
def test_the_same_weights_say_the_same_in_both_formats(asks, template):
    model = own_model(template)
    own, other = VLMEngine(model), ImageTextEngine(hugging_face_twin(model), tiny_processor(), template)
    batch, twin = own.prepare(asks), other.prepare(asks)
    for ids, mask, own_ids in zip(twin["input_ids"], twin["attention_mask"], batch.input_ids, strict=True):
        real = [i for i in ids[mask.bool()].tolist() if i != IMAGE]
        assert real == [i for i in own_ids.tolist() if i not in (-200, PAD)]
    # image processing may differ, the models may not
    batch.pixel_values, batch.image_index = twin["pixel_values"], torch.arange(len(asks))
    answers = own.generate(batch, 8)
    assert other.generate(twin, 8) == answers and len(set(answers)) > 1
    np.testing.assert_allclose(other.first_words(twin, YES_NO), own.first_words(batch, YES_NO), rtol=1e-6)


@pytest.mark.parametrize("way", RENDERED)
def test_questions_without_an_image_are_asked_as_text(asks, way):
    engine = llava_engine(way)
    bare = [Ask(ask.id, ask.prompt, ask.images, "") for ask in asks]
    naive = []
    for ask in bare:
        text = RENDERED[way].format(ask.prompt).removeprefix("<s>").replace("<image>\n", "").replace("<image>", "")
        ids = torch.tensor([[BOS, *engine.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        naive.append(engine.tokenizer.decode(naive_ids(engine.model, ids, None, 8), skip_special_tokens=True).strip())
    assert engine.generate(engine.prepare(bare), 8) == naive and len(set(naive)) > 1


def test_our_own_model_is_asked_without_an_image(asks):
    model = own_model("pure")
    engine, twin = VLMEngine(model), llava_engine("pure")
    twin.model = hugging_face_twin(model)
    bare = [Ask(ask.id, ask.prompt, ask.images, "") for ask in asks]
    answers = engine.generate(engine.prepare(bare), 8)
    assert twin.generate(twin.prepare(bare), 8) == answers and len(set(answers)) > 1


# First words


@pytest.mark.parametrize("way", RENDERED)
def test_first_words_are_the_softmax_summed_over_spellings(asks, way):
    engine = llava_engine(way)
    blanks = ("", "Ġ") if "chat" in way else ("Ġ",)
    found = engine.first_words(engine.prepare(asks), YES_NO)
    for ask, values in zip(asks, found, strict=True):
        ids, pixels = alone(way, ask, engine.model, engine.processor)
        with torch.no_grad():
            p = engine.model(input_ids=ids, pixel_values=pixels).logits[0, -1].softmax(dim=0)
        for spellings, value in zip(YES_NO, values, strict=True):
            # the byte-level tokenizer knows the words with a blank as one token, those without by their first letter
            tokens = [blank + word if blank else word[0] for word in spellings for blank in blanks]
            ids = engine.tokenizer.convert_tokens_to_ids(tokens)
            assert value == pytest.approx(float(p[ids].sum().log()), rel=1e-6)
    singly = in_batches(engine, asks, 1, lambda batch: engine.first_words(batch, YES_NO))
    np.testing.assert_allclose(found, singly, rtol=1e-6)


def test_first_words_of_our_own_model(asks):
    model = own_model("pure")
    engine = VLMEngine(model)
    found = engine.first_words(engine.prepare(asks), YES_NO)
    for ask, values in zip(asks, found, strict=True):
        with torch.no_grad():
            _, embeddings = model.embed(engine.prepare([ask]))
            p = model.language_model(inputs_embeds=embeddings).logits[0, -1].softmax(dim=0)
        for spellings, value in zip(YES_NO, values, strict=True):
            ids = model.tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in spellings])
            assert value == pytest.approx(float(p[ids].sum().log()), rel=1e-9)


def test_words_that_begin_with_the_same_token_are_refused(asks):
    message = "begins 'Yes' and 'No' with the same token, .*; use --pope_mode text"
    model = own_model("pure")
    model.tokenizer = byte_tokenizer()
    for engine in (VLMEngine(model), llava_engine("pure", words=())):
        with pytest.raises(ValueError, match=message):
            engine.first_words(engine.prepare(asks), YES_NO)


def test_a_token_that_both_words_may_begin_with_says_nothing():
    yes, no = [[5, 1], [7], [8]], [[5, 2], [9], [8, 3]]
    assert first_ids([yes, no], YES_NO) == [[7], [9]]
    with pytest.raises(ValueError, match="begins 'Yes' and 'No' with the same token"):
        first_ids([[[5, 1]], [[5, 2], [9]]], YES_NO)


# Text


PAIRS = (("The sky is", " blue"), ("2 + 2 =", " 4"), ("A dog and a cat went to", " town"), ("", " Hello"))


def naive_likelihood(model, tokenizer, context, continuation):
    ids = [BOS, *tokenizer(context + continuation, add_special_tokens=False)["input_ids"]]
    count = len(tokenizer(continuation, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(len(ids) - count, len(ids)))


def test_a_language_model_folder_scores_text(tmp_path):
    engine = open_engine(save_language(tmp_path / "llama"))
    assert type(engine) is LanguageEngine
    wanted = [naive_likelihood(tiny_language(), engine.tokenizer, *pair) for pair in PAIRS]
    assert engine.loglikelihoods(PAIRS) == pytest.approx(wanted, rel=1e-5) and engine.cut == 0
    engine.loglikelihoods([("a" * 600, " b"), ("a", " b")])
    assert engine.cut == 1


def test_an_image_text_model_scores_text_with_its_language_model():
    engine = llava_engine("chat")
    wanted = [naive_likelihood(engine.model, engine.tokenizer, *pair) for pair in PAIRS]
    assert engine.loglikelihoods(PAIRS) == pytest.approx(wanted, rel=1e-9)


# Classes


TEXTS = {
    1: [["A fine film."], ["No."], ["It was what it was, and so on."]],
    2: [["It rains.", "It is wet."], ["A", "B"], ["He sleeps well", "Is he awake?"]],
}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
@pytest.mark.parametrize("sentences", [1, 2])
def test_a_classifier_folder_sorts_a_batch_as_each_text_alone(tmp_path, kind, sentences):
    engine = open_engine(save_classifier(tmp_path / kind, kind))
    assert isinstance(engine, ClassifierEngine)
    texts = TEXTS[sentences]
    for text, scores in zip(texts, engine.classify(texts), strict=True):
        with torch.no_grad():
            logits = tiny_classifier(kind)(**engine.subject.tokenizer(*text, return_tensors="pt")).logits[0]
        assert scores == pytest.approx(logits.tolist(), abs=1e-5)
    assert engine.cut == 0 and engine.about == {"classes": ["LABEL_0", "LABEL_1"], "classes_by": "position"}


@pytest.mark.parametrize("kind", ["bert", "roberta", "llama"])
def test_texts_longer_than_a_classifier_takes_are_cut_and_counted(tmp_path, kind):
    engine = open_engine(save_classifier(tmp_path / kind, kind))
    kept = {"bert": 38, "roberta": 38, "llama": 39}[kind]  # and BOS, and the mark behind it but for Llama
    found = engine.classify([["x" * kept + "yz"], ["x" * kept], ["xy"]])
    assert found[0] == pytest.approx(found[1], abs=1e-6) and engine.cut == 1
    engine.classify([["x" * 30, "y" * 30], ["x", "y"]])
    assert engine.cut == 2


def test_a_tokenizers_own_limit_counts_too():
    tokenizer = byte_tokenizer(pair=True, model_max_length=10)
    engine = ClassifierEngine(Classifier(tiny_classifier("bert"), tokenizer, ("a", "b")))
    engine.classify([["x" * 9], ["x" * 8]])
    assert engine.subject.limit == 10 and engine.cut == 1


def test_classes_with_glues_names_are_put_in_glues_order(tmp_path):
    names = {0: "not_entailment", 1: "entailment"}
    swapped = open_engine(save_classifier(tmp_path / "swapped", names=names))
    plain = open_engine(save_classifier(tmp_path / "plain", names={0: "Entailment", 1: "not-entailment"}))
    pairs = TEXTS[2]
    assert swapped.classify(pairs) == [scores[::-1] for scores in plain.classify(pairs)]
    assert swapped.about == {"classes": ["entailment", "not_entailment"], "classes_by": "name"}
    assert plain.about == {"classes": ["Entailment", "not-entailment"], "classes_by": "name"}


def test_a_classifier_of_three_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 3 classes, GLUE's tasks have 2"):
        open_engine(save_classifier(tmp_path / "three", classes=3))


# Of another make


class Stone(OnlyEvaluated):
    """A subject of a make that the package does not know."""

    module = backbone = torch.nn.Linear(1, 1)


def test_another_make_is_one_entry_of_the_table(monkeypatch):
    with pytest.raises(ValueError, match="^pebble: no engine asks a Stone; add one to ENGINES"):
        engine_of(Stone(), name="pebble")
    monkeypatch.setitem(ENGINES, Stone, lambda subject, template, name: (subject, template, name))

    class Pebble(Stone):
        pass

    subject = Pebble()
    assert engine_of(subject, "pure", "pebble") == (subject, "pure", "pebble")


def test_a_subject_that_is_not_ready_is_not_asked():
    model = own_model("pure")
    model.vlm_config = replace(model.vlm_config, projector_trained=False)
    with pytest.raises(ValueError, match="the projector of mine was never trained"):
        engine_of(model, name="mine")


# Through the command line


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of each kind of model, and files of three benchmarks."""
    folder = tmp_path_factory.mktemp("home")
    write_world(folder / "world", WorldSizes(captions=0, pool=0, target=0, questions=6))
    save_llava(folder / "llava", CHAT)
    save_llava(folder / "bytes", CHAT, words=())
    weights = save_llava(folder / "cut", CHAT) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    save_language(folder / "llama")
    save_classifier(folder / "bert")
    rows = ["index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is wet.\tentailment"]
    (folder / "rte.tsv").write_text("\n".join([*rows, "1\tIt rains.\tIt is dry.\tnot_entailment"]) + "\n")
    questions = [{"goal": f"to do {i}", "sol1": "do it", "sol2": "do it not"} for i in range(3)]
    (folder / "piqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    (folder / "piqa.lst").write_text("0\n1\n1\n")
    return folder


def files(home, task):
    """The benchmark's files, by the names of their options."""
    if task in ("gqa", "pope"):
        return {**benchmark_files(home / "world")[task], "images": f"{home}/world/images/test/{task}"}
    answers = {"annotations": f"{home}/piqa.lst"} if task == "piqa" else {}
    return {"questions": [f"{home}/piqa.jsonl" if task == "piqa" else f"{home}/rte.tsv"], **answers}


def evaluate(home, out, model, task, *more):
    options = {**files(home, task), "model": home / model, "task": task, "out": out, "device": "cpu"}
    options["questions"] = json.dumps(options["questions"])
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return cli.main(["evaluate", *words, "--max_new_tokens", "3", *more])


@pytest.mark.parametrize(
    ("model", "task", "more"),
    [
        ("llava", "gqa", []),
        ("llava", "pope", ["--template", "pure", "--protocol", "prismatic"]),
        ("llava", "rte", []),
        ("llava", "piqa", []),
        ("llama", "rte", []),
        ("llama", "piqa", []),
        ("bert", "rte", []),
    ],
)
def test_what_each_kind_of_model_can_do(home, tmp_path, model, task, more):
    assert evaluate(home, tmp_path / "run", model, task, *more) == 0
    found = json.loads((tmp_path / "run/metrics.json").read_text())
    kinds = {"llava": "an image-text model", "llama": "a causal language model", "bert": "a sequence classifier"}
    assert found["protocol"]["model"] == kinds[model]
    benchmark = load_task(task, TaskFiles(**files(home, task)), "logit" if "prismatic" in more else "text")
    lines = read_lines(tmp_path / "run/predictions.jsonl", answer=benchmark.answer)
    assert found["metrics"] == benchmark.score({i: line[benchmark.answer] for i, line in lines.items()})
    assert len(lines) == found["questions"] == len(benchmark.ids)


@pytest.mark.parametrize(
    ("model", "task", "more", "message"),
    [
        ("bert", "piqa", [], "a sequence classifier cannot score text"),
        ("cut", "gqa", [], "cut/model.safetensors cannot be read"),
        ("bytes", "pope", ["--pope_mode", "logit", "--template", "pure"], "begins 'Yes' and 'No' with the same token"),
        ("llama", "gqa", [], "a causal language model cannot read images; evaluate a vision-language model"),
        ("bert", "gqa", [], "a sequence classifier cannot read images; evaluate a vision-language model"),
        ("llama", "rte", ["--template", "pure"], "a causal model is asked without a template; leave --template out"),
        ("llava", "gqa", ["--template", "none"], "no template is called 'none'; there are vicuna_v1"),
    ],
)
def test_what_a_model_cannot_do_ends_with_one_line(home, tmp_path, capsys, model, task, more, message):
    assert evaluate(home, tmp_path / "run", model, task, *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
