"""A plan against what the tiny model really takes: tokens, operations, bytes."""

import json

import pytest
import torch
from safetensors import safe_open
from score_words import score_words
from tiny_models import tiny_vlm
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlmsel import cli, runs
from vlmsel.data.dataset import Reading
from vlmsel.models.counts import count
from vlmsel.models.open import open_subject
from vlmsel.models.outline import outline
from vlmsel.models.pool import open_pool
from vlmsel.planning import costs, lengths
from vlmsel.planning.costs import Amount
from vlmsel.planning.hardware import find_card


@pytest.fixture(autouse=True)
def counted():
    """Let torch count attention in towers, whose fused form it does not know."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def learning(subject, parts):
    return {name for group in subject.trained(parts).values() for name in group}


@pytest.fixture(scope="module")
def subject():
    return open_subject("tiny-aligned", "cpu").eval()


@pytest.fixture(scope="module")
def pool(subject, world):
    return open_pool(subject, world / "pool.json", Reading(world / "images"))


def amount(data, positions):
    sizes, images = data.sizes()[list(positions)].tolist(), data.images()
    return Amount.of([s[0] for s in sizes], [s[1] for s in sizes], [int(images[i]) for i in positions])


@pytest.mark.parametrize("parts", ["projector+lora", "lm"])
def test_operations_are_those_that_torch_counts(parts, pool, world):
    model = open_subject("tiny-aligned", "cpu").eval()
    counts = count(model, learning(model, parts))
    for position in (0, 1):
        batch, read = model.collate([pool.samples[position]]), amount(pool.samples, [position])
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
            loss = model.losses(batch).sum()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as backward:
            loss.backward()
        assert costs.forward(counts, read) == pytest.approx(forward.get_total_flops(), rel=0.03)
        assert costs.backward(counts, read) == pytest.approx(backward.get_total_flops(), rel=0.06)


def test_weights_gradients_and_moments_take_these_bytes(pool):
    model = open_subject("tiny-aligned", "cpu")
    groups = model.trained("projector+lora")
    learns = [p for group in groups.values() for p in group.values()]
    counts = count(model, {name for group in groups.values() for name in group})
    optimiser = torch.optim.AdamW(learns)
    model.losses(model.collate([pool.samples[0]])).sum().backward()
    optimiser.step()
    held = [x for state in optimiser.state.values() for x in state.values() if x.ndim]
    assert costs.weight_bytes(counts, 4) == sum(p.nbytes for p in model.parameters())
    assert costs.gradient_bytes(counts) == sum(p.grad.nbytes for p in learns)
    assert costs.optimiser_bytes(counts) == sum(x.nbytes for x in held)


def test_what_a_backward_keeps_is_about_this(pool):
    model, kept = open_subject("tiny-aligned", "cpu").eval(), {}
    counts = count(model, learning(model, "projector+lora"))
    position = int(pool.samples.images().argmax())
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.losses(model.collate([pool.samples[position]])).sum()
    read = amount(pool.samples, [position])
    found = costs.activation_bytes(counts, read.tokens, 4) + costs.logit_bytes(counts, read.supervised)
    assert found == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.35)


def test_tokens_are_exact_where_the_tokenizer_is_there(pool, world):
    model = outline("tiny-aligned")
    found = lengths.of_file(model, count(model, set()), world / "pool.json", Reading(world / "images"))
    assert found.amount == amount(pool.samples, range(len(pool.samples)))
    assert found.how == "lengths of every sample by its tokenizer"
    model.tokenizer = None
    guessed = lengths.of_file(model, count(model, set()), world / "pool.json", Reading(world / "images"))
    assert "by letters" in guessed.how and guessed.amount.images == found.amount.images
    assert guessed.amount.tokens == pytest.approx(found.amount.tokens, rel=0.3)


@pytest.mark.parametrize("lora", [True, False])
def test_an_outline_has_the_names_and_shapes_of_the_model(lora, tmp_path):
    saved = tiny_vlm(tmp_path, lora=lora)
    saved.save(tmp_path / "model")
    found = outline(str(tmp_path / "model"))
    shapes = {name: tensor.shape for name, tensor in saved.state_dict().items()}
    assert {name: tensor.shape for name, tensor in found.module.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in found.module.parameters())


def test_seven_billion_parameters_of_llava(subject):
    counts = count(outline("llava-7b", torch.bfloat16), set())
    assert counts.entries["language"] + counts.entries["head"] + counts.entries["embeddings"] == 6_738_415_616
    assert counts.entries["adapters"] == 33_554_432  # r = 64 on q and v of 32 layers
    assert (counts.patches, counts.tower_layers, counts.entries["projector"]) == (576, 23, 1024 * 4096 + 4096**2 + 8192)
    per_token = costs.forward(counts, Amount.of([1], [0], [0]))
    assert per_token == pytest.approx(2 * 6.51e9, rel=0.01)


def qwen(folder):
    """The config.json of Qwen2.5-VL-3B, as its hub has it."""
    text = {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "max_position_embeddings": 128000,
        "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
              "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112}  # fmt: skip
    folder.mkdir()
    whole = {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], **text}
    (folder / "config.json").write_text(json.dumps(whole | {"vision_config": vision}))
    return folder


@pytest.mark.slow
def test_a_folder_with_a_configuration_alone_is_enough(tmp_path):
    folder, out = qwen(tmp_path / "qwen"), tmp_path / "plan.json"
    words = ["plan", "--model", str(folder), "--samples", "1000", "--tokens", "500", "--lora.r", "16"]
    words += ["--lora.targets", "[q_proj,v_proj]", "--settings.train", "lora", "--settings.precision", "bfloat16"]
    assert cli.main([*words, "--dtype", "bfloat16", "--card", "h200", "--json", str(out)]) == 0
    found = runs.read_json(out)
    assert found["model"]["parameters"] == pytest.approx(3.754e9 + 3.69e6, rel=2e-3)
    assert found["model"]["learns"] == 36 * 16 * (2048 + 2048 + 2048 + 256)
    assert found["suggested"]["columns"] == 128 and found["suggested"]["processes"] == 1


@pytest.mark.slow
def test_what_has_no_room_is_told_with_what_would_fit(tmp_path):
    words = ["plan", "--model", str(qwen(tmp_path / "qwen")), "--samples", "665000", "--tokens", "776"]
    more = ["--lora.r", "16", "--dtype", "bfloat16", "--card", "h100"]
    assert cli.main([*words, *more, "--json", f"{tmp_path}/plan.json"]) == 0
    found = runs.read_json(tmp_path / "plan.json")
    assert set(found["suggested"].values()) == {None}
    assert "no room at any place: HyperINF" in found["curvature"] and "side='short'" in found["curvature"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_files_of_a_run_take_these_bytes(world, aligned, tmp_path, dtype):
    run, out = tmp_path / "run", tmp_path / "plan.json"
    scorers = ["HyperINF(damping=10)"]
    assert (
        cli.main(score_words(world, aligned, run, scorers, each_target="true", columns=128, columns_dtype=dtype)) == 0
    )
    words = ["plan", "--model", str(aligned), "--pool", f"{world}/pool.json", "--images", f"{world}/images"]
    words += [word for task in ("gqa", "pope") for word in (f"--targets.{task}", f"{world}/targets/{task}.json")]
    assert cli.main([*words, "--card", "cpu", "--columns_dtype", dtype, "--json", str(out)]) == 0
    found = runs.read_json(out)
    with safe_open(run / "affinity.safetensors", "pt") as file:
        assert found["disk"]["affinities"] == sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118
    steps = {step["name"]: step for step in found["steps"]}
    assert (steps["score pass"]["samples"], steps["targets"]["samples"]) == (12, 3 * 4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--samples", "5"], "say how much there is: --pool FILE, or --samples N and --tokens T without one"),
        (["--samples", "5", "--tokens", "9", "--card", "abacus"], "no card 'abacus'; there are H200, H100, A100-80G"),
        (["--samples", "5", "--tokens", "9", "--fraction", "20"], "warmup, fraction and utilisation are shares"),
        (["--model", "no/such", "--samples", "5", "--tokens", "9"], "no/such: no preset (tiny, llava-7b, tiny-text, "),
    ],
)
def test_what_cannot_be_planned(words, line, capsys):
    assert cli.main(["plan", "--model", "tiny", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")


@pytest.mark.slow
def test_more_memory_never_takes_less(tmp_path):
    found = {}
    for card in ("RTX-4090", "H100", "H200"):
        words = ["plan", "--model", "llava-7b", "--samples", "665000", "--tokens", "776", "--preset", "hyperinf-tune"]
        assert cli.main([*words, "--dtype", "bfloat16", "--card", card, "--json", f"{tmp_path}/{card}.json"]) == 0
        found[card] = runs.read_json(tmp_path / f"{card}.json")
    hours = [found[card]["hours"] for card in found]
    assert hours == sorted(hours, reverse=True) and find_card("a100").memory == 80e9
    assert found["RTX-4090"]["suggested"]["columns"] is None or found["H200"]["suggested"]["columns"] == 128
    score = next(step for step in found["H100"]["steps"] if step["name"] == "score pass")
    assert 665_000 / score["hours"] / 3600 == pytest.approx(15.1, rel=0.05)  # samples a second, README.md
