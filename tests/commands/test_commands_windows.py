"""A large pool is scored window by window, each measured when its turn comes: the same scores and problems."""

import json

import pytest
from score_words import table, words
from tiny_huggingface import save_language

from vlmsel import cli, runs
from vlmsel.data import kept
from vlmsel.scoring import batches

SCORERS = "[TracIn,DataInf(damping=0.1),Hidden,BM25]"


def said(number, **more):
    turns = [("human", f"What comes {'long ' * (number % 5)}after {number}?"), ("gpt", f"It is {number + 1}.")]
    return {"source": f"s{number % 2}", "conversations": [{"from": who, "value": text} for who, text in turns], **more}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A language model, a target, and a pool: one record cannot be read, pictures in others are nothing for a model of
    texts, among them all of the third window."""
    folder = tmp_path_factory.mktemp("windows")
    save_language(folder / "llama", max_position_embeddings=256)
    records = [said(number, **({"image": "a.png"} if number in (1, 9, 10, 11, 12) else {})) for number in range(15)]
    records[5] = {"id": 5}
    (folder / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "target.json").write_text(json.dumps([said(20), said(30), said(41)]))
    return folder


@pytest.fixture
def large(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "MANY", 8)
    monkeypatch.setattr(batches, "WINDOW", 4)


def score(home, out, **more):
    given = {"model": home / "llama", "pool": home / "pool.jsonl", "targets.sums": home / "target.json", "out": out}
    return cli.main(words("score", {**given, "scorers": SCORERS, "device": "cpu", **more}))


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, column in expected.items():
        wanted = (
            column if isinstance(column[0], str) else pytest.approx(column, tolerance, tolerance * 1e-2, nan_ok=True)
        )
        assert found[name] == wanted, name


@pytest.fixture(scope="module")
def plain(home, tmp_path_factory):
    """The run folder of the pool as a small one."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert score(home, out) == 0
    return out


def test_windows_change_nothing_but_rounding_and_a_run_goes_on(home, plain, large, tmp_path, capsys):
    out = tmp_path / "run"
    assert score(home, out) == 0
    assert_same(table(out), table(plain), 1e-4)
    assert runs.read_json(out / "skipped.json") == runs.read_json(plain / "skipped.json")
    assert [one["uid"] for one in runs.read_json(out / "skipped.json")] == [1, 5, 9, 10, 11, 12]
    assert [path.name for path in sorted((out / "parts").iterdir())] == [f"{n:08d}.safetensors" for n in range(4)]
    expected = table(out)
    (out / "scores.parquet").unlink()
    for number in (1, 2):
        (out / f"parts/0000000{number}.safetensors").unlink()
    assert score(home, out) == 0  # with sizes that are known
    assert_same(table(out), expected, 0)


def test_the_parts_are_measured_when_their_turn_comes(home, large, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    seen = []
    monkeypatch.setattr("vlmsel.commands.score.check_first_batch", lambda *_: None)
    monkeypatch.setattr("vlmsel.models.pool.FIRST", 2)
    monkeypatch.setattr("vlmsel.scoring.passes.score_pool", stop)
    monkeypatch.setattr("vlmsel.data.dataset.SampleDataset._look", lambda self, i: (seen.append(i), ((9, 3), ""))[1])
    assert score(home, tmp_path / "run") != 0
    assert seen == [0, 1, 0, 1, 2]  # the pool's first two, and the targets


def test_a_store_of_windows_gives_the_same_scores(home, large, tmp_path):
    assert score(home, tmp_path / "run", scorers="[TracIn]", store=tmp_path / "store") == 0
    given = {"store": tmp_path / "store", "scorers": "[TracIn]", "device": "cpu", "out": tmp_path / "again"}
    assert cli.main(words("rescore", given)) == 0
    name = "TracIn/sums"
    assert table(tmp_path / "again")[name] == pytest.approx(table(tmp_path / "run")[name], rel=1e-4, nan_ok=True)


def test_a_large_pool_without_a_usable_sample_is_refused(home, large, tmp_path, capsys):
    record = {**said(1), "image": "a.png"}
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for _ in range(9)))
    assert score(home, tmp_path / "run", pool=tmp_path / "pool.jsonl") == 2
    assert "no usable sample; the first, sample 0: it has an image and" in capsys.readouterr().err
