"""Starts ranks for a comparison, and the work of each rank."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from largebatch.batch.plan import BatchPlan
from largebatch.distributed.gather import gather_floats
from largebatch.distributed.runtime import Runtime
from largebatch.experiments.local_ranks import on_local_ranks
from largebatch.experiments.verify.cases import Case
from largebatch.experiments.verify.causes import Cause
from largebatch.experiments.verify.comparison import Comparison, compare
from largebatch.experiments.verify.planted import Defect
from largebatch.experiments.verify.probe import Probe
from largebatch.experiments.verify.trajectories import Trajectory, package_trajectory
from largebatch.records.durable_files import as_not_written
from largebatch.run.parts import as_agreed, open_runtime
from largebatch.run.prepare import Prepared, prepare

_KINDS = ("gradient", "weights", "statistics")  # the tensors of a trajectory
# Relative, of a gradient's L1 norm between ranks: another processor rounds differently, other draws are far off.
_SAME_GRADIENT = 1e-4
Outcome = tuple[list[Cause], dict[Case, Comparison]]


def start_ranks(
    world_size: int, config: dict[str, Any], plans: Sequence[BatchPlan], folder: str, steps: int
) -> Outcome:
    """Compare `plans` on `world_size` processes of this machine, over gloo.

    Args:
        world_size: processes to start.
        config: the composed config as plain values.
        plans: all for `world_size` ranks.
        folder: holds the reference, as `save_reference` wrote it.
        steps: optimizer steps.

    Raises:
        ChildFailedError: if a process fails; its own message was printed.
    """
    outcome: Outcome = on_local_ranks(world_size, verify_on_rank, config, list(plans), folder, steps)
    return outcome


def verify_on_rank(config: dict[str, Any], plans: list[BatchPlan], folder: str, steps: int) -> Outcome:
    """Compare `plans` with the reference in `folder`, as one rank of a job."""
    prepared = prepare(OmegaConf.create(config), os.environ)
    return run_cases(prepared, plans, load_reference(folder), steps)


def save_reference(reference: Trajectory, folder: str) -> None:
    """Write the reference where the ranks find it."""
    for name in _KINDS:
        tensors: dict[str, Tensor] = getattr(reference, name)
        path = Path(folder) / f"{name}.safetensors"
        with as_not_written(path):
            try:
                save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            except SafetensorError as error:
                raise OSError(str(error)) from error


def load_reference(folder: str) -> Trajectory:
    """Read the reference that `save_reference` wrote."""
    gradient, weights, statistics = (load_file(f"{folder}/{name}.safetensors") for name in _KINDS)
    return Trajectory(gradient, weights, statistics)


def run_cases(prepared: Prepared, plans: Sequence[BatchPlan], reference: Trajectory, steps: int) -> Outcome:
    """Compare each plan with the reference on the ranks of this job; the same on every rank."""
    with open_runtime(prepared) as runtime:
        prepared = as_agreed(prepared, runtime)
        causes = rank_dependence(Probe(prepared), runtime) if runtime.world_size > 1 else []
        if causes:  # a collective in the model or the loss would hang where ranks have unequal numbers of micro-batches
            return causes, {}
        return [], {Case(plan): compare_on(runtime, prepared, plan, reference, steps) for plan in plans}


def compare_on(
    runtime: Runtime,
    prepared: Prepared,
    plan: BatchPlan,
    reference: Trajectory,
    steps: int,
    *,
    defect: Defect | None = None,
) -> Comparison:
    """The errors of one plan, with a defect planted as by `package_trajectory`; the same on every rank."""
    ours = package_trajectory(prepared, runtime, plan, num_steps=steps, defect=defect)
    return _of_all_ranks(runtime, compare(ours, reference))


def _of_all_ranks(runtime: Runtime, errors: Comparison) -> Comparison:
    """The largest error of every tensor: a rank may go astray alone."""
    kinds = asdict(errors)
    ranks = iter(zip(*gather_floats(runtime, [one for kind in kinds.values() for one in kind.values()]), strict=True))
    return Comparison(**{kind: {name: _largest(next(ranks)) for name in names} for kind, names in kinds.items()})


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(one) for one in values) else max(values)


def rank_dependence(probe: Probe, runtime: Runtime) -> list[Cause]:
    """Why ranks differ on the same samples under the same seed: none may communicate, and all must agree."""
    for one in [*probe.model.parameters(), *probe.model.buffers()]:
        if one.is_contiguous():  # as a run begins
            runtime.broadcast_tensor(torch.view_as_real(one.detach()) if one.is_complex() else one.detach())
    probe.train()
    with _Watch() as watch:
        gradient = probe.gradient([slice(0, probe.count)])
    if watch.collectives:
        return [
            Cause(
                "collective inside the loss or the model",
                f"One forward and backward pass called {', '.join(sorted(watch.collectives))}: its gradient is then "
                "multiplied by the number of ranks or mixed between them, and ranks with unequal numbers of "
                "micro-batches hang. Let the loss see its own micro-batch alone; the trainer reduces once per step.",
            )
        ]
    probe.model.eval()
    own = [_size(gradient.values()), _size([probe.prediction()]), float(watch.draws)]
    gradients, outputs, draws = zip(*gather_floats(runtime, own), strict=True)
    return [] if _are_same(gradients) else [_depends_on_rank(in_eval=not _are_same(outputs), draws=any(draws))]


def _are_same(values: Sequence[float]) -> bool:
    return all(math.isclose(one, values[0], rel_tol=_SAME_GRADIENT) for one in values)


def _size(tensors: Iterable[Tensor]) -> float:
    return sum(float(one.abs().double().sum()) for one in tensors)


def _depends_on_rank(*, in_eval: bool, draws: bool) -> Cause:
    """The cause of a gradient that differs between ranks, as far as the experiments show it."""
    found = "The same micro-batch under the same seed and weights gives another gradient on every rank: "
    keyed = "Draw from torch's global generator, which is keyed by step and micro-batch, never by rank."
    if in_eval:
        return Cause(
            "a model that depends on the rank",
            f"{found}its outputs differ in eval mode, too. Something in it, such as a factor or a branch, looks at the "
            "rank. A run is the same on any number of ranks only if no sample's output depends on the rank that "
            "computes it.",
        )
    if draws:
        return Cause(
            "random draws that depend on the rank",
            f"{found}only in training mode, in which it draws random numbers that depend on the rank. {keyed}",
        )
    return Cause(
        "training mode that depends on the rank",
        f"{found}only in training mode, and no random operation of torch was seen: either something looks at the rank, "
        f"or numbers are drawn elsewhere, as in numpy, under a seed of the rank. {keyed}",
    )


class _Watch(TorchDispatchMode):
    """Notes collectives of a process group, and draws of random numbers, that are called inside, backward too."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: set[str] = set()
        self.draws = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.collectives.add(func.overloadpacket.__name__.rstrip("_"))
        self.draws |= torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))
