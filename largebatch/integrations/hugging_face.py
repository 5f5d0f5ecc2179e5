"""A callback for the Trainer of transformers."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from largebatch.diagnostics import EvalSums, generalization_gap, track
from largebatch.diagnostics.noise.step_moments import Reduction
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.own_job import OwnJob
from largebatch.gradient.snapshots import preserving_buffers_and_rng
from largebatch.integrations.measurements import Layers, LoopMeasurements, require_layers
from largebatch.models.modes import evaluating

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("This callback needs transformers: pip install 'largebatch[hf]'") from error


class LargeBatchCallback(TrainerCallback):
    """Logs the noise scale, trust ratios and the generalization gap of a Trainer, through the Trainer's own loggers.

        trainer = Trainer(...)
        trainer.add_callback(LargeBatchCallback(trainer))

    With each log of the training loss come `noise_scale/*`, as soon as 20 steps were measured with its interval, and
    `trust_ratio/*` (LARS, LAMB) and `update_to_weight/*` of the step that is logged. With each evaluation come `gap/*`.
    The weights are those of a training without the callback, bit for bit.

    The noise scale needs two micro-batches per step: `gradient_accumulation_steps`, or ranks. Where the Trainer divides
    by `num_items_in_batch`, losses of micro-batches are sums with one divisor, else means of equal weight; the callback
    asks the Trainer which. It counts samples, also where the loss counts tokens: a sample's gradient is then the sum
    over its tokens, divided by the mean number of tokens of a sample.

    Args:
        trainer: the Trainer that the callback is added to.
        every: optimizer steps between measurements of the noise.
        window: latest measurements that count.
        reduction: "mean" or "sum" of the losses of a micro-batch's samples, if a model or `compute_loss_func` does not
            use the `num_items_in_batch` that it gets; None: as the Trainer says.
        layers: `all`: each layer by name, and quantiles over layers; `summary`: these alone; `none`.
        gap_samples: most samples of each side of the gap, always the same ones; 0: no gap.

    Raises:
        ValueError: for settings without meaning. When training starts, if the model is sharded (FSDP, DeepSpeed).
    """

    def __init__(
        self,
        trainer: Any,
        *,
        every: int = 1,
        window: int = 200,
        reduction: Reduction | None = None,
        layers: Layers = "all",
        gap_samples: int = 1024,
    ) -> None:
        if not hasattr(trainer, "callback_handler"):
            raise ValueError(
                f"The first argument is a {type(trainer).__name__}: make the Trainer first, then "
                "trainer.add_callback(LargeBatchCallback(trainer))."
            )
        require_layers(layers)
        self._trainer = trainer
        self._settings = {"every": every, "window": window}
        self._reduction: Reduction | None = reduction
        self._layers, self._gap_samples = layers, gap_samples
        self._measured: LoopMeasurements | None = None

    @property
    def noise_scale(self) -> Any:
        """The noise scale of the latest training, see `NoiseTracker.noise_scale`; None before."""
        return None if self._measured is None else self._measured.tracker.noise_scale

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Track the model and its optimizer."""
        self._close()
        trainer, optimizer = self._trainer, self._trainer.optimizer
        tracker = track(
            trainer.model_wrapped,
            reduction=self._reduction or _reduction_of(trainer),
            num_samples=_length(trainer.train_dataset),
            group=dist.group.WORLD if args.world_size > 1 else None,
            scaler=getattr(optimizer, "scaler", None),
            **self._settings,
        )
        self._measured = LoopMeasurements(
            tracker,
            trainer.model,
            [getattr(optimizer, "optimizer", optimizer)],  # the one inside of accelerate's
            layers=self._layers,
            is_due=lambda: (state.global_step + 1) % max(int(state.logging_steps), 1) == 0,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Beside the training loss: log what was measured."""
        if self._measured is not None and "loss" in (logs or {}) and (row := self._measured.row()):
            self._trainer.log(row)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Log the gap."""
        trainer = self._trainer
        train, other = trainer.train_dataset, trainer.eval_dataset
        if not self._gap_samples or _length(train) is None or _length(other) is None:
            return
        count = min(self._gap_samples, len(train), len(other))
        model = trainer.accelerator.unwrap_model(trainer.model)
        with preserving_buffers_and_rng(model), evaluating(model), torch.no_grad():
            gap = generalization_gap(*(_evaluated(trainer, one, count) for one in (train, other)))
        trainer.log(
            {
                "gap/loss": gap.loss,
                "gap/loss_stderr": gap.loss_stderr,
                **({} if gap.accuracy is None else {"gap/accuracy": gap.accuracy}),
                **({} if gap.accuracy_stderr is None else {"gap/accuracy_stderr": gap.accuracy_stderr}),
            }
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave model and optimizer alone."""
        if self._measured is not None:
            self._measured.close()

    def _close(self) -> None:
        if self._measured is not None:
            self._measured.close()


def _reduction_of(trainer: Any) -> Reduction:
    """Whether the Trainer gives the loss one divisor for all micro-batches of a step, `num_items_in_batch`."""
    own = getattr(trainer, "loss_is_scaled_for_ga", None)  # what a subclass says of its own loss
    if own is not None:
        return "sum" if own else "mean"
    has_divisor = getattr(trainer, "model_accepts_loss_kwargs", False) or trainer.compute_loss_func is not None
    return "sum" if has_divisor else "mean"


def _evaluated(trainer: Any, dataset: Any, count: int) -> EvalSums:
    """Sums over samples as the Trainer evaluates them: a batch weighs its samples, and is one draw."""
    job = OwnJob.of_module(trainer.model)
    loader, size = trainer.get_eval_dataloader(dataset), trainer.args.eval_batch_size
    ids = FixedSubset.random(dataset, count, seed=trainer.args.seed, micro_batch_size=size).ids
    # Not the Trainer's own batches: on several ranks it pads the last with samples that were counted.
    share = Subset(loader.dataset, ids[job.rank :: job.world_size].tolist())
    total = EvalSums().to_tensor().to(job.device)
    for batch in DataLoader(share, size, collate_fn=loader.collate_fn):
        loss, logits, labels = trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)
        if loss is None:
            raise ValueError("The model returns no loss for samples of the evaluation: use gap_samples=0.")
        rows = _rows(batch)
        total += EvalSums.from_batch(loss.mean()[None] * rows, *_counts(logits, labels, rows)).to_tensor().to(total)
    return EvalSums.from_tensor(torch.tensor(job.start_sum(total).result(), dtype=torch.float64))


def _counts(logits: Any, labels: Any, rows: int) -> tuple[Tensor, Tensor | None]:
    """Units of a batch, and how many are correct: None unless each sample has one class."""
    is_class = isinstance(logits, Tensor) and isinstance(labels, Tensor) and labels.shape == logits.shape[:1]
    if not is_class or logits.dim() != 2 or logits.shape[1] < 2 or labels.is_floating_point():
        return torch.tensor([rows]), None
    return torch.tensor([rows]), (logits.argmax(dim=1) == labels).sum()[None].cpu()


def _rows(batch: Any) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else None
