"""What `detect` says of the labels that it reads."""

from tiny_text import write_csv

from vlmsel.data.labelled import Source
from vlmsel.studies.labelled_data import open_labelled


def test_labels_that_are_taken_for_the_same_are_said_once(tmp_path, capsys):
    train = write_csv(tmp_path / "train.csv", [("a", "1.0"), ("b", "0.0"), ("c", "")])
    validation = write_csv(tmp_path / "val.csv", [("a", "1"), ("b", "0")])
    found = open_labelled(Source(None, None, str(train), str(validation), None, "label", None), tmp_path)
    assert found.classes == ("0", "1")
    left_out, said = capsys.readouterr().out.splitlines()
    assert "1 of 3 samples left out" in left_out
    assert said == "labels that say the same are one class: '1' (1, 1.0), '0' (0, 0.0)"
