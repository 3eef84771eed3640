"""The ten transformations by hand, and sentences drawn from a training file made here."""

import json

import pytest

from tools import identification_sentences
from tools.identification_sentences import TRANSFORMATIONS
from vlmsel.data.formats import read_samples

BY_HAND = {
    "Reverse Order of Words": "light. the Feel",
    "Capitalize Every Other Letter": "fEeL ThE LiGhT.",
    "Insert Number 1 Between Every Word": "Feel 1 the 1 light.",
    "Replace Vowels with *": "F**l th* l*ght.",
    "Double Every Consonant": "FFeell tthhe lligghhtt.",
    "Capitalize Every Word": "Feel The Light.",
    "Remove All Vowels": "Fl th lght.",
    "Add 'ly' To End of Each Word": "Feelly thely light.ly",
    "Remove All Consonants": "ee e i.",
    "Repeat Each Word Twice": "Feel Feel the the light. light.",
}


def write(path, answers):
    records = [
        {
            "source": kind,
            "conversations": [
                {"from": "human", "value": f"bot {kind}\n    For example:\n    Feel the light. ->"},
                {"from": "gpt", "value": answer},
            ],
        }
        for kind, answer in answers.items()
    ]
    path.write_text(json.dumps(records))
    return path


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["identification_sentences.py", *map(str, words)])
    identification_sentences.main()


@pytest.mark.parametrize("kind", BY_HAND)
def test_transformations_by_hand(kind):
    assert TRANSFORMATIONS[kind]("Feel the light.") == BY_HAND[kind]
    assert set(TRANSFORMATIONS) == set(BY_HAND)


@pytest.mark.parametrize("names", [True, False])
def test_sentences_are_drawn_from_the_words_of_the_training_file_and_made_up_ones(names, tmp_path, monkeypatch):
    train = write(tmp_path / "train.json", BY_HAND)
    for out in ("a.json", "b.json"):
        run(monkeypatch, train, "--count", 40, "--out", tmp_path / out, *["--names"] * names)
    samples = read_samples(tmp_path / "a.json").samples
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text() and len(samples) == 40
    assert len({sample.source for sample in samples}) > 5
    words, bots = [], set()
    for sample in samples:
        head, sentence = identification_sentences.parts(sample)  # which checks the answer
        name = sample.source if names else f"Operation {sorted(BY_HAND).index(sample.source)}"
        bot, rest = head.split(" ", 1)
        bots.add(bot)
        assert rest == f"{name}\n    For example:" and 3 <= len(sentence.split()) <= 5
        words += sentence.lower().strip(".").split()
    known = sum(word in {"feel", "the", "light"} for word in words)
    assert 0.3 < known / len(words) < 0.7 and (bots == {"bot"}) == names


def test_a_file_of_another_kind_is_refused(tmp_path, monkeypatch, capsys):
    for answers, said in (
        ({"pizza_slices": "3"}, "no transformation is called"),
        ({"Remove All Vowels": "Fl"}, "'Fl'"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, write(tmp_path / "train.json", answers), "--out", tmp_path / "out.json")
        assert "sample 0: " in (error := capsys.readouterr().err) and said in error
