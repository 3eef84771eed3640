"""Wrong input ends with exit code 2 and one line that names it, or is reported per sample and moves no other sample."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
from score_words import refused, table, words

from vlmsel import cli, runs


def turns(question="<image>\nWhat is it?", answer="a circle", roles=("human", "gpt")):
    return [{"from": roles[0], "value": question}, {"from": roles[1], "value": answer}]


def said(*contents):
    return {"conversations": list(contents)}


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """Images of the world beside some that cannot be read, and a file outside the image folder."""
    place = tmp_path_factory.mktemp("bad")
    shutil.copytree(world / "images", place / "images")
    picture = next((place / "images/captions").iterdir()).read_bytes()
    (place / "images/cut.png").write_bytes(picture[: len(picture) // 2])
    (place / "images/text.png").write_text("no picture")
    (place / "secret.png").write_bytes(picture)
    (place / "broken.json").write_text('[{"conversations": [')
    (place / "object.json").write_text('{\n"conversations": []\n}')  # on one line it would be JSON lines
    (place / "empty.json").write_text("[]")
    return place


def options(world, aligned, folder, out, **more):
    given = {
        "model": aligned,
        "pool": f"{world}/pool.json",
        "images": f"{folder}/images",
        "targets.gqa": f"{world}/targets/gqa.json",
        "scorers": "[TracIn,Random]",
        "blocks": "projector",
        "device": "cpu",
        "out": out,
        **more,
    }
    return words("score", {"check": "none", "each_target": "false", **given})


SAMPLES = {
    "no conversations": ({"id": 1}, "no conversations: expected a non-empty list"),
    "no object": ("text", "expected an object with 'conversations', got a string"),
    "unknown role": (said(*turns(roles=("human", "robot"))), "turn 1: unknown role 'robot'; expected 'human' or 'gpt'"),
    "no assistant": (said(turns()[0]), "no turn from 'gpt' that answers a human"),
    "too many markers": (
        {"image": "text.png", **said(*turns("<image><image>"))},
        "2 <image> markers for 1 images; the two numbers must be equal",
    ),
    "outside": ({"image": "../secret.png", **said(*turns())}, "image path '../secret.png' leaves the image folder"),
    "missing": ({"image": "none.png", **said(*turns())}, "image 'none.png' is missing in"),
    "cut": ({"image": "cut.png", **said(*turns())}, "image 'cut.png' cannot be read"),
    "unreadable": ({"image": "text.png", **said(*turns())}, "image 'text.png' cannot be read"),
}


def mixed(world):
    """The world's pool with the unusable samples after each of its first samples; where its own samples went."""
    records, places = [], []
    for i, record in enumerate(runs.read_json(world / "pool.json")):
        places.append(len(records))
        records += [record, *(bad for bad, _ in list(SAMPLES.values())[i : i + 1])]
    return records, places


def test_unusable_samples_are_reported_and_move_no_other(world, aligned, folder, tmp_path, capsys):
    records, places = mixed(world)
    pool = tmp_path / "mixed.json"
    pool.write_text(json.dumps(records))
    arguments = {"scorers": "[TracIn,HyperINF(damping=10.0)]", "batch_size": 4}
    assert cli.main(options(world, aligned, folder, tmp_path / "clean", **arguments)) == 0
    assert cli.main(options(world, aligned, folder, tmp_path / "mixed", pool=pool, **arguments)) == 0
    reported = {entry["uid"]: entry["reason"] for entry in runs.read_json(tmp_path / "mixed/skipped.json")}
    assert sorted(reported) == [uid for uid in range(len(records)) if uid not in places]
    for place, (name, (_, reason)) in zip(places, SAMPLES.items(), strict=False):
        assert reason in reported[place + 1], name
    clean, found = table(tmp_path / "clean"), table(tmp_path / "mixed", pool)
    assert found["uid"] == list(range(len(records)))
    assert found["id"] == [str(record.get("id", "")) if isinstance(record, dict) else "" for record in records]
    for name in ("loss", "TracIn/gqa", "HyperINF/gqa"):
        assert [found[name][uid] for uid in places] == clean[name]
        assert [value == value for value in found[name]] == [uid in places for uid in range(len(records))]
    said = capsys.readouterr().out
    assert f"{pool}: 9 of 21 samples left out, listed in" in said
    assert "lowest = most helpful), 9 left out (1 lack their picture), see " in said
    nulls = pq.read_table(tmp_path / "mixed/scores.parquet")["TracIn/gqa"].null_count
    assert nulls == len(SAMPLES)


def test_select_takes_scored_samples_only(world, aligned, folder, tmp_path, capsys):
    records, places = mixed(world)
    pool = tmp_path / "mixed.json"
    pool.write_text(json.dumps(records))
    assert cli.main(options(world, aligned, folder, tmp_path / "run", pool=pool)) == 0
    chain = [
        "select",
        "--scores",
        tmp_path / "run/scores.parquet",
        "--pool",
        pool,
        "--rule",
        "top",
        "--out",
        tmp_path / "chosen.json",
    ]
    assert cli.main([str(word) for word in [*chain, "--scorer", "Random", "--count", 12]]) == 0
    assert runs.read_json(tmp_path / "chosen.json") == [records[uid] for uid in places]
    said = capsys.readouterr().out
    assert "9 of the pool's 21 records cannot be chosen (1 lack their picture); fractions are of all 21" in said
    (tmp_path / "chosen.json").unlink()
    for amount in (["--count", 13], ["--fraction", 1.0]):
        line = refused([*chain, "--scorer", "TracIn", *amount], capsys)
        assert "only 12 with a finite score can be chosen; ask for fewer" in line
    line = refused([*chain, "--scorer", "TracIn", "--count", 1, "--quota.nothing", 0.5], capsys)
    assert "quota names the source 'nothing', which the pool does not have (it has " in line and "has ," not in line


BAD_SCORES = {
    "image folder": ({"images": "{folder}/none"}, "{folder}/none: no such image folder; give the one that"),
    "missing pool": ({"pool": "{folder}/none.json"}, "{folder}/none.json: no such file"),
    "broken JSON": ({"pool": "{folder}/broken.json"}, "{folder}/broken.json: not a JSON file"),
    "no list": ({"pool": "{folder}/object.json"}, "{folder}/object.json: expected a list of records, got an object"),
    "empty pool": ({"pool": "{folder}/empty.json"}, "{folder}/empty.json: no usable sample: the list is empty"),
    "empty target": ({"targets.gqa": "{folder}/empty.json"}, "target gqa: {folder}/empty.json: no usable sample"),
    "missing target": ({"targets.pope": "{folder}/none.json"}, "target pope: {folder}/none.json: no such file"),
    "target name": ({"targets.a/b": "{world}/targets/gqa.json"}, "target 'a/b': this name cannot be part of a column"),
    "no block": ({"blocks": "no_such_layer"}, "blocks 'no_such_layer' match no parameter (use projector, lora"),
    "bad expression": ({"blocks": "layers[("}, "nor a regular expression: "),
    "unknown scorer": ({"scorers": "[HiperINF]"}, "no scorer is called 'HiperINF'; there are HyperINF, DataInf"),
    "no module": ({"scorers": "[no.such:Scorer]"}, "scorer 'no.such:Scorer' cannot be imported: ModuleNotFoundError"),
    "bad setting": ({"scorers": "[HyperINF(damping=-1)]"}, "scorer 'HyperINF(damping=-1)': damping must be"),
    "same name twice": ({"scorers": "[TracIn,TracIn(block_scale=True)]"}, "two scorers are called 'TracIn'"),
    "no scorer": ({"scorers": "[]"}, "no scorer given"),
    "no model": ({"model": "{folder}/none"}, "{folder}/none: no model; give a preset (tiny, llava-7b, tiny-text, "),
    "untrained": ({"model": "tiny"}, "the projector of tiny was never trained, so that it cannot see; align it"),
    "dtype": ({"dtype": "float17"}, "dtype must be one of float32, bfloat16, 4bit, 8bit, got 'float17'"),
    "device": ({"device": "tpu9"}, "no device is called 'tpu9'; give auto, cpu"),
    "GPU": ({"device": "cuda:99"}, "there is no device cuda:99: torch sees"),
    "batch size": ({"batch_size": "0"}, "batch_size must be at least 1, got 0"),
    "fit samples": ({"fit_samples": "0"}, "fit_samples must be at least 1, got 0"),
    "type": ({"fit_samples": "many"}, "fit_samples must be int or null, got many; `vlmsel score --help` lists the"),
    "unknown option": (
        {"blocs": "lora"},
        "unrecognized arguments: --blocs lora, did you mean --blocks?; `vlmsel",
    ),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_score_refuses(case, world, aligned, folder, tmp_path, capsys):
    wrong, expected = BAD_SCORES[case]
    names = {"world": world, "folder": folder}
    more = {name: value.format(**names) if "{" in value else value for name, value in wrong.items()}
    line = refused(options(world, aligned, folder, tmp_path / "run", **more), capsys)
    assert expected.format(**names) in line


def test_a_refused_command_does_not_claim_its_folder(world, aligned, folder, tmp_path, capsys):
    refused(options(world, aligned, folder, tmp_path / "run", images=f"{folder}/none"), capsys)
    assert cli.main(options(world, aligned, folder, tmp_path / "run")) == 0


def test_no_target_at_all(world, aligned, folder, tmp_path, capsys):
    arguments = options(world, aligned, folder, tmp_path / "run")
    at = arguments.index("--targets.gqa")
    for more in ([], ["--targets", "{}"]):
        line = refused([*arguments[:at], *arguments[at + 2 :], *more], capsys)
        assert line == "error: no target set; give at least one, such as --targets.vqav2 FILE"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", [["model"], ["pool"], ["model", "pool"]])
def test_a_file_that_is_missing_is_asked_for(lacking, world, aligned, folder, tmp_path, capsys):
    arguments = options(world, aligned, folder, tmp_path / "run")
    for name in lacking:
        at = arguments.index(f"--{name}")
        del arguments[at : at + 2]
    line = refused(arguments, capsys)
    expected = f"error: the following arguments are required: {', '.join(lacking)}; "
    assert line == f"{expected}`vlmsel score --help` lists the options"
    assert not (tmp_path / "run").exists()


def test_an_unusable_target_sample_is_reported_and_the_others_count(world, aligned, folder, tmp_path):
    records = runs.read_json(world / "targets/gqa.json")
    target = tmp_path / "target.json"
    target.write_text(json.dumps([SAMPLES["cut"][0], *records]))
    assert cli.main(options(world, aligned, folder, tmp_path / "a")) == 0
    assert cli.main(options(world, aligned, folder, tmp_path / "b", **{"targets.gqa": target})) == 0
    (entry,) = runs.read_json(tmp_path / "b/skipped_gqa.json")
    assert entry["uid"] == 0 and "cut.png" in entry["reason"]
    tables = [table(tmp_path / run) for run in "ab"]
    assert tables[0] == tables[1]
    target.write_text(json.dumps([SAMPLES["cut"][0]]))
    assert cli.main(options(world, aligned, folder, tmp_path / "c", **{"targets.gqa": target})) == 2


@pytest.fixture(scope="module")
def scored(world, aligned, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "run"
    assert cli.main(options(world, aligned, folder, out)) == 0
    return out / "scores.parquet"


BAD_SELECTIONS = {
    "fraction 0": (["--fraction", "0"], "fraction must lie in (0, 1], got 0"),
    "fraction above 1": (["--fraction", "1.5"], "fraction must lie in (0, 1], got 1.5 (1.5 % is 0.015)"),
    "neither": ([], "give one of fraction, count and tokens, got fraction=None, count=None"),
    "both": (
        ["--fraction", "0.5", "--count", "3"],
        "give one of fraction, count and tokens, got fraction=0.5, count=3",
    ),
    "too many": (["--count", "13"], "count must lie between 1 and the pool's 12 samples, got 13"),
    "no number": (["--count", "few"], "count must be int or null, got few"),
    "scorer": (["--count", "3", "--scorer", "HyperINF"], "no scores named 'HyperINF' in the table; it has TracIn/gqa"),
    "target": (["--count", "3", "--target", "pope"], "no scores named 'TracIn/pope' in the table"),
    "quota": (["--count", "3", "--quota.text", "2"], "the quota of 'text' must lie in [0, 1], got 2"),
    "quota too small": (["--count", "12", "--quota.text", "0"], "within the quota {'text': 0.0}; ask for fewer"),
    "unknown option": (["--count", "3", "--frac", "1"], "unrecognized arguments: --frac 1"),
    "missing pool": (["--count", "3", "--pool", "{tmp}/none.json"], "{tmp}/none.json: no such file; give the pool"),
    "other pool": (["--count", "3", "--pool", "{tmp}/other.json"], "scores belong to another pool ("),
    "no table": (["--count", "3", "--scores", "{tmp}/other.json"], "{tmp}/other.json: not a parquet file"),
    "replaces pool": (["--count", "3", "--out", "{world}/pool.json"], "pool.json: --out would replace a file that is"),
    "no YAML": (["--config", "{tmp}/none.yaml"], "File does not exist: '{tmp}/none.yaml'"),
    "unknown key": (["--config", "{tmp}/key.yaml"], "Option 'fracton' is not accepted (in {tmp}/key.yaml or on the"),
    "broken YAML": (["--config={tmp}/broken.yaml"], "(in {tmp}/broken.yaml or on the command line)"),
    "YAML type": (["--config", "{tmp}/type.yaml"], "fraction must be float or null, got lots (in {tmp}/type.yaml or"),
}


@pytest.mark.parametrize("case", BAD_SELECTIONS)
def test_select_refuses(case, world, scored, tmp_path, capsys):
    (tmp_path / "other.json").write_text("[]")
    (tmp_path / "key.yaml").write_text("fracton: 0.5\n")
    (tmp_path / "broken.yaml").write_text("a: [1\n b: {")
    (tmp_path / "type.yaml").write_text("fraction: lots\n")
    before = (world / "pool.json").read_bytes()
    more, expected = BAD_SELECTIONS[case]
    names = {"tmp": tmp_path, "world": world}
    more = [word.format(**names) for word in more]
    base = ["--scores", scored, "--pool", world / "pool.json", "--out", tmp_path / "chosen.json", "--scorer", "TracIn"]
    line = refused(["select", *base, "--rule", "top", *more], capsys)
    assert (expected.format(**names) if "{tmp}" in expected else expected) in line
    assert (world / "pool.json").read_bytes() == before and not (tmp_path / "chosen.json").exists()


BAD_PHASES = {
    "data": (["--data", "{folder}/broken.json"], "{folder}/broken.json: not a JSON file"),
    "images": (["--images", "{folder}/none"], "{folder}/none: no such image folder"),
    "setting": (["--settings.batch_size", "0"], "batch_size must be above 0, got 0"),
    "choice": (["--settings.train", "everything"], "settings.train"),
    "preset": (["--preset", "huge"], "no preset 'huge'; there are llava15-align"),
    "broken YAML": (["--config={folder}/broken.yaml"], "(in {folder}/broken.yaml or on the command line)"),
}


@pytest.mark.parametrize("command", ["align", "tune"])
@pytest.mark.parametrize("case", BAD_PHASES)
def test_phases_refuse(case, command, world, aligned, folder, tmp_path, capsys):
    (folder / "broken.yaml").write_text("a: [1\n b: {")
    more, expected = BAD_PHASES[case]
    base = [
        "--model",
        aligned,
        "--data",
        world / "captions.json",
        "--images",
        world / "images",
        "--out",
        tmp_path / "r",
    ]
    line = refused([command, *base, *(word.format(folder=folder) for word in more)], capsys)
    assert expected.format(folder=folder) in line


def test_a_file_whose_pictures_are_missing_is_refused(world, aligned, folder, tmp_path, capsys):
    records = runs.read_json(world / "pool.json")
    for record in records[:2]:
        record["image"] = "none.png"
    pool = tmp_path / "missing.json"
    pool.write_text(json.dumps(records))
    line = refused(options(world, aligned, folder, tmp_path / "run", pool=pool), capsys)
    assert f"{pool}: the pictures of 2 of 12 samples are missing in {folder}/images (the first, sample 0: image" in line
    assert line.endswith("go on without them, --allow_missing true")
    assert cli.main(options(world, aligned, folder, tmp_path / "run", pool=pool, allow_missing="true")) == 0
    assert ": 10 of 12 samples, 2 scores each" in capsys.readouterr().out
    assert cli.main(options(world, aligned, folder, tmp_path / "run", pool=pool, allow_missing="true")) == 0


def test_select_replaces_its_own_choice_alone(world, tmp_path, capsys):
    words = ["select", "--scorer", "Random", "--pool", f"{world}/pool.json", "--out", f"{tmp_path}/chosen.json"]
    (tmp_path / "chosen.json").write_text("[]")
    line = refused([*words, "--count", 2], capsys)
    assert line.endswith("chosen.json: exists and is no choice of vlmsel (no manifest beside it); choose another --out")
    (tmp_path / "chosen.json").unlink()
    for _ in range(2):
        assert cli.main([*words, "--count", "2"]) == 0
    line = refused([*words, "--count", 3], capsys)
    assert "holds another choice (there: count: 2; now: count: 3); choose another --out or delete it" in line
    assert len(runs.read_json(tmp_path / "chosen.json")) == 2
    assert "fraction must lie in (0, 1], got 20.0 (20 % is 0.2)" in refused(
        [*words[:-1], f"{tmp_path}/other.json", "--fraction", 20], capsys
    )
