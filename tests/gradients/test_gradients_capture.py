"""Capturing: activation checkpointing, rows that are not samples, depth of the backward, blocks not touched, errors."""

import warnings

import pytest
import torch
from naive_gradients import assert_same, loop_gradients, randomize, tiny_gpt2
from tiny_models import one_sample, random_batch, row_samples, sample_losses, tiny_language, tiny_vlm, wake_lora
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlmsel.gradients import LookupFactor, OuterFactor, SumFactor, capture, select_blocks
from vlmsel.gradients.layers import Rows


def dense(captured):
    return {name: factor.dense() for name, factor in captured.factors().items()}


def run(model, batch, blocks):
    with capture(model, blocks, len(batch.uids), row_samples(model, batch)) as captured:
        losses = sample_losses(model, batch)
        losses.sum().backward()
    return captured


def compare(model, batch, spec, tolerance=1e-10):
    blocks = select_blocks(model, spec)
    found = dense(run(model, batch, blocks))
    singles = [one_sample(batch, row) for row in range(len(batch.uids))]
    training = model.training
    assert_same(found, loop_gradients(model.eval(), singles, sample_losses, blocks), tolerance)
    model.train(training)


@pytest.fixture(scope="module")
def vlm():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    return model


def text_batch(model, images=(0, 0, 0)):
    batch = random_batch(None, list(images))
    batch.pixel_values = None
    return batch


def checkpointing(model, reentrant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the method's name
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spec", [r"self_attn\.[qk]_proj", "last-block", "mlp|norm", "embed_tokens|q_proj", "lm_head"])
def test_activation_checkpointing_of_a_llama(reentrant, spec):
    model = tiny_language(attention_dropout=0.0).double()
    checkpointing(model, reentrant)
    compare(model.train(), text_batch(model), spec)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("images", [[1, 0, 2], [0, 0]])
def test_activation_checkpointing_of_a_vision_language_model(reentrant, images):
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    checkpointing(model.language_model, reentrant)
    compare(model.train(), random_batch(model, images), "projector+lora")


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.inner, self.head = reentrant, nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(checkpoint(self.inner, x, use_reentrant=self.reentrant))[:, 0]


def test_checkpointing_that_would_lose_gradients_is_an_error():
    model, x = Checkpointed(True), torch.ones(2, 4)
    with (
        pytest.warns(UserWarning, match="None of the inputs"),
        capture(model, select_blocks(model, "we"), 2) as captured,
    ):
        model(x).sum().backward()
    with pytest.raises(ValueError, match="module inner ran without autograd.*use_reentrant=False"):
        captured.factors()


def test_checkpointing_of_ones_own_module():
    model, x = Checkpointed(False), torch.randn(3, 4)
    blocks = select_blocks(model, "weight|bias")
    with capture(model, blocks, 3) as captured:
        model(x).sum().backward()
    assert_same(dense(captured), loop_gradients(model, x.split(1), lambda m, x: m(x), blocks), 1e-6)


def test_a_module_under_no_grad_is_an_error():
    class Model(nn.Sequential):
        def forward(self, x):
            with torch.no_grad():
                x = self[0](x)
            return self[1](x)

    model = Model(nn.Linear(4, 4), nn.Linear(4, 1))
    with capture(model, select_blocks(model, "weight"), 2) as captured:
        model(torch.ones(2, 4)).sum().backward()
    with pytest.raises(ValueError, match="module 0 ran without autograd"):
        captured.factors()


def test_a_text_only_batch_needs_no_special_care_for_projector_blocks(vlm):
    batch = random_batch(vlm, [0, 0])
    factors = run(vlm, batch, select_blocks(vlm, "projector")).factors()
    for factor in factors.values():
        assert factor.samples == 2 and not factor.dense().any() and not factor.sq_norm().any()
        assert factor.dense().dtype == torch.float64


def test_without_a_backward_factors_are_zero(vlm):
    batch, blocks = random_batch(vlm), select_blocks(vlm, "projector+lora")
    with capture(vlm, blocks, 4, row_samples(vlm, batch)) as captured:
        sample_losses(vlm, batch)
    assert not any(factor.dense().any() for factor in captured.factors().values())


def test_a_sample_that_is_not_finite_spoils_no_other(vlm):
    batch, blocks = random_batch(vlm), select_blocks(vlm, "projector+lora")
    whole = run(vlm, batch, blocks).factors()
    batch.labels[1] = -100  # nothing supervised: its loss is NaN
    with capture(vlm, blocks, 4, row_samples(vlm, batch)) as captured:
        losses = sample_losses(vlm, batch)
        torch.where(losses.isfinite(), losses, 0.0).sum().backward()
    for name, factor in captured.factors().items():
        keep = torch.tensor([True, False, True, True])
        assert factor.finite()[keep].all()
        torch.testing.assert_close(factor.select(keep).dense(), whole[name].select(keep).dense())


def test_nothing_is_accumulated_and_the_backward_stays_above_the_lowest_block(vlm):
    reached = []
    handles = [
        layer.register_forward_hook(lambda module, args, output: reached.append(output.requires_grad))
        for layer in vlm.language_model.base_model.model.model.layers
    ]
    run(vlm, random_batch(vlm), select_blocks(vlm, "last-block"))
    for handle in handles:
        handle.remove()
    assert reached == [False, True]
    assert all(parameter.grad is None for parameter in vlm.parameters())


def test_factors_are_those_of_the_layers():
    model = tiny_gpt2().double()
    batch = text_batch(model)
    batch.input_ids, batch.labels = batch.input_ids % 30, batch.labels.where(batch.labels < 0, batch.labels % 30)
    width = batch.input_ids.shape[1]
    captured = run(model, batch, select_blocks(model, r"lm_head|h.0.attn.c_attn.weight|h.1.mlp.c_fc.bias"))
    tied, attention, bias = captured.factors().values()
    assert isinstance(attention, OuterFactor) and attention.left.shape == (3, width, 8)
    assert isinstance(tied, SumFactor) and [type(part) for part in tied.parts] == [OuterFactor, LookupFactor]
    assert (bias.rows, bias.cols) == (1, 32)


def test_a_module_in_place_after_a_tap_and_a_keyword_input():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.second(input=self.first(x).mul_(2).relu_())[:, 0]

    model, x = randomize(Model()), torch.randn(3, 4)
    blocks = select_blocks(model, "weight|bias")
    with capture(model, blocks, 3) as captured:
        model(x).sum().backward()
    assert_same(dense(captured), loop_gradients(model, x.split(1), lambda m, x: m(x), blocks), 1e-5)


def test_a_shared_module_and_a_transformer_encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = randomize(nn.Sequential(layer, layer, nn.Flatten(), nn.Linear(12, 1))).double()
    x, blocks = torch.randn(3, 3, 4).double(), select_blocks(model, r"linear|norm|3\.")
    loss = lambda m, x: m(x)[:, 0].square()  # noqa: E731
    with capture(model, blocks, 3) as captured:
        loss(model, x).sum().backward()
    found = dense(captured)
    assert found["0.linear1.weight"].shape == (3, 8, 4) and captured.factors()["0.linear1.weight"].tokens == 6
    assert_same(found, loop_gradients(model, x.split(1), loss, blocks), 1e-10)


@pytest.mark.parametrize("owners", [[0, 2, 2, 0, 3], [1, 1, 1], [], [3, 0, 1, 2]])
def test_rows_are_folded_into_samples(owners):
    rows = Rows(4, torch.tensor(owners, dtype=torch.long))
    x = torch.randn(len(owners), 2, 3, dtype=torch.float64)
    most = max([owners.count(i) for i in range(4)])
    folded, sums = rows.fold(x), rows.add_up(x)
    assert folded.shape == (4, 2 * most, 3)
    for sample in range(4):
        own = [x[row] for row, owner in enumerate(owners) if owner == sample]
        expected = torch.cat([*own, torch.zeros(2 * (most - len(own)), 3, dtype=torch.float64)])
        torch.testing.assert_close(folded[sample], expected)
        torch.testing.assert_close(sums[sample], expected.sum(0))


def test_a_map_covers_the_modules_below_and_the_nearest_map_counts():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))
    maps = {"0": torch.tensor([0, 0, 1]), "0.1": torch.tensor([1, 1, 0])}
    x = torch.randn(3, 4)
    with capture(model, select_blocks(model, "weight"), 2, maps) as captured:
        model(x).sum().backward()
    found = dense(captured)
    torch.testing.assert_close(found["0.0.weight"][1], model[0][1].weight.T @ x[2:])
    torch.testing.assert_close(found["0.1.weight"][0], model[0][0](x[2:]))


@pytest.mark.parametrize(
    ("samples", "maps", "message"),
    [
        (2, {}, r"module 0 read a tensor of shape \[3, 4\]; expected 2 rows, one for each of 2 samples; give row_s"),
        (2, {"0": torch.tensor([0, 1])}, "expected 2 rows, one for each entry of its row_samples"),
        (2, {"0": torch.tensor([0, 1, 2])}, r"row_samples of module 0 hold \[0, 1, 2\]; expected 0 .. 1"),
        (2, {"projector": torch.tensor([0])}, "row_samples names module 'projector', which Sequential does not have"),
        (None, {}, "the number of samples is not known; pass `samples`"),
    ],
)
def test_rows_that_do_not_fit_are_an_error(samples, maps, message):
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ValueError, match=message):  # noqa: SIM117
        with capture(model, select_blocks(model, "weight"), samples, maps):
            model(torch.ones(3, 4)).sum().backward()
    assert model[0].weight.requires_grad and not model[0]._forward_hooks


def test_a_weight_tied_to_an_unsupported_layer_is_an_error():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.other = nn.Embedding(3, 2), nn.Bilinear(1, 2, 3)
            self.other.weight = self.table.weight

    model = Model()
    with pytest.raises(ValueError, match="table.weight is used by module other of class Bilinear"):
        capture(model, select_blocks(model, "table"), 1).__enter__()


def test_rows_that_look_like_samples_by_broadcasting_are_refused():
    model = tiny_gpt2()
    batch = text_batch(model)
    batch.input_ids = batch.input_ids % 30
    with pytest.raises(ValueError, match=r"module transformer\.wpe read a tensor of shape \[1, \d+\]; expected 3 rows"):
        with capture(model, select_blocks(model, "wpe"), 3):
            model(input_ids=batch.input_ids[:, :20]).logits.sum().backward()


# Whole gradients as they come


class Tied(nn.Module):
    """A map that two layers share, one that is called twice, and one that is called once."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Linear(3, 3, bias=False, dtype=torch.float64) for _ in range(2))
        self.other.weight = self.one.weight
        self.twice, self.once = (nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
        self.unused = nn.Linear(3, 3, bias=False, dtype=torch.float64)

    def forward(self, x):
        x = self.other(torch.tanh(self.one(x)))
        return self.once(torch.tanh(self.twice(torch.tanh(self.twice(x))))).square().sum((1, 2))


def whole(model, blocks, count, losses, rows=None):
    """Give every block's gradient as a sink of whole ones and what is left have it, and the sink's names."""
    given = {}

    def sink(block, factor):
        assert block not in given
        given[block] = factor.dense()

    with capture(model, blocks, count, rows, sink=sink, whole=True) as captured:
        losses().sum().backward()
    rest = dense(captured)
    assert not set(given) & set(rest)
    found = given | rest
    return {block.name: found[block.name] for block in blocks}, set(given)


def test_a_sink_of_whole_gradients_gets_each_at_once_where_it_can_be_known():
    model, x = randomize(Tied()), torch.randn(4, 2, 3, dtype=torch.float64)
    blocks = select_blocks(model, "weight|bias")
    found, given = whole(model, blocks, 4, lambda: model(x))
    assert given == {"once.weight", "once.bias"}
    singles = [x[row : row + 1] for row in range(4)]
    assert_same(found, loop_gradients(model, singles, lambda own, one: own(one), blocks), 1e-10)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_layers_that_run_again_are_not_given_too_early(reentrant):
    model = tiny_language(attention_dropout=0.0).double()
    if reentrant is not None:
        checkpointing(model, reentrant)
    batch, blocks = text_batch(model), select_blocks(model.train(), "mlp|lm_head")
    found, given = whole(model, blocks, 3, lambda: sample_losses(model, batch), row_samples(model, batch))
    singles = [one_sample(batch, row) for row in range(len(batch.uids))]
    assert_same(found, loop_gradients(model.eval(), singles, sample_losses, blocks), 1e-10)
    assert ("lm_head.weight" in given) and (reentrant is None) == any("mlp" in name for name in given)
