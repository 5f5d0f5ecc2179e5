"""Makes the parts of a run from its config: the job, the loader, the loop's `Run`.

All verbs that train, measure or verify use these functions, so they compute the same steps as `train`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn

from largebatch.batch.plan import BatchPlan
from largebatch.batch.ramp import BatchRamp
from largebatch.data import MicroBatchLoader
from largebatch.distributed.gather import gather_ints, named_ranks
from largebatch.distributed.membership import TimeLimits
from largebatch.distributed.runtime import Runtime
from largebatch.gradient.batch_stream import Loader
from largebatch.gradient.options import GradientOptions
from largebatch.losses import units_are_fixed, widens_outputs
from largebatch.losses.coupled import is_coupled
from largebatch.models.checkpointing import matching_modules
from largebatch.models.layout import compile_modules, keep_channels_last
from largebatch.run.config.combinations import gradient_options
from largebatch.run.config.schema import TrainConfig
from largebatch.run.initial_state import build_optimizer
from largebatch.run.loading import prefetch_of
from largebatch.run.model_settings import block_pattern, noise_scale_geometry, noise_scale_groups
from largebatch.run.precision.decisions import Decisions, decide
from largebatch.run.precision.device import Decision
from largebatch.run.precision.number_format import settled
from largebatch.run.precision.speed import has_few_sizes
from largebatch.run.prepare import Prepared
from largebatch.run.rank_agreement import require_same_run, run_fingerprint
from largebatch.run.sample_order import sample_order
from largebatch.run.sent_weights import take_weights
from largebatch.training.assembly import make_run
from largebatch.training.guard import Guard
from largebatch.training.loop import Observer, Run
from largebatch.training.row_log import RowLog


@contextlib.contextmanager
def open_runtime(prepared: Prepared) -> Iterator[Runtime]:
    """Join the job of the launcher with the settings of the config; leave it at the end.

    Raises:
        LauncherError: if ranks are missing, launcher and accelerate disagree, or the ranks are not the same run.
    """
    launcher = prepared.config.launcher
    limits = TimeLimits(
        collective_s=launcher.collective_timeout_s,
        start_s=launcher.start_timeout_s,
        rendezvous_s=launcher.rendezvous_timeout_s,
        heartbeat_s=launcher.heartbeat_s,
        silence_s=launcher.silence_timeout_s,
    )
    job = Runtime.open(precision=prepared.decisions.given.precision.compute, limits=limits)
    with job as runtime, prepared.decisions.switches().set():
        if runtime.world_size > 1:
            require_same_run(runtime, run_fingerprint(prepared))
        if prepared.sends_weights:
            take_weights(runtime, prepared.model)
        yield runtime


def as_agreed(prepared: Prepared, runtime: Runtime) -> Prepared:
    """The run as its ranks have agreed to compute; every rank calls it.

    With precision=auto another rank's GPU may lack bfloat16. And another machine may lack a compiler: kernels differ in
    last digits, so the optimizers of all ranks take the same ones.
    """
    device, given, own = prepared.decisions.device, prepared.decisions.given, prepared.decisions
    if runtime.precision != own.compute.value:
        prepared = replace(
            prepared,
            config=settled(given, device, everywhere=False),
            decisions=decide(device, given, prepared.model, prepared.numbers, everywhere=False),
        )
    if ranks := _ranks_without_kernels(runtime, own):
        agreed = Decision(False, f"slower by torch's kernels: its own do not work on {named_ranks(ranks)}")
        prepared = replace(prepared, decisions=replace(prepared.decisions, compiled_optimizer=agreed))
        _keep_to_torch(prepared.optimizer)
    return prepared


def _ranks_without_kernels(runtime: Runtime, own: Decisions) -> list[int]:
    if own.compiled_optimizer.value is None or runtime.world_size == 1:
        return []
    works = torch.tensor([own.compiled_optimizer.value], dtype=torch.int64, device=runtime.device)
    return [rank for rank, does in enumerate(gather_ints(runtime, works)[:, 0].tolist()) if not does]


def _keep_to_torch(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group["compile"] = False


def build_loader(
    prepared: Prepared,
    rank: int,
    *,
    plan: BatchPlan | BatchRamp | None = None,
    seed: int | None = None,
    num_workers: int | None = None,
    feeds_gpu: bool = False,
) -> MicroBatchLoader:
    """The micro-batches of a rank.

    Args:
        prepared: the run.
        rank: of the process.
        plan: splits global batches into micro-batches and shares them; None: the config's.
        seed: of order, augmentation and items; None: the config's.
        num_workers: processes that load items, which affect only speed; None: the config's.
        feeds_gpu: whether micro-batches are prepared ahead, and put onto the GPU of this process.
    """
    config, augment = prepared.config, prepared.augment
    seed = config.seed if seed is None else seed
    workers = config.data.num_workers if num_workers is None else num_workers
    return MicroBatchLoader(
        prepared.train,
        sample_order(config, prepared.train, seed),
        prepared.numbers.ramp if plan is None else plan,
        rank,
        augment=None if augment is None else replace(augment, seed=seed),
        num_workers=workers,
        to_gpu=feeds_gpu,
        keeps_steps=feeds_gpu and keeps_steps(prepared),
        prefetch=0 if num_workers is not None else prefetch_of(config.data, prepared.train, feeds_gpu=feeds_gpu).value,
        seed=seed,
        timeout_s=config.data.timeout_s if workers else 0,
        skips=config.data.skips,
    )


def build_run(
    prepared: Prepared,
    runtime: Runtime,
    loader: Loader,
    *,
    plan: BatchPlan | BatchRamp | None = None,
    num_steps: int | None = None,
    is_guarded: bool = True,
    observers: Sequence[Observer] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    save_requested: Callable[[], bool] = lambda: False,
    roll_back: Callable[[Run], bool] = lambda run: False,
    rows: RowLog | None = None,
) -> Run:
    """The run that the config describes, with the model, loss and optimizer of `prepared`.

    Args:
        prepared: the run. Its model is moved to the device, compiled if configured, and wrapped.
        runtime: the job.
        loader: of this rank's micro-batches, see `build_loader`.
        plan: the loader's plan; None: the config's.
        num_steps: of the whole run; None: the config's.
        is_guarded: whether the guard of the config judges the steps.
        observers: see `make_run`.
        stop_requested: see `make_run`.
        save_requested: see `make_run`.
        roll_back: see `make_run`.
        rows: see `make_run`.
    """
    config, numbers = prepared.config, prepared.numbers
    return make_run(
        runtime,
        _wrapped(prepared, runtime),
        prepared.loss,
        prepared.optimizer,
        numbers.ramp if plan is None else plan,
        loader,
        numbers.lr_at,
        numbers.num_steps if num_steps is None else num_steps,
        seed=config.seed,
        clip_norm=config.clip_norm,
        scaled=prepared.scaled_groups,
        agree_every=config.observers.metrics.every,
        guard=_guard(config) if is_guarded else None,
        roll_back=roll_back,
        observers=observers,
        stop_requested=stop_requested,
        save_requested=save_requested,
        rows=rows,
        **vars(_gradient_options(prepared)),
    )


def own_copy(prepared: Prepared) -> Prepared:
    """The same run with a model, losses and an optimizer of its own."""
    model, loss, measured_loss = copy.deepcopy((prepared.model, prepared.loss, prepared.measured_loss))
    optimizer = build_optimizer(prepared.config, model, prepared.decisions.device)
    if prepared.decisions.compiled_optimizer.value is False:
        _keep_to_torch(optimizer)
    if prepared.scaled_groups is not None:
        prepared.scaled_groups.write(optimizer, 0)
    return replace(prepared, model=model, loss=loss, measured_loss=measured_loss, optimizer=optimizer)


def _gradient_options(prepared: Prepared) -> GradientOptions:
    config = prepared.config
    return replace(
        gradient_options(config),
        fixed_units=has_fixed_units(prepared),
        groups=noise_scale_groups(config, prepared.model),
        geometry=noise_scale_geometry(config, prepared.optimizer),
        step_buffers=prepared.state.by_step,
        skips_parameters=bool(prepared.state.choices),
    )


def has_fixed_units(prepared: Prepared) -> bool:
    """Whether all samples have the same number of units, which is then known without looking at a step's targets."""
    return not prepared.config.data.skips and units_are_fixed(prepared.loss, prepared.train)


def keeps_steps(prepared: Prepared) -> bool:
    """Whether a step has all of its micro-batches at once: to count units, to compare samples, or to pass twice."""
    return is_coupled(prepared.loss) or prepared.config.sam.is_global or not has_fixed_units(prepared)


def _guard(config: TrainConfig) -> Guard | None:
    options = config.guard
    if options.policy == "off":
        return None
    return Guard(options.policy, **options.model_dump(exclude={"policy"}))


def _wrapped(prepared: Prepared, runtime: Runtime) -> nn.Module:
    model, how = prepared.model, prepared.config.precision.compile
    if prepared.decisions.channels_last.value:
        keep_channels_last(model)
    # Two sizes are compiled each by itself: code for any size would be slower in every step.
    dynamic = False if has_few_sizes(prepared.config, prepared.numbers) else None
    if how:
        blocks = matching_modules(model, block_pattern(prepared.config)).values() if how == "blocks" else [model]
        compile_modules(blocks, dynamic=dynamic)
    outputs_in_float32 = not widens_outputs(prepared.loss)
    return runtime.wrap(model, bucket_mb=prepared.config.precision.bucket_mb, outputs_in_float32=outputs_in_float32)
