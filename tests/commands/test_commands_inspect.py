"""vlmsel inspect with a model: samples that lose supervised tokens, and what a checkpoint holds."""

import re
import shutil

from vlmsel import cli, runs
from vlmsel.data.dataset import Reading
from vlmsel.data.formats import read_samples
from vlmsel.models.open import open_subject


def test_samples_that_would_lose_supervised_tokens_are_named(world, aligned, tmp_path):
    words = ["inspect", f"{world}/pool.json", "--model", str(aligned), "--max_length", "58"]
    assert cli.main([*words, "--json", f"{tmp_path}/found.json"]) == 0
    found = runs.read_json(tmp_path / "found.json")["faults"]["loses tokens"]
    subject = open_subject(str(aligned), "cpu")
    expected = {}
    for sample in read_samples(world / "pool.json").samples:
        whole = subject.size(sample, Reading(max_length=5000)).supervised
        try:
            cut = subject.size(sample, Reading(max_length=58)).supervised
        except ValueError as reason:
            expected[str(sample.uid)] = str(reason)
            continue
        if cut < whole:
            expected[str(sample.uid)] = f"keeps {cut} of {whole} supervised tokens at 58"
    assert found == expected and 0 < len(found) < 12


def test_what_is_longer_than_the_model_reads_loses_tokens_however_much_is_allowed(world, aligned, tmp_path):
    records = runs.read_json(world / "pool.json")[:2]
    records[1]["conversations"][1]["value"] = "red circle " * 400
    runs.write_json(tmp_path / "pool.json", records)
    subject = open_subject(str(aligned), "cpu")
    words = subject.tokenizer("red circle " * 400, add_special_tokens=False)["input_ids"]
    assert len(words) > subject.positions
    command = ["inspect", f"{tmp_path}/pool.json", "--images", f"{world}/images", "--model", str(aligned)]
    assert cli.main([*command, "--json", f"{tmp_path}/found.json"]) == 0
    found = runs.read_json(tmp_path / "found.json")["faults"]["loses tokens"]
    kept, total = map(int, re.match(r"keeps (\d+) of (\d+) supervised", found.pop("1")).groups())
    assert found == {} and kept < subject.positions and abs(total - len(words)) <= 2  # blanks at its ends, EOS


def test_a_checkpoint_says_what_it_holds(aligned, tmp_path, capsys):
    assert cli.main(["inspect", str(aligned), "--check_base", "true", "--json", f"{tmp_path}/found.json"]) == 0
    shown, found = capsys.readouterr().out, runs.read_json(tmp_path / "found.json")
    assert "base: found, and not another" in shown and found["projector trained"] is True
    assert found["files"]["model/projector.safetensors"]["numbers by dtype"].keys() == {"F32"}
    assert found["vision"] == "assets:clip" and found["made for base"]["vision weights"]


def test_another_base_and_damaged_weights_are_told(aligned, tmp_path, capsys):
    shutil.copytree(aligned / "model", tmp_path / "model")
    path = tmp_path / "model/vlmsel_config.json"
    about = runs.read_json(path)
    about["fingerprints"]["vision weights"] = "0" * 16
    runs.write_json(path, about)
    assert cli.main(["inspect", f"{tmp_path}/model", "--check_base", "true"]) == 2
    assert "is not the one this model was trained with" in capsys.readouterr().err
    (tmp_path / "model/projector.safetensors").write_bytes(b"no weights")
    assert cli.main(["inspect", f"{tmp_path}/model"]) == 2
    assert "projector.safetensors: not a safetensors file" in capsys.readouterr().err
