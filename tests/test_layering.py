"""The order of the packages, what importing them costs, and the size of files and functions."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import compress
from compress.commands.registry import SUMMARIES

ROOT = Path(compress.__file__).parent

#: Packages and modules, low to high: each imports only from itself and from those before it.
ROOMS = [
    "errors",
    "target",
    "files",
    "progress",
    "decomposition",
    "pose",
    "network",
    "zoo",
    "forms",
    "planning",
    "surgery",
    "model",
    "checkpoint",
    "data",
    "runtime",
    "evaluation",
    "training",
    "exporters",
    "measure",
    "compression",
    "reporting",
    "commands",
    "recipe",
    "pipeline",
    "sweep",
    "cli",
    "__main__",
]

#: Packages that may know the terminal.
TERMINAL = {"commands", "cli", "__main__"}

#: Modules that are also run as a process of their own, with arguments and an output.
PROCESSES = {"compress.measure.isolation"}

HEAVY = {"openvino", "onnx", "onnxscript", "onnxruntime", "nncf", "matplotlib", "pandas", "faster_coco_eval", "jinja2"}

MOST_LINES = 450
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 7

#: Functions with more than `MOST_FUNCTION_LINES` lines of code, and why they are not divided.
LONG_FUNCTIONS: dict[str, str] = {}

#: Public functions with more than `MOST_PARAMETERS` parameters, and why.
MANY_PARAMETERS = {"compress.exporters.export.export": "a keyword for each format, as a caller would say it"}

SOURCES = {
    ".".join(("compress", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
ROOM_SOURCES = [name for name in SOURCES if name != "compress"]  # the public face imports from everywhere, lazily

Function = ast.FunctionDef | ast.AsyncFunctionDef


def for_types_only(tree: ast.AST) -> set[ast.AST]:
    """Nodes below ``if TYPE_CHECKING``, which never run."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


def imported_names(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name (or "") of every import of the package's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the package they come from"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            names = [(alias.name, "") for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (pair for pair in names if pair[0].partition(".")[0] == "compress")


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", ROOM_SOURCES)
def test_a_package_imports_only_from_those_before_it(module: str) -> None:
    room = room_of(module)
    assert room in ROOMS, f"{room} is not in the list of packages"
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for source, name in imported_names(TREES[module]):
        if source == "compress" and (not name or name.startswith("__")):
            continue  # the version
        source = f"compress.{name}" if source == "compress" else source
        assert room_of(source) in allowed, f"{room} may not import {source}"


def circle_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle, the first one again at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for module in ROOM_SOURCES:
        ignored = for_types_only(TREES[module])
        found = set()
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.ImportFrom) and node not in ignored and (node.module or "").startswith("compress."):
                named = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
                found |= named or {str(node.module)}
        graph[module] = found - {module}
    assert circle_of(graph) == []
    assert circle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []


def test_no_private_name_is_imported_from_another_file() -> None:
    private = [
        f"{module}: {source}.{name}"
        for module, tree in TREES.items()
        for source, name in imported_names(tree)
        if name.startswith("_") and not name.startswith("__")
    ]
    assert private == []


def test_only_the_commands_know_the_terminal() -> None:
    found = []
    for module in ROOM_SOURCES:
        if room_of(module) in TERMINAL or module in PROCESSES:
            continue
        for node in ast.walk(TREES[module]):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            found += [f"{module}: {name}" for name in names if name.split(".")[0] in ("click", "rich", "argparse")]
            if isinstance(node, ast.Attribute) and node.attr == "argv":
                found.append(f"{module}: argv")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
                found.append(f"{module}: {node.func.id}")
    assert found == []


def test_importing_every_module_loads_no_runtime_and_no_plotting() -> None:
    names = [name for name in ROOM_SOURCES if not name.endswith("__main__")]
    loaded = modules_after(f"import importlib; [importlib.import_module(name) for name in {names}]")
    assert "torch" in loaded
    assert sorted(loaded & HEAVY) == []


def modules_after(code: str) -> set[str]:
    """Top-level packages that are loaded once a new interpreter has run some code."""
    code += "; import json, sys; print(json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_loads_no_library_of_arrays() -> None:
    assert modules_after("import compress") & {"torch", "numpy", "scipy", "cv2", "pydantic", "click", "rich"} == set()


def test_help_of_every_command_is_there_without_torch() -> None:
    code = (
        "import sys; from compress.cli import cli; "
        f"[cli.main([name, '--help'], standalone_mode=False) for name in {[*SUMMARIES, 'run', 'sweep']}]"
    )
    assert modules_after(code) & {"torch", *HEAVY} == set()


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """All functions and methods with their dotted names, those inside functions too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = f"{inside}.{node.name}" if inside else node.name
            if not isinstance(node, ast.ClassDef):
                yield name, node
            yield from functions(node, name)
        else:
            yield from functions(node, inside)


def code_lines(function: Function) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_no_file_is_too_long_to_hold_in_mind() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_long_functions_are_those_with_a_reason() -> None:
    long = {
        f"{module}.{name}": code_lines(function)
        for module, tree in TREES.items()
        for name, function in functions(tree)
        if code_lines(function) > MOST_FUNCTION_LINES
    }
    assert {name: lines for name, lines in long.items() if name not in LONG_FUNCTIONS} == {}
    assert LONG_FUNCTIONS.keys() <= long.keys(), "a function in the list is short by now"
    assert all(LONG_FUNCTIONS.values())


def test_public_functions_take_few_parameters() -> None:
    many = {}
    for module, tree in TREES.items():
        for name, function in functions(tree):
            arguments = function.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            if arguments.args and arguments.args[0].arg in ("self", "cls"):
                count -= 1
            private = any(part.startswith("_") and part != "__init__" for part in name.split("."))
            if count > MOST_PARAMETERS and not private:
                many[f"{module}.{name}"] = count
    assert many.keys() == MANY_PARAMETERS.keys()
