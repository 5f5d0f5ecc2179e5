"""An exact stream of global batches, for a loop of one's own on any number of ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from operator import index
from typing import Any, get_args

import torch
from torch import Tensor

from largebatch.batch.duration import Duration
from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data.errors import OnBadSample, check_on_bad_sample
from largebatch.data.fetching import require_samples_by_index
from largebatch.data.items import Augment
from largebatch.data.loader import MicroBatchLoader
from largebatch.distributed.gather import disagreement
from largebatch.distributed.own_job import OwnJob
from largebatch.gradient.batch_stream import BatchStream
from largebatch.gradient.global_batch import GlobalBatch, Origin
from largebatch.gradient.own_micro_batch import Joined
from largebatch.gradient.units import CountedBy, Units, each_sample


class GlobalBatches:
    """The global batches of a run, which are the same on any number of ranks.

    Batch k holds `order.ids(samples_seen, size)`: one shuffle of the data set after another, and a batch may span two
    of them. Each rank gets its micro-batches of it. Gradients of `loss sum * micro.weight` add up to the gradient of
    the mean over the global batch, whatever its total is divisible by.

    ```
    for batch in GlobalBatches(dataset, 1000, max_micro=64):
        for micro in batch:
            with micro.sync(model):
                (loss_fn(model(micro.inputs), micro.targets, reduction="sum") * micro.weight).backward()
        optimizer.step(); optimizer.zero_grad()
    ```

    Make it on every rank, behind `init_process_group` or `Accelerator()`. It loads by itself: never give it, or the
    data set, to `accelerator.prepare`. Keep `gradient_accumulation_steps` at 1: weights are those of the whole batch.

    Args:
        dataset: map-style, or in memory; see `MicroBatchLoader`. Items are (input, target), or a dict with `labels`.
        total: samples per optimizer step, over all ranks; any number >= ranks.
        ramp: samples seen -> `total` from there on.
        max_micro: the most samples of one forward pass; None: a rank's whole share.
        micro: pins the micro-batch in its place: batch norm and dropout then are the same on any number of ranks.
        length: of the run: `30ep`, `500steps`, or samples. A last batch that would not be full is left out. None:
            endless.
        seed: of the order, and of all draws inside samples and models.
        samples_seen: position to begin at, on any number of ranks.
        units: what the loss is a sum over, if not over samples: targets -> units of each sample, or a mask, such as
            `lambda targets: targets != -100`. They are summed over ranks before the first pass of a batch, whose
            micro-batches wait in memory.
        joined: who joins the gradients of ranks: `wrapper`, as DDP, FSDP and accelerate do in the last backward pass;
            `mean` or `sum`: the loop itself.
        augment: keyed by sample, such as `Augmentation`.
        on_bad_sample: `stop`; or `skip`: samples that cannot be loaded are left out, and the loss is divided by the
            others.
        num_workers, prefetch, timeout_s: see `MicroBatchLoader`.
        device: where inputs and targets go; None: they stay on the host. A GPU, which must be the current one, is fed
            on a stream of its own.
        rank, world_size: None: as torch.distributed says. Give them to make the stream before the process group, so
            that `start` forks workers without its threads.

    Attributes:
        ramp: how global batches are cut and shared.
        samples_seen: samples of all batches whose micro-batches this rank has taken. Save it after the optimizer's
            step, and begin there again; or use `state_dict` and `load_state_dict`.

    Raises:
        ValueError: if a rank would have no sample, a length no step, a setting no effect, or the data set no samples by
            index. On iteration, if ranks differ in the arguments that decide a batch.
        RuntimeError: if a batch is asked for before all micro-batches of the last one were taken.

    >>> from largebatch.data import ArrayDataset
    >>> stream = GlobalBatches(ArrayDataset(torch.zeros(10, 1), torch.arange(10)), 7, max_micro=4, length="2ep")
    >>> [(batch.samples_seen, [(len(micro), micro.is_last) for micro in batch]) for batch in stream]
    [(0, [(4, False), (3, True)]), (7, [(4, False), (3, True)])]
    >>> stream.samples_seen
    14
    """

    _batch: GlobalBatch | None

    def __init__(
        self,
        dataset: Any,
        total: int,
        *,
        ramp: Mapping[int, int] | None = None,
        max_micro: int | None = None,
        micro: int | None = None,
        length: int | str | None = None,
        seed: int = 0,
        samples_seen: int = 0,
        units: Callable[[Tensor], Tensor] | None = None,
        joined: Joined = "wrapper",
        augment: Augment | None = None,
        on_bad_sample: OnBadSample = "stop",
        num_workers: int = 0,
        prefetch: int = 0,
        timeout_s: float = 0,
        device: torch.device | str | int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_on_bad_sample(on_bad_sample)
        if joined not in get_args(Joined):
            raise ValueError(f"joined={joined!r}: choose one of {', '.join(get_args(Joined))}.")
        require_samples_by_index(dataset)
        self.num_samples, self._seed, job = len(dataset), _whole("seed", seed), OwnJob.of_process(rank, world_size)
        self.ramp = _solved(total, ramp or {}, job.world_size, max_micro=max_micro, micro=micro)
        self._end_at = None if length is None else _samples(length, self.num_samples, self.ramp)
        self._require_a_step(length)
        self._begin_at(samples_seen)
        placed = None if device is None else torch.device(device)
        to_gpu, skips = placed is not None and placed.type == "cuda", on_bad_sample == "skip"
        if to_gpu and not torch.cuda.is_available():
            raise ValueError(f"device={device}: there is no CUDA GPU here.")
        loading: dict[str, Any] = {"num_workers": num_workers, "prefetch": prefetch, "timeout_s": timeout_s}
        loading |= {"to_gpu": to_gpu, "keeps_steps": to_gpu and (skips or units is not None)}
        order = SampleOrder(self.num_samples, self._seed)
        loader = MicroBatchLoader(
            dataset, order, self.ramp, job.rank, seed=self._seed, augment=augment, skips=skips, **loading
        )
        self.start, self.close = loader.start, loader.close
        counted = Units(job, CountedBy(units or each_sample), fixed=not skips and units is None)
        batches = BatchStream(loader, self.ramp, job.rank)
        self._origin = Origin(job, self._seed, joined, placed, batches, counted)

    @property
    def samples_seen(self) -> int:
        """See the attributes of the class."""
        return self._samples_seen + (self._batch.size if self._batch is not None and self._batch.is_taken else 0)

    @property
    def epoch(self) -> float:
        """Passes through the data set so far, as a fraction."""
        return self.samples_seen / self.num_samples

    @property
    def num_steps(self) -> int:
        """Steps of the whole run.

        Raises:
            TypeError: if it is endless.
        """
        return self.ramp.num_steps(self._end())

    def __len__(self) -> int:
        """Steps from here to the end of the run; TypeError if it is endless."""
        return self.ramp.num_steps(self._end(), self.samples_seen)

    def __iter__(self) -> Iterator[GlobalBatch]:
        self._require_the_same_on_all_ranks()
        self._begin_at(self.samples_seen)
        count = sys.maxsize if self._end_at is None else len(self)
        self._origin.batches.begin(self._samples_seen, count)
        for _ in range(count):
            batch = self._batch = GlobalBatch(self._samples_seen, self.ramp.at(self._samples_seen), self._origin)
            yield batch
            self._require_taken(batch)
            self._begin_at(batch.samples_seen + batch.size)

    def state_dict(self) -> dict[str, int]:
        """Position, and what it counts in, as plain numbers; also for `accelerator.register_for_checkpointing`."""
        return {"samples_seen": self.samples_seen, "seed": self._seed, "num_samples": self.num_samples}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on at the position of `state`, on any number of ranks; total and micro-batches may be others.

        Raises:
            ValueError: if it is of another seed or length of the data set: the samples behind it would be others.
        """
        for name, own in self.state_dict().items():
            if name != "samples_seen" and state[name] != own:
                raise ValueError(
                    f"The state has {name}={state[name]}, this stream has {own}: samples would be repeated or left "
                    "out. Go on with the same, or begin anew with samples_seen=0."
                )
        self._begin_at(state["samples_seen"])

    def _begin_at(self, samples_seen: int) -> None:
        if _whole("samples_seen", samples_seen) < 0:
            raise ValueError(f"samples_seen={samples_seen}: samples from the start of the run, 0 or more.")
        self._samples_seen, self._batch = index(samples_seen), None

    def _require_a_step(self, length: int | str | None) -> None:
        if self._end_at is not None and self.num_steps < 1:
            raise ValueError(
                f"length={length!r}: {self._end_at} samples do not fill one batch of "
                f"{self.ramp.at(0).global_batch_size}. Make it longer, or the batch smaller."
            )

    def _end(self) -> int:
        if self._end_at is None:
            raise TypeError("The stream is endless: give it a length, such as GlobalBatches(..., length='30ep').")
        return self._end_at

    def _require_the_same_on_all_ranks(self) -> None:
        """Ranks that took other samples, or other numbers of them, would train on and never know."""
        own: dict[str, Any] = {**self.state_dict(), "length": self._end_at, "joined": self._origin.joined}
        own["micro-batches"] = [plan.micro_batch_sizes for plan in self.ramp.plans], self.ramp.milestones
        told = self._origin.job.gather(own)
        for name in own:
            if differs := disagreement([str(one[name]) for one in told]):
                raise ValueError(f"{differs.explain(name)}. Every rank takes its part of one and the same batch.")

    def _require_taken(self, batch: GlobalBatch) -> None:
        if self._batch is not batch:
            raise RuntimeError("The stream was set to another position. Begin another loop over it.")
        if not batch.is_taken:
            raise RuntimeError(
                f"The next global batch was asked for, but micro-batches of the one at {batch.samples_seen} were left: "
                "its gradient would not be that of the batch. Loop over all of them, or leave the loop and begin "
                "another one, which takes this batch again."
            )


def _solved(
    total: int, ramp: Mapping[int, int], world_size: int, *, max_micro: int | None, micro: int | None
) -> BatchRamp:
    if max_micro is not None and micro is not None:
        raise ValueError(f"max_micro={max_micro}, micro={micro}: a pinned micro-batch has its size. Give one of them.")

    def plan(size: int) -> BatchPlan:
        common: dict[str, Any] = {"global_batch_size": _whole("total", size), "world_size": world_size}
        if micro is not None:
            return BatchPlan.pinned(**common, micro_batch_size=micro)
        return BatchPlan.solve(**common, max_micro_batch_size=max_micro)

    return BatchRamp(tuple(map(plan, (total, *ramp.values()))), tuple(ramp))


def _whole(name: str, value: Any) -> int:
    try:
        return index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: give a whole number.") from None


def _samples(length: int | str, num_samples: int, ramp: BatchRamp) -> int:
    if not isinstance(length, str):
        return _whole("length", length)
    try:
        duration = Duration.parse(length)
    except ValueError as error:
        raise ValueError(f"length={length!r}: {error}") from None
    if duration.unit == "steps":
        return ramp.samples_of_steps(int(duration.amount))
    return duration.samples(num_samples=num_samples, global_batch_size=ramp.at(0).global_batch_size)
