"""Large-batch training on torch: name one number, the global batch size, and train the same run on any number of ranks.

For a program of your own, by room; a name is loaded when it is first used:

    batch        BatchPlan BatchRamp Duration SampleOrder Schedule scale_lr
    optim        LAMB LARS MuonWithAdamW ScheduleLR follow_batch parameter_groups set_lr
    losses       CrossEntropy InfoNCE ModuleLoss NextToken OutputIsLoss SquaredError
    distributed  Runtime
    models       GPT MLP ConvNet Linear ResNet TwoViews checkpoint_activations hugging_face resnet18 resnet50
    data         ArrayDataset Augmentation GlobalBatchSampler MicroBatchLoader OrderSampler TokenWindows digits
                 hub_images image_folder token_stream
    gradient     ExactBatchNorm GlobalBatches Measures Step accumulate_gradients
    diagnostics  NoiseScale NoiseScaleEstimator NoiseTracker StepsToTarget fit_critical_batch generalization_gap
                 large_batch_gap lr_range_test measure_gap measure_sharpness measure_variance moments_of_step track
    records      read_metrics
    training     Observer Run StepReport make_run
    run          ConfigError
    cli          plan train

Each room has a README.md with examples: largebatch/ROOM/README.md.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largebatch.batch import BatchPlan, BatchRamp, Duration, SampleOrder, Schedule, scale_lr
    from largebatch.cli.from_python import plan, train
    from largebatch.data import (
        ArrayDataset,
        Augmentation,
        GlobalBatchSampler,
        MicroBatchLoader,
        OrderSampler,
        TokenWindows,
        digits,
        hub_images,
        image_folder,
        token_stream,
    )
    from largebatch.diagnostics import (
        NoiseScale,
        NoiseScaleEstimator,
        NoiseTracker,
        StepsToTarget,
        fit_critical_batch,
        generalization_gap,
        large_batch_gap,
        lr_range_test,
        measure_gap,
        measure_sharpness,
        measure_variance,
        moments_of_step,
        track,
    )
    from largebatch.distributed.runtime import Runtime
    from largebatch.gradient import ExactBatchNorm, GlobalBatches, Measures, Step, accumulate_gradients
    from largebatch.losses import CrossEntropy, InfoNCE, ModuleLoss, NextToken, OutputIsLoss, SquaredError
    from largebatch.models import (
        GPT,
        MLP,
        ConvNet,
        Linear,
        ResNet,
        TwoViews,
        checkpoint_activations,
        hugging_face,
        resnet18,
        resnet50,
    )
    from largebatch.optim import LAMB, LARS, MuonWithAdamW, ScheduleLR, set_lr
    from largebatch.optim.follow_batch import follow_batch
    from largebatch.optim.parameter_groups import parameter_groups
    from largebatch.records.trackers import read_metrics
    from largebatch.run.config.reading import ConfigError
    from largebatch.training import Observer, Run, StepReport, make_run

    __version__: str

__all__ = [
    "GPT", "LAMB", "LARS", "MLP", "ArrayDataset", "Augmentation", "BatchPlan", "BatchRamp", "ConfigError", "ConvNet",
    "CrossEntropy", "Duration", "ExactBatchNorm", "GlobalBatchSampler", "GlobalBatches", "InfoNCE", "Linear",
    "Measures", "MicroBatchLoader", "ModuleLoss", "MuonWithAdamW", "NextToken", "NoiseScale", "NoiseScaleEstimator",
    "NoiseTracker", "Observer", "OrderSampler", "OutputIsLoss", "ResNet", "Run", "Runtime", "SampleOrder", "Schedule",
    "ScheduleLR", "SquaredError", "Step", "StepReport", "StepsToTarget", "TokenWindows", "TwoViews", "__version__",
    "accumulate_gradients", "checkpoint_activations", "digits", "fit_critical_batch", "follow_batch",
    "generalization_gap", "hub_images", "hugging_face", "image_folder", "large_batch_gap", "lr_range_test", "make_run",
    "measure_gap", "measure_sharpness", "measure_variance", "moments_of_step", "parameter_groups", "plan",
    "read_metrics", "resnet18", "resnet50", "scale_lr", "set_lr", "token_stream", "track", "train",
]  # fmt: skip


def conf_dir() -> str:
    """The folder conf/ with the Hydra groups: inside the package when installed, beside it in a checkout.

    Absolute, because Hydra reads a relative one differently for `python -m` and for a console script.
    """
    return _beside_or_inside("conf")


def launch_dir() -> str:
    """The folder launch/ with the scripts that start runs: inside the package when installed, else beside it."""
    return _beside_or_inside("launch")


def _beside_or_inside(name: str) -> str:
    package = os.path.dirname(os.path.realpath(__file__))
    inside = os.path.join(package, name)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), name)


def lazy_names(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that imports a name when it is first used (PEP 562).

    Args:
        package: its `__name__`.
        modules: module inside the package -> its names, with blanks between.
    """
    module_of = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *sys.modules[package].__all__})


_NAMES = {
    "batch": "BatchPlan BatchRamp Duration SampleOrder Schedule scale_lr",
    "optim": "LAMB LARS MuonWithAdamW ScheduleLR follow_batch parameter_groups set_lr",
    "losses": "CrossEntropy InfoNCE ModuleLoss NextToken OutputIsLoss SquaredError",
    "distributed.runtime": "Runtime",
    "models": "GPT MLP ConvNet Linear ResNet TwoViews checkpoint_activations hugging_face resnet18 resnet50",
    "data": "ArrayDataset Augmentation GlobalBatchSampler MicroBatchLoader OrderSampler TokenWindows digits hub_images "
    "image_folder token_stream",
    "gradient": "ExactBatchNorm GlobalBatches Measures Step accumulate_gradients",
    "diagnostics": "NoiseScale NoiseScaleEstimator NoiseTracker StepsToTarget fit_critical_batch generalization_gap "
    "large_batch_gap lr_range_test measure_gap measure_sharpness measure_variance moments_of_step track",
    "records.trackers": "read_metrics",
    "training": "Observer Run StepReport make_run",
    "run.config.reading": "ConfigError",
    "cli.from_python": "plan train",
}
_get, __dir__ = lazy_names(__name__, _NAMES)


if not TYPE_CHECKING:  # to a type checker, a module with a __getattr__ has every name, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import PackageNotFoundError, version

            try:
                return version("largebatch")
            except PackageNotFoundError:
                return "(not installed)"
        return _get(name)
