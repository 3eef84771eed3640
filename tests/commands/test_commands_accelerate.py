"""Files for `accelerate launch`: accelerate reads them, two processes tune as one does, shards are refused."""

import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from vlmsel import cli
from vlmsel.models.open import open_subject

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "recipes/accelerate").glob("*.yaml"))


def tune(world, aligned, out):
    words = ["tune", "--model", aligned, "--data", world / "pool.json", "--images", world / "images", "--out", out]
    return [*map(str, words), "--settings.batch_size", "4", "--settings.epochs", "1", "--device", "cpu"]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_accelerate_reads_the_files_with_the_line_they_open_with(file):
    config = load_config_from_file(str(file))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert config.num_processes == 8 * config.num_machines
    program, launch, *words = shlex.split(file.read_text().splitlines()[0].removeprefix("# "))
    assert (program, launch) == ("accelerate", "launch")
    given = launch_command_parser().parse_args(words)
    assert given.config_file == f"recipes/accelerate/{file.name}"
    assert (given.module, given.training_script) == (True, "vlmsel")
    command, flag, recipe = given.training_script_args
    assert command in cli.COMMANDS and flag == "--config" and (ROOT / recipe).is_file()


def test_files_exist():
    assert {file.stem for file in FILES} == {"ddp", "nodes"}


@pytest.mark.parametrize(("name", "what"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")])
def test_shards_are_refused(world, aligned, tmp_path, monkeypatch, capsys, name, what):
    monkeypatch.setenv(name, "true")
    assert cli.main(tune(world, aligned, tmp_path / "run")) == 2
    assert f"the launcher asks for {what}" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_tune_as_one_does(world, aligned, tmp_path):
    assert cli.main(tune(world, aligned, tmp_path / "one")) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "recipes/accelerate/ddp.yaml"),
    ]
    launch += ["--num_processes", "2", "--main_process_port", str(port), "-m", "vlmsel"]
    done = subprocess.run([*launch, *tune(world, aligned, tmp_path / "two")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (open_subject(str(tmp_path / name), "cpu").state_dict() for name in ("one", "two"))
    before = open_subject(str(aligned), "cpu").state_dict()
    assert one.keys() == two.keys() and any(not torch.equal(one[name], before[name]) for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4)
