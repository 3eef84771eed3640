"""`vlmsel score --checkpoints`: the sums of the command, runs that are killed, and checkpoints that do not belong."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from score_words import listed, table, words
from score_words import refused as refused_words

from vlmsel import cli, runs
from vlmsel.data.dataset import Reading
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.models.vlm import VLM
from vlmsel.scorers import TracIn
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.checkpoints import Checkpoints
from vlmsel.scoring.passes import Passes
from vlmsel.scoring.pool_pass import Share

SCORERS = "[TracIn,Random]"
COSINE = "[TracIn,TracIn(cosine=True,name='TracIn.cosine')]"


@pytest.fixture(scope="module")
def trained(aligned, tmp_path_factory):
    """Three checkpoints: the aligned model, and two whose projectors have moved on."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = [aligned]
    for number in (1, 2):
        place = folder / f"step{number}"
        shutil.copytree(aligned / "model", place)
        move(place, 1 + 0.1 * number)
        found.append(place)
    return [str(place) for place in found]


def move(place, by):
    state = load_file(place / "projector.safetensors")
    save_file({name: by * tensor for name, tensor in state.items()}, place / "projector.safetensors", {"format": "pt"})


def score_words(world, model, out, checkpoints=None, rates=None, **more):
    given = {
        "model": model,
        "pool": f"{world}/pool.json",
        "images": f"{world}/images",
        "targets.gqa": f"{world}/targets/gqa.json",
        "scorers": SCORERS,
        "blocks": "projector",
        "batch_size": 4,
        "device": "cpu",
        "out": out,
        **({} if checkpoints is None else {"checkpoints": listed(checkpoints)}),
        **({} if rates is None else {"checkpoint_lrs": listed(rates)}),
        **more,
    }
    return words("score", {"check": "none", "each_target": "false", **given})


def score(*given, **more):
    return cli.main(score_words(*given, **more))


def refused(capsys, *given, **more):
    return refused_words(score_words(*given, **more), capsys)


def test_columns_are_weighted_sums_of_runs_at_each_checkpoint(world, trained, tmp_path):
    aligned, *states = trained
    assert score(world, aligned, tmp_path / "sum", states, ["1e-3", "5e-4"], scorers=COSINE) == 0
    for number, state in enumerate(states):
        assert score(world, state, tmp_path / str(number), scorers=COSINE) == 0
    found, one, two = (table(tmp_path / name) for name in ("sum", "0", "1"))
    for name in ("TracIn", "TracIn.cosine"):
        expected = [1e-3 * a + 5e-4 * b for a, b in zip(one[f"{name}/gqa"], two[f"{name}/gqa"], strict=True)]
        assert found[f"{name}.CP/gqa"] == pytest.approx(expected, rel=1e-5)
        assert one[f"{name}/gqa"] != pytest.approx(two[f"{name}/gqa"], rel=1e-3)
    assert list(found)[6:] == ["TracIn/gqa", "TracIn.cosine/gqa", "TracIn.CP/gqa", "TracIn.cosine.CP/gqa"]
    assert score(world, aligned, tmp_path / "plain", scorers=COSINE) == 0
    plain = table(tmp_path / "plain")
    assert all(found[name] == plain[name] for name in plain)  # columns at the model itself stay what they were


def test_one_checkpoint_with_rate_one_is_the_model_s_own_column(world, trained, tmp_path):
    assert score(world, trained[0], tmp_path / "run", trained[:1], [1.0]) == 0
    found = table(tmp_path / "run")
    assert found["TracIn.CP/gqa"] == found["TracIn/gqa"] and "Random.CP/gqa" not in found


@pytest.mark.slow
def test_a_run_killed_between_checkpoints_goes_on(world, trained, tmp_path, monkeypatch):
    given = world, trained[0]
    assert score(*given, tmp_path / "whole", trained, [1, 2, 3]) == 0
    real, seen = VLM.load_trained, []

    def killed_at_the_third(model, folder):
        seen.append(folder)
        if len(seen) == 3:
            raise KeyboardInterrupt
        real(model, folder)

    with monkeypatch.context() as patch:
        patch.setattr(VLM, "load_trained", killed_at_the_third)
        assert score(*given, tmp_path / "run", trained, [1, 2, 3]) == 130
    parts = sorted((tmp_path / "run/checkpoints").glob("*/parts/*"))
    before = [part.stat().st_mtime_ns for part in parts]
    assert sorted({part.parts[-3] for part in parts}) == ["1", "2"]
    assert score(*given, tmp_path / "run", trained, [1, 2, 3]) == 0
    assert [part.stat().st_mtime_ns for part in parts] == before
    assert table(tmp_path / "run") == table(tmp_path / "whole")


@pytest.mark.slow
def test_shards_and_their_checkpoints_make_one_table(world, trained, tmp_path, capsys):
    """A pool of one chunk is the first shard's alone; the other finds the table lacking, and later whole."""
    given = world, trained[0]
    assert score(*given, tmp_path / "a", trained[1:], [1, 2], shard="2/2") == 0
    assert "shard 2/2 is done" in capsys.readouterr().out and not (tmp_path / "a/scores.parquet").exists()
    assert score(*given, tmp_path / "a", trained[1:], [1, 2], shard="1/2") == 0
    assert score(*given, tmp_path / "b", trained[1:], [1, 2]) == 0
    assert table(tmp_path / "a") == table(tmp_path / "b")


def test_jobs_share_the_chunks_of_every_checkpoint(world, trained, tmp_path):
    """As the test before with many chunks, which the command would have for a pool of thousands."""
    model, reading = open_subject(trained[0], "cpu"), Reading(world / "images")
    pool, goal = (open_pool(model, world / name, reading).samples for name in ("pool.json", "targets/gqa.json"))

    def score_share(out, share):
        model.load_trained(f"{trained[0]}/model")
        checkpoints = Checkpoints.open(model, trained[1:], [1.0, 2.0], [TracIn()])
        passes = Passes.of(model, model.blocks("projector"), pool, {"gqa": goal}, Batching(max_samples=4))
        return passes.score([TracIn()], out, share, checkpoints=checkpoints)

    assert score_share(tmp_path / "a", Share(1, 2, 1)) is None
    parts = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("parts/*"))
    assert [str(part) for part in parts] == [
        f"{place}parts/00000001.safetensors" for place in ("checkpoints/1/", "checkpoints/2/", "")
    ]
    found, expected = score_share(tmp_path / "a", Share(0, 2, 1)), score_share(tmp_path / "b", Share())
    assert found.names == expected.names == (("TracIn", "gqa"), ("TracIn.CP", "gqa"))
    assert torch.equal(found.uids, expected.uids) and torch.equal(found.scores, expected.scores)


def test_a_sample_that_is_not_finite_at_one_checkpoint_has_no_sum(world, trained, tmp_path, monkeypatch, capsys):
    aligned, one, two = trained
    weight = load_file(f"{two}/projector.safetensors")["0.weight"]

    plain = VLM.losses

    def losses(model, batch):
        moved = torch.equal(model.projector[0].weight, weight)
        return plain(model, batch) + torch.where((batch.uids == 5) & moved, float("nan"), 0.0)

    monkeypatch.setattr(VLM, "losses", losses)
    assert score(world, aligned, tmp_path / "run", [one, two], [1, 1]) == 0
    reported = runs.read_json(tmp_path / "run/checkpoints/not_finite.json")
    assert reported == [{"uid": 5, "reason": f"checkpoint {two}: the loss is not finite"}]
    assert "the sum over the checkpoints (.CP): 1 of 12 samples left out, listed in" in capsys.readouterr().out
    found = pq.read_table(tmp_path / "run/scores.parquet")
    assert found["TracIn/gqa"].null_count == 0 and found["TracIn.CP/gqa"].null_count == 1
    assert found["TracIn.CP/gqa"].to_pylist()[5] is None


def test_a_checkpoint_that_changed_meanwhile_is_refused(world, trained, tmp_path, capsys):
    place = tmp_path / "state"
    shutil.copytree(trained[1], place)
    assert score(world, trained[0], tmp_path / "run", [place], [1.0]) == 0
    assert f"checkpoint 1 ({place})" in runs.read_json(tmp_path / "run/inputs.json")
    move(place, 2.0)
    line = refused(capsys, world, trained[0], tmp_path / "run", [place], [1.0])
    assert f"checkpoint 1 ({place}) changed since this run began; choose another --out" in line


@pytest.mark.parametrize(
    ("count", "rates", "more", "message"),
    [
        (2, [1.0], {}, "2 checkpoints and 1 learning rates; give as many --checkpoint_lrs as --checkpoints"),
        (None, [1.0], {}, "0 checkpoints and 1 learning rates"),
        (1, None, {}, "1 checkpoints and 0 learning rates"),
        (1, [0.0], {}, "checkpoint_lrs must be a number above 0, got 0.0"),
        (1, [".nan"], {}, "checkpoint_lrs must be a number above 0, got nan"),
        (1, [1.0], {"scorers": "[DataInf]"}, "add TracIn to --scorers"),
        (1, [1.0], {"scorers": "[TracIn,Random(name='TracIn.CP')]"}, "a scorer is called 'TracIn.CP'"),
    ],
)
def test_options_that_do_not_fit_are_refused(world, trained, tmp_path, capsys, count, rates, more, message):
    checkpoints = None if count is None else trained[1 : 1 + count]
    assert message in refused(capsys, world, trained[0], tmp_path / "run", checkpoints, rates, **more)


def change(place, **settings):
    path = place / "vlmsel_config.json"
    content = runs.read_json(path)
    for part, values in settings.items():
        content[part].update(values)
    path.write_text(json.dumps(content))


LORA = {"r": 2, "alpha": 4, "rslora": True, "targets": ["q_proj"], "dropout": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"lora": LORA}}, "not of the same make as the model: lora differs; leave it out"),
        ({"model": {"projector": "linear"}}, "projector differs"),
        ({"model": {"language_trained": True}}, "language_trained differs"),
        ({"model": {"template": "plain"}}, "template differs"),
        ({"fingerprints": {"vision weights": "0123"}}, "vision differs"),
        ({"fingerprints": {"language weights": "0123"}}, "language differs"),
        ({"model": {"projector_trained": False}}, "its projector was never trained"),
    ],
)
def test_a_checkpoint_of_another_make_is_refused_before_anything_is_scored(
    world, trained, tmp_path, capsys, settings, message
):
    place = tmp_path / "state"
    shutil.copytree(trained[1], place)
    change(place, **settings)
    line = refused(capsys, world, trained[0], tmp_path / "run", [trained[2], place], [1.0, 1.0])
    assert f"checkpoint {place}" in line and message in line
    assert not (tmp_path / "run/parts").exists()


def test_another_tokenizer_is_refused(world, trained, tmp_path, capsys):
    place = tmp_path / "state"
    shutil.copytree(trained[1], place)
    path = place / "tokenizer/tokenizer.json"
    content = runs.read_json(path)
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 10**6, "content": "<new>"})
    path.write_text(json.dumps(content))
    line = refused(capsys, world, trained[0], tmp_path / "run", [place], [1.0])
    assert f"checkpoint {place} has another tokenizer than the model" in line


def test_a_folder_without_a_model_is_refused(world, trained, tmp_path, capsys):
    line = refused(capsys, world, trained[0], tmp_path / "run", [tmp_path / "none"], [1.0])
    assert f"checkpoint {tmp_path}/none: no model; give a folder that align or tune wrote" in line
