"""The check of captured gradients passes what is right in any dtype and refuses, by name, what is lost or mixed up."""

import peft
import pytest
import torch
import torch.nn.functional as F
from naive_gradients import randomize, tiny_bert, tiny_gpt2
from tiny_models import one_sample, random_batch, row_samples, sample_losses, tiny_language, tiny_vlm, wake_lora
from torch import nn

from vlmsel.gradients import check, check_capture, select_blocks

X = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))


def squares(model, x):
    return model(x).square().flatten(1).mean(1)


def try_on(model, spec="weight|bias", x=X, loss=squares, **more):
    model = randomize(model)
    before = {name: (p.requires_grad, p.grad, p.detach().clone()) for name, p in model.named_parameters()}
    try:
        check_capture(model, x, loss, select_blocks(model, spec), alone=x.split(1), **more)
    finally:
        for name, parameter in model.named_parameters():
            flag, grad, values = before[name]
            assert (parameter.requires_grad, parameter.grad) == (flag, grad) and torch.equal(parameter, values)
        assert not any(module._forward_hooks for module in model.modules())


class Tail(nn.Module):
    """Two linear maps; `between` sees what goes from one to the other, with the second."""

    def __init__(self, between=lambda hidden, tail: tail.b(hidden)):
        super().__init__()
        self.a, self.b, self.between = nn.Linear(4, 4), nn.Linear(4, 4), between

    def forward(self, x):
        return self.between(self.a(x), self)


@pytest.mark.parametrize(
    ("between", "message"),
    [
        (
            lambda h, t: F.linear(h, t.b.weight, t.b.bias),
            r"block b.weight: .* sample 1 .* 100% off .*without calling",
        ),
        (lambda h, t: F.linear(t.b(h), t.b.weight), r"block b.weight: .* is also used without calling its module"),
        (lambda h, t: t.b(h.flip(0)).flip(0), r"block b.weight: .* not in the order of the samples"),
        (lambda h, t: t.b(h) - h.mean((0, 1)), r"sample 1 of the first batch has the loss .* alone.*--batch_size 1"),
        (
            lambda h, t: t.b(h.transpose(0, 1)).transpose(0, 1),
            r"module b read a tensor of shape \[5, 3, 4\]; expec",
        ),
    ],
)
def test_lost_gradients_and_rows_of_others_are_refused_by_name(between, message):
    with pytest.raises(ValueError, match=message):
        try_on(Tail(between))


def test_what_is_right_passes():
    try_on(Tail())
    try_on(Tail(lambda h, t: t.b(t.b(h)) * h))
    try_on(Tail(lambda h, t: h), "a")
    try_on(Tail(lambda h, t: h), "b")  # not used at all: zero both ways


def test_a_head_tied_by_hand_is_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.map = nn.Embedding(9, 4), nn.Linear(4, 4)

        def forward(self, ids):
            return F.linear(self.map(self.table(ids)), self.table.weight)

    with pytest.raises(ValueError, match=r"block table.weight: .* is also used without calling its module"):
        try_on(Tied(), x=torch.arange(6).reshape(2, 3))
    try_on(Tied(), "map", x=torch.arange(6).reshape(2, 3))


def test_a_gradient_that_depends_on_the_batch_is_refused():
    """The losses are what they are alone; the gradients are not."""

    def loss(model, x):
        own = squares(model, x)
        return own + (own.sum() - own.detach().sum())

    with pytest.raises(ValueError, match="off autograd's own|off the one it has alone"):
        try_on(Tail(), loss=loss)


def test_one_sample_is_checked_too():
    with pytest.raises(ValueError, match=r"block b.weight: .*without calling"):
        try_on(Tail(lambda h, t: F.linear(h, t.b.weight)), x=X[:1])


def test_groups_change_nothing(monkeypatch):
    monkeypatch.setattr(check, "LIMIT", 10)
    try_on(Tail())
    with pytest.raises(ValueError, match=r"block b.weight"):
        try_on(Tail(lambda h, t: F.linear(h, t.b.weight)))


def try_model(model, spec, images=(0, 0, 0)):
    batch = random_batch(model if images[0] else None, list(images))
    singles = [one_sample(batch, row) for row in range(len(batch.uids))]
    check_capture(model, batch, sample_losses, select_blocks(model, spec), row_samples(model, batch), singles)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", ["last-block", "self_attn|norm", "embed_tokens", "lm_head"])
def test_every_kind_of_block_passes_in_every_dtype(dtype, spec):
    try_model(tiny_language(attention_bias=True, attention_dropout=0.5).to(dtype).train(), spec)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("awake", [True, False])
def test_projector_and_adapters_pass_in_every_dtype(dtype, awake):
    model = tiny_vlm(dtype=dtype)
    if awake:
        wake_lora(model)
    try_model(model, "projector+lora", (1, 0, 2))


def test_biases_whose_gradient_is_rounding_alone_pass():
    """A key's bias moves all logits of a query alike: its gradient is 0."""
    try_model(tiny_language(attention_bias=True), r"k_proj.bias")


def test_tied_and_shared_weights_pass():
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0))

    def loss(model, ids):
        return model(input_ids=ids).logits.logsumexp(-1).reshape(len(ids), -1).square().mean(1)

    for model, spec in ((tiny_gpt2(), "wte|c_attn|ln_1"), (tiny_bert(), "query|LayerNorm|classifier")):
        check_capture(model, ids, loss, select_blocks(model, spec), alone=ids.split(1))


def test_samples_without_a_finite_loss_are_passed_over():
    def loss(model, x):
        return squares(model, x) * torch.where(x[:, 0, 0] == X[1, 0, 0], torch.nan, 1.0)

    try_on(Tail(), loss=loss)


class Cancelling(nn.Module):
    """A softmax over all but equal values, as attention in a model that has learnt nothing: what reaches `query` is
    the rounding of terms a million times its size."""

    def __init__(self):
        super().__init__()
        self.query, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        values = 1 + 1e-6 * torch.arange(16.0, dtype=x.dtype).reshape(4, 4)
        return self.head(torch.softmax(self.query(x), -1) @ values)


def test_a_block_whose_gradient_is_the_rounding_of_the_others_passes():
    config = peft.LoraConfig(r=2, target_modules=["query"])
    model = randomize(peft.inject_adapter_in_model(config, Cancelling()))
    try_on(model, "lora|head.weight")
    with pytest.raises(ValueError, match="block b.weight: .*without calling"):  # a small one that is lost is found
        try_on(Tail(lambda h, t: h + 1e-5 * F.linear(h, t.b.weight, t.b.bias)))
