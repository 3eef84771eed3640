"""The study of rules on easy-VQA, at a minute size, on an archive drawn here."""

import importlib.util
import sys
from pathlib import Path

import pytest
from tiny_easy_vqa import archive

from vlmsel import runs

STUDY = Path(__file__).parents[2] / "recipes/easy_vqa/rules.py"
ARMS = ("Random 1", "Random of equal tokens 1", "Loss, aligned", "round_robin HyperINF, warmed up")


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1, 2])
def test_every_kind_of_choice_is_tuned_and_asked(trainings, tmp_path, monkeypatch, capsys):
    archive(tmp_path / "easy.tar.gz")
    spec = importlib.util.spec_from_file_location("rules", STUDY)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "rules", module)  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    out = tmp_path / "out"
    words = [tmp_path / "easy.tar.gz", "--out", out, "--seeds", 3, "--pool", 30, "--test", 4, "--arms", *ARMS]
    words += ["--trainings", trainings]
    monkeypatch.setattr(sys, "argv", ["rules.py", *map(str, words)])
    module.main()
    found = runs.read_json(out / "results.json")["percent"]
    assert {"Random", "Random of equal tokens", *ARMS[2:]} <= set(found)
    seeds = {runs.read_json(path)["settings"]["seed"] for path in out.glob("seed3/tune/*/phase.json")}
    assert seeds == {3, 1003}.intersection({3, 1003} if trainings == 2 else {3})
    samples = [runs.read_json(path)["uids"] for path in sorted(out.glob("seed3/selected/Random ?.json.manifest.json"))]
    assert len(samples) == trainings and all(one == samples[0] for one in samples)  # one draw, trained so often
    chosen, drawn = (
        runs.read_json(out / f"seed3/selected/{name}.json.manifest.json")["uids"] for name in (ARMS[3], ARMS[1])
    )
    assert len(chosen) == 6 and drawn
    assert "spoilt answers, whole pool: " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rules.py", *map(str, words[:-1]), "7"])
    with pytest.raises(SystemExit):
        module.main()
    problem = f"another configuration (there: trainings: {trainings}; now: trainings: 7); choose another --out"
    assert problem in capsys.readouterr().err
