"""What is found out about a pool once: the same by workers as by a plain loop, kept by all that it depends on."""

import json
import multiprocessing

import numpy as np
import pytest

from vlmsel.data import kept as module
from vlmsel.data.dataset import Reading, SampleDataset, Size, look_at_images
from vlmsel.data.formats import pool as pool_module
from vlmsel.data.formats import read_samples
from vlmsel.data.kept import Found, kept, workers
from vlmsel.data.sizes import distinct


@pytest.fixture(autouse=True)
def large(monkeypatch, tmp_path):
    """Small pools count as large ones, and two processes read them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MANY", 8)
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 1})


def records(count):
    said = [[{"from": "human", "value": "x" * n}, {"from": "gpt", "value": "y"}] for n in range(count)]
    found = [{"source": f"s{n % 3}", "conversations": turns} for n, turns in enumerate(said)]
    found[4] = {"id": 4}
    found[6]["conversations"][0]["value"] = "<image>a"
    found[6]["image"] = "a.png"
    found[8]["id"] = "\ud800"
    return found


@pytest.fixture
def pool(tmp_path):
    path = tmp_path / "pool.json"
    path.write_text(json.dumps(records(20)))
    return path


class Letters:
    """Reads a sample's questions as letters, and refuses one of them; counts in the file how often it was asked."""

    def __init__(self, log):
        self.log = log

    def size(self, sample, reading):
        with open(self.log, "a") as file:
            file.write("x")
        if sample.uid == 9:
            raise ValueError("nine")
        return Size(len(sample.turns[0].text), 1)

    def encode(self, sample, reading):
        return sample

    def pictures(self, reading):
        return None


def cached(tmp_path):
    return sorted((tmp_path / "cache/vlmsel/pools").glob("*.npz"))


def test_what_workers_find_is_what_a_loop_finds_and_is_kept(pool, tmp_path, monkeypatch):
    found = read_samples(pool)
    assert workers(20) == 2 and len(cached(tmp_path)) == 1
    (problem,) = found.problems
    assert problem.uid == 4 and "no conversations" in problem.reason
    assert [sample.uid for sample in found.samples] == [uid for uid in range(20) if uid != 4]
    assert found.samples.sources == [sample.source for sample in found.samples]
    assert found.samples.images.tolist() == [len(sample.images) for sample in found.samples]
    assert found.samples.placeless == 1
    assert found.samples.ids.to_pylist() == ["", "", "", "", "4", "", "", "", "?"] + [""] * 11
    monkeypatch.setattr(pool_module, "looked_at", lambda *_: pytest.fail("looked again"))
    again = read_samples(pool)
    assert again.samples.ids == found.samples.ids
    assert again.samples == found.samples and again.problems == found.problems
    assert again.samples.sources == found.samples.sources
    pool.write_text(json.dumps(records(21)))
    with pytest.raises(pytest.fail.Exception, match="looked again"):
        read_samples(pool)


def test_sizes_are_kept_by_their_key(pool, tmp_path):
    log = tmp_path / "log"

    def sizes(key):
        log.write_text("")
        data = SampleDataset(read_samples(pool).samples, Letters(log), Reading(), key)
        return data.check(), data.sizes().tolist(), len(log.read_text())

    loop = SampleDataset(list(read_samples(pool).samples), Letters(log), Reading())
    expected = loop.check(), loop.sizes().tolist()
    assert expected[0] == {9: "nine"} and expected[1][8:10] == [[0, 0], [10, 1]]
    assert sizes("a") == (*expected, 19)
    assert sizes("a") == (*expected, 0)
    assert sizes("b") == (*expected, 19) and sizes(None) == (*expected, 19)
    for file in cached(tmp_path):
        file.write_bytes(file.read_bytes()[:-40])
    assert sizes("a") == (*expected, 19)


def test_code_that_reads_otherwise_finds_anew(monkeypatch):
    found = [Found({"a": np.arange(3)}, [1])]
    assert kept(9, "key", found.pop).about == [1]
    assert kept(9, "key", found.pop).arrays["a"].tolist() == [0, 1, 2]
    monkeypatch.setattr(module, "_code", lambda: "other")
    with pytest.raises(IndexError):
        kept(9, "key", found.pop)


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept(9, "key", lambda: Found({}, "found")).about == "found"
    assert "cannot be kept, so that the pool is looked at again at the next start" in capsys.readouterr().out


def test_a_line_that_is_no_json_is_named_in_one_line(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records(20)) + "\n[1,\n")
    with pytest.raises(ValueError, match=r"pool.jsonl: line 22: not JSON") as error:
        read_samples(path)
    assert "\n" not in str(error.value) and not multiprocessing.active_children()


def test_names_are_looked_at_once_in_their_order():
    names = ["b", "a", "b", "c", "a"]
    count, found = distinct(lambda: iter(names))
    assert (count, list(found)) == (3, ["b", "a", "c"])
    assert [list(found) for _, found in [distinct(lambda: [])]] == [[]]
    problems, digest = look_at_images(lambda: iter(names), lambda n: (f"bad {n}" if n == "c" else None, n), "looking")
    assert problems == {"c": "bad c"} and digest == look_at_images(lambda: "cba", lambda n: (None, n), "looking")[1]


def test_sizes_of_some_are_those_of_all(pool, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmsel.data.sizes.PART", 4)
    data = SampleDataset(read_samples(pool).samples, Letters(tmp_path / "log"), Reading(), "a")
    assert data.large and data.candidates() == range(19)
    assert data.lengths_of([3, 8, 7, 18]) == {3: 3, 7: 8, 18: 19} and data.lengths_of([18, 3]) == {18: 19, 3: 3}
    assert len((tmp_path / "log").read_text()) == 4 and len(cached(tmp_path)) == 1
    loop = SampleDataset(list(read_samples(pool).samples), Letters(tmp_path / "other"), Reading())
    assert data.sizes().tolist() == loop.sizes().tolist() and data.check() == loop.check() == {9: "nine"}
    assert len((tmp_path / "log").read_text()) == 19 and len(cached(tmp_path)) == 2
    again = SampleDataset(read_samples(pool).samples, Letters(tmp_path / "log"), Reading(), "a")
    assert again.lengths_of(range(7, 10)) == {7: 8, 9: 10} and len((tmp_path / "log").read_text()) == 19
