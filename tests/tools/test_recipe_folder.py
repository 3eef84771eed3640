"""The folder of a recipe's study goes on with the same settings and the same files, wherever these lie."""

import argparse

import pytest

from tools.recipe_folder import open_folder


def opened(out, file, **more):
    given = argparse.Namespace(out=out, questions=file, labels=None, pool=5, **{"seeds": [0], **more})
    open_folder(argparse.ArgumentParser(), given, ("seeds",))


def test_a_file_may_move_and_seeds_may_grow_and_nothing_else_changes(tmp_path, capsys):
    file, moved, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "out"
    file.write_text("[1]")
    moved.write_text("[1]")
    opened(out, file)
    (out / "results.json").write_text("{}")
    opened(out, moved, seeds=[0, 1])
    moved.write_text("[2]")
    with pytest.raises(SystemExit):
        opened(out, moved)
    assert "holds a run of another configuration (there: questions: " in capsys.readouterr().err


def test_a_missing_file_is_one_clear_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        opened(tmp_path / "out", tmp_path / "none.json")
    assert "none.json" in capsys.readouterr().err
