"""Marks at tests, read from the source: they are known whether a test runs or not, and without importing it."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mark:
    """A mark at a test.

    Attributes:
        test: `FILE::TEST`, without parameters.
        arguments: of the mark.
        options: its keyword arguments.
    """

    test: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@functools.cache
def marks(name: str) -> tuple[Mark, ...]:
    """Every `@pytest.mark.NAME` above a test function, by file and line."""
    found = []
    for path in sorted(ROOT.joinpath("tests").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if f"@pytest.mark.{name}" not in text:
            continue
        for node in ast.parse(text).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                call = mark if isinstance(mark, ast.Call) else ast.Call(mark, [], [])
                if ast.unparse(call.func) == f"pytest.mark.{name}":
                    options = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
                    arguments = tuple(ast.literal_eval(one) for one in call.args)
                    found.append(Mark(f"{path.relative_to(ROOT)}::{node.name}", arguments, options))
    return tuple(found)


def functions_in(folder: Path) -> set[str]:
    """Every test function of the files in a folder, as `FILE::TEST`."""
    files = {path: ast.parse(path.read_text(encoding="utf-8")).body for path in folder.glob("test_*.py")}
    return {
        f"{path.relative_to(ROOT)}::{node.name}"
        for path, body in files.items()
        for node in body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
