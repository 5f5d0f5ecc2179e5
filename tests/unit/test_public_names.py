"""What `import largebatch` and the faces of the rooms offer to a program of somebody else's."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import largebatch

ROOT = Path(largebatch.__file__).parent
FACES = ("largebatch", "largebatch.batch", "largebatch.diagnostics", "largebatch.gradient", "largebatch.training")
HEAVY = {"torch", "numpy", "hydra", "omegaconf", "accelerate", "pydantic", "matplotlib", "wandb"}


def names_for_type_checkers(face: str) -> set[str]:
    """Those that the file of a face imports, or would, for a type checker."""
    path = Path(str(importlib.import_module(face).__file__))
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports = [
        node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("largebatch.")
    ]
    return {alias.name for node in imports for alias in node.names}


def test_nothing_heavy_is_imported_before_a_name_is_used():
    """A face that imports what is behind it would make `import largebatch` wait for torch."""
    lazy = [face for face in FACES if face != "largebatch.batch"]
    code = f"import sys; import {', '.join(lazy)}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("face", FACES)
def test_every_name_resolves_is_documented_listed_and_seen_by_type_checkers(face: str):
    module = importlib.import_module(face)
    offered = {name: getattr(module, name) for name in module.__all__}
    assert set(module.__all__) <= set(dir(module))
    assert {name for name, value in offered.items() if callable(value) and not inspect.getdoc(value)} == set()
    assert set(module.__all__) - {"__version__"} == names_for_type_checkers(face)


def test_the_docstring_of_the_package_lists_its_names_by_room():
    room, listed = "", {}
    for line in str(largebatch.__doc__).splitlines():
        if line.startswith("    "):
            words = line.split()
            room = room if line.startswith(" " * 8) else words.pop(0)
            listed |= dict.fromkeys(words, room)
    found = {name: str(getattr(largebatch, name).__module__).split(".")[1] for name in listed}
    assert found == listed
    assert {*listed, "__version__"} == set(largebatch.__all__)


def test_a_name_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError, match="module 'largebatch' has no attribute 'LARZ'"):
        largebatch.LARZ  # noqa: B018


@pytest.mark.parametrize("face", FACES)
def test_a_type_checker_finds_a_misspelt_name(face: str):
    """It believes a `__getattr__` that it sees: such a module has every name."""
    path = Path(str(importlib.import_module(face).__file__))
    for node in map(ast.unparse, ast.parse(path.read_text(encoding="utf-8")).body):
        assert "__getattr__" not in node or node.startswith(("if not TYPE_CHECKING:", "def lazy_names("))
