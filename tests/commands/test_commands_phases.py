"""Phases through the command line: after a failure, changed data, the whole language model, a killed process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from vlmsel import cli
from vlmsel.models.lora import lora_parameters
from vlmsel.models.open import open_subject


def tune(world, aligned, out, *more, data="pool.json"):
    words = ["tune", "--model", aligned, "--data", world / data, "--images", world / "images", "--out", out]
    return [
        str(word) for word in (*words, "--settings.batch_size", 4, "--settings.epochs", 1, "--device", "cpu", *more)
    ]


def weights(run):
    return open_subject(str(run), "cpu").state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_phase_that_failed_leaves_its_folder_to_the_mended_command(world, aligned, tmp_path, capsys, monkeypatch):
    wrong = ["--settings.gradient_accumulation", 3]
    assert cli.main(tune(world, aligned, tmp_path / "run", *wrong)) == 2
    assert "batch_size 4 cannot be cut into 3 micro-batches" in capsys.readouterr().err

    def fails(*args, **kwargs):
        raise ValueError("the loss is not finite")

    with monkeypatch.context() as patch:
        patch.setattr("vlmsel.training.loop.PhaseTrainer.compute_loss", fails)
        assert cli.main(tune(world, aligned, tmp_path / "run", "--settings.seed", 3)) == 2
    assert cli.main(tune(world, aligned, tmp_path / "run")) == 0
    assert (tmp_path / "run/model/vlmsel_config.json").is_file()


def test_the_same_command_with_other_data_does_not_pass_for_finished(world, aligned, tmp_path, capsys):
    records = json.loads((world / "pool.json").read_text())
    mine = tmp_path / "chosen.json"
    mine.write_text(json.dumps(records[:4]))
    command = tune(world, aligned, tmp_path / "run", data=mine)
    assert cli.main(command) == 0
    mine.write_text(json.dumps(records[4:8]))
    capsys.readouterr()
    assert cli.main(command) == 2
    assert f"holds a run with other settings or inputs: the data ({mine}) changed; " in capsys.readouterr().err


def test_the_whole_language_model_is_tuned_from_an_aligned_model_with_adapters(world, aligned, tmp_path):
    before = weights(aligned)
    assert lora_parameters(open_subject(str(aligned), "cpu"))
    assert cli.main(tune(world, aligned, tmp_path / "run", "--settings.train", "projector+lm")) == 0
    model = open_subject(str(tmp_path / "run"), "cpu")
    assert not lora_parameters(model) and (tmp_path / "run/model/language_model").is_dir()
    name = "language_model.model.embed_tokens.weight"
    assert not torch.equal(
        model.state_dict()[name], before[name.replace("model.model", "model.base_model.model.model")]
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(world, aligned, tmp_path):
    more = ["--settings.epochs", 10, "--settings.save_every", 2]
    assert cli.main(tune(world, aligned, tmp_path / "whole", *more)) == 0
    command = [sys.executable, "-m", "vlmsel", *tune(world, aligned, tmp_path / "cut", *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # the same sums in the same order
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        while process.poll() is None and not list((tmp_path / "cut").glob("checkpoints/*/trainer_state.json")):
            time.sleep(0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "cut/model").exists()
    assert cli.main(tune(world, aligned, tmp_path / "cut", *more)) == 0
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_half_precision_is_for_what_is_frozen_and_wants_autocast(world, aligned, tmp_path, capsys):
    half = ["--dtype", "bfloat16"]
    assert cli.main(tune(world, aligned, tmp_path / "run", *half)) == 2
    assert "set --settings.precision bfloat16 too" in capsys.readouterr().err
    assert cli.main(tune(world, aligned, tmp_path / "run", "--dtype", "float16")) == 2
    assert "--dtype float32 or bfloat16, got 'float16'" in capsys.readouterr().err
    assert cli.main(tune(world, aligned, tmp_path / "run", *half, "--settings.precision", "bfloat16")) == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}
    capsys.readouterr()
    assert cli.main(tune(world, aligned, tmp_path / "run", "--settings.precision", "bfloat16")) == 2  # other weights
    assert "there: dtype: bfloat16; now: dtype: float32" in capsys.readouterr().err
