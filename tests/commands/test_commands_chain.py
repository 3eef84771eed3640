"""score -> select -> tune on a tiny world through the command line."""

import json
import math
import shutil
import statistics
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from score_words import about, score_words, table

from vlmsel import cli, runs
from vlmsel.models.open import open_subject

SCORERS = ["HyperINF", "DataInf", "LiSSA", "LiSSA(batch='stream',name='stream')", "TracIn", "Exact", "Random(seed=3)"]
NAMES = ["HyperINF", "DataInf", "LiSSA", "stream", "TracIn", "Exact", "Random"]


def score_arguments(world, aligned, out, **more):
    return score_words(world, aligned, out, SCORERS, **more)


@pytest.fixture(scope="module")
def scored(world, aligned, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored") / "score"
    assert cli.main(score_arguments(world, aligned, out)) == 0
    return out


def select_arguments(world, scored, out, *more):
    scores = ["--scores", f"{scored}/scores.parquet", "--pool", f"{world}/pool.json", "--rule", "top"]
    return ["select", *scores, "--out", str(out), *more]


def test_every_scorer_and_target_has_a_column(world, scored):
    found = table(scored, world / "pool.json")
    assert set(found) - {"uid", "id", "source", "tokens", "supervised", "loss"} == {
        f"{n}/{t}" for n in NAMES for t in ("gqa", "pope")
    }
    assert found["uid"] == list(range(12))
    assert all(math.isfinite(value) for name in found if name not in ("source", "id") for value in found[name])
    assert set(about(scored)["details"]) == set(NAMES) - {"Random"}
    assert not (scored / "skipped.json").exists()


def test_the_resolved_configuration_replays_the_run(world, scored, tmp_path, capsys):
    settings = yaml.safe_load((scored / "config.yaml").read_text())
    assert ",".join(settings["scorers"]) == ",".join(SCORERS)
    assert settings["scale_samples"] == 512 and settings["fit_samples"] is None
    before = (scored / "directions.safetensors").stat().st_mtime_ns
    again = ["score", "--config", f"{scored}/config.yaml", "--out", str(scored)]
    assert cli.main([*again, "--against", f"{world}/targets/gqa.json"]) == 0  # which changes no result
    assert capsys.readouterr().out.count("target gqa: 2 of 2 samples ask what") == 1
    assert (scored / "directions.safetensors").stat().st_mtime_ns == before
    assert cli.main(["score", "--config", f"{scored}/config.yaml", "--out", str(tmp_path / "again")]) == 0
    assert table(scored) == table(tmp_path / "again")
    assert "12 samples, 14 scores each (influence: lowest = most helpful)" in capsys.readouterr().out


def test_another_configuration_in_the_same_folder_is_refused(world, aligned, scored, capsys):
    assert cli.main(score_arguments(world, aligned, scored, seed=5)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"error: {scored}: holds a run of another configuration (there: seed: 0; now: seed: 5); choose another --out "
        "or delete the folder"
    ]


def test_a_file_gives_options_and_the_command_line_overrides_them(world, scored, tmp_path, capsys):
    path = tmp_path / "select.yaml"
    path.write_text("scorer: DataInf\ncount: 3\nquota:\n  text: 0.0\n")
    out = tmp_path / "chosen.json"
    assert cli.main(select_arguments(world, scored, out, "--config", str(path), "--scorer", "TracIn")) == 0
    manifest = runs.read_json(f"{out}.manifest.json")
    assert manifest["columns"] == ["TracIn/gqa", "TracIn/pope"] and len(manifest["uids"]) == 3
    settings = yaml.safe_load(manifest["config"])
    assert settings["scorer"] == "TracIn" and settings["quota"] == {"text": 0.0}
    assert "text" not in manifest["sources"]


def test_the_lowest_scores_are_selected_and_tuned_on(world, aligned, scored, tmp_path, capsys):
    out = tmp_path / "chosen.json"
    assert cli.main(select_arguments(world, scored, out, "--fraction", "0.25", "--target", "gqa")) == 0
    lowest = sorted(range(12), key=table(scored)["HyperINF/gqa"].__getitem__)[:3]
    pool, manifest = runs.read_json(world / "pool.json"), runs.read_json(f"{out}.manifest.json")
    assert manifest["uids"] == lowest and manifest["of"] == 12
    assert runs.read_json(out) == [pool[uid] for uid in sorted(lowest)]
    tuned = ["tune", "--model", str(aligned), "--data", str(out), "--images", f"{world}/images"]
    tuned += ["--out", str(tmp_path / "tune"), "--settings.max_steps", "1", "--device", "cpu"]
    assert cli.main(tuned) == 0 and cli.main(tuned) == 0
    assert open_subject(str(tmp_path / "tune"), "cpu").vlm_config.projector_trained
    assert cli.main([*tuned, "--settings.seed", "1"]) == 2
    assert "now: settings.seed: 1); choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "gone", ["parts", *(pytest.param(n, marks=pytest.mark.slow) for n in ("directions.safetensors", "scores.parquet"))]
)
def test_a_run_that_lost_a_part_makes_it_again(world, aligned, tmp_path, gone):
    arguments = score_arguments(
        world, aligned, tmp_path / "run", scorers="[TracIn,HyperINF(damping=10.0)]", fit_samples=5
    )
    assert cli.main(arguments) == 0
    expected = table(tmp_path / "run")
    for path in [*(tmp_path / "run" / gone).glob("*"), tmp_path / "run" / gone]:
        path.rmdir() if path.is_dir() else path.unlink()
    assert cli.main(arguments) == 0
    assert table(tmp_path / "run") == expected


def test_a_run_does_not_go_on_with_other_inputs(world, aligned, tmp_path, capsys):
    pool = tmp_path / "pool.json"
    records = runs.read_json(world / "pool.json")
    pool.write_text(json.dumps(records))
    arguments = score_arguments(world, aligned, tmp_path / "run", pool=pool, scorers="[TracIn]")
    assert cli.main(arguments) == 0
    pool.write_text(json.dumps(records[::-1]))
    assert cli.main(arguments) == 2
    assert f"run: the pool ({pool}) changed since this run began" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_model_or_fewer_images(world, aligned, tmp_path, capsys):
    model, images = tmp_path / "model", tmp_path / "images"
    shutil.copytree(aligned / "model", model)
    shutil.copytree(world / "images", images)
    arguments = score_arguments(world, model, tmp_path / "run", images=images, scorers="[TracIn]")
    assert cli.main(arguments) == 0
    weights = load_file(model / "projector.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, model / "projector.safetensors")
    assert cli.main(arguments) == 2
    assert "run: the model changed since this run began" in capsys.readouterr().err
    save_file(weights, model / "projector.safetensors")
    assert cli.main(arguments) == 0
    picture = next((images / "pool").iterdir())
    Image.new("RGB", (40, 30), "red").save(picture)
    assert cli.main(arguments) == 2
    assert "run: pictures of the pool changed since this run began" in capsys.readouterr().err
    shutil.copytree(world / "images", images, dirs_exist_ok=True)  # other times, the same bytes
    assert cli.main(arguments) == 0
    picture.unlink()
    assert cli.main([*arguments, "--allow_missing", "true"]) == 2
    assert "run: pictures of the pool changed since this run began" in capsys.readouterr().err


def test_half_precision_backbones_rank_nearly_alike(world, aligned, tmp_path):
    for dtype in ("float32", "bfloat16"):
        arguments = score_arguments(world, aligned, tmp_path / dtype, scorers="[TracIn]", dtype=dtype)
        assert cli.main(arguments) == 0
    half, full = (table(tmp_path / d)["TracIn/gqa"] for d in ("bfloat16", "float32"))
    assert statistics.correlation(half, full) > 0.99


def test_files_and_command_line_together_give_the_targets(world, tmp_path):
    (tmp_path / "a.yaml").write_text("targets:\n  a: one.json\n  b: two.json\nscorers: [TracIn]\n")
    words = ["--model=m", "--pool=p", "--images=i", "--out=o", f"--config={tmp_path}/a.yaml"]
    _, values = cli.parse("score", [*words, "--targets.b", "other.json", "--targets.c", "three.json"])
    assert values["targets"] == {"a": "one.json", "b": "other.json", "c": "three.json"}
    assert list(values["scorers"]) == ["TracIn"]


def test_settings_with_commas_need_no_quotes(world, aligned, tmp_path):
    scorers = "[HyperINF(damping=10.0,side='short'),DataInf(damping=1.0, name='mine')]"
    assert cli.main(score_arguments(world, aligned, tmp_path / "run", scorers=scorers)) == 0
    assert {"HyperINF/gqa", "mine/pope"} <= set(table(tmp_path / "run"))


def test_random_alone_and_no_part_measured(world, aligned, tmp_path):
    arguments = score_arguments(world, aligned, tmp_path / "run", scorers="[Random]", scale_samples="null")
    assert cli.main(arguments) == 0
    found = table(tmp_path / "run")
    assert all(math.isfinite(value) for value in found["Random/gqa"] + found["loss"])
    assert found["Random/gqa"] != found["Random/pope"]
    assert "scale_samples: null" in (tmp_path / "run/config.yaml").read_text()


def test_a_pool_of_lines_is_selected_into_lines(world, aligned, tmp_path):
    pool = tmp_path / "pool.jsonl"
    records = runs.read_json(world / "pool.json")
    pool.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert cli.main(score_arguments(world, aligned, tmp_path / "run", pool=pool, scorers="[TracIn]")) == 0
    out = tmp_path / "chosen.jsonl"
    arguments = ["--scores", f"{tmp_path}/run/scores.parquet", "--pool", str(pool), "--out", str(out)]
    assert cli.main(["select", *arguments, "--scorer", "TracIn", "--rule", "top", "--count", "2"]) == 0
    chosen = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(chosen) == 2 and all(record in records for record in chosen)


RECIPES = sorted(
    path for path in Path(__file__).parents[2].glob("recipes/*/*.yaml") if path.parent.name != "accelerate"
)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_recipes_parse_against_their_command_with_the_line_they_open_with(recipe):
    words = recipe.read_text().splitlines()[0].removeprefix("# ").replace("'", "").split()
    program, command, flag, path, *rest = words
    assert (program, flag, path) == ("vlmsel", "--config", f"recipes/{recipe.parent.name}/{recipe.name}")
    rest = " ".join(rest).replace(", ", ",").split()
    _, values = cli.parse(command, ["--config", str(recipe), *rest])
    given = yaml.safe_load(recipe.read_text())
    resolved = yaml.safe_load(values["config"])
    for name, value in given.items():
        found = resolved[name]
        assert {**found, **value} == found if isinstance(value, dict) else found == value


def test_recipes_exist():
    assert RECIPES
