"""`largebatch verify`: proves on the user's own model, loss and data that the topology changes nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from largebatch.commands.composition import EXIT_FAILED, run_verb

if TYPE_CHECKING:
    from largebatch.prepare import Prepared
    from largebatch.schema import VerifyConfig
    from largebatch.verification import Case, Cause, Comparison, Trajectory

    Errors = dict[Case, Comparison]

MOST_TENSORS = 12  # on the screen; the file has all
_TOLERANCES = {"fp64": 1e-9, "fp32": 1e-4}


def main(arguments: Sequence[str]) -> int:
    """Compose, compare, name causes; returns 0 if every factorization agrees, 1 if not, 2 for wrong input."""
    return run_verb("verify", run, arguments, config_name="verify")


def run(config: DictConfig, overrides: list[str]) -> int:
    """Compare factorizations of the composed run with a reference in plain torch."""
    from largebatch.config import parse_section
    from largebatch.prepare import prepare
    from largebatch.schema import VerifyConfig

    options = parse_section(config, "verify", VerifyConfig)
    OmegaConf.update(config, "precision.compute", options.precision)
    prepared = prepare(config, os.environ)
    tolerance = options.tolerance or _TOLERANCES[options.precision]
    causes, errors = _compare(config, prepared, options, tolerance)
    failed = bool(causes) or any(one.error > tolerance for one in errors.values())
    if os.environ.get("RANK", "0") == "0":
        _show(prepared, causes, errors, tolerance, failed=failed)
    return EXIT_FAILED if failed else 0


def _compare(
    config: DictConfig, prepared: Prepared, options: VerifyConfig, tolerance: float
) -> tuple[list[Cause], Errors]:
    from largebatch.config import ConfigError
    from largebatch.verification import (
        Probe,
        causes_in_advance,
        causes_of_failure,
        choose_cases,
        reference_trajectory,
    )

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    size = prepared.derived.plan.global_batch_size
    limits = {"micro": prepared.config.batch.micro, "max_micro": prepared.config.batch.max_micro}
    world_sizes = [launched] if launched > 1 else options.world_sizes
    try:
        cases = choose_cases(global_batch_size=size, world_sizes=world_sizes, **limits)
        (whole, *_) = choose_cases(global_batch_size=size, world_sizes=[1], **limits)
        if prepared.config.batch_norm == "exact":
            (whole, *_) = choose_cases(global_batch_size=size, world_sizes=[1], micro=None, max_micro=None)
    except ValueError as error:
        raise ConfigError([f"verify.world_sizes={world_sizes}: {error}"]) from None
    if prepared.config.batch_norm == "exact" and Probe(prepared).draws():
        raise ConfigError(
            ["batch_norm=exact: is compared with one big batch, which draws other random numbers than its micro-"
             "batches do. Verify without dropout; what each micro-batch draws does not depend on the ranks."]
        )  # fmt: skip
    reference = reference_trajectory(prepared, whole.plan, num_steps=options.steps)
    causes = causes_in_advance(prepared, reference)
    if causes:
        return causes, {}
    causes, errors = _run_all(config, prepared, cases, reference, options)
    if any(one.error > tolerance for one in errors.values()):
        causes += causes_of_failure(prepared, errors, tolerance=tolerance)
    return causes, errors


def _run_all(
    config: DictConfig, prepared: Prepared, cases: list[Case], reference: Trajectory, options: VerifyConfig
) -> tuple[list[Cause], Errors]:
    """All cases of one number of ranks at a time: here, in processes of our own, or in those of a launcher."""
    import tempfile

    from largebatch.verification import run_cases, save_reference, start_ranks

    causes: list[Cause] = []
    errors: Errors = {}
    plain: Any = OmegaConf.to_container(config, resolve=False)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory(prefix="largebatch-verify-") as folder:
        save_reference(reference, folder)
        for world_size in dict.fromkeys(case.world_size for case in cases):
            plans = [case.plan for case in cases if case.world_size == world_size]
            if world_size in (1, launched):
                found, measured = run_cases(prepared, plans, reference, options.steps)
            else:
                found, measured = start_ranks(world_size, plain, plans, folder, options.steps)
            errors |= measured
            causes += [cause for cause in found if cause not in causes]
            if found:
                break
    return causes, errors


def _show(prepared: Prepared, causes: list[Cause], errors: Errors, tolerance: float, *, failed: bool) -> None:
    import json
    from pathlib import Path

    from largebatch.run_folder import environment, new_folder
    from largebatch.trackers import print_table

    rows = [
        (case.name, f"{one.gradient_error:.1e}", f"{one.weights_error:.1e}",
         "same" if one.error <= tolerance else "DIFFERENT")
        for case, one in errors.items()
    ]  # fmt: skip
    if rows:
        print_table(("ranks: micro-batches", "gradient", "weights", ""), rows, title="largest relative error")
    worst = _worst(errors)
    shown = sorted(worst, key=lambda name: -max(worst[name]))[:MOST_TENSORS]
    tensors = [(name, *(f"{error:.1e}" for error in worst[name])) for name in shown]
    if tensors:
        title = f"per parameter tensor, over all of them; the largest {len(shown)} of {len(worst)}"
        print_table(("parameter", "gradient", "weights"), tensors, title=title)
    for cause in causes:
        print(f"cause: {cause.name}\n  {cause.text}")
    if failed and not causes:
        print("cause: not found. Look at the parameters with the largest errors, and at what computes their gradients.")
    config = prepared.config
    folder = Path(config.run.dir) if config.run.dir else new_folder(config.run.root, "verify")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "same": not failed,
        "tolerance": tolerance,
        "precision": config.precision.compute,
        "causes": [{"name": cause.name, "text": cause.text} for cause in causes],
        "cases": [
            {"name": case.name, "world_size": case.world_size, "micro_batch_sizes": list(case.plan.micro_batch_sizes),
             "gradient": one.gradient, "weights": one.weights}
            for case, one in errors.items()
        ],
        "environment": environment(),
    }  # fmt: skip
    (folder / "verify.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{'DIFFERENT' if failed else 'same'} (tolerance {tolerance:g}); {folder / 'verify.json'}")


def _worst(errors: Errors) -> dict[str, tuple[float, float]]:
    """Largest error of gradient and weights over all cases, by parameter."""
    worst: dict[str, tuple[float, float]] = {}
    for one in errors.values():
        for name, weight_error in one.weights.items():
            gradient, weights = worst.get(name, (0.0, 0.0))
            worst[name] = (max(gradient, one.gradient.get(name, 0.0)), max(weights, weight_error))
    return worst
