"""`largebatch bench WHAT`: measurements on this machine, each against a rival in the same process."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence

from largebatch.commands.choices import show_choices

BENCHES = {
    "loop": "our training loop against a hand-written DDP loop, on the model, data and batch of the config",
    "diagnostics": "our loop with the noise scale or communication measured against without, on the same",
    "optim": "a step of LAMB and LARS against torch's fused AdamW and SGD, and other packages that are installed",
}


def main(arguments: Sequence[str]) -> int:
    """`bench loop|diagnostics|optim [KEY=VALUE ...]`. Returns the exit code."""
    if arguments and arguments[0] in BENCHES:
        bench = importlib.import_module(f"largebatch.commands.bench_{arguments[0]}")
        return int(bench.main(arguments[1:]))
    return show_choices("bench", BENCHES, arguments)


def median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median from n ascending independent values: the order statistics n/2 -+ 0.98 sqrt(n).

    Source: Conover 1999, Practical Nonparametric Statistics, section 3.2 (normal approximation of the binomial).

    >>> median_interval([float(value) for value in range(100)])
    (40.0, 59.0)
    """
    half_width = 0.98 * math.sqrt(len(ordered))
    first = max(math.ceil(len(ordered) / 2 - half_width) - 1, 0)
    return ordered[first], ordered[-first - 1]
