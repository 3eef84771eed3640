import subprocess
import sys

import pytest

from vlmsel import cli


def test_help_lists_commands_without_torch():
    code = "import sys, vlmsel.cli; vlmsel.cli.main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in cli.COMMANDS)


def test_unknown_command(capsys):
    assert cli.main(["scroe"]) == 2
    assert "unknown command 'scroe'" in capsys.readouterr().err


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vlmsel 0.")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


def test_abbreviations_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["select", "--frac", "0.1"])
    assert stop.value.code == 2


def test_key_errors_are_shown_plainly():
    assert cli.one_line(KeyError("no such\nthing")) == "no such thing"
