"""`largebatch bench WHAT`: measures speed on this machine, or counts the mistakes of `verify` on planted defects."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from largebatch.cli import measure
from largebatch.cli.composition.choices import list_choices
from largebatch.cli.composition.composing import run_verb
from largebatch.cli.process.leaving import EXIT_DONE, EXIT_FAILED, EXIT_WRONG_INPUT

BENCHES = {
    "loop": "our training loop against a hand-written DDP loop and accelerate's, on the model and batch of the config",
    "communication": "latency, bandwidth and the predicted step on more ranks: `largebatch measure communication`",
    "diagnostics": "the same loop with and without measuring the noise scale or communication",
    "critical-batch": "how often the intervals of `measure critical-batch` hold the truth of a noisy quadratic",
    "growth": "how often a batch grows by its noise scale although the next one is above the true one",
    "data": "what loading images costs the training thread, with and without a thread that loads ahead",
    "attribution": "parts of `attribute` against true ones, and the coverage of their intervals, on planted tasks",
    "verify": "false alarms and missed defects of `largebatch verify`, over models, optimizers and seeds",
    "rows": "memory and time of `report`, `compare`, `diff` and a resume on runs of a million rows",
    "scaling": "how far noise moves weights after equal samples at 2 to 20 times the batch, by several scaling rules",
    "start": "how long --help, errors, a plan and the first step take, as whole processes",
    "prediction": "time, memory and communication of held-out runs, predicted from others, against what they took",
    "optim": "a step of LAMB and LARS against torch's fused AdamW and SGD, and other packages that are installed",
}
# Benches that run a config, with their default overrides. The others have settings of their own.
OF_A_RUN = {"loop": (), "diagnostics": ("observers.noise_scale.every=10",)}


def main(arguments: Sequence[str]) -> int:
    """`bench WHAT [KEY=VALUE ...]`, with WHAT one of `BENCHES`.

    Returns 0; 1 if a measurement failed or `bench verify` counted a mistake; 2 for wrong input.
    """
    if not arguments or arguments[0] not in BENCHES:
        return list_choices("bench", BENCHES, arguments)
    name, *given = arguments
    if name == "communication":  # a measurement of a run, with its table, picture and record
        return measure.main([name, *given])
    bench = importlib.import_module(f"largebatch.experiments.bench.{name.replace('-', '_')}")
    if name in OF_A_RUN:
        return run_verb("bench", bench.measure, ["length=100000steps", *OF_A_RUN[name], *given])
    from largebatch.experiments.bench.settings import read_settings, usage

    if {"-h", "--help"}.intersection(given):
        print(usage(name, bench.Settings))
        return EXIT_DONE
    try:
        settings = read_settings(bench.Settings, given)
    except ValueError as error:
        print(f"largebatch bench {name}: {error}\n\n{usage(name, bench.Settings)}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    return EXIT_DONE if bench.measure(settings) else EXIT_FAILED
