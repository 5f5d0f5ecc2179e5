"""Why a run depends on its topology: each cause is an experiment of its own, on a few samples, in this process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from largebatch.experiments.verify.cases import Case
from largebatch.experiments.verify.comparison import Bounds, Comparison
from largebatch.experiments.verify.probe import Probe
from largebatch.experiments.verify.rounding import MOST
from largebatch.losses.coupled import is_coupled
from largebatch.run.checks.dry_run import data_problems, state_problems
from largebatch.run.prepare import Prepared

_MANY_ROUNDINGS = 1000  # 1e-4 in float32
_FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of gradients on their way


@dataclass(frozen=True)
class Cause:
    """Why a run is not the same on every topology.

    Attributes:
        name: in a few words.
        text: fact, rule and remedy.
    """

    name: str
    text: str


def causes_in_advance(prepared: Prepared) -> list[Cause]:
    """Causes that need no comparison: they break the contract, or would make ranks wait for each other."""
    return [*_state(prepared), *_loss_over_batch(Probe(prepared))]


def causes_of_failure(prepared: Prepared, errors: Mapping[Case, Comparison], bounds: Bounds) -> list[Cause]:
    """The causes of failing cases, found by experiments; may be empty."""
    causes, probe = [], Probe(prepared)
    if prepared.config.batch.micro is None and prepared.config.batch_norm == "per_micro_batch":
        causes += _split_dependence(probe, MOST[prepared.config.precision.compute], bounds.undecided)
    causes += _unequal_shares(errors, bounds)
    return causes + _compression(prepared, errors)


def causes_of_doubt(prepared: Prepared, bounds: Bounds) -> list[Cause]:
    """The causes that leave every comparison undecided."""
    trained = [name for name, one in prepared.model.named_parameters() if one.requires_grad]
    if not trained or not set(trained) <= set(bounds.undecided):
        return []
    return [
        Cause(
            "optimizer amplifies rounding",
            f"Other last digits in the plain reference change the final weights of all {len(trained)} tensors: "
            f"{type(prepared.optimizer).__name__} at these rates amplifies rounding, so that no two runs are the same. "
            "Take a lower rate, fewer verify.steps or another optimizer.",
        )
    ]


def _state(prepared: Prepared) -> list[Cause]:
    """State that ranks do not share, as the dry run found it."""
    found = state_problems(prepared.state) | data_problems(prepared.train, prepared.config.seed)
    return [Cause(name, text[0].upper() + text[1:]) for name, text in found.items()]


@torch.no_grad()
def _loss_over_batch(probe: Probe) -> list[Cause]:
    """A loss per sample must not depend on the other samples of the micro-batch."""
    if probe.count < 2 or is_coupled(probe.loss):  # a loss that says so is taken over the whole global batch
        return []
    probe.model.eval()
    prediction = probe.prediction()
    whole = probe.loss.loss_per_sample(prediction, probe.targets)
    ratios = []
    for part in probe.parts:
        alone = probe.loss.loss_per_sample(prediction[part], probe.targets[part])
        if _differ(alone, whole[part], prediction):
            ratios.append((alone.sum() / whole[part].sum()).item() * (part.stop - part.start) / probe.count)
    if not ratios:
        return []
    if all(abs(ratio - 1) < 1e-3 for ratio in ratios):
        return [
            Cause(
                "mean of means",
                "The loss of a sample is divided by the size of its micro-batch: means over micro-batches of unequal "
                "size are then averaged as if they were equal. Return each sample's sum; the trainer divides once, by "
                "the samples or tokens of the whole global batch.",
            )
        ]
    return [
        Cause(
            "batch-coupled loss",
            "The loss of a sample depends on the other samples of its micro-batch, so it changes with every other cut "
            "of the global batch. Write it as a sum of losses of single samples, or give it `coupled = "
            "True`: then it is taken over the whole global batch.",
        )
    ]


def _differ(one: Tensor, other: Tensor, terms: Tensor) -> bool:
    """Whether two results differ by more than rounding, which scales with the terms of their sums."""
    if not one.is_floating_point():
        return not torch.equal(one, other)
    scale = max(float(value.abs().max()) for value in (other, terms))
    return not torch.allclose(one, other, rtol=0, atol=_MANY_ROUNDINGS * torch.finfo(one.dtype).eps * scale)


def _split_dependence(probe: Probe, tolerance: float, undecided: Collection[str]) -> list[Cause]:
    """Why the gradient depends on where the batch is cut, tested mode by mode."""
    if probe.count < 4:  # batch norm needs two samples on either side
        return []
    probe.train()
    norms = [name for name, one in probe.model.named_modules() if isinstance(one, _BatchNorm) and one.training]
    modules = dict(probe.model.named_modules())

    def error(mode: Callable[[], object]) -> float:
        mode()
        return probe.split_error(undecided=undecided)

    def only_norms() -> None:
        probe.model.eval()
        for name in norms:
            modules[name].train()

    def all_but_norms() -> None:
        probe.train()
        for name in norms:
            modules[name].eval()

    causes = []
    if error(probe.model.eval) > tolerance:
        return [_coupling(probe)]
    if norms and error(only_norms) > tolerance:
        causes.append(
            Cause(
                "batch norm over micro-batches",
                f"{len(norms)} batch norms, e.g. {norms[0]}, normalise over a micro-batch, and without batch.micro its "
                "samples depend on the number of ranks. Pin it: batch.micro=SIZE; or batch_norm=exact.",
            )
        )
    if error(all_but_norms) > tolerance:
        draws = not torch.equal(probe.prediction(), probe.prediction(seed=2))
        causes.append(_dropout() if draws else _coupling(probe))
    return causes


def _dropout() -> Cause:
    return Cause(
        "dropout over micro-batches",
        "The model draws random numbers for a micro-batch as a whole, and without batch.micro its samples depend on "
        "the number of ranks. Pin it: batch.micro=SIZE.",
    )


@torch.no_grad()
def _coupling(probe: Probe) -> Cause:
    """Name the first module whose output for a sample depends on the other samples."""
    seen: dict[str, Tensor] = {}
    first: list[str] = []
    part = probe.parts[0]

    def hook(name: str) -> Callable[..., None]:
        def compare(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.dim() == 0:
                return
            if name not in seen:
                seen[name] = output.clone()
            elif len(output) == part.stop and _differ(output, seen[name][part], seen[name]):
                first.append(name)

        return compare

    leaves = [(name, one) for name, one in probe.model.named_modules() if not list(one.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    for taken in (slice(0, probe.count), part):
        probe.outputs(taken)
    for handle in handles:
        handle.remove()
    where = f"first in {first[0]} ({type(dict(leaves)[first[0]]).__name__})" if first else "outside of its submodules"
    return Cause(
        "model couples samples",
        f"The model's output for a sample depends on the other samples of the micro-batch, {where}. Pin the "
        "micro-batch with batch.micro=SIZE, or normalise within a sample.",
    )


def _unequal_shares(errors: Mapping[Case, Comparison], bounds: Bounds) -> list[Cause]:
    shared = {case: bounds.gradient_share(one) > 1 for case, one in errors.items() if case.world_size > 1}
    unequal = [fails for case, fails in shared.items() if not case.shares_are_equal]
    equal = [fails for case, fails in shared.items() if case.shares_are_equal]
    if not unequal or not equal or not all(unequal) or any(equal):
        return []
    return [
        Cause(
            "unequal shares",
            "Ranks with equal shares of the batch agree with the reference, ranks with unequal ones do not: something "
            "weighs ranks alike instead of samples. Remove averages over ranks from the model and the loss.",
        )
    ]


def _compression(prepared: Prepared, errors: Mapping[Case, Comparison]) -> list[Cause]:
    """Gradients that ranks send with few digits, where the first gradient is off by no more than these digits."""
    compression = prepared.config.precision.gradient_compression
    if compression not in _FORMATS:  # PowerSGD has no bound on what it leaves out
        return []
    ranks, off = max((case.world_size, one.gradient_error) for case, one in errors.items())
    rounding = ranks * torch.finfo(_FORMATS[compression]).eps
    if not off <= rounding:
        return []
    return [
        Cause(
            "gradient compression",
            f"The first gradient is off by {off:.1e} of its largest entry. Ranks send gradients as {compression}, and "
            f"{ranks} ranks lose up to {rounding:.1e} by it: every number of ranks is another run. Accept that much "
            f"with verify.tolerance={rounding:.1g}, or compare with precision.gradient_compression=none.",
        )
    ]
