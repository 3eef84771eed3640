"""A phase end to end on a tiny model: what it computes, repeats bit by bit, goes on from after a stop, and refuses."""

import gc
import json
import shutil
import signal
import warnings
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import sample_losses, tiny_vlm, wake_lora
from tiny_phase import Pool, collate, weights

from vlmsel import runs
from vlmsel.models import checkpoint
from vlmsel.models.assembly import load
from vlmsel.training.loop import EpochOrder, share
from vlmsel.training.phases import PhaseSettings
from vlmsel.training.trainer import newest_state, train_phase

SETTINGS = PhaseSettings(learning_rate=1e-2, batch_size=4, warmup_ratio=0.1, save_every=2)


class Interrupting:
    """A collator that stops the run as Ctrl-C would, at its `last` batch."""

    def __init__(self, last):
        self.left = last

    def __call__(self, items):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return collate(items)


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """Keep the objects of the imported libraries out of the collections that every run starts with."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


POOL = Pool([1, 0, 2, 1, 1, 0, 1, 1, 1, 2])


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(model, pool, collator, settings, out, **options):
    model.collate = collator
    return train_phase(model, pool, settings, out, **options)


def trained(tmp_path, settings=SETTINGS, name="run", pool=POOL, collator=collate, **options):
    model = tiny_vlm(tmp_path / "backbones", lora="lora" in settings.train or settings.train == "projector")
    return model, train(model, pool, collator, settings, tmp_path / name, **options)


def test_learns_and_leaves_a_loadable_model_without_pickle(tmp_path):
    before = tiny_vlm(tmp_path / "backbones")
    model, result = trained(tmp_path, PhaseSettings(learning_rate=2e-2, batch_size=5, epochs=15))
    assert result.steps == len(result.losses) == 30
    assert sum(result.losses[-2:]) < 0.7 * sum(result.losses[:2])
    changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, weights(before)[name])}
    assert changed and all(name.startswith("projector.") or ".lora_" in name for name in changed)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"phase.json", "model"}
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".pt", ".bin", ".pth", ".pkl")]
    loaded = load(result.model)
    assert equal(weights(loaded), weights(model)) and loaded.vlm_config.projector_trained and not model.training


def test_a_disk_without_room_for_model_and_states_is_refused_before_the_first_step(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, replace(SETTINGS, save_every=1), "stopped", collator=Interrupting(2))
    held = runs.bytes_in(newest_state(tmp_path / "stopped/checkpoints"))
    state = weights(tiny_vlm(tmp_path / "backbones"))
    learns = sum(4 * own.numel() for name, own in state.items() if name.startswith("projector.") or ".lora_" in name)
    assert 3 * learns < held < 3 * learns + 60_000  # what learns and two moments of it, beside heads and small files
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda folder: usage(7 * learns - 1))
    with pytest.raises(
        ValueError, match=r"run: the model with its states takes .* free; make room, or go without states"
    ):
        trained(tmp_path)
    assert not (tmp_path / "run").exists()
    assert trained(tmp_path, replace(SETTINGS, save_every=None))[1].steps == 3  # needs but the model


def adam_by_hand(model, batches, settings, factors):
    """The same phase as a plain loop: mean token loss, clipping, two rates, decay of matrices only."""
    groups = [
        [p for n, p in model.named_parameters() if p.requires_grad and (n.startswith("proj")) == first]
        for first in (True, False)
    ]
    rates = (settings.projector_learning_rate, settings.learning_rate)
    parts = [
        {"params": [p for p in group if (p.dim() > 1) == matrix], "lr": rate, "weight_decay": decay}
        for group, rate in zip(groups, rates, strict=True)
        for matrix, decay in ((True, settings.weight_decay), (False, 0.0))
    ]
    optimizer = torch.optim.AdamW([p for p in parts if p["params"]], betas=(0.9, 0.999), eps=1e-8)
    peaks = [group["lr"] for group in optimizer.param_groups]
    losses = []
    for batch, factor in zip(batches, factors, strict=True):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        loss = model.token_losses(batch).losses.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in groups for p in g], settings.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_are_those_of_a_plain_loop(tmp_path, accumulation):
    settings = PhaseSettings(
        learning_rate=1e-2,
        projector_learning_rate=3e-3,
        weight_decay=0.3,
        batch_size=4,
        gradient_accumulation=accumulation,
        epochs=2,
        warmup_ratio=0.4,
    )
    model, result = trained(tmp_path, settings, order=lambda epoch: range(10))
    twin = tiny_vlm(tmp_path / "backbones")
    batches = [collate([POOL[i] for i in range(start, min(start + 4, 10))]) for start in (0, 4, 8)] * 2
    # 6 steps, 3 of them warm-up
    factors = [0, 1 / 3, 2 / 3, 1, 0.75, 0.25]
    losses = adam_by_hand(twin, batches, settings, factors)
    assert result.losses == pytest.approx(losses, rel=1e-5)
    for name, tensor in weights(twin).items():
        torch.testing.assert_close(weights(model)[name], tensor, rtol=1e-3, atol=2e-5)


def test_moments_are_those_of_the_steps_gradients(tmp_path):
    """After two steps v̂ = (β₂ (1 - β₂) g₁² + (1 - β₂) g₂²) / (1 - β₂²), whatever the steps themselves were."""
    settings = PhaseSettings(learning_rate=1e-2, batch_size=5, warmup_ratio=0.6, max_grad_norm=0, moments=True)
    trained(tmp_path, settings, order=lambda epoch: range(10))
    found = load_file(tmp_path / "run/moments.safetensors")
    twin = tiny_vlm(tmp_path / "backbones")
    twin.trained("projector+lora")
    learns = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    gradients = []
    for start in (0, 5):  # the first of two warm-up steps has a rate of 0, so that both are taken at the same weights
        loss = twin.token_losses(collate([POOL[i] for i in range(start, start + 5)])).losses.mean()
        gradients.append(dict(zip(learns, torch.autograd.grad(loss, list(learns.values())), strict=True)))
    assert set(found) == set(learns)
    for name in learns:
        first, second = (one[name].double().square() for one in gradients)
        expected = (0.999 * 0.001 * first + 0.001 * second) / (1 - 0.999**2)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-3, atol=1e-12)


def test_settings_without_moments_are_those_of_earlier_runs(tmp_path):
    """In configurations null is as good as missing, and so it is in a record."""
    _, result = trained(tmp_path, name="earlier")
    record = runs.read_json(tmp_path / "earlier/phase.json")
    assert record["settings"].pop("moments") is None
    runs.write_json(tmp_path / "earlier/phase.json", record)
    assert trained(tmp_path, name="earlier")[1].losses == result.losses
    with pytest.raises(ValueError, match="moments was None and is True"):
        trained(tmp_path, replace(SETTINGS, moments=True), "earlier")
    assert not trained(tmp_path, replace(SETTINGS, moments=True), "new")[1].model.with_name("checkpoints").exists()
    trained(tmp_path, name="new", resume=False)
    assert not (tmp_path / "new/moments.safetensors").exists()  # they were another model's


def test_two_runs_are_equal_bit_by_bit_and_seeds_differ(tmp_path):
    first, a = trained(tmp_path, name="a")
    second, b = trained(tmp_path, name="b")
    assert a.losses == b.losses and equal(weights(first), weights(second))
    _, other = trained(tmp_path, PhaseSettings(**{**SETTINGS.__dict__, "seed": 1}), name="c")
    assert other.losses != a.losses


@pytest.mark.parametrize(
    ("dropout", "stop"),
    [
        (0.2, 3),
        (0.0, 8),
        *(pytest.param(p, stop, marks=pytest.mark.slow) for p in (0.0, 0.2) for stop in (1, 5)),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path, stop, dropout):
    settings = PhaseSettings(**{**SETTINGS.__dict__, "epochs": 3.0})

    def model():
        made = tiny_vlm(tmp_path / "backbones")
        for module in made.language_model.modules():
            if isinstance(module, torch.nn.ModuleDict) and "default" in module and dropout:
                if isinstance(module["default"], torch.nn.Identity):
                    module["default"] = torch.nn.Dropout(dropout)
        return made

    whole = model()
    expected = train(whole, POOL, collate, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(model(), POOL, Interrupting(stop), settings, tmp_path / "cut")
    assert (newest_state(tmp_path / "cut" / "checkpoints") is None) == (stop < 3)
    again = model()
    result = train(again, POOL, collate, settings, tmp_path / "cut")
    assert result.losses == expected.losses and len(result.losses) == 9
    assert equal(weights(again), weights(whole))


def test_a_run_killed_between_its_last_state_and_its_model_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole, expected = trained(tmp_path, name="whole")

    save = checkpoint.save

    def killed(model, folder):
        if folder == tmp_path / "cut/model":
            raise KeyboardInterrupt
        save(model, folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", killed)
        trained(tmp_path, name="cut")
    again, result = trained(tmp_path, name="cut", collator=Interrupting(0))
    assert result.losses == expected.losses and equal(weights(load(result.model)), weights(whole))
    assert again.vlm_config.projector_trained


@pytest.mark.parametrize("torn", ["", "{"])
def test_a_run_killed_while_it_wrote_a_state_goes_on_from_the_one_before(tmp_path, torn):
    settings = PhaseSettings(**{**SETTINGS.__dict__, "epochs": 3.0})
    whole, expected = trained(tmp_path, settings, "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, settings, "cut", collator=Interrupting(3))
    states = tmp_path / "cut" / "checkpoints"
    half = states / "checkpoint-4"
    shutil.copytree(states / "checkpoint-2/model/adapter", half / "model.part/adapter")
    if torn:
        (half / "trainer_state.json").write_text(torn)
    again, result = trained(tmp_path, settings, "cut")
    assert result.losses == expected.losses and equal(weights(again), weights(whole))


def test_a_run_that_fails_before_its_first_state_leaves_nothing(tmp_path, monkeypatch):
    pool = Pool([1, 1, 0, 1])
    pool.items[2][2][:] = [-100] * len(pool.items[2][2])
    with pytest.raises(ValueError, match="no supervised token"):
        trained(tmp_path, pool=pool)
    assert list((tmp_path / "run").glob("*")) == []

    def full(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(checkpoint, "save_adapter", full)
        trained(tmp_path)
    assert list((tmp_path / "run").glob("*")) == []


@pytest.mark.parametrize("room", [-1, 2000])  # beyond the adapters: too small for them, or for the optimiser's state
def test_a_full_disk_names_the_state_and_loses_nothing(tmp_path, small_disk, room):
    settings = PhaseSettings(**{**SETTINGS.__dict__, "epochs": 2.0})
    whole, expected = trained(tmp_path, settings, "whole")
    (adapters,) = (tmp_path / "whole").rglob("adapter_model.safetensors")
    size = adapters.stat().st_size + room
    assert size > 4000  # room for what is printed, which the tests keep in a file

    def on_small_disk(state):
        model = tiny_vlm(tmp_path / "backbones")
        with (
            small_disk(size),
            pytest.raises(OSError, match=rf"run/checkpoints/{state}.*: cannot be written \(.* GB free"),
        ):
            train(model, POOL, collate, settings, tmp_path / "run")

    on_small_disk("checkpoint-2")
    assert list((tmp_path / "run").glob("*")) == []
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, settings, collator=Interrupting(3))
    on_small_disk("checkpoint-4")
    again, result = trained(tmp_path, settings, collator=Interrupting(4))
    assert result.losses == expected.losses and equal(weights(again), weights(whole))


class Signalling:
    """A collator at whose `last` batch signals come."""

    def __init__(self, last, *signals):
        self.left, self.signals = last, signals

    def __call__(self, items):
        self.left -= 1
        if self.left < 0:
            for number in self.signals:
                signal.raise_signal(number)
            self.signals = ()
        return collate(items)


class Terminated(KeyboardInterrupt):
    """What the command line makes of SIGTERM."""


@pytest.fixture
def terminable():
    def end(number, frame):
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    asked = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield end
    assert signal.signal(signal.SIGTERM, before) is end  # given back
    assert signal.signal(signal.SIGINT, asked) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "stop"),
    [
        (signal.SIGINT, 2),
        (signal.SIGTERM, 0),
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.slow),
        *(pytest.param(number, 4, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_signal_saves_a_state_before_the_run_ends(tmp_path, number, stop, terminable):
    settings = PhaseSettings(**{**SETTINGS.__dict__, "epochs": 2.0, "save_every": 200})
    whole, expected = trained(tmp_path, settings, "whole")
    with pytest.raises(KeyboardInterrupt) as ended:
        trained(tmp_path, settings, "cut", collator=Signalling(stop, number))
    assert ended.type is (Terminated if number == signal.SIGTERM else KeyboardInterrupt)
    done = int(newest_state(tmp_path / "cut/checkpoints").name.rpartition("-")[2])
    assert max(1, stop) <= done <= stop + 1  # a batch is read ahead of its step
    again, result = trained(tmp_path, settings, "cut", collator=Interrupting(6 - done))
    assert result.losses == expected.losses and equal(weights(again), weights(whole))


def test_a_second_signal_ends_the_run_at_once(tmp_path, terminable):
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, collator=Signalling(0, signal.SIGINT, signal.SIGINT))
    assert not list((tmp_path / "run").glob("*"))
    with pytest.raises(KeyboardInterrupt):  # no states are asked for
        settings = PhaseSettings(**{**SETTINGS.__dict__, "save_every": None})
        trained(tmp_path, settings, collator=Signalling(1, signal.SIGTERM))
    assert not list((tmp_path / "run").glob("*"))


def test_nothing_is_written_before_the_first_state(tmp_path):
    found = []

    def look(items):
        found.append(sorted(path.name for path in (tmp_path / "run").glob("*")))
        return collate(items)

    trained(tmp_path, PhaseSettings(**{**SETTINGS.__dict__, "epochs": 2.0, "save_every": 3}), collator=look)
    assert found[:3] == [[]] * 3 and found[-1] == ["checkpoints", "phase.json"]


def test_a_run_goes_on_with_the_same_inputs_only(tmp_path):
    trained(tmp_path, inputs={"the data": "a", "the model": "b"})
    trained(tmp_path, inputs={"the data": "a", "the model": "b"}, collator=Interrupting(0))
    trained(tmp_path, collator=Interrupting(0))  # no statement
    with pytest.raises(ValueError, match="other settings or inputs: the data changed; choose another --out"):
        trained(tmp_path, inputs={"the data": "c", "the model": "b"})


def test_adapters_become_weights_before_the_whole_language_model_trains(tmp_path):
    settings = PhaseSettings(train="projector+lm", learning_rate=1e-3, batch_size=5, warmup_ratio=0, save_every=1)

    def adapted(name, collator=collate):
        model = tiny_vlm(tmp_path / "backbones")
        wake_lora(model)
        return model, train(model, POOL, collator, settings, tmp_path / name)

    merged = tiny_vlm(tmp_path / "backbones")
    wake_lora(merged)
    merged.merge_lora()
    expected = train(merged, POOL, collate, settings, tmp_path / "merged")
    model, result = adapted("run")
    assert result.losses == expected.losses and equal(weights(model), weights(merged))
    assert equal(weights(load(result.model)), weights(model))
    with pytest.raises(KeyboardInterrupt):
        adapted("cut", Interrupting(1))
    for _ in range(2):  # goes on, then finds that it has ended
        again, result = adapted("cut")
        assert result.losses == expected.losses and equal(weights(again), weights(merged))


def test_whole_language_model_trains_and_resumes(tmp_path):
    settings = PhaseSettings(train="projector+lm", learning_rate=1e-3, batch_size=4, save_every=1)
    whole, expected = trained(tmp_path, settings, "whole")
    assert whole.vlm_config.language_trained and (expected.model / "language_model").is_dir()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, settings, "cut", collator=Interrupting(2))
    again, result = trained(tmp_path, settings, "cut")
    assert result.losses == expected.losses and equal(weights(again), weights(whole))
    assert equal(weights(load(result.model)), weights(whole))


def test_a_finished_run_is_not_run_again(tmp_path):
    model, result = trained(tmp_path)
    again, second = trained(tmp_path, collator=Interrupting(0))
    assert second == result and equal(weights(again), weights(model))
    anew, third = trained(tmp_path, resume=False)
    assert third.losses == result.losses and third.seconds > 0


def test_a_run_with_other_settings_or_data_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(
        ValueError, match="settings or inputs: learning_rate was 0.01 and is 0.02; choose another --out"
    ):
        trained(tmp_path, PhaseSettings(**{**SETTINGS.__dict__, "learning_rate": 0.02}))
    with pytest.raises(ValueError, match="samples was 10 and is 2"):
        trained(tmp_path, pool=Pool([1, 1]))
    trained(tmp_path, PhaseSettings(**{**SETTINGS.__dict__, "save_every": 7}))


def test_half_written_states_are_not_resumed_from(tmp_path):
    for name, complete in (("checkpoint-5", True), ("checkpoint-10", True), ("checkpoint-15", False)):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "trainer_state.json").write_text("{}")
    assert newest_state(tmp_path).name == "checkpoint-10"
    assert newest_state(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("train", "precision"),
    [
        ("projector+lora", "float32"),
        ("projector+lm", "bfloat16"),
        *(
            pytest.param(train, precision, marks=pytest.mark.slow)
            for precision in ("float32", "bfloat16")
            for train in ("projector", "lora")
        ),
    ],
)
def test_gradient_checkpointing_changes_nothing(tmp_path, train, precision):
    settings = PhaseSettings(train=train, learning_rate=1e-3, batch_size=5, precision=precision)
    plain, a = trained(tmp_path, settings, "plain")
    thrifty = PhaseSettings(**{**settings.__dict__, "gradient_checkpointing": True})
    model, b = trained(tmp_path, thrifty, "thrifty")
    assert a.losses == b.losses and equal(weights(plain), weights(model))
    assert not model.language_model.is_activation_checkpointing
    assert not model.language_model.get_input_embeddings()._forward_hooks


def test_half_precision_keeps_float32_weights_and_comes_close(tmp_path):
    _, a = trained(tmp_path, SETTINGS, "a")
    model, b = trained(tmp_path, PhaseSettings(**{**SETTINGS.__dict__, "precision": "bfloat16"}), "b")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert a.losses != b.losses and b.losses == pytest.approx(a.losses, rel=0.02)


@pytest.mark.parametrize("part", ["projector", "lora"])
def test_a_part_without_gradient_is_named(tmp_path, part):
    model = tiny_vlm(tmp_path / "backbones")
    if part == "projector":
        model.projector.register_forward_hook(lambda m, args, out: out.detach())
    else:
        for name, module in model.named_modules():
            if name.endswith("lora_B.default"):
                module.register_forward_hook(lambda m, args, out: out.detach())
    before = weights(model)
    with pytest.raises(ValueError, match=f"no gradient reaches the {part} in its first step"):
        train(model, POOL, collate, SETTINGS, tmp_path / "run")
    assert equal(before, weights(model))


def test_text_only_samples_leave_the_projector_alone(tmp_path):
    settings = PhaseSettings(train="projector", learning_rate=1e-2, batch_size=2, warmup_ratio=0)
    model, result = trained(tmp_path, settings, pool=Pool([0, 0]))
    assert result.steps == 1 and equal(weights(model), weights(tiny_vlm(tmp_path / "backbones")))
    assert model.vlm_config.projector_trained  # as it was before
    mixed, _ = trained(tmp_path, settings, "mixed", pool=Pool([0, 0, 1, 1]), order=lambda epoch: range(4))
    assert not equal(weights(mixed), weights(model))


def test_broken_samples_are_named(tmp_path):
    pool = Pool([1, 1, 0, 1])
    pool.items[3][3][0].fill_(float("nan"))
    pool.items[1][3][0].fill_(float("inf"))
    with pytest.raises(ValueError, match=r"sample uid 101, 103: the loss is not finite at step 1"):
        trained(tmp_path, pool=pool, order=lambda epoch: range(4))
    pool = Pool([1, 1, 0, 1])
    pool.items[2][2][:] = [-100] * len(pool.items[2][2])
    with pytest.raises(ValueError, match="sample uid 102: no supervised token"):
        trained(tmp_path, name="other", pool=pool)


def test_order_must_be_a_permutation_and_is_asked_every_epoch(tmp_path):
    asked = []

    def order(epoch):
        asked.append(epoch)
        return range(10)

    trained(tmp_path, PhaseSettings(batch_size=5, epochs=3), order=order)
    assert sorted(set(asked)) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"order\(0\) must hold each of the 10 sample positions once"):
        trained(tmp_path, name="bad", order=lambda epoch: [0] * 10)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4, 6])
def test_every_sample_is_dealt_to_one_process_within_its_step(count, batch, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for samples in (1, 2, 3, 7, 10, 101):
        dealt, each = list(EpochOrder(samples, 0, range_order(samples), batch)), share(batch)
        assert len(dealt) == len(EpochOrder(samples, 0, None, batch)) == -(-samples // batch) * each * count
        for step, start in enumerate(range(0, samples, batch)):
            own = dealt[step * each * count : (step + 1) * each * count]
            assert sorted(i for i in own if i < samples) == list(range(start, min(start + batch, samples)))
            parts = [sum(i < samples for i in own[r * each : (r + 1) * each]) for r in range(count)]
            assert max(parts) - min(parts) <= 1
        assert count > 1 or dealt[:samples] == list(range(samples))


def range_order(samples):
    return lambda epoch: range(samples)


def test_an_unfit_batch_size_and_an_untrained_projector_are_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size 4 cannot be cut into 3 micro-batches"):
        trained(tmp_path, PhaseSettings(batch_size=4, gradient_accumulation=3))
    trained(tmp_path, PhaseSettings(batch_size=4, gradient_accumulation=2))  # the folder is not spoilt
    model = tiny_vlm(tmp_path / "backbones")
    model.vlm_config = type(model.vlm_config)(**{**model.vlm_config.__dict__, "projector_trained": False})
    with pytest.raises(ValueError, match="projector of this model was never trained"):
        train(model, POOL, collate, PhaseSettings(train="lora"), tmp_path / "lora")


def test_global_random_state_and_screen_are_left_alone(tmp_path, capsys):
    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    trained(tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all("projector+lora:" in line for line in captured.err.replace("\r", "\n").split("\n") if line)


def test_record_names_settings_and_losses(tmp_path):
    _, result = trained(tmp_path)
    record = json.loads((tmp_path / "run" / "phase.json").read_text())
    assert record["finished"] and record["samples"] == 10 and record["losses"] == list(result.losses)
    assert record["settings"]["learning_rate"] == 1e-2


def test_a_trained_model_scores_as_in_training(tmp_path):
    model, result = trained(tmp_path)
    batch = collate(POOL.items)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(sample_losses(model, batch), sample_losses(load(result.model), batch))


def test_frozen_weights_in_half_precision_beside_float32_masters_go_on_bit_by_bit(tmp_path):
    """What learns is float32, steps are close to those of float32 backbones, a stopped run ends with the same bits."""
    settings = replace(SETTINGS, precision="bfloat16")
    tiny_vlm(tmp_path / "backbones")

    def run(name, collator=collate, dtype=torch.bfloat16):
        model = tiny_vlm(tmp_path / "backbones", dtype)
        return model, train(model, POOL, collator, settings, tmp_path / name)

    whole, expected = run("whole")
    kinds = {(tensor.dtype, tensor.requires_grad) for tensor in whole.parameters()}
    assert kinds == {(torch.bfloat16, False), (torch.float32, True)}
    assert all(p.dtype == torch.float32 for p in whole.projector.parameters())
    assert expected.losses == pytest.approx(run("float32", dtype=torch.float32)[1].losses, rel=0.05)
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Interrupting(2))
    again, result = run("stopped")
    assert result.losses == expected.losses and equal(weights(again), weights(whole))


def test_the_whole_language_model_learns_as_float32_masters_of_half_precision(tmp_path):
    settings = replace(SETTINGS, precision="bfloat16", train="projector+lm")
    model = tiny_vlm(tmp_path / "backbones", torch.bfloat16, lora=False)
    train(model, POOL, collate, settings, tmp_path / "run")
    assert {p.dtype for p in model.language_model.parameters()} == {torch.float32}
    assert {p.dtype for p in model.vision.parameters()} == {torch.bfloat16}
    stored = load(tmp_path / "run" / "model")
    assert equal(weights(stored.language_model), weights(model.language_model))
