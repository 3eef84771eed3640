"""Training on a choice that copies no record is training on the choice written as a pool."""

import json

import pytest
from score_words import refused, words
from tiny_huggingface import save_language

from vlmsel import cli, runs
from vlmsel.data.formats import pool_digest
from vlmsel.models.config import ALL_LINEAR
from vlmsel.models.damage import read_weights
from vlmsel.models.open import open_subject
from vlmsel.training.warmup import warmed_up

FAST = {"preset": "tiny-llm", "settings.epochs": 2, "settings.batch_size": 2, "lora.r": 2, "lora.alpha": 4}


def said(number):
    turns = [("human", f"What comes after {number}?"), ("gpt", f"It is {number + 1}.")]
    return {"source": "sums", "conversations": [{"from": who, "value": text} for who, text in turns]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A language model, a pool, and one choice from it in three forms."""
    folder = tmp_path_factory.mktemp("only")
    save_language(folder / "llama", max_position_embeddings=256)
    (folder / "pool.json").write_text(json.dumps([said(number) for number in range(9)]))
    for how in ("pool", "uids", "weights"):
        given = {"pool": folder / "pool.json", "scorer": "Random", "count": 4, "out": folder / f"{how}.json"}
        assert (
            cli.main(
                words("select", {**given, "write": how} if how != "pool" else {**given, "out": folder / "part.json"})
            )
            == 0
        )
    return folder


def tune(home, out, **more):
    given = {"model": home / "llama", "device": "cpu", "out": out, **FAST, "lora.targets": "[q_proj]", **more}
    return words("tune", given)


@pytest.mark.slow
def test_every_way_of_a_choice_trains_the_same_model(home, tmp_path):
    assert cli.main(tune(home, tmp_path / "pool", data=home / "part.json")) == 0
    for how in ("uids", "weights"):
        assert cli.main(tune(home, tmp_path / how, data=home / "pool.json", only=home / f"{how}.json")) == 0
    models = [
        read_weights(next((tmp_path / how / "model").rglob("*.safetensors"))) for how in ("pool", "uids", "weights")
    ]
    for other in models[1:]:
        assert all((other[name] == tensor).all() for name, tensor in models[0].items()) and len(other) == len(models[0])


def test_a_run_does_not_go_on_with_another_choice(home, tmp_path, capsys):
    chosen = tmp_path / "chosen.json"
    chosen.write_text("[0, 1, 2, 3]")
    assert cli.main(tune(home, tmp_path / "run", data=home / "pool.json", only=chosen)) == 0
    chosen.write_text("[0, 1, 2, 4]")
    line = refused(tune(home, tmp_path / "run", data=home / "pool.json", only=chosen), capsys)
    assert "the data" in line and "changed; choose another" in line


def test_uids_alone_are_no_pool(home, tmp_path, capsys):
    line = refused(tune(home, tmp_path / "run", data=home / "uids.json"), capsys)
    assert line.endswith(
        f"uids.json: holds uids, no records; give the pool ({home}/pool.json) and --only {home}/uids.json"
    )
    (tmp_path / "none.json").write_text(json.dumps([99]))
    line = refused(tune(home, tmp_path / "run", data=home / "pool.json", only=tmp_path / "none.json"), capsys)
    assert "none.json: 99 is no uid of" in line
    assert runs.read_json(home / "uids.json.manifest.json")["written"] == "uids"


def test_a_warm_up_draws_from_the_choice_and_its_samples_are_known_in_the_pool(home, tmp_path, capsys):
    given = {"model": home / "llama", "device": "cpu", "pool": home / "pool.json", "only": home / "uids.json", **FAST}
    given |= {"least": 3, "settings.epochs": 1, "lora.targets": "all-linear", "out": tmp_path}
    assert cli.main(words("warmup", given)) == 0
    assert open_subject(str(tmp_path), "cpu").vlm_config.lora.targets == tuple(sorted(ALL_LINEAR))
    assert f"{home}/llama: fresh adapters of rank 2, scaled by alpha/r = 2" in capsys.readouterr().out.splitlines()
    record, chosen = runs.read_json(tmp_path / "warmup.json"), runs.read_json(home / "uids.json")
    assert len(record["uids"]) == 3 and set(record["uids"]) < set(chosen)
    assert runs.read_json(tmp_path / "part.json") == [said(uid) for uid in record["uids"]]
    assert warmed_up(tmp_path, pool_digest(home / "pool.json")) == record["uids"]
