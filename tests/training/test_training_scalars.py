"""What a phase sends to TensorBoard, by a writer that stands in for it."""

import sys
from types import SimpleNamespace

from vlmsel.training.watch import Scalars


def test_loss_rate_and_norm_of_every_step_are_sent(tmp_path, monkeypatch):
    sent = []

    class SummaryWriter:
        def __init__(self, folder):
            sent.append(folder)

        def add_scalar(self, name, value, step):
            sent.append((name, value, step))

        def flush(self):
            sent.append("flushed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    scalars = Scalars("tensorboard", tmp_path)
    assert not sent  # nothing before a step is done
    for step, main in ((1, True), (2, False), (3, True)):
        state = SimpleNamespace(is_world_process_zero=main, global_step=step)
        scalars.on_log(None, state, None, logs={"loss": 2.0 / step, "learning_rate": 1e-3, "epoch": 1})
        scalars.on_log(None, state, None, logs={"train_runtime": 1.0})
    names = ["train/loss", "train/learning_rate"]
    assert sent[0] == str(tmp_path / "logs") and [one for one in sent if one == "flushed"] == ["flushed"] * 2
    values = {1: (2.0, 1e-3), 3: (2.0 / 3, 1e-3)}
    expected = [(name, value, step) for step, own in values.items() for name, value in zip(names, own, strict=True)]
    assert [one for one in sent if isinstance(one, tuple)] == expected
