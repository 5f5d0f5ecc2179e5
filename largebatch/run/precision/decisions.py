"""All decisions of a run on how it computes, and their rows in the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from largebatch.distributed.kernels import KernelSwitches
from largebatch.run.config.schema import TrainConfig
from largebatch.run.derive import RunNumbers
from largebatch.run.precision.device import Decision, Device
from largebatch.run.precision.number_format import determinism, number_format
from largebatch.run.precision.speed import channels_last, compilation, compiled_optimizer, cudnn_benchmark, fused

ANY_GPU = Device("a GPU", (8, 0), has_bf16=True)
_TITLES = {
    "deterministic": "deterministic kernels",
    "channels_last": "channels_last",
    "cudnn_benchmark": "cuDNN benchmark",
    "compile": "compile",
    "fused": "fused optimizer",
    "compiled_optimizer": "compiled optimizer",
}


@dataclass(frozen=True)
class Decisions:
    """How a run computes, decided once before it starts; the same on every rank.

    Attributes:
        device: of this rank.
        given: the config of the run, as it was given.
        compute: fp64, fp32, bf16 or fp16.
        deterministic: whether every operation must give the same bits each time; None: as torch is set.
        channels_last: whether convolutions keep their weights and activations in that layout.
        cudnn_benchmark: whether cuDNN tries its kernels on each new shape; None: as torch is set.
        compile: False, True, or "blocks".
        fused: whether torch's optimizer is told to use its fused kernels; None: it is told nothing.
        compiled_optimizer: whether LARS and LAMB step in their compiled kernels; None: another path is given, or it is
            another optimizer.
    """

    device: Device
    given: TrainConfig
    compute: Decision
    deterministic: Decision
    channels_last: Decision
    cudnn_benchmark: Decision
    compile: Decision
    fused: Decision
    compiled_optimizer: Decision

    def switches(self) -> KernelSwitches:
        """Torch's switches for this run."""
        return KernelSwitches(self.given.precision.tf32, self.deterministic.value, self.cudnn_benchmark.value)

    def values(self) -> dict[str, bool]:
        """What changes the digits of results, for the run's identity."""
        named = ("deterministic", "channels_last", "fused", "compiled_optimizer")
        return {name: bool(getattr(self, name).value) for name in named}

    def record(self) -> dict[str, Any]:
        """As plain values, for plan.json."""
        return {one.name: vars(getattr(self, one.name)) for one in fields(self) if one.name != "given"}


def decide(
    device: Device,
    config: TrainConfig,
    model: nn.Module | None,
    numbers: RunNumbers | None,
    *,
    everywhere: bool = True,
) -> Decisions:
    """All decisions of a run.

    Args:
        device: of this rank.
        config: of the run, as it was given.
        model: of the run; None: it could not be made.
        numbers: of the run; None: they could not be derived.
        everywhere: whether the devices of all ranks compute in bfloat16, as far as it is known.
    """
    compute = number_format(device, config.precision, everywhere=everywhere)
    deterministic = determinism(device, config)
    return Decisions(
        device,
        config,
        compute,
        deterministic,
        channels_last(device, config.precision, compute.value, model),
        cudnn_benchmark(device, config, deterministic.value, model),
        compilation(config, numbers),
        fused(device, config.optimizer, model),
        compiled_optimizer(device, config.optimizer),
    )


def gpu_row(decisions: Decisions, model: nn.Module, numbers: RunNumbers) -> tuple[str, str, str]:
    """Row of the plan with the decisions for a GPU that has bfloat16, for a plan that is made where there is none."""
    there = decide(ANY_GPU, decisions.given, model, numbers)
    named = [title for name, title in _TITLES.items() if name != "compile" and getattr(there, name).value]
    return "on a GPU", ", ".join([there.compute.value, *named]), "if it has bfloat16"


def decision_rows(decisions: Decisions) -> Sequence[tuple[str, str, str]]:
    """Rows (quantity, value, source) of the plan: on a GPU all decisions, on a CPU those that change something.

    That LARS and LAMB cannot step in their kernels is a row everywhere.
    """
    rows = [("precision", str(decisions.compute.value), decisions.compute.reason)]
    for name, title in _TITLES.items():
        one: Decision = getattr(decisions, name)
        is_fallback = one is decisions.compiled_optimizer and one.value is False
        if one.value or is_fallback or (decisions.device.is_gpu and one is not decisions.compiled_optimizer):
            shown = {True: "on", False: "off", None: "off"}.get(one.value, one.value)
            rows.append((title, shown, one.reason))
    return rows
