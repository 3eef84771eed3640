"""vlmsel choose and validate: the whole choice in one command, and whether it is better than a random one."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from vlmsel import cli, runs
from vlmsel.scoring.affinity import Affinities
from vlmsel.scoring.table import read_table
from vlmsel.studies.verdict import said, verdict

STEPS = ["--settings.max_steps", "1", "--device", "cpu"]


def choose(world, aligned, out, *more):
    words = ["choose", "--model", str(aligned), "--pool", f"{world}/pool.json", "--images", f"{world}/images"]
    words += ["--targets.gqa", f"{world}/targets/gqa.json", "--targets.pope", f"{world}/targets/pope.json"]
    return cli.main([*words, *STEPS, "--out", str(out), *more])


@pytest.fixture(scope="module")
def chosen(world, aligned, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "choose"
    assert choose(world, aligned, out, "--fraction", "0.5") == 0
    return out


def test_the_choice_is_that_of_the_ordinary_commands(world, chosen, tmp_path, capsys):
    assert (chosen / "warmup/model").is_dir() and (chosen / "score/scores.parquet").is_file()
    records, pool = runs.read_json(chosen / "chosen.json"), runs.read_json(world / "pool.json")
    assert len(records) == 6 and all(record in pool for record in records)
    words = ["select", "--pool", f"{world}/pool.json", "--scores", str(chosen), "--scorer", "HyperINF"]
    assert cli.main([*words, "--fraction", "0.5", "--out", f"{tmp_path}/again.json"]) == 0
    assert runs.read_json(tmp_path / "again.json") == records


def test_samples_of_the_warm_up_are_marked(chosen, capsys):
    warm = runs.read_json(chosen / "warmup/warmup.json")["uids"]
    assert read_table(chosen / "score/scores.parquet")[1]["warmed_up"] == warm
    manifest = runs.read_json(chosen / "chosen.json.manifest.json")
    assert manifest["warmed_up"] == len(set(warm) & set(manifest["uids"])) > 0


def test_a_second_call_finds_everything_done(world, aligned, chosen, capsys, monkeypatch):
    """Also where it writes the folder's path in another way."""
    before = (chosen / "chosen.json").read_bytes()
    asked = f"{world}/targets/gqa.json"
    monkeypatch.chdir(chosen.parent)
    assert choose(world, aligned, chosen.name, "--fraction", "0.5", "--against", asked) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"target gqa: 2 of 2 samples ask what {asked} asks (the first: 0)") == 1  # not by its steps too
    assert (chosen / "chosen.json").read_bytes() == before
    assert "12 samples; targets: gqa 2, pope 2" in shown and f"next: vlmsel tune --model {aligned}" in shown


def test_a_choice_by_the_warm_ups_own_moments(world, aligned, tmp_path, capsys):
    out = tmp_path / "run"
    scorer = f"TracIn(moments='{out}/warmup/moments.safetensors')"
    assert choose(world, aligned, out, "--fraction", "0.5", "--scorer", scorer, "--settings.moments", "true") == 0
    found, moments = Affinities(out / "score/affinity.safetensors"), load_file(out / "warmup/moments.safetensors")
    assert found.about["norms"]["TracIn"] == "the scorer's own metric"
    assert set(load_file(out / "score/directions.safetensors")) >= set(moments)  # every block that learnt
    save_file({name: 2 * own for name, own in moments.items()}, out / "warmup/moments.safetensors")
    assert choose(world, aligned, out, "--fraction", "0.5", "--scorer", scorer, "--settings.moments", "true") == 2
    assert "Adam's moments of TracIn changed since this run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "more", "message"),
    [
        ("run/warmup/moments.safetensors", [], "left there by a warm-up with --settings.moments true; add it"),
        ("run/warmup/moments.safetensors", ["--settings.moments", "true", "--warmup", "0"], "; add it"),
        ("nowhere", [], "nowhere: no such file, and a scorer reads Adam's moments from it"),
    ],
)
def test_moments_that_will_not_be_there_are_refused_before_the_warm_up(
    file, more, message, world, aligned, tmp_path, capsys
):
    scorer = f"TracIn(moments='{tmp_path}/{file}')"
    assert choose(world, aligned, tmp_path / "run", "--fraction", "0.5", "--scorer", scorer, *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dtype_goes_to_warm_up_and_score(world, aligned, tmp_path):
    half = ["--dtype", "bfloat16", "--settings.precision", "bfloat16"]
    assert choose(world, aligned, tmp_path, "--fraction", "0.5", *half) == 0
    for step in ("warmup", "score"):
        assert "dtype: bfloat16" in (tmp_path / step / "config.yaml").read_text().splitlines()


@pytest.mark.parametrize(("options", "message"), [
    ([], "say how much to choose: --fraction, --count or --tokens"),
    (["--count", "3", "--warmup", "2"], "warmup is the share of the pool that the model is warmed up on"),
    (["--count", "3", "--warmup", "0", "--lora.r", "4"], "fresh adapters (--lora) get their gradients from a warm-up"),
    (["--count", "3", "--scorer", "HyperIMF"], "HyperIMF"),
    (["--count", "3", "--scorer", "Random(seed=3)"], "--scorer Random: target samples choose by gradients or vectors"),
    (["--fraction", "20"], "fraction must lie in (0, 1], got 20.0 (20 % is 0.2)"),
    (["--count", "3", "--fraction", "0.5"], "give one of fraction, count and tokens"),
    (["--count", "3", "--against", "nowhere.json"], "nowhere.json: no such file"),
])  # fmt: skip
def test_wrong_options_are_refused_before_anything_runs(world, aligned, tmp_path, capsys, options, message):
    assert choose(world, aligned, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "message"), [
    (["--count", "13"], "13"),
    (["--count", "3", "--quota.nowhere", "0.5"], "quota names the source 'nowhere', which the pool does not have"),
])  # fmt: skip
def test_what_the_pool_does_not_have_is_refused_before_the_warm_up(world, aligned, tmp_path, capsys, options, message):
    assert choose(world, aligned, tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run/warmup").exists()


def test_a_choice_that_stopped_before_its_warm_up_leaves_the_folder_to_the_mended_command(
    world, aligned, tmp_path, capsys
):
    out, wrong = tmp_path / "run", tmp_path / "pictures"
    wrong.mkdir()
    assert choose(world, aligned, out, "--count", "3", "--images", str(wrong)) == 2
    assert "give the right --images" in capsys.readouterr().err and (out / "warmup/config.yaml").is_file()
    assert choose(world, aligned, out, "--count", "3") == 0
    assert choose(world, aligned, out, "--count", "4") == 2
    assert "holds a run of another configuration" in capsys.readouterr().err


def test_validate_halves_the_targets_and_tells_a_verdict(chosen, tmp_path, capsys):
    words = ["validate", "--run", str(chosen), "--count", "3", "--seeds", "2", "--draws", "1", "--device", "cpu"]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    shown = capsys.readouterr().out
    found = runs.read_json(tmp_path / "duel/validate.json")
    assert said(found) in shown and shown.endswith(f"next: vlmsel report {chosen} {tmp_path}/duel\n")
    losses = [{arm: one["loss"] for arm, one in answers.items()} for answers in found["answers"]]
    assert found == {**found, **verdict(losses), "beside": []}
    for seed in (0, 1):
        folder = tmp_path / f"duel/seed{seed}"
        choosing = {(one["file"], one["uid"]) for one in Affinities(folder / "score/affinity.safetensors").targets}
        judging = {name: runs.read_json(folder / f"targets/{name}.json") for name in ("gqa", "pope")}
        assert len(choosing) == 2 and all(len(one) == 1 for one in judging.values())
        tokens = [json.loads((folder / f"selected/{arm}.json").read_text()) for arm in ("chosen", "random 1")]
        assert len(tokens[0]) == 3 and tokens[1]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    assert runs.read_json(tmp_path / "duel/validate.json") == found


def test_a_metric_decides_the_duel_and_the_loss_stands_beside(chosen, tmp_path, capsys):
    words = ["validate", "--run", str(chosen), "--count", "3", "--seeds", "2", "--draws", "1", "--device", "cpu"]
    assert cli.main([*words, "--metric", "exact_match", "--out", f"{tmp_path}/duel"]) == 0
    shown, found = capsys.readouterr().out, runs.read_json(tmp_path / "duel/validate.json")
    assert "(held-out exact_match, 95 %)" in shown and "gain in held-out loss" in shown
    gains = []
    for seed, answers in enumerate(found["answers"]):
        folder, means = tmp_path / f"duel/seed{seed}", {}
        for arm, measured in answers.items():
            shares = {}
            for name in ("gqa", "pope"):
                records = runs.read_json(folder / f"targets/{name}.json")
                lines = (folder / f"predictions/{arm}/{name}.jsonl").read_text().splitlines()
                said = {int(one["question_id"]): one for one in map(json.loads, lines)}
                assert len(said) == len(records) == 1
                for uid, record in enumerate(records):
                    asked, right = (turn["value"] for turn in record["conversations"])
                    assert said[uid]["prompt"] == asked.replace("<image>", "").strip()  # in its own words
                    shares[name] = float(said[uid]["text"].strip().lower().rstrip(".") == right.lower().rstrip("."))
            assert measured["exact_match"] == shares
            means[arm] = sum(shares.values()) / 2
        gains.append(means["chosen"] - means["random 1"])
    assert found["random"]["per_seed"] == gains and found["measure"] == "exact_match"
    (beside,) = found["beside"]
    losses = [{arm: one["loss"] for arm, one in answers.items()} for answers in found["answers"]]
    assert beside == verdict(losses)
    assert cli.main(["report", str(chosen), f"{tmp_path}/duel", "--samples", "2"]) == 0
    page = (chosen / "report.html").read_text()
    assert page.index("The duel by held-out exact_match") < page.index("The duel by held-out loss")


def test_a_duel_chooses_as_the_run_did(world, aligned, tmp_path, capsys):
    how = ["--rule", "herding", "--turns", "equal", "--quota.gqa", "0", "--quota.vqa", "0"]
    assert choose(world, aligned, tmp_path / "run", "--count", "3", *how) == 0
    words = ["validate", "--run", f"{tmp_path}/run", "--count", "3", "--seeds", "1", "--draws", "1", "--device", "cpu"]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    found = [
        runs.read_json(tmp_path / f"{one}.json.manifest.json") for one in ("run/chosen", "duel/seed0/selected/chosen")
    ]
    for manifest in found:
        assert manifest["rule"] == "herding" and not {"gqa", "vqa"} & set(manifest["sources"])
        assert "quota: {gqa: 0.0, vqa: 0.0}" in manifest["config"] or "gqa: 0.0" in manifest["config"]
        assert "turns: equal" in manifest["config"]
    text = (tmp_path / "duel/validate.json").read_text()
    assert "NaN" not in text and json.loads(text)["advice"] == "one seed tells nothing; take --seeds 3 or more"
    assert cli.main([*words, "--rule", "top", "--turns", "loss", "--out", f"{tmp_path}/other"]) == 2
    assert "--turns: no meaning for --rule top; leave it out" in capsys.readouterr().err


def test_a_duel_goes_on_from_the_same_files_alone(world, aligned, tmp_path, capsys):
    shutil.copytree(world / "targets", tmp_path / "targets")
    shutil.copytree(aligned, tmp_path / "model")
    goals = ["--targets.gqa", f"{tmp_path}/targets/gqa.json", "--targets.pope", f"{tmp_path}/targets/pope.json"]
    assert choose(world, tmp_path / "model", tmp_path / "run", "--count", "3", *goals) == 0
    words = ["validate", "--run", f"{tmp_path}/run", "--count", "3", "--draws", "1", "--device", "cpu", "--seeds"]
    assert cli.main([*words, "1", "--out", f"{tmp_path}/duel"]) == 0
    projector = tmp_path / "model/model/projector.safetensors"
    kept = projector.read_bytes()
    save_file({name: tensor * 1.5 for name, tensor in load_file(projector).items()}, projector, {"format": "pt"})
    assert cli.main([*words, "2", "--out", f"{tmp_path}/duel"]) == 2
    assert "changed since this run began" in capsys.readouterr().err
    projector.write_bytes(kept)
    records = runs.read_json(tmp_path / "targets/gqa.json")
    runs.write_json(tmp_path / "targets/gqa.json", records[::-1])
    assert cli.main([*words, "1", "--out", f"{tmp_path}/other"]) == 2
    assert f"target gqa ({tmp_path}/targets/gqa.json) changed since" in capsys.readouterr().err


def test_one_source_needs_no_draws_of_its_mixture(world, aligned, tmp_path, capsys):
    records = [{**record, "source": "one"} for record in runs.read_json(world / "pool.json")]
    runs.write_json(tmp_path / "one.json", records)
    assert choose(world, aligned, tmp_path / "run", "--count", "3", "--pool", f"{tmp_path}/one.json") == 0
    words = ["validate", "--run", f"{tmp_path}/run", "--count", "3", "--seeds", "1", "--device", "cpu"]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    found = runs.read_json(tmp_path / "duel/validate.json")
    assert "plan: 3 trainings on" in capsys.readouterr().out
    assert list(found["answers"][0]) == ["chosen", "random 1", "random 2"]
    assert found["same mixture"] == found["random"]


def test_a_measure_of_which_more_is_better_turns_the_verdict():
    rows = seeds((1.0, 1.5, 1.7, 1.4), (1.1, 1.6, 1.8, 1.5))
    by_loss, by_share = verdict(rows), verdict(rows, "exact_match")
    assert by_loss["verdict"] == "better" and by_share["verdict"] == "worse"
    assert by_share["random"]["gain"] == pytest.approx(-by_loss["random"]["gain"])


def test_influence_on_a_mean_of_targets_is_the_scores(chosen):
    found, (table, _) = Affinities(chosen / "score/affinity.safetensors"), read_table(chosen / "score/scores.parquet")
    for file in ("gqa", "pope"):
        rows = [row for row, target in enumerate(found.targets) if target["file"] == file]
        influence = found.mean_influence("HyperINF", rows)
        np.testing.assert_allclose(influence, table[f"HyperINF/{file}"][found.uids], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_top_sees_the_choosing_half_only(chosen, tmp_path):
    words = ["validate", "--run", str(chosen), "--count", "3", "--rule", "top", "--seeds", "1", "--draws", "1"]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    folder = tmp_path / "duel/seed0"
    half, (table, _) = Affinities(folder / "score/affinity.safetensors"), read_table(folder / "score/scores.parquet")
    assert len(half.targets) == 2  # one of each file
    single = half.block("HyperINF", slice(None), unit=False)
    for row, target in enumerate(half.targets):
        np.testing.assert_allclose(table[f"HyperINF/{target['file']}"][half.uids], -single[row], rtol=1e-4, atol=1e-7)
    manifest = runs.read_json(folder / "selected/chosen.json.manifest.json")
    assert manifest["columns"] == ["HyperINF/gqa", "HyperINF/pope"]


def test_a_page_shows_choice_and_verdict(chosen, tmp_path, capsys):
    words = ["validate", "--run", str(chosen), "--count", "3", "--seeds", "1", "--draws", "1", "--device", "cpu"]
    assert cli.main([*words, "--out", f"{tmp_path}/duel"]) == 0
    assert cli.main(["report", str(chosen), f"{tmp_path}/duel", "--samples", "2"]) == 0
    assert capsys.readouterr().out.endswith(f"open it in a browser\nnext: python -m webbrowser {chosen}/report.html\n")
    page = (chosen / "report.html").read_text()
    assert "The choice is not told apart from a random one" in page and "data:image/jpeg;base64," in page
    assert "Target sample 0 of gqa and what it took" in page and "Settings of" in page
    assert cli.main(["report", str(chosen)]) == 0  # its own page may be replaced
    assert cli.main(["report", f"{tmp_path}/none"]) == 2


def seeds(*rows):
    arms = ["chosen", "random 1", "random 2", "same mixture 1"]
    return [{arm: {"a": loss} for arm, loss in zip(arms, row, strict=True)} for row in rows]


@pytest.mark.parametrize(("rows", "advice"), [
    ([(1.0, 1.5, 1.7, 1.4), (1.1, 1.6, 1.8, 1.5)], "use it"),
    ([(1.0, 1.5, 1.7, 0.9), (1.1, 1.6, 1.8, 1.4)], "set a quota by its mixture and draw at random"),
    ([(2.0, 1.5, 1.7, 1.4), (2.1, 1.6, 1.8, 1.5)], "do not use it here; draw at random"),
    ([(1.0, 1.5, 1.7, 1.4), (2.6, 1.6, 1.8, 1.5)], "do not use it here; draw at random"),
])  # fmt: skip
def test_advice_follows_from_both_comparisons(rows, advice):
    found = verdict(seeds(*rows))
    assert found["advice"] == advice
    assert found["random"]["per_seed"][0] == pytest.approx(sum(rows[0][1:3]) / 2 - rows[0][0])


def test_a_run_that_is_no_choice_is_refused(tmp_path, capsys):
    assert cli.main(["validate", "--run", str(tmp_path), "--count", "3", "--out", f"{tmp_path}/duel"]) == 2
    assert "give the run folder of a `vlmsel choose` that is done" in capsys.readouterr().err
