"""Files of DataInf's identification study, made here, through the conversion."""

import json

import pytest

from tools import convert_identification
from vlmsel.data.formats import read_samples


def line(prompt="Vowels\n    For example:\n    A cat. -> ", text=None, kind="vowels", **more):
    text = prompt + " * c*t.</s>" if text is None else text
    return json.dumps({"prompt": prompt, "text": text, "variation": kind, **more}) + "\n"


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["convert_identification.py", *map(str, arguments)])
    convert_identification.main()


def test_every_record_becomes_a_usable_sample_of_its_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "g_train.jsonl").write_text(line(answer="* c*t.") + line(kind="other"))
    (tmp_path / "g_test.jsonl").write_text(
        line("Solve. 2 + 3 -> ", "Solve. 2 + 3 -> Reason: 2 + 3. Answer: 5</s>", "sums", answer=5, reason="2 + 3.")
    )
    run(monkeypatch, tmp_path / "g_train.jsonl", tmp_path / "g_test.jsonl", "--out", tmp_path / "out")
    assert "g_train.json: 2 samples of 2 classes" in capsys.readouterr().out
    train, test = (read_samples(tmp_path / "out" / f"g_{part}.json") for part in ("train", "test"))
    assert not train.problems and [sample.source for sample in train.samples] == ["vowels", "other"]
    question, answer = train.samples[0].turns
    assert (question.text, answer.text) == ("Vowels\n    For example:\n    A cat. ->", "* c*t.")
    assert test.samples[0].turns[1].text == "Reason: 2 + 3. Answer: 5" and test.samples[0].images == ()
    assert [record["id"] for record in train.records] == ["g_train_0", "g_train_1"]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line(text="another text</s>"), "2 records cannot be used; record 1: its text is not its prompt and an answer"),
        (line(text="Vowels\n    For example:\n    A cat. -> </s>"), "record 1: its text is not its prompt and an an"),
        (line(kind=3), "record 1: no text under the key 'variation'; expected prompt, text, variation"),
        ("[1]\n", "record 1: no text under the key 'prompt'"),
    ],
)
def test_a_record_that_cannot_be_used_stops_it_and_is_named(tmp_path, monkeypatch, capsys, bad, said):
    (tmp_path / "g.jsonl").write_text(line() + bad + bad)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, tmp_path / "g.jsonl", "--out", tmp_path / "out")
    assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_reasons_can_be_left_out_and_an_answer_without_its_mark_is_refused(tmp_path, monkeypatch, capsys):
    sums = "Solve. 2 + 3 -> "
    (tmp_path / "m.jsonl").write_text(line(sums, sums + "Reason: Answer: is 2 + 3. Answer: 5</s>", "sums"))
    run(monkeypatch, tmp_path / "m.jsonl", "--out", tmp_path / "out", "--without_reasons")
    assert [sample.turns[1].text for sample in read_samples(tmp_path / "out/m.json").samples] == ["Answer: 5"]
    (tmp_path / "g.jsonl").write_text(line())
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path / "g.jsonl", "--out", tmp_path / "out", "--without_reasons")
    assert "1 records cannot be used; record 0: no 'Answer:' in what follows its prompt" in capsys.readouterr().err
