import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, is_dataclass

import pytest
import yaml

from vlmsel import cli


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["help"], ["scroe"]])
def test_general_questions_are_answered_without_torch(words):
    code = f"import sys, vlmsel.cli; code = vlmsel.cli.main({words}); heavy = {{'torch', 'jsonargparse', 'yaml'}}; "
    code += "print('loaded:', sorted(heavy & set(sys.modules))); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if words == ["scroe"] else 0)
    assert "loaded: []" in done.stdout
    if words in (["--help"], [], ["help"]):
        assert all(command in done.stdout for command in cli.COMMANDS)


def test_unknown_command(capsys):
    assert cli.main(["scroe"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown command 'scroe', did you mean score?; there are demo, choose, "
    )


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vlmsel 0.")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: vlmsel {command} ")
    assert "\n  --out OUT " in shown or command in ("inspect", "plan")  # which write where they are told, if at all


def test_abbreviations_are_refused_on_one_line(capsys):
    assert cli.main(["select", "--frac", "0.1"]) == 2
    found = capsys.readouterr()
    line = "error: unrecognized arguments: --frac 0.1, did you mean --fraction?; `vlmsel select --help` lists the "
    assert found.err == f"{line}options\n"
    assert not found.out


def test_key_errors_are_shown_plainly():
    assert cli.one_line(KeyError("no such\nthing")) == "no such thing"
    assert cli.one_line(ValueError()) == "ValueError"


@dataclass(frozen=True)
class Failing:
    """A command that raises."""

    problem: BaseException

    def __call__(self, **values):
        raise self.problem


PLAINLY = cli.How("info", False)


def fail(monkeypatch, problem):
    monkeypatch.setattr(cli, "parsed", lambda command, arguments: (Failing(problem), {}, PLAINLY))
    return cli.main(["select"])


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("x.json: two\n  lines"), "error: x.json: two lines"),
        (FileNotFoundError(2, "No such file or directory", "x.json"), "error: [Errno 2] No such file or dir"),
        (ImportError("no peft"), "error: no peft"),
        (RuntimeError("CUDA out of memory.\nTried"), "error: CUDA out of memory. Tried Lower batch_size, or take"),
    ],
)
def test_user_errors_are_one_line(problem, line, monkeypatch, capsys):
    assert fail(monkeypatch, problem) == 2
    err = capsys.readouterr().err
    assert err.startswith(line) and err.count("\n") == 1


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, capsys):
    assert fail(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on where it stopped\n"


def test_a_terminated_command_ends_as_an_interrupted_one(monkeypatch, capsys):
    def told(**values):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("goes on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "parsed", lambda command, arguments: (told, {}, PLAINLY))
    assert cli.main(["select"]) == 143
    assert capsys.readouterr().err == "terminated; the same command goes on where it stopped\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_our_own_mistakes_keep_their_traceback(monkeypatch):
    for problem in (AssertionError(), RuntimeError("shapes differ")):
        with pytest.raises(type(problem)):
            fail(monkeypatch, problem)
    monkeypatch.setenv("VLMSEL_DEBUG", "1")
    with pytest.raises(ValueError):
        fail(monkeypatch, ValueError())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Option 'a' is not accepted", "Option 'a' is not accepted"),
        ("while parsing\n  a block", "while parsing a block"),
        ("Parser key \"count\":\n  Expected a <class 'int'>. Got value: x", "count must be int, got x"),
        (
            "Parser key \"count\":\n  Does not validate\n  Errors:\n    - Expected a <class 'int'>\n"
            "    - Expected a <class 'NoneType'>\n  Given value type: <class 'str'>\n  Given value: a b",
            "count must be int or null, got a b",
        ),
        (
            "Parser key \"metric\":\n  Errors:\n    - Expected a typing.Literal['a', 'b']\n    - Expected a <class "
            "'NoneType'>\n  Given value: c",
            "metric must be 'a', 'b' or null, got c",
        ),
        (
            "Parser key \"targets\":\n  Errors:\n    - Expected a <class 'dict'>\n  Given value: a.json",
            "targets must be given by name (--targets.NAME a.json), got a.json",
        ),
    ],
)
def test_problems_with_options_are_said_plainly(text, line):
    assert cli.option_problem("select", [], text) == f"{line}; `vlmsel select --help` lists the options"
    shown = cli.option_problem("select", ["--config=a.yaml"], text)
    assert shown == f"{line} (in a.yaml or on the command line); `vlmsel select --help` lists the options"


def resolved(*words):
    call, values = cli.parse("select", ["--scores", "s.parquet", "--pool", "p.json", *words])
    assert call.__name__ == "select"
    return values


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--weights.gqa", "nan"], "weights.gqa must be float or null, got nan"),
        (["--quota.a", "x"], "quota.a must be float or null, got x"),
    ],
)
def test_a_value_given_by_name_is_named_alone(words, line, capsys):
    required = ["--scores", "s.parquet", "--pool", "p.json", "--out", "o"]
    assert cli.main(["select", *required, *words]) == 2
    assert capsys.readouterr().err == f"error: {line}; `vlmsel select --help` lists the options\n"


def test_the_configuration_holds_every_setting_but_the_folder(tmp_path):
    values = resolved("--out", "a place " * 30, "--quota.text", "0.5")
    text = values["config"]
    assert text.startswith("# vlmsel select\n") and "place" not in text
    groups = {name: value for name, value in values.items() if is_dataclass(value)}
    expected = {k: v for k, v in values.items() if k not in ("config", "out", *groups)}
    assert yaml.safe_load(text) == expected | {k: v for group in groups.values() for k, v in asdict(group).items()}
    (tmp_path / "config.yaml").write_text(text)
    _, again = cli.parse("select", ["--config", str(tmp_path / "config.yaml"), "--out", "elsewhere"])
    assert again == {**values, "out": "elsewhere"}


def test_home_is_meant_wherever_a_path_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("out: ~/runs/a\nquestions: [~/q.json]\nmodels: {mine: ~/m}\n")
    tasks = "--tasks={gqa: {questions: ~/g.json, images: images~1}}"
    for config in (["--config", "~/a.yaml"], ["--config=~/a.yaml"]):
        _, values = cli.parse("evaluate", [*config, tasks])
        assert (values["out"], values["questions"]) == (f"{tmp_path}/runs/a", [f"{tmp_path}/q.json"])
        assert values["models"] == {"mine": f"{tmp_path}/m"}
        assert values["tasks"] == {"gqa": {"questions": f"{tmp_path}/g.json", "images": "images~1"}}
        assert yaml.safe_load(values["config"])["models"] == values["models"]
    _, values = cli.parse("score", ["--out=o", "--model=~/m", "--pool=~", "--images", "~/i", "--checkpoints=[~/c]"])
    assert (values["model"], values["pool"]) == (f"{tmp_path}/m", str(tmp_path))
    assert values["reading"].images == f"{tmp_path}/i" and values["sums"].checkpoints == (f"{tmp_path}/c",)


def test_a_preset_is_found_in_a_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("preset: llava15-lora\n")
    _, values = cli.parse("tune", ["--model=m", "--data=d", "--out=o", "--config=~/a.yaml"])
    assert values["settings"].learning_rate == 2e-4


def test_the_command_line_wins_over_the_file_wherever_it_stands(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("count: 5\nscorer: DataInf\n")
    for words in (["--config", str(path), "--count", "7"], [f"--config={path}", "--count=7"]):
        values = resolved("--out", "o", *words)
        assert (values["ask"].count, values["scorer"]) == (7, "DataInf")


@pytest.mark.parametrize("place", ["command line", "file"])
def test_a_preset_gives_the_defaults_of_settings(place, tmp_path):
    (tmp_path / "a.yaml").write_text("preset: llava15-lora\nsettings:\n  epochs: 3\n")
    words = ["--config", f"{tmp_path}/a.yaml"] if place == "file" else ["--preset=llava15-lora", "--settings.epochs=3"]
    _, values = cli.parse("tune", ["--model=m", "--data=d", "--images=i", "--out=o", *words])
    assert (values["settings"].projector_learning_rate, values["settings"].epochs) == (2e-5, 3)


def test_words_before_the_options_are_the_option_that_a_command_names(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    _, values = cli.parse("report", ["~/a", "b, c", "--samples", "3"])
    assert (values["runs"], values["samples"]) == (("/home/me/a", "b, c"), 3)
    _, values = cli.parse("report", ["--runs", '["a"]'])
    assert values["runs"] == ("a",)
    _, values = cli.parse("inspect", ["pool.json", "--images=i"])
    assert (values["path"], values["images"]) == ("pool.json", "i")
    with pytest.raises(ValueError, match="one path is expected, got 2: a b"):
        cli.parse("inspect", ["a", "b"])


def test_an_unknown_preset(capsys):
    assert cli.main(["tune", "--preset", "huge"]) == 2
    assert capsys.readouterr().err.startswith("error: no preset 'huge'; there are llava15-align, ")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_is_explained(command, capsys):
    with pytest.raises(SystemExit):
        cli.parse(command, ["--help"])
    options = re.split(r"\n  (?=--)", capsys.readouterr().out.partition("options:")[2])[1:]
    plain = [" ".join(option.split()) for option in options]
    assert len(options) > 3
    assert not [text for text in plain if re.match(r"--\S+ (\S+ )?\((type|required)", text)]


# Groups of options, each of which is an option of the command itself


GROUPED = {
    "score": ["--model=m", "--pool=p", "--targets.gqa=g", "--images=pics", "--batch_tokens=7", "--fit_samples=3"],
    "rescore": ["--store=s", "--targets=[gqa]", "--fit_samples=3", "--curvature_on=host"],
}


def groups_of(values):
    return {name: value for name, value in values.items() if getattr(type(value), "flat", False) is True}


def test_options_of_groups_reach_their_group():
    _, values = cli.parse("score", [*GROUPED["score"], "--out=o"])
    reading, batches, fit = (values[name] for name in ("reading", "batches", "fit"))
    assert (reading.images, batches.batch_tokens, fit.fit_samples) == ("pics", 7, 3)
    assert (reading.max_length, batches.batch_size, fit.seed) == (2048, None, 0)
    _, values = cli.parse("rescore", [*GROUPED["rescore"], "--out=o"])
    assert (values["fit"].fit_samples, values["place"].curvature_on, values["targets"]) == (3, "host", ("gqa",))


@pytest.mark.parametrize("command", GROUPED)
def test_the_saved_configuration_is_flat_and_gives_the_same_run_again(command, tmp_path):
    _, values = cli.parse(command, [*GROUPED[command], "--out=o"])
    groups, saved = groups_of(values), yaml.safe_load(values["config"])
    assert len(groups) > 1 and not set(groups) & set(saved)
    for group in groups.values():
        assert all(saved[field.name] == getattr(group, field.name) for field in fields(group))
    (tmp_path / "config.yaml").write_text(values["config"])
    _, again = cli.parse(command, ["--config", f"{tmp_path}/config.yaml", "--out=o"])
    assert again == values


@pytest.mark.parametrize("command", GROUPED)
def test_no_group_is_an_option(command, tmp_path, capsys):
    _, values = cli.parse(command, [*GROUPED[command], "--out=o"])
    for name, group in groups_of(values).items():
        option = fields(group)[0].name
        assert cli.main([command, *GROUPED[command], "--out=o", f"--{name}.{option}", "1"]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: unrecognized arguments: --{name}.{option} 1") and line.count("\n") == 1
        (tmp_path / "nested.yaml").write_text(yaml.safe_dump({name: {option: 1}}))
        assert cli.main([command, *GROUPED[command], "--out=o", "--config", f"{tmp_path}/nested.yaml"]) == 2
        assert capsys.readouterr().err.startswith(f"error: Option '{name}.{option}' is not accepted (in {tmp_path}/")


@pytest.mark.parametrize("place", ["command line", "file"])
@pytest.mark.parametrize("value", ["runs/store", "null"])
@pytest.mark.parametrize("key", ["from_store", "targets_of", "leave_out"])
def test_an_option_that_moved_says_where_it_is_now(key, value, place, tmp_path, capsys):
    """Configurations that were saved before the move have all of these keys, mostly with null."""
    (tmp_path / "old.yaml").write_text(f"{key}: {value}\nscorers: [TracIn]\n")
    words = ["--config", f"{tmp_path}/old.yaml"] if place == "file" else [f"--{key}", value]
    assert cli.main(["score", *words, "--out", f"{tmp_path}/run"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: --{key} is no longer an option of this command: ") and line.count("\n") == 1
    assert "`vlmsel rescore --store DIR`" in line and line.endswith("; leave it out here\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words", [["--version"], ["scroe"], pytest.param(["select", "--frac", "1"], marks=pytest.mark.slow)]
)
def test_python_m_vlmsel_is_the_command(words, capsys):
    done = subprocess.run([sys.executable, "-m", "vlmsel", *words], capture_output=True, text=True, check=False)
    assert done.returncode == cli.main(words)
    assert (done.stdout, done.stderr) == tuple(capsys.readouterr())
