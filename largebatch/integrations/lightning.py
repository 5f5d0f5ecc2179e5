"""A callback for the Trainer of Lightning, under either of its package names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import torch.distributed as dist

from largebatch.diagnostics import measure_gap, track
from largebatch.diagnostics.noise.loop_hooks import num_rows, require_visible_gradients
from largebatch.diagnostics.noise.step_moments import Reduction
from largebatch.integrations.measurements import Layers, LoopMeasurements, require_layers

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


class _Missing:
    def __init__(self) -> None:
        raise ImportError("This callback needs Lightning: pip install lightning")


def _callback_class() -> Any:
    """The base class of the package that the program uses, else of one that is installed."""
    used = [name for name in _PACKAGES if name in sys.modules]
    installed = [name for name in _PACKAGES if importlib.util.find_spec(name.partition(".")[0])]
    return importlib.import_module([*used, *installed][0]).Callback if used or installed else _Missing


class LargeBatchCallback(_callback_class()):  # type: ignore[misc]
    """Logs the noise scale, trust ratios and the generalization gap through the loggers of a Lightning Trainer.

        Trainer(callbacks=[LargeBatchCallback()], accumulate_grad_batches=4)

    Every `log_every_n_steps` come `noise_scale/*`, as soon as 20 steps were measured with its interval, and
    `trust_ratio/*` (LARS, LAMB) and `update_to_weight/*`. The weights are those of a training without the callback, bit
    for bit.

    The noise scale needs two micro-batches per step: `accumulate_grad_batches`, or ranks (DDP). Import Lightning before
    this module: the callback is one of `lightning.pytorch` or of `pytorch_lightning`, whichever the program uses.

    Args:
        every: optimizer steps between measurements of the noise.
        window: latest measurements that count.
        num_samples: size of the training set, if no sample comes twice within an epoch; None: independent draws.
        reduction: of the loss that `training_step` returns: "mean" of a batch, or "sum" with one divisor for the whole
            global batch.
        layers: `all`: each layer by name, and quantiles over layers; `summary`: these alone; `none`.
        gap: (loss, training set, validation set) as for `measure_gap`, which calls the LightningModule itself; logged
            with each validation. None: no gap.

    Raises:
        ValueError: for settings without meaning. When training starts, if the model is sharded (FSDP, DeepSpeed).
    """

    def __init__(
        self,
        *,
        every: int = 1,
        window: int = 200,
        num_samples: int | None = None,
        reduction: Reduction = "mean",
        layers: Layers = "all",
        gap: tuple[Any, Any, Any] | None = None,
    ) -> None:
        super().__init__()
        require_layers(layers)
        self._settings: dict[str, Any] = {
            "every": every, "window": window, "num_samples": num_samples, "reduction": reduction
        }  # fmt: skip
        self._layers: Layers = layers
        self._gap = gap
        self._measured: LoopMeasurements | None = None
        self._restored: dict[str, Any] | None = None
        self._logged_at = 0

    @property
    def noise_scale(self) -> Any:
        """The noise scale of the latest training, see `NoiseTracker.noise_scale`; None before."""
        return None if self._measured is None else self._measured.tracker.noise_scale

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Track the model and its optimizers."""
        require_visible_gradients(trainer.strategy.model)
        self._logged_at = trainer.global_step
        group = dist.group.WORLD if trainer.world_size > 1 else None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        tracker = track(pl_module, group=group, scaler=scaler, **self._settings)
        if self._restored is not None:
            tracker.load_state_dict(self._restored)
        self._measured = LoopMeasurements(
            tracker,
            pl_module,
            trainer.optimizers,
            layers=self._layers,
            is_due=lambda: (trainer.global_step + 1) % trainer.log_every_n_steps == 0,
        )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A micro-batch begins."""
        if self._measured is not None:
            self._measured.tracker.micro_batch(num_rows([batch]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log what was measured, after a step that is due."""
        step = trainer.global_step
        if self._measured is None or step == self._logged_at or step % trainer.log_every_n_steps:
            return
        self._logged_at, row = step, self._measured.row()
        for logger in trainer.loggers if row else ():
            logger.log_metrics(row, step=step - 1)  # Lightning counts from 0

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log the gap."""
        if self._gap is None or trainer.sanity_checking:
            return
        gap = measure_gap(pl_module, *self._gap).gap
        row = {"gap/loss": gap.loss, "gap/loss_stderr": gap.loss_stderr}
        if gap.accuracy is not None and gap.accuracy_stderr is not None:
            row |= {"gap/accuracy": gap.accuracy, "gap/accuracy_stderr": gap.accuracy_stderr}
        pl_module.log_dict(row, rank_zero_only=True)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave model and optimizers alone."""
        if self._measured is not None:
            self._measured.close()

    def state_dict(self) -> dict[str, Any]:
        """The measurements, for the Trainer's checkpoints."""
        return (self._restored or {}) if self._measured is None else self._measured.tracker.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._restored = state_dict or None
