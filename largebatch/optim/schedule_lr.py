"""A schedule over samples as a learning-rate scheduler of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.optim.follow_batch import ramp_of
from largebatch.optim.learning_rates import write_rates
from largebatch.optim.scaled_groups import ScaledGroups


class HasPosition(Protocol):
    """What knows the position of a run, such as `GlobalBatches`."""

    @property
    def samples_seen(self) -> int:
        """Samples that all steps so far have consumed."""


class ScheduleLR(LRScheduler):
    """Gives every parameter group the rate that it has now, times the factor of a schedule over samples.

    A group keeps its ratio to the others. Rates change after each step of the optimizer, by a hook of its own. `step()`
    sets them as well and moves nothing: a program may call it once per step or per epoch, several times, as the
    scheduler that accelerate prepares does, or never.

    What follows the batch is not the schedule's. `scaled` knows it: with it the rate is that of the next step's batch,
    and so are momentum, betas, eps and weight decay of the groups.

    It is a scheduler for torch's loops, accelerate, `Trainer(optimizers=(optimizer, scheduler))` of transformers, and
    `configure_optimizers` of Lightning. In a loop of your own `set_lr(optimizer, lr * schedule(batch.samples_seen))`
    at the top of it does the same, and has no state.

    Args:
        optimizer: with its peak rates. If it is wrapped as by accelerate, the one inside is taken.
        schedule: samples seen -> factor of the peak rates, such as `Schedule`.
        stream: knows the position; or
        global_batch_size: samples per step of the optimizer, over all ranks and accumulated micro-batches, from which
            the position follows by counting steps. A ramp counts by its stages; a plan by its global batch.
        scaled: what follows the batch, made by `follow_batch` from the same batch. None: the batch stays, and the
            optimizer's values are meant for it.

    Raises:
        ValueError: unless exactly one of `stream` and `global_batch_size` is given; for a batch that changes without
            `scaled`; and if a clip norm is to follow, since the loop clips.

    >>> import torch
    >>> from largebatch.batch import Schedule
    >>> weight, bias = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    >>> optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.25}], lr=0.5)
    >>> schedule = Schedule(total_samples=40, warmup_samples=20, decay="linear")
    >>> scheduler = ScheduleLR(optimizer, schedule, global_batch_size=10)
    >>> scheduler.get_last_lr()
    [0.0, 0.0]
    >>> for _ in range(2):
    ...     optimizer.step()
    ...     scheduler.step()
    ...     print(scheduler.samples_seen, scheduler.get_last_lr())
    10 [0.25, 0.125]
    20 [0.5, 0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Callable[[int], float],
        stream: HasPosition | None = None,
        *,
        global_batch_size: int | BatchPlan | BatchRamp | None = None,
        scaled: ScaledGroups | None = None,
    ) -> None:
        if (stream is None) == (global_batch_size is None):
            raise ValueError(
                "ScheduleLR needs the position of the run: give it a stream, such as GlobalBatches, or "
                "global_batch_size, by which it counts the samples of the optimizer's steps; one of them."
            )
        self._ramp = None if global_batch_size is None else ramp_of(global_batch_size)
        _require_rules(getattr(stream, "ramp", None) if self._ramp is None else self._ramp, scaled)
        self._scaled = scaled
        self._schedule, self._stream, self._counted = schedule, stream, 0
        # A wrapper such as accelerate's has no hooks; its groups are those of the optimizer inside.
        has_hooks = hasattr(optimizer, "_optimizer_step_post_hooks")
        super().__init__(optimizer if has_hooks else getattr(optimizer, "optimizer", optimizer))
        self._write()
        self.optimizer.register_step_post_hook(lambda *_: self._after_step())

    @property
    def samples_seen(self) -> int:
        """Samples before the next step."""
        return self._counted if self._stream is None else self._stream.samples_seen

    def get_lr(self) -> list[float | Tensor]:
        """The rate of each group for the next step."""
        return [*self._rates(self.samples_seen)]

    def state_dict(self) -> dict[str, Any]:
        """Position and peak rates, as plain values."""
        return {"samples_seen": self.samples_seen, "base_lrs": list(map(float, self.base_lrs))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at the position of the state, with its peak rates."""
        self.base_lrs, self._counted = list(state_dict["base_lrs"]), state_dict["samples_seen"]
        self._write()
        self._set(self._rates(self._counted))

    def _after_step(self) -> None:
        if self._ramp is not None:
            self._counted += self._ramp.at(self._counted).global_batch_size
        self._write()
        self._set(self._rates(self.samples_seen))

    def _write(self) -> None:
        if self._scaled is not None:
            self._scaled.write(self.optimizer, self.samples_seen)

    def _rates(self, samples_seen: int) -> list[float]:
        factor = self._schedule(samples_seen)
        factor *= 1.0 if self._scaled is None else self._scaled.rate_factor_at(samples_seen)
        return [float(base) * factor for base in self.base_lrs]

    def _set(self, rates: list[float]) -> None:
        write_rates(self.optimizer, rates)
        self._last_lr = list(rates)


def _require_rules(ramp: BatchRamp | None, scaled: ScaledGroups | None) -> None:
    if scaled is not None and scaled.clips:
        raise ValueError(
            "ScheduleLR: the clip norm follows the batch, and a scheduler does not clip. In a loop of your own clip by "
            "scaled.clip_norm_at(samples_seen), with scaled.write(optimizer, samples_seen) and set_lr at its top in "
            "place of the scheduler; or leave out clip_norm."
        )
    sizes = [] if ramp is None else [plan.global_batch_size for plan in ramp.plans]
    if scaled is None and len(set(sizes)) > 1:
        raise ValueError(
            f"ScheduleLR: the batch changes ({', '.join(map(str, sizes[:6]))} samples), and nothing says what follows "
            "it: the rate, momentum, betas, eps, weight decay. Give scaled=follow_batch(optimizer, ramp, "
            f'base_batch_size={sizes[0]}, rule="linear") or another rule; rule="none" if all of them stay, or the '
            "schedule has the rate."
        )
