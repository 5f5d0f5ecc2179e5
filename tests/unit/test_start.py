"""What a command imports before it has anything to do, and what plots leave alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLAN = """
import sys
from pathlib import Path
from largebatch.__main__ import main
assert main(["plan", "optimizer=adamw"]) == 0
unused = {"torch._dynamo", "accelerate", "wandb", "sklearn", "scipy", "matplotlib"} & set(sys.modules)
assert not unused, unused
from largebatch.records.figures import run_figures
assert "matplotlib" not in sys.modules, "of figures"
from largebatch.records.rows.columns import columns_of
rows = [{"step": 1, "samples_seen": 1, "train/loss": 1.0}]
run_figures.draw_run(columns_of(rows), Path(sys.argv[1]), title="x")
assert "matplotlib.pyplot" not in sys.modules, "the backend is the user's choice"
"""


def test_plan_imports_neither_torchs_compiler_nor_what_it_does_not_use_and_plots_leave_pyplot_alone(
    tmp_path: Path,
) -> None:
    """torch._dynamo alone takes longer than torch: making an optimizer, or drawing without storage, imports it."""
    command = [sys.executable, "-c", PLAN, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "training.png").is_file()
