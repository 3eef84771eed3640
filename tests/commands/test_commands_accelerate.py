"""Files for `accelerate launch`: accelerate reads them, two processes tune as one does, with shards and without."""

import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from tiny_huggingface import save_language
from tiny_vlms import save_vlm

from vlmsel import cli, processes
from vlmsel.models.open import open_subject
from vlmsel.training.shards import require_frozen, shard

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


def tune(world, aligned, out):
    words = ["tune", "--model", aligned, "--data", world / "pool.json", "--images", world / "images", "--out", out]
    return [*map(str, words), "--settings.batch_size", "4", "--settings.epochs", "1", "--device", "cpu"]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_files_with_the_line_they_open_with(file):
    config = load_config_from_file(str(file))
    assert (
        config.distributed_type == ("FSDP" if file.stem == "fsdp" else "MULTI_GPU") and config.mixed_precision == "no"
    )
    assert config.num_processes == 8 * config.num_machines
    program, launch, *words = shlex.split(file.read_text().splitlines()[0].removeprefix("# "))
    assert (program, launch) == ("accelerate", "launch")
    given = launch_command_parser().parse_args(words)
    assert given.config_file == f"recipes/accelerate/{file.name}"
    assert (given.module, given.training_script) == (True, "vlmsel")
    command, flag, recipe = given.training_script_args
    assert command in cli.COMMANDS and flag == "--config" and (ROOT / recipe).is_file()


def test_files_exist():
    assert {file.stem for file in FILES} == {"ddp", "nodes", "fsdp"}


def test_what_cannot_be_had_ends_in_one_line(world, aligned, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert cli.main(tune(world, aligned, tmp_path / "run")) == 2
    assert "the launcher asks for DeepSpeed, which is not supported; take rec" in capsys.readouterr().err
    with pytest.raises(
        ValueError, match="settings.train is projector[+]lm and the launcher asks for FSDP, which shards"
    ):
        require_frozen("projector+lm")
    monkeypatch.setattr(torch.distributed.fsdp, "fully_shard", lambda module: module)
    with pytest.raises(ValueError, match="FSDP needs torch 2.8 or later, this is"):
        shard(open_subject(str(aligned), "cpu"), {})


def test_one_process_has_nothing_to_shard(monkeypatch):
    monkeypatch.setenv(processes.FSDP, "true")
    with processes.sharding() as sharded:
        assert not sharded and processes.FSDP not in os.environ
    assert os.environ[processes.FSDP] == "true" and not processes.wants_shards()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with processes.sharding() as sharded:
        assert sharded and processes.FSDP not in os.environ


def launched(file, words):
    """Run two processes by `accelerate launch` and a file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / f"recipes/accelerate/{file}.yaml"),
    ]
    launch += ["--num_processes", "2", "--main_process_port", str(port), "-m", "vlmsel"]
    done = subprocess.run([*launch, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "qwen2_5_vl", "mllama"])
def test_two_processes_with_shards_tune_as_one_does(name, world, tmp_path):
    """Adapters and projector over a base in shards; a batch of five leaves a process idle, and some have no picture."""
    if name == "text":
        model, parts = save_language(tmp_path / "base"), "lora"
        records = [{"conversations": one["conversations"]} for one in text_pool(6)]
    else:
        model, parts = save_vlm(tmp_path / "base", name), "projector+lora"
        records = [*json.loads((world / "pool.json").read_text())[:4], *text_pool(2)]
    (tmp_path / "pool.json").write_text(json.dumps(records))
    words = ["tune", "--model", model, "--data", tmp_path / "pool.json", "--images", world / "images", "--lora.r", 2]
    words += ["--settings.batch_size", 5, "--settings.epochs", 2, "--settings.train", parts, "--settings.save_every", 1]
    words += ["--settings.gradient_checkpointing", "true", "--device", "cpu"]
    assert cli.main([*map(str, words), "--out", str(tmp_path / "one")]) == 0
    launched("fsdp", [*map(str, words), "--out", str(tmp_path / "two")])
    one, two = (json.loads((tmp_path / f"{out}/phase.json").read_text()) for out in ("one", "two"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5) and len(one["losses"]) == 4
    assert files(tmp_path / "two/model") == files(tmp_path / "one/model")
    was, now = (open_subject(str(tmp_path / out), "cpu").module.state_dict() for out in ("one", "two"))
    assert was.keys() == now.keys()
    for key, tensor in was.items():
        torch.testing.assert_close(now[key], tensor, atol=2e-5, rtol=1e-3)


def text_pool(count):
    said = [("What?", "Red."), ("Who is it?", "Nobody."), ("Why?", "No."), ("And?", "Yes, yes.")]
    turns = [(f"{said[n % 4][0]} {n}", said[n % 4][1]) for n in range(count)]
    return [{"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": told}]} for ask, told in turns]


@pytest.mark.slow
def test_two_processes_tune_as_one_does(world, aligned, tmp_path):
    assert cli.main(tune(world, aligned, tmp_path / "one")) == 0
    launched("ddp", tune(world, aligned, tmp_path / "two"))
    one, two = (open_subject(str(tmp_path / name), "cpu").state_dict() for name in ("one", "two"))
    before = open_subject(str(aligned), "cpu").state_dict()
    assert one.keys() == two.keys() and any(not torch.equal(one[name], before[name]) for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
