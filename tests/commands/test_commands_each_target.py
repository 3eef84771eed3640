"""score's affinities: what every sample of the target files says of every sample of the pool."""

import json

import numpy as np
import pytest
from score_words import refused, score_words, table

from vlmsel import cli, runs
from vlmsel.scoring.affinity import NAME, Affinities
from vlmsel.studies.known import Known

LINEAR = ["HyperINF", "DataInf", "LiSSA", "TracIn", "Exact"]
CLOSE = {"HyperINF": 1e-3, "Exact": 1e-3}  # inverses multiply the rounding of float32
TASKS = ("gqa", "pope")


def words(world, aligned, out, **more):
    return score_words(world, aligned, out, [*LINEAR, "Random"], **{"each_target": "true", **more})


@pytest.fixture(scope="module")
def scored(world, aligned, tmp_path_factory):
    """A run whose target samples are targets, and one that has their means alone."""
    out = tmp_path_factory.mktemp("each")
    for name, each in (("sets", "false"), ("each", "true")):
        assert cli.main(words(world, aligned, out / name, each_target=each)) == 0
    return out


def test_every_target_sample_has_a_row_and_the_table_its_files_alone(world, scored):
    found = Affinities(scored / "each" / NAME, world / "pool.json")
    sizes = {task: len(runs.read_json(world / f"targets/{task}.json")) for task in TASKS}
    assert [(one["file"], one["uid"]) for one in found.targets] == [(t, uid) for t in TASKS for uid in range(sizes[t])]
    assert all(one["loss"] > 0 and one["weight"] is None for one in found.targets)
    assert found.about["scorers"] == LINEAR and set(found.about["share"].values()) == {1.0}
    assert found.about["norms"]["HyperINF"] == found.about["norms"]["TracIn"] == "the scorer's own metric"
    assert found.about["norms"]["DataInf"] == "plain gradients"
    assert set(table(scored / "each")) == set(table(scored / "sets")) and not (scored / "sets" / NAME).exists()


@pytest.mark.parametrize("scorer", LINEAR)
def test_the_mean_over_samples_is_the_influence_on_the_file(scored, scorer):
    found, sets = Affinities(scored / "each" / NAME), table(scored / "sets")
    block = found.block(scorer, slice(None), unit=False)
    for task in TASKS:
        rows = [row for row, one in enumerate(found.targets) if one["file"] == task]
        column = np.array(sets[f"{scorer}/{task}"])[found.uids]
        near = CLOSE.get(scorer, 1e-5) * np.abs(block[rows]).max()
        np.testing.assert_allclose(-block[rows].mean(0), column, atol=near)
        assert not np.allclose(block[rows[0]], block[rows[1]], rtol=1e-3)


def test_select_goes_by_them(world, scored, tmp_path, capsys):
    given = ["select", "--pool", f"{world}/pool.json", "--count", "4", "--out"]
    each, sets = (["--scores", str(scored / name)] for name in ("each", "sets"))
    for scorer in LINEAR:
        assert cli.main([*given, f"{tmp_path}/{scorer}.json", *each, "--scorer", scorer]) == 0
        manifest = runs.read_json(tmp_path / f"{scorer}.json.manifest.json")
        found = Affinities(scored / "each" / NAME)
        near = {
            (t["file"], t["uid"]): row for t, row in zip(found.targets, found.block(scorer, slice(None)), strict=True)
        }
        first = near[manifest["target_file"][0], manifest["target_uid"][0]]
        assert manifest["uids"][0] == found.uids[first.argmax()] and len(set(manifest["uids"])) == 4
        assert manifest["affinity"][0] == pytest.approx(first.max(), rel=1e-4)
    assert cli.main([*given, f"{tmp_path}/herding.json", *each, "--rule", "herding"]) == 0
    given = [*given, f"{tmp_path}/chosen.json"]
    assert "DataInf has norms of plain gradients only" in refused(
        [*given, *each, "--rule=herding", "--scorer=DataInf"], capsys
    )
    assert "no affinity.safetensors beside it" in refused([*given, *sets], capsys)


def test_unit_affinities_by_tracin_are_its_cosines(world, aligned, tmp_path):
    (tmp_path / "gqa.json").write_text(json.dumps(runs.read_json(world / "targets/gqa.json")[:1]))
    more = {
        "targets.gqa": tmp_path / "gqa.json",
        "scorers": """[TracIn,HyperINF,"TracIn(cosine=True,name='cosine')"]""",
    }
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 0
    found, columns = Affinities(tmp_path / "run" / NAME), table(tmp_path / "run")
    cosines = -np.array(columns["cosine/gqa"])[found.uids]
    for scorer in ("TracIn", "cosine"):
        np.testing.assert_allclose(found.block(scorer, slice(None))[0], cosines, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.block("cosine", slice(None), unit=False)[0], cosines, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.mean_influence("cosine", [0]), -cosines, rtol=1e-4, atol=1e-6)
    assert np.abs(cosines).max() > 10 * np.abs(cosines).min() > 0
    assert 0 < np.abs(found.block("HyperINF", slice(None))).max() <= 1


def test_records_carry_weights_and_what_cannot_be_used_has_no_row(world, aligned, tmp_path):
    records = runs.read_json(world / "targets/gqa.json")
    mine = [{"id": 0}, {**records[0], "weight": 2.5}, {**records[1], "image": "none.png"}, records[1]]
    (tmp_path / "gqa.json").write_text(json.dumps(mine))
    more = {"targets.gqa": tmp_path / "gqa.json", "scorers": "[TracIn,BM25]", "allow_missing": "true"}
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 0
    found = Affinities(tmp_path / "run" / NAME)
    rows = [(one["uid"], one["weight"]) for one in found.targets if one["file"] == "gqa"]
    assert rows == [(1, 2.5), (3, None)]
    columns = table(tmp_path / "run")
    for scorer in ("TracIn", "BM25"):  # the file's mean is by weights, as `select --rule top` goes by it
        single = found.block(scorer, slice(None), unit=False)[
            [row for row, one in enumerate(found.targets) if one["file"] == "gqa"]
        ]
        mean = (2.5 * single[0] + single[1]) / 3.5
        column = np.array(columns[f"{scorer}/gqa"])[found.uids]
        np.testing.assert_allclose(column, -mean, rtol=1e-4, atol=1e-5 * np.abs(single).max())
    assert [entry["uid"] for entry in runs.read_json(tmp_path / "run/skipped_gqa.json")] == [0, 2]


def test_fewer_columns_than_target_samples(world, aligned, tmp_path):
    assert cli.main(words(world, aligned, tmp_path / "run", scorers="[TracIn]", columns=2)) == 0
    found = Affinities(tmp_path / "run" / NAME)
    assert found.combination("TracIn").shape[1] <= 2 < len(found.targets) and 0 < found.about["share"]["TracIn"] < 1


def test_a_target_file_without_usable_samples_is_refused(world, aligned, tmp_path, capsys):
    (tmp_path / "gqa.json").write_text(json.dumps([{"id": 0}]))
    assert cli.main(words(world, aligned, tmp_path / "run", **{"targets.gqa": tmp_path / "gqa.json"})) == 2
    assert f"target gqa: {tmp_path}/gqa.json: no usable sample" in capsys.readouterr().err


FORWARD = ("Hidden", "Embedding", "BM25")


def test_scorers_without_gradients_choose_through_the_same_files(world, aligned, scored, tmp_path):
    """Alone they need no backward pass; beside gradient scorers they say the same."""
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    for out, scorers in ((alone, [*FORWARD, "Random"]), (beside, ["TracIn", *FORWARD])):
        assert cli.main(score_words(world, aligned, out, scorers, each_target="true")) == 0
    one, other = Affinities(alone / NAME), Affinities(beside / NAME)
    gradients = Affinities(scored / "each" / NAME)
    assert one.about["scorers"] == list(FORWARD) and other.about["scorers"] == ["TracIn", *FORWARD]
    assert (one.uids == gradients.uids).all() and (other.uids == gradients.uids).all()
    assert [t["loss"] for t in one.targets] == pytest.approx([t["loss"] for t in gradients.targets], rel=1e-5)
    losses = table(scored / "each")["loss"]
    assert table(alone)["loss"] == pytest.approx(losses, rel=1e-5, nan_ok=True)
    for scorer in FORWARD:
        np.testing.assert_allclose(one.block(scorer, slice(None)), other.block(scorer, slice(None)), atol=1e-5)
        assert np.abs(one.block(scorer, slice(None))).max() <= 1 + 1e-5
        for rule in ("round_robin", "herding"):
            given = [
                "select",
                "--pool",
                f"{world}/pool.json",
                "--count",
                "4",
                "--out",
                f"{tmp_path}/{scorer} {rule}.json",
            ]
            assert cli.main([*given, "--scores", str(alone), "--scorer", scorer, "--rule", rule]) == 0


def test_the_table_says_how_many_tokens_a_loss_is_taken_on(world, scored):
    columns = table(scored / "each")
    pairs = list(zip(columns["supervised"], columns["tokens"], strict=True))
    assert all(0 < supervised < tokens for supervised, tokens in pairs if tokens)
    answers = [record["conversations"][1]["value"] for record in runs.read_json(world / "pool.json")]
    longest, shortest = (pick(range(len(answers)), key=lambda i: len(answers[i])) for pick in (max, min))
    assert pairs[longest][0] > pairs[shortest][0]


def test_scores_put_together_by_vote_choose_by_the_table_alone(world, aligned, tmp_path, capsys):
    more = {"scorers": "[TracIn]", "aggregate": "vote"}
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 0
    select = [
        "select",
        "--pool",
        f"{world}/pool.json",
        "--scores",
        f"{tmp_path}/run",
        "--scorer",
        "TracIn",
        "--count=2",
    ]
    assert "are put together by vote, which affinities to single target samples are not" in refused(
        [*select, "--out", f"{tmp_path}/chosen.json"], capsys
    )
    assert not (tmp_path / "chosen.json").exists()
    for rule in ("top", "round_robin"):
        assert cli.main([*select, "--rule", rule, "--out", f"{tmp_path}/{rule}.json"]) == 0
    known = Known(tmp_path / "run", f"{world}/pool.json")
    columns = table(tmp_path / "run")
    expected = [[-columns[f"TracIn/{file}"][uid] for uid in known.uids] for file in known.files]
    np.testing.assert_array_equal(known.by_file("TracIn"), expected)
    with pytest.raises(
        ValueError, match="TracIn is put together by vote, so that the half of a file that judges would"
    ):
        known.by_file("TracIn", [0])
