"""Ctrl-C at every line of what changes a model for a while leaves the model as it was."""

import sys
from collections import Counter

import peft
import pytest
import torch
from tiny_models import tiny_language
from torch import nn

from vlmsel.gradients import capture, check_capture, lora_merge, select_blocks
from vlmsel.models.lora import quiet_peft
from vlmsel.training.trainer import checkpointed

ROOMS = ("capture", "check", "lora_merge", "persample")
FILES = tuple(sys.modules[f"vlmsel.gradients.{name}"].__file__ for name in ROOMS)
X = torch.ones(2, 4)


class Interrupt:
    """Raises KeyboardInterrupt where a line of some functions of `FILES` is run for the `time`-th time.

    Without a line it only notes in `lines` how often each was run.
    """

    def __init__(self, functions, line=None, time=1):
        self.functions, self.line, self.time, self.lines = functions, line, time, Counter()

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name not in self.functions:
            return None
        if event == "line":
            here = (frame.f_code.co_filename, frame.f_lineno)
            self.lines[here] += 1
            if here == self.line and self.lines[here] == self.time:
                raise KeyboardInterrupt
        return self

    def __enter__(self):
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


@pytest.fixture(scope="module")
def model():
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.Linear(3, 1))
    with quiet_peft():
        return peft.get_peft_model(plain, peft.LoraConfig(r=2, target_modules=["0", "2", "3"])).train()


def losses(model, x):
    return model(x)[:, 0].square()


def look(model):
    state = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    marks = [(len(m._forward_hooks_with_kwargs), list(getattr(m, "merged_adapters", []))) for m in model.modules()]
    return state, flags, modules, marks


def assert_as_it_was(model, before):
    state, *rest = look(model)
    assert rest == list(before[1:])
    for name, (place, value) in state.items():
        assert place == before[0][name][0] and torch.equal(value, before[0][name][1]), name


def interrupted_everywhere(model, work, functions):
    """Run `work` once, then interrupted at every line that it came by, the first, second and last time."""
    before = look(model)
    with Interrupt(functions) as seen:
        work()
    assert_as_it_was(model, before)
    assert len(seen.lines) > 15
    for line, count in seen.lines.items():
        for time in {1, min(2, count), count}:
            with pytest.raises(KeyboardInterrupt), Interrupt(functions, line, time):
                work()
            assert_as_it_was(model, before)


CHANGING = ("capture", "installed", "_remove_hooks", "frozen", "merged", "_restore")


def test_capture_at_every_line(model):
    blocks = select_blocks(model, "lora")

    def work():
        with capture(model, blocks, len(X)):
            pass

    interrupted_everywhere(model, work, CHANGING)


def test_the_first_batchs_check_at_every_line(model):
    blocks = select_blocks(model, r"0\.lora_A")

    def work():
        check_capture(model, X, losses, blocks)

    interrupted_everywhere(model, work, ("evaluating", "_train", "_gradients", "_restore"))


def test_an_error_of_any_layers_restoration_leaves_no_other_merged(model, monkeypatch):
    before, restore = look(model), lora_merge._restore
    calls = []

    def failing(kept):
        calls.append(len(kept))
        if len(calls) == 1:
            raise KeyboardInterrupt
        restore(kept)

    monkeypatch.setattr(lora_merge, "_restore", failing)
    with pytest.raises(KeyboardInterrupt), capture(model, select_blocks(model, "lora"), len(X)):
        pass
    assert calls == [3, 3]
    assert_as_it_was(model, before)


def test_checkpointing_that_cannot_be_switched_on_is_switched_off(model, monkeypatch):
    base, off = tiny_language(layers=1), []
    monkeypatch.setattr(base, "gradient_checkpointing_disable", lambda: off.append(True))
    monkeypatch.setattr(base, "activation_checkpointing_disable", lambda: off.append(True), raising=False)

    def interrupt(*_):
        raise KeyboardInterrupt

    name = "activation" if hasattr(base, "activation_checkpointing_enable") else "gradient"
    monkeypatch.setattr(base, f"{name}_checkpointing_enable", interrupt)
    with pytest.raises(KeyboardInterrupt), checkpointed(base, True):
        pass
    assert off == [True]
