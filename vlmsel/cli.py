"""The command line: `vlmsel <command> --config file.yaml --dotted.override value --out RUN`.

A command is a typed function of the same name in `vlmsel.commands.<command>`; jsonargparse turns its signature into
flags and YAML keys. A command's module is imported only when it is chosen, so that `vlmsel --help` needs no torch. A
module with `POSITIONAL` names the option that words before the first option stand for (`vlmsel report RUN`). A module
with `PRESETS` (name -> settings) lets `--preset` choose the defaults of `--settings.*`. Paths may begin with ~.

Every command takes `--log_level quiet|info|debug`, the long ones `--dry_run`, which says what would be done, read and
written, and the resolved configuration, and writes nothing.

User errors end with one line and exit code 2; set VLMSEL_DEBUG=1, or `--log_level debug`, to see the traceback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple, get_args, get_type_hints

from vlmsel import progress
from vlmsel.commands import work
from vlmsel.commands.groups import grouped, groups_of
from vlmsel.shell.listed import did_you_mean, kind_of, listed, wrong_option

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "open_clip_torch", "datasets", "pyarrow", "pillow", "numpy")
EXIT = """exit codes:
  0    done
  2    wrong input, or memory ran out: one line on stderr says what and how to mend it
  130  interrupted (Ctrl-C), 143 terminated: the same command goes on where it stopped
  1    a mistake of ours, with its traceback"""
ALIASES = {"log_to": "settings.log_to"}  # what is said for short
COMMANDS = {
    "demo": "run the whole job on the embedded world and print the table scorer x task",
    "choose": "warm up, score and select: the whole choice in one command",
    "validate": "is the choice better than a random one here? tune on both and compare on held-out targets",
    "align": "phase one: train the projector (and LoRA) on captions",
    "warmup": "tune on a small random part of the pool, so that gradients tell samples apart",
    "score": "score every sample of a pool by its influence on target tasks",
    "rescore": "score it again from stored gradients, with other scorers or settings, without the model",
    "select": "write the part of the pool that target samples choose in turn, or another rule",
    "tune": "phase two: train projector and LoRA (or the whole LM) on instruction data",
    "evaluate": "answer the questions of benchmarks (VQAv2, GQA, POPE, TextVQA, text tasks) and compute the metrics",
    "plan": "before anything runs: hours, memory and disk on a named card, and settings that fit it",
    "inspect": "say what a pool or a checkpoint is made of and what is wrong with it, and write a clean pool",
    "report": "write one HTML page of what lies in run folders: verdict, results, scores, the choice and its samples",
    "convert": "between our model folders and transformers' LLaVA, LLaVA-1.5's own checkpoints, Prismatic's",
    "detect": "rank the training samples of a text classifier by how likely their labels are wrong",
}


def usage() -> str:
    """Return what `vlmsel --help` prints."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return (
        "usage: vlmsel <command> [--config FILE] [--option value ...]\n\n"
        "Which k % of my instruction data should I fine-tune on?\n\n"
        f"commands:\n{lines}\n\n"
        f"{EXIT}\n\n"
        "`vlmsel <command> --help` lists a command's options; `vlmsel --version` prints versions; `eval \"$(vlmsel "
        'completion bash)"` completes commands and options (also zsh, fish).'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code (0 done, 2 wrong input, 130 interrupted, 143 terminated)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print("\n".join(versions()))
        return 0
    if arguments[0] == "completion":
        from vlmsel.shell.completion import script

        return script(arguments[1:])
    if arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS)
        print(f"error: unknown command {arguments[0]!r}{near}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return _run(arguments[0], arguments[1:])


def versions() -> list[str]:
    """Return what `vlmsel --version` prints: our version, Python's, and those of the main libraries."""
    from importlib import metadata
    from platform import python_version

    from vlmsel import __version__

    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return [f"vlmsel {__version__}", f"python {python_version()}", *(f"{name} {version(name)}" for name in LIBRARIES)]


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` where SIGTERM comes within the block."""

    def end(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(command: str, arguments: list[str]) -> int:
    try:
        if not {"--help", "-h"}.isdisjoint(arguments):
            print(listed()[command]["help"], end="")
            return 0
        if wrong := wrong_option(command, [_unfolded(word) for word in arguments]):
            raise ArgumentError(None, wrong)
        with _terminable():
            call, values, given = parsed(command, arguments)
            with progress.speaking(given.log_level):
                carry_out(command, call, values, given.dry_run)
    except ArgumentError as problem:
        print(f"error: {option_problem(command, arguments, str(problem))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as end:
        how, code = ("terminated", 143) if isinstance(end, Terminated) else ("interrupted", 130)
        print(f"{how}; the same command goes on where it stopped", file=sys.stderr)
        return code
    except (ValueError, OSError, KeyError, ImportError, RuntimeError) as problem:
        unforeseen = isinstance(problem, RuntimeError)
        if os.environ.get("VLMSEL_DEBUG") or (unforeseen and "out of memory" not in str(problem)):
            raise
        mend = " Lower batch_size, or take fewer blocks or samples." if unforeseen else ""
        print(f"error: {one_line(problem)}{mend}", file=sys.stderr)
        return 2
    return 0


def carry_out(command: str, call: Callable[..., None], values: dict[str, Any], dry_run: bool) -> None:
    """Run a command whose paths are there, or say what it would do."""
    work.check(command, values, dry_run)
    if dry_run:
        print("\n".join(work.describe(command, values)))
        return
    progress.begin(work.WORK[command].stages if command in work.WORK else ())
    call(**values)


def one_line(problem: BaseException) -> str:
    """Return an exception's message as one line (KeyError quotes its message; that is undone)."""
    text = problem.args[0] if isinstance(problem, KeyError) and problem.args else problem
    return " ".join(str(text).split()) or type(problem).__name__


def option_problem(command: str, arguments: list[str], text: str) -> str:
    """Say on one line what is wrong with the options of a command, which may stand in a configuration file."""
    key = re.match(r'Parser key "([^"]+)"', text)
    expected = re.findall(r"Expected a (?:<class '(\w+)'>|typing.Literal\[(.*)\])", text)
    given = re.search(r"(?:Given|Got) value: (.*)$", text, re.DOTALL)
    if key and expected and given:
        named = {"NoneType": "null"}
        if "\n" not in given[1]:  # else it is about what stands in a mapping
            named["dict"] = f"given by name (--{key[1]}.NAME {given[1]})"
        kinds = " or ".join(named.get(kind, kind) or literal for kind, literal in dict.fromkeys(expected))
        one = re.search(r"NestedArg\(key='(.*?)', val='(.*?)'\)", given[1])  # of a mapping, given by its name
        name, value = (f"{key[1]}.{one[1]}", one[2]) if one else (key[1], given[1])
        text = f"{name} must be {kinds}, got {value}"
    file = _early_value(arguments, "config")
    where = f" (in {file} or on the command line)" if file else ""
    return f"{' '.join(text.split())}{where}; `vlmsel {command} --help` lists the options"


def described(command: str) -> dict[str, Any]:
    """Return the help and the options of a command, as `assets/options.json` holds them."""
    module = import_module(f"vlmsel.commands.{command}")
    function = getattr(module, command)
    parser = _parser(command, function)
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "110"  # argparse asks the terminal
    try:
        text = parser.format_help()
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    hints = dict(_hints(function))
    names = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    options = {name: kind_of(hints.get(name[2:], Any)) for name in sorted(names)}
    return {"help": text, "options": options, "moved": sorted(getattr(module, "MOVED", {}))}


def _hints(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the types of a command's options by their dotted names."""
    for name, hint in get_type_hints(kind).items():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from _hints(part, prefix if getattr(part, "flat", False) else f"{prefix}{name}.")
        yield f"{prefix}{name}", hint


class How(NamedTuple):
    """How a command is run, which no result depends on."""

    log_level: progress.LogLevel
    dry_run: bool


def parse(command: str, arguments: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the command's function and its arguments; `config` holds the resolved YAML where the function takes it."""
    return parsed(command, arguments)[:2]


def parsed(command: str, arguments: list[str]) -> tuple[Any, dict[str, Any], How]:
    """Return what `parse` does, and how the command is run."""
    module = import_module(f"vlmsel.commands.{command}")
    function = getattr(module, command)
    _refuse_moved(getattr(module, "MOVED", {}), arguments)
    arguments = [_unfolded(word) for word in arguments]
    if hasattr(module, "POSITIONAL"):
        arguments = _named(arguments, module.POSITIONAL, get_type_hints(function)[module.POSITIONAL] is not str)
    parser = _parser(command, function)
    if hasattr(module, "PRESETS"):
        _preset_defaults(parser, module, arguments)
    found = parser.parse_args(arguments)
    found.pop("config", None)
    how = How(found.pop("log_level"), bool(found.pop("dry_run", False)))
    for key, value in list(found.items()):
        found[key] = at_home(value)
    values = grouped(function, parser.instantiate(found).__dict__)
    found.pop("out", None)  # a moved folder still holds the same run
    text = parser.dump(found, skip_validation=True, skip_unset=False)
    return function, {**values, "config": f"# vlmsel {command}\n{text}"}, how


def _unfolded(word: str) -> str:
    """Write a short option in full."""
    name, equals, value = word.partition("=")
    known = ALIASES.get(name.removeprefix("--")) if name.startswith("--") else None
    return f"--{known}{equals}{value}" if known else word


def at_home(value: Any) -> Any:
    """Put the home folder in the place of the `~` that a text begins with, in lists and mappings too.

    A shell does so only where the path is a word of its own.

    >>> at_home({"a": ["images~1", 3]})
    {'a': ['images~1', 3]}
    """
    if isinstance(value, str):
        return os.path.expanduser(value)
    if isinstance(value, dict):
        return {name: at_home(own) for name, own in value.items()}
    return type(value)(map(at_home, value)) if isinstance(value, list | tuple) else value


def _parser(command: str, function: Any) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    groups = groups_of(function)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"vlmsel {command}", description=COMMANDS[command], allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a YAML file with any of the options below")
    parser.add_argument(
        "--log_level", choices=get_args(progress.LogLevel), default="info",
        help="quiet: the summary alone; debug: the libraries' notes and tracebacks too",
    )  # fmt: skip
    if command in work.WORK:
        what = "say what would be done, read and written, and the resolved configuration; write nothing"
        parser.add_argument("--dry_run", action="store_true", help=what)
    parser.add_function_arguments(function, as_group=False, skip={"config", *groups})
    for kind in groups.values():
        parser.add_class_arguments(kind, as_group=False, instantiate=False)
    return parser


def _refuse_moved(moved: Mapping[str, str], arguments: list[str]) -> None:
    """Say where an option went that the command had once."""
    for name, where in moved.items():
        if _early_value(arguments, name, missing := object()) is not missing:  # a saved configuration may have null
            raise ValueError(f"--{name} is no longer an option of this command: {where}; leave it out here")


def _named(arguments: list[str], option: str, several: bool) -> list[str]:
    """Give the words before the first option to the option that they stand for, which takes one or several."""
    first = next((place for place, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    words, rest = [at_home(word) for word in arguments[:first]], arguments[first:]
    if not words:
        return rest
    if len(words) > 1 and not several:
        raise ValueError(f"one path is expected, got {len(words)}: {' '.join(words)}")
    return [f"--{option}={json.dumps(words) if several else words[0]}", *rest]


def _preset_defaults(parser: Any, module: ModuleType, arguments: list[str]) -> None:
    name = _early_value(arguments, "preset") or parser.get_default("preset")
    if name not in module.PRESETS:
        raise ValueError(f"no preset {name!r}; there are {', '.join(module.PRESETS)}")
    preset = module.PRESETS[name]
    parser.set_defaults({f"settings.{field.name}": getattr(preset, field.name) for field in fields(preset)})


def _early_value(arguments: list[str], key: str, missing: Any = None) -> Any:
    """Find one option before the parser exists: its value on the command line, else in the configuration file."""
    import yaml

    config = None
    for index, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        given = value if equals else (arguments[index + 1] if index + 1 < len(arguments) else None)
        if flag == f"--{key}":
            return given
        config = given if flag == "--config" else config
    config = at_home(config)
    if config is None or not os.path.isfile(config):
        return missing
    with open(config, encoding="utf-8") as file:
        try:
            content = yaml.safe_load(file)
        except yaml.YAMLError:
            return missing  # the parser says what is wrong with it
    return content.get(key, missing) if isinstance(content, dict) else missing
