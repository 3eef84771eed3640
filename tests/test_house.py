"""What the house promises of itself, measured in its source: no circles, small rooms and functions, shapes, habits."""

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import jaxtyping
import pytest
import torch
import yaml

import vlmsel
from vlmsel.gradients import Factor
from vlmsel.solvers import cholesky, schulz

ROOT = Path(__file__).parents[1]
TREES = {
    path.relative_to(ROOT / "vlmsel").as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "vlmsel").rglob("*.py"))
}
LINES = {name: len((ROOT / "vlmsel" / name).read_text(encoding="utf-8").splitlines()) for name in TREES}
SHAPED = ("gradients/", "scorers/", "selection/", "solvers/")
SIGNATURES = [
    (f"commands/{name}.py", name) for name in ("score", "evaluate", "detect", "choose", "validate", "warmup", "plan")
]
ARRAYS = ("Bool", "Float", "Float32", "Float64", "Int", "Integer", "Num", "Shaped")  # jaxtyping's kinds
SCORERS = {"Scorer", "GradientScorer", "SampleScorer"}  # the kinds that scoring may tell apart

SELF = ("self", "cls")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    """Give every function and method with the file it stands in."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield name, node


def place(name: str, function: Function) -> str:
    return f"{name}:{function.lineno} {function.name}"


def public(tree: ast.Module) -> Iterator[Function]:
    """Give the functions of a module, and the methods of its classes, that others may call."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        yield from (f for f in inner if isinstance(f, Function) and not re.match("_(?!_)", f.name))


def parameters(function: Function) -> list[ast.arg]:
    given = function.args
    several = [one for one in (given.vararg, given.kwarg) if one]
    return [one for one in [*given.posonlyargs, *given.args, *given.kwonlyargs, *several] if one.arg not in SELF]


def assert_none(found: Iterable[str]) -> None:
    """Fail with all that was found."""
    if listed := "\n".join(found):
        pytest.fail(listed, pytrace=False)


def test_public_names_are_there():
    assert_none(name for name in vlmsel.__all__ if not hasattr(vlmsel, name))


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions and for type checkers only count too."""
    graph = grimp.build_graph("vlmsel", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as problem:
        pytest.fail(f"a circle of imports: {' <- '.join(problem.args[1])}")


@pytest.mark.parametrize(("folder", "most"), [("", 36_700), ("commands/", 1_950)], ids=["all", "commands"])
def test_lines(folder, most):
    assert sum(count for name, count in LINES.items() if name.startswith(folder)) <= most


def test_functions_are_short():
    long = [(name, f) for name, f in functions() if f.end_lineno - f.lineno >= 60]
    assert_none(place(name, f) for name, f in long if (name, f.name) not in SIGNATURES)


def test_functions_take_few_parameters():
    inner = [(name, f) for name, f in functions() if not name.startswith("commands/")]
    assert_none(place(name, f) for name, f in inner if len(parameters(f)) > 8)


def test_modules_say_what_they_are():
    assert_none(name for name, tree in TREES.items() if not ast.get_docstring(tree))


def bare_tensor(annotation: ast.AST | None) -> bool:
    """Tell whether an annotation has a tensor without a shape; what a callable takes and gives is not looked at."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Callable", *ARRAYS):
        return False
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation) in ("Tensor", "torch.Tensor")
    return annotation is not None and any(map(bare_tensor, ast.iter_child_nodes(annotation)))


def test_public_functions_on_tensors_say_their_shapes():
    assert_none(
        place(name, function)
        for name, tree in TREES.items()
        if name.startswith(SHAPED)
        for function in public(tree)
        if any(map(bare_tensor, [function.returns, *(one.annotation for one in parameters(function))]))
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: schulz.inverse(torch.ones(2, 3), 1.0),
        lambda: cholesky.solve(torch.ones(4, 2, 2), torch.ones(3, 2, 1)),
        lambda: Factor.from_dense(torch.ones(2, 3, 4)).inner(torch.ones(3, 4)),
    ],
)
def test_shapes_are_checked_while_tests_run(call):
    with pytest.raises(jaxtyping.TypeCheckError, match="Expected type"):
        call()


def concrete_scorers() -> set[str]:
    """Name the classes in scorers/ that are scorers, directly or through another."""
    trees = [tree for name, tree in TREES.items() if name.startswith("scorers/")]
    bases = {
        node.name: {ast.unparse(base) for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = set(SCORERS)
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    return found - SCORERS


def names_tested(tree: ast.AST) -> set[str]:
    """Name the classes that a module tells apart: by `isinstance`, `issubclass`, `type(...)` or `match`."""
    tested: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            tested.append(node.args[1])
        if isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            tested.append(node)
        if isinstance(node, ast.MatchClass):
            tested.append(node.cls)
    return {ast.unparse(part).rpartition(".")[2] for node in tested for part in ast.walk(node)}


def test_scoring_knows_no_scorer_by_name():
    scorers = concrete_scorers()
    assert "HyperINF" in scorers
    rooms = {name: tree for name, tree in TREES.items() if name.startswith("scoring/")}
    assert_none(f"{name}: {found}" for name, tree in rooms.items() for found in names_tested(tree) & scorers)


def test_the_checks_before_a_commit_are_those_of_ci():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    _, checks = (ROOT / ".ci/run").read_text().split('export PATH="$PWD/.venv/bin:$PATH"\n')
    assert [hook["entry"] for hook in local["hooks"]] == checks.splitlines()
