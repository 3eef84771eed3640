"""What `select --write uids` and `weights` left is read again, and what is no such file is refused."""

import json

import pytest

from vlmsel.data.formats import pool_digest, read_samples
from vlmsel.data.formats.choice import read_choice, refuse_choice, write_choice


@pytest.fixture
def pool(tmp_path):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    records = [{"conversations": said}, {"id": 1}, {"image": "a.png", "conversations": said}, {"conversations": said}]
    (tmp_path / "pool.json").write_text(json.dumps(records))
    return tmp_path / "pool.json"


def manifest(path, **about):
    (path.parent / f"{path.name}.manifest.json").write_text(json.dumps(about))


@pytest.mark.parametrize("how", ["uids", "weights"])
@pytest.mark.parametrize("beside", [True, False])
def test_what_was_written_is_read(how, beside, pool, tmp_path):
    path = tmp_path / "chosen.json"
    about = {"written": how, "pool": str(pool), "pool_sha256": pool_digest(pool)}
    write_choice(path, pool, [3, 0], 4, how, about)
    manifest_path = path.with_name("chosen.json.manifest.json")
    assert json.loads(manifest_path.read_text()) == about
    if not beside:
        manifest_path.unlink()
    assert read_choice(path, pool, 4) == [0, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": 1}, "expected uids or weights, as `vlmsel select --write` gives them: a JSON list of numbers"),
        ([], "a JSON list of numbers"),
        ([True, False, True, True], "a JSON list of numbers"),
        ([{"id": 1}], "a JSON list of numbers"),
        ([0, 4], "4 is no uid of .*pool.json, whose 4 records have 0 to 3"),
        ([0, -1], "-1 is no uid"),
        ([0.5, 2], "0.5 is no uid"),
        ([2, 0, 2], "sample 2 is listed more than once"),
        ([1, 0, 2.5, 1], "sample 2 has weight 2.5; only 1, train on it, and 0, do not, are read"),
    ],
)
def test_what_is_no_choice_is_refused(content, words, pool, tmp_path):
    (tmp_path / "chosen.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"chosen.json: .*{words}"):
        read_choice(tmp_path / "chosen.json", pool, 4)


def test_the_manifest_decides(pool, tmp_path):
    path = tmp_path / "chosen.json"
    path.write_text("[1, 0]")
    with pytest.raises(ValueError, match="could be uids or weights; leave the manifest"):
        read_choice(path, pool, 2)
    manifest(path, written="weights")
    assert read_choice(path, pool, 2) == [0]
    with pytest.raises(ValueError, match="2 weights for the 4 records of .*pool.json; give one for each"):
        read_choice(path, pool, 4)
    manifest(path, written="uids", pool="other.json", pool_sha256="0")
    with pytest.raises(ValueError, match=r"chosen.json: chosen from another pool \(other.json\) than .*pool.json"):
        read_choice(path, pool, 2)
    with pytest.raises(
        ValueError, match=r"chosen.json: holds uids, no records; give the pool \(other.json\) and --only"
    ):
        refuse_choice(path)
    manifest(path, written="pool")
    refuse_choice(path)
    refuse_choice(pool)


def test_a_part_of_a_pool_keeps_uids_problems_and_what_needs_a_folder(pool):
    whole = read_samples(pool)
    part = whole.only([0, 1, 3])
    assert [sample.uid for sample in part.samples] == [0, 3] and [one.uid for one in part.problems] == [1]
    assert (whole.samples.placeless, part.samples.placeless, whole.only([2]).samples.placeless) == (1, 0, 1)
    assert part.samples.sources == ["text", "text"] and part.samples.images.tolist() == [0, 0]
