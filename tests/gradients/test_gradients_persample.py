"""Per-sample gradients equal an autograd loop over batches of one: a VLM, Llama, BERT, GPT-2, small modules."""

import pytest
import torch
from naive_gradients import assert_same, loop_gradients, randomize, tiny_bert, tiny_gpt2
from tiny_models import one_sample, random_batch, row_samples, sample_losses, tiny_language, tiny_vlm, wake_lora
from torch import nn
from torch.nn.functional import cross_entropy
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from vlmsel.data.batches import Collator, Item
from vlmsel.data.encoding import encode
from vlmsel.data.sample import Turn
from vlmsel.gradients import Block, per_sample_gradients, select_blocks
from vlmsel.models import config
from vlmsel.models.assembly import build
from vlmsel.models.config import LoraSpec
from vlmsel.models.lora import attach_lora
from vlmsel.models.presets import PRESETS

TOLERANCES = [(torch.float32, 2e-5), (torch.float64, 1e-10)]  # of the twin, which rounds too


def with_rows(model, batch):
    """The batch as a mapping, with the row map of all modules whose rows are not samples."""
    return {"batch": batch, "row_samples": row_samples(model, batch)}


def vlm_loss(model, batch):
    return sample_losses(model, batch["batch"] if isinstance(batch, dict) else batch)


def compare_vlm(model, images, spec, tolerance, left=False):
    batch = random_batch(model, images, left=left)
    singles = [one_sample(batch, row) for row in range(len(images))]
    blocks = select_blocks(model, spec)
    found = per_sample_gradients(model, with_rows(model, batch), vlm_loss, blocks)
    assert_same(found, loop_gradients(model, singles, vlm_loss, blocks), tolerance)
    return found


@pytest.fixture(scope="module", params=TOLERANCES, ids=["float32", "float64"])
def vlm(request):
    dtype, tolerance = request.param
    model = tiny_vlm(dtype=dtype)
    wake_lora(model)
    return model, tolerance


@pytest.mark.parametrize("spec", ["projector+lora", "last-block", "projector", r"embed_tokens|lm_head|model\.norm"])
@pytest.mark.parametrize("images", [[1, 0, 2, 1], [2, 0, 0, 1], [1], [0, 3]])
def test_vision_language_model(vlm, spec, images):
    model, tolerance = vlm
    compare_vlm(model, images, spec, tolerance)


@pytest.mark.parametrize("spec", ["projector+lora", "projector"])
def test_text_only_batch_has_zero_projector_gradients(vlm, spec):
    model, tolerance = vlm
    found = compare_vlm(model, [0, 0], spec, tolerance)
    projector = torch.cat([g.flatten(1) for name, g in found.items() if name.startswith("projector")], dim=1)
    assert projector.shape[0] == 2 and not projector.any()


def test_a_sample_without_image_has_zero_projector_gradients_in_a_mixed_batch(vlm):
    found = compare_vlm(vlm[0], [1, 0, 2, 1], "projector", vlm[1])
    for gradients in found.values():
        assert not gradients[1].any() and gradients[[0, 2, 3]].flatten(1).any(1).all()


def test_left_padding(vlm):
    compare_vlm(vlm[0], [1, 0, 2], "projector+lora", vlm[1], left=True)


@pytest.fixture(scope="module", params=TOLERANCES, ids=["float32", "float64"])
def shipped(request):
    """The `tiny` preset as the package ships it, its adapters awake, and a batch in its own words."""
    dtype, tolerance = request.param
    model = build(PRESETS["tiny"]).to(dtype)
    wake_lora(model, scale=0.02)
    side, generator = model.vision.image_size, torch.Generator().manual_seed(0)
    pictures = [torch.randn(3, side, side, generator=generator).to(dtype) for _ in range(2)]
    items = []
    for uid, (images, answer) in enumerate([((0,), "red"), ((), "2 plus 2 is 4"), ((1, 0), "a small blue circle")]):
        turns = [Turn("human", "<image>\n" * len(images) + "What is it?"), Turn("gpt", answer)]
        found = encode(turns, len(images), model.tokenizer, model.vlm_config.template)
        names, pixels = tuple(map(str, images)), tuple(pictures[i] for i in images)
        items.append(Item(uid, found.input_ids, found.labels, names, pixels))
    return model, Collator(0), items, tolerance


@pytest.mark.skipif(not (config.ASSETS / "llama" / "config.json").is_file(), reason="the tiny backbones are not built")
@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
def test_the_shipped_preset(shipped, spec):
    model, collate, items, tolerance = shipped
    blocks = select_blocks(model, spec)
    found = per_sample_gradients(model, with_rows(model, collate(items)), vlm_loss, blocks)
    expected = loop_gradients(model, [collate([item]) for item in items], vlm_loss, blocks)
    assert_same(found, expected, tolerance)
    for sample in range(len(items)):
        one, alone = ({name: g[sample : sample + 1] for name, g in some.items()} for some in (found, expected))
        assert_same(one, alone, tolerance)
    assert all(gradients.any() for gradients in found.values())


def text_batch(lengths=(5, 9, 3), vocabulary=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, vocabulary, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


def text_singles(batch):
    for row, length in enumerate(batch["attention_mask"].sum(1)):
        yield {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}


def language_loss(model, batch):
    """Mean cross entropy of every next real token."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    mask = batch["attention_mask"][:, 1:]
    losses = cross_entropy(logits[:, :-1].transpose(1, 2), batch["input_ids"][:, 1:], reduction="none") * mask
    return losses.sum(1) / mask.sum(1)


def class_loss(model, batch):
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits, batch["input_ids"][:, 0] % 2, reduction="none")


def compare_text(model, loss, spec, tolerance, **batch):
    data = text_batch(**batch)
    blocks = select_blocks(model, spec)
    found = per_sample_gradients(model, data, loss, blocks)
    assert_same(found, loop_gradients(model, text_singles(data), loss, blocks), tolerance)
    return found


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("spec", ["weight", "last-block", "embed_tokens|lm_head"])
@pytest.mark.parametrize("tied", [False, True])
def test_llama(dtype, tolerance, spec, tied):
    model = randomize(tiny_language(vocab_size=300, tie_word_embeddings=tied)).to(dtype)
    compare_text(model, language_loss, spec, tolerance, vocabulary=256)


def test_the_padding_row_of_an_embedding_has_no_gradient():
    model = tiny_language(pad_token_id=5).double()
    batch = text_batch()
    batch["input_ids"][0, 1] = 5
    blocks = select_blocks(model, "embed_tokens")
    found = per_sample_gradients(model, batch, language_loss, blocks)
    assert_same(found, loop_gradients(model, text_singles(batch), language_loss, blocks), 1e-10)
    assert not found["model.embed_tokens.weight"][:, 5].any()


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("spec", [r"c_attn|c_proj|c_fc", "last-block", "ln_", r"wte|h\.0\.attn", "lm_head"])
def test_gpt2_with_its_tied_head(dtype, tolerance, spec):
    compare_text(tiny_gpt2().to(dtype), language_loss, spec, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("rslora", [False, True])
def test_gpt2_with_adapters_on_its_conv1d_layers(dtype, tolerance, rslora):
    model = attach_lora(tiny_gpt2(), LoraSpec(r=4, alpha=8, rslora=rslora, targets=("c_attn", "c_proj", "c_fc")))
    wake_lora(model)
    found = compare_text(model.to(dtype).eval(), language_loss, "lora", tolerance)
    assert len(found) == 2 * 2 * 4  # A and B, two layers, c_proj twice in each


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("options", [{"lora_alpha": 8}, {"lora_alpha": 8, "use_rslora": True, "r": 4}])
@pytest.mark.parametrize("spec", ["lora", "last-block", "classifier|LayerNorm|word_embeddings"])
def test_bert_classifier_with_adapters(dtype, tolerance, options, spec):
    found = compare_text(tiny_bert(**options).to(dtype), class_loss, spec, tolerance)
    assert all(gradients.dtype == dtype for gradients in found.values())


def test_rank_stabilised_scaling_falls_out():
    plain, stable = (tiny_bert(lora_alpha=8, r=4, use_rslora=flag).double() for flag in (False, True))
    blocks = select_blocks(plain, "layer.2.*value.*lora_B")
    for model in (plain, stable):
        for module in model.modules():
            if hasattr(module, "lora_B") and len(module.lora_B):
                module.lora_B["default"].weight.data.zero_()
    found = [per_sample_gradients(model, text_batch(), class_loss, blocks)[blocks[0].name] for model in (plain, stable)]
    torch.testing.assert_close(found[1], found[0] * 2)  # alpha / sqrt(4) against alpha / 4


class Small(nn.Module):
    """One layer between a frozen map and a sum of squares; it may be called more than once."""

    def __init__(self, layer, calls=1):
        super().__init__()
        self.first, self.layer, self.calls = nn.Linear(4, 4), layer, calls
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.calls):
            x = self.relu(self.layer(x))
        return x.flatten(1).square().sum(1)


def compare_small(layer, x, calls=1, dtype=torch.float64, tolerance=1e-10, spec=r"layer\."):
    model = randomize(Small(layer, calls)).to(dtype)
    blocks = select_blocks(model, spec)
    loss = lambda model, batch: model(batch)  # noqa: E731
    found = per_sample_gradients(model, x.to(dtype), loss, blocks)
    assert_same(found, loop_gradients(model, x.to(dtype).split(1), loss, blocks), tolerance)
    return found


LAYERS = {
    "linear": lambda: nn.Linear(4, 4),
    "layernorm": lambda: nn.LayerNorm(4, eps=1e-3),
    "rmsnorm": lambda: nn.RMSNorm(4),
    "rmsnorm eps": lambda: nn.RMSNorm(4, eps=0.1),
    "llama": lambda: LlamaRMSNorm(4, eps=0.1),
    "gemma": lambda: Gemma3RMSNorm(4, eps=0.1),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4), (3, 2, 5, 4)])
def test_every_layer_called_once_or_twice_on_any_number_of_axes(layer, calls, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tolerance = 1e-6 if layer == "gemma" else 1e-10  # autograd itself adds up Gemma's tokens in float32
    compare_small(LAYERS[layer](), x, calls, tolerance=tolerance)


@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_weights_give_float32_gradients(layer):
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    found = compare_small(LAYERS[layer](), x, dtype=torch.bfloat16, tolerance=2e-2)
    assert all(gradients.dtype == torch.float32 for gradients in found.values())


def test_half_precision_vision_language_model():
    model = tiny_vlm(dtype=torch.bfloat16)
    wake_lora(model)
    found = compare_vlm(model, [1, 0, 2], "projector+lora", 5e-2)
    assert all(gradients.dtype == torch.float32 for gradients in found.values())


def test_any_batch_and_order_give_the_same_gradients(vlm):
    model, tolerance = vlm
    batch, blocks = random_batch(model, [1, 0, 2, 1]), select_blocks(model, "projector+lora")
    whole = per_sample_gradients(model, with_rows(model, batch), vlm_loss, blocks)
    alone = [per_sample_gradients(model, one_sample(batch, row), vlm_loss, blocks) for row in range(4)]
    assert_same(whole, {name: torch.cat([one[name] for one in alone]) for name in whole}, tolerance)


def test_the_model_is_left_as_it_was():
    model = tiny_vlm()
    model.language_model.train()
    before = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    batch = random_batch(model)
    per_sample_gradients(model, batch, vlm_loss, select_blocks(model, "projector+lora"))
    assert {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()} == before
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1)).double()
    found = per_sample_gradients(model, torch.ones(2, 4).double(), lambda m, x: m(x)[:, 0], select_blocks(model, "we"))
    assert (found["1.weight"] == 1).all()
    assert model.training and model[0].training


def test_an_error_in_the_loss_leaves_no_hooks():
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ZeroDivisionError):
        per_sample_gradients(model, torch.ones(2, 4), lambda m, x: m(x) / (1 // 0), select_blocks(model, "weight"))
    assert not model[0]._forward_hooks and model[0].weight.requires_grad and model.training


@pytest.mark.parametrize(
    ("loss", "blocks", "message"),
    [
        (lambda m, x: m(x).sum(), None, r"the loss has shape \[\]; expected \[n\]"),
        (lambda m, x: m(x)[:1, 0], None, r"module 0 read a tensor of shape \[2, 4\]; expected 1 rows"),
        (lambda m, x: m(x)[:, 0], [Block("1.weight", "1", 1, 4)], "Sequential has no parameter 1.weight; select"),
    ],
)
def test_errors_say_what_was_got(loss, blocks, message):
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ValueError, match=message):
        per_sample_gradients(model, torch.ones(2, 4), loss, blocks or select_blocks(model, "weight"))
