"""What a command imports before it has anything to do."""

from __future__ import annotations

import subprocess
import sys

PLAN = """
import sys
from largebatch.__main__ import main
assert main(["plan", "optimizer=adamw"]) == 0
unused = {"torch._dynamo", "accelerate", "wandb", "sklearn", "scipy", "matplotlib"} & set(sys.modules)
assert not unused, unused
"""


def test_plan_imports_neither_torchs_compiler_nor_what_it_does_not_use() -> None:
    """torch._dynamo alone takes longer than torch: making an optimizer, or drawing without storage, imports it."""
    process = subprocess.run([sys.executable, "-c", PLAN], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
