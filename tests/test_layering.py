"""The order of the rooms, and what importing them may cost."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import compress

ROOT = Path(compress.__file__).parent
ROOMS = [
    "errors",
    "target",
    "files",
    "progress",
    "decomposition",
    "pose",
    "network",
    "zoo",
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
    "cli",
    "__main__",
]
HEAVY = {"openvino", "onnx", "onnxscript", "onnxruntime", "nncf", "matplotlib", "pandas", "faster_coco_eval", "jinja2"}
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]


def rooms_imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room they come from"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for parts in (name.split(".") for name in names):
            if parts[0] == "compress" and len(parts) > 1 and not parts[1].startswith("__"):
                yield parts[1]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_earlier_rooms(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert room in ROOMS, f"{room} is not in the list of rooms"
    for other in rooms_imported(ast.parse(path.read_text(encoding="utf-8"))):
        assert other in ROOMS[: ROOMS.index(room) + 1], f"{room} may not import {other}"


def test_importing_every_module_loads_no_runtime_and_no_plotting() -> None:
    names = [".".join(("compress", *path.relative_to(ROOT).with_suffix("").parts)) for path in SOURCES]
    names = [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]
    code = (
        f"import importlib, json, sys; [importlib.import_module(n) for n in {names}]; print(json.dumps([*sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    assert "compress" in loaded
    assert sorted(loaded & HEAVY) == []
