"""The notebook runs from its first cell to its last, as a kernel would run it."""

from __future__ import annotations

import ast
import asyncio
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import pytest

NOTEBOOK = json.loads((Path(__file__).resolve().parents[2] / "launch" / "first_steps.ipynb").read_text("utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def value_of(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of an expression that it ends with."""
    *first, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        first, last = [*first, last], None  # type: ignore[assignment]
    exec(compile(ast.Module(first, []), "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_every_cell_runs_in_a_kernel_with_a_running_loop(
    in_a_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", kernel)
    names = vars(kernel)

    async def run() -> list[Any]:
        return [value_of(cell, names) for cell in CELLS]

    with mpl.rc_context({"backend": "Agg"}):
        values = asyncio.run(run())
    assert values[1] == (60, 10 * 718 / 4096, [15, 15, 15])
    status, accuracy, _ = values[2]
    assert status == "finished"
    assert accuracy > 0.9
    steps = {total: steps for total, (_, steps) in values[5].items()}
    assert steps == {total: 8 * 1437 // total for total in (32, 128, 512)}
    assert "samples (95 %" in capsys.readouterr().out


def test_it_was_saved_with_the_outputs_of_a_whole_run_and_no_error():
    executed = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in executed] == list(range(1, len(executed) + 1))
    outputs = [output for cell in executed for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result", "stream"}
