"""Lists of what must not go wrong name the tests that hold it; a name that leads nowhere holds nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def functions_of(path: Path) -> set[str]:
    """The functions of a file, each as FILE::NAME with the file's path in the repository."""
    functions = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    return {f"{path.relative_to(ROOT)}::{node.name}" for node in functions}


def without_test(named: Iterable[str]) -> set[str]:
    """Those of `named`, each FILE::TEST, that do not exist."""
    names = set(named)
    files = {ROOT / test.partition("::")[0] for test in names}
    return names - {test for path in files for test in functions_of(path)}
