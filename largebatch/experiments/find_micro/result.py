"""What the tries found: the largest micro-batch, the smallest that is as fast, and how the prediction did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from largebatch.diagnostics.memory.budget import shown_bytes
from largebatch.distributed.gather import named_ranks
from largebatch.experiments.find_micro.predicted import PredictedFit
from largebatch.experiments.find_micro.settings import FindMicroConfig, Sizes
from largebatch.experiments.find_micro.tries import Try
from largebatch.records.figures.diagram import Axis, Diagram, Line
from largebatch.records.result import Result, Table

_MICRO = Axis("micro-batch", "samples", log=True)
_MIB = 2**20


def result_of(
    tries: Sequence[Try], sizes: Sizes, options: FindMicroConfig, predicted: PredictedFit | None, *, title: str
) -> Result:
    """The result of all tries.

    Args:
        tries: at least one, in their order.
        sizes: that a plan can have.
        options: of the tries.
        predicted: before them; None: not made.
        title: names the run.
    """
    ordered = sorted(tries, key=lambda one: one.size)
    fitting = [one for one in ordered if one.fits]
    sentences = [_largest(ordered, sizes, options)]
    numbers: dict[str, Any] = {
        "key": f"batch.{sizes.key}",
        "largest": fitting[-1].size if fitting else None,
        "as_fast": None,
        "share": sizes.share,
        "batch_size": sizes.global_batch_size,
        "tries": [asdict(one) | {"fits": one.fits} for one in ordered],
    }
    if fitting:
        as_fast, best = as_fast_as_best(fitting, options.near)
        sentences += _speeds(as_fast, best, sizes, options)
        numbers |= {"as_fast": as_fast.size, "fastest": best.size}
    if sizes.least > 1:
        sentences.append("The model fails on one sample alone, so that sizes that leave one by itself are out.")
    if predicted is not None:
        size = None if predicted.size is None else sizes.at_most(predicted.size)
        predicted = replace(predicted, size=size, peak=predicted.peak if size == predicted.size else 0)
        sentences.append(_against(predicted, fitting[-1] if fitting else None))
    numbers["predicted"] = None if predicted is None else asdict(predicted)
    headers = ("micro-batch", "passes per step", "peak of a rank", "fits", "samples/s", "slowest to fastest step")
    table = Table(title, headers, [_row(one) for one in ordered])
    figures = [_speed_diagram(fitting, title), _memory_diagram(ordered, title)] if fitting else []
    return Result("Micro-batch", sentences, [table], figures, numbers, picture="find_micro.png", heading=title)


def as_fast_as_best(fitting: Sequence[Try], near: float) -> tuple[Try, Try]:
    """The smallest micro-batch whose median speed is at most the share `near` below the best one, and the best.

    Args:
        fitting: ascending by size.
        near: a share.
    """
    best = max(fitting, key=lambda one: one.speed)
    return next(one for one in fitting if one.speed >= (1 - near) * best.speed), best


def _largest(ordered: Sequence[Try], sizes: Sizes, options: FindMicroConfig) -> str:
    fitting = [one for one in ordered if one.fits]
    misfits = [one for one in ordered if not one.fits]
    limit = f"{shown_bytes(min(ordered[-1].limits))} for tensors"
    if options.headroom:
        limit += f", which leaves {options.headroom:.0%} free"
    if not fitting:
        short = ordered[0].short
        return (
            f"No micro-batch fits: with one of {ordered[0].size}, {named_ranks(short)} {_run(short)} short of {limit}. "
            "Set precision.activation_checkpointing=true, or take a smaller model or shorter samples."
        )
    best = fitting[-1]
    peak = shown_bytes(max(best.peaks))
    said = f"The largest micro-batch that fits is batch.{sizes.key}={best.size}: peak {peak} of {limit}."
    if not misfits:
        return f"{said} It is the largest of a rank, whose share is {sizes.share} of {sizes.global_batch_size} samples."
    over = misfits[0]
    return f"{said} With {over.size}, the next that a plan has, {named_ranks(over.short)} {_run(over.short)} short."


def _run(ranks: Sequence[int]) -> str:
    return "runs" if len(ranks) == 1 else "run"


def _speeds(as_fast: Try, best: Try, sizes: Sizes, options: FindMicroConfig) -> list[str]:
    told = [
        f"The smallest within {options.near:.0%} of the best speed is batch.{sizes.key}={as_fast.size}: "
        f"{as_fast.speed:,.4g} samples/s ({_range(as_fast)} in {len(as_fast.speeds)} steps)."
    ]
    if best is not as_fast:
        told[0] = told[0][:-1] + f"; the best is {best.size} with {best.speed:,.4g}."
    spread = (max(best.speeds) - min(best.speeds)) / best.speed
    if spread > options.near:
        told.append(
            f"Steps of the best one differ by {spread:.0%}, so that sizes within that are not told apart. Raise "
            f"find_micro.steps={options.steps}, or find_micro.near."
        )
    return told


def _against(predicted: PredictedFit, measured: Try | None) -> str:
    if predicted.reason:
        return f"plan.memory predicts nothing to compare with: {predicted.reason}"
    found = "none" if measured is None else str(measured.size)
    said = f"The largest was predicted as {predicted.size or 'none'} and measured as {found}"
    if measured is None or predicted.size != measured.size or not predicted.peak:
        return f"{said} (plan.memory, for the same bytes of tensors)."
    error = max(measured.peaks) / predicted.peak - 1
    return f"{said}; its peak as {shown_bytes(predicted.peak)} and {shown_bytes(max(measured.peaks))}: {error:+.1%}."


def _row(one: Try) -> tuple[str, ...]:
    fits = "yes" if one.fits else f"not on {named_ranks(one.short)}"
    peak = shown_bytes(max(one.peaks)) if one.fits else f"> {shown_bytes(min(one.limits[rank] for rank in one.short))}"
    speed = (f"{one.speed:,.4g}", _range(one)) if one.fits else ("", "")
    return (str(one.size), str(one.passes), peak, fits, *speed)


def _range(one: Try) -> str:
    return f"{min(one.speeds):,.4g} to {max(one.speeds):,.4g}"


def _speed_diagram(fitting: Sequence[Try], title: str) -> Diagram:
    line = Line(
        "median, slowest and fastest step",
        [one.size for one in fitting],
        [one.speed for one in fitting],
        [min(one.speeds) for one in fitting],
        [max(one.speeds) for one in fitting],
        style="both",
    )
    axis, caption = Axis("speed", "samples/s"), "Speed: median of the timed steps; band: slowest to fastest."
    return Diagram("find_micro_speed", title, _MICRO, axis, (line,), caption)


def _memory_diagram(ordered: Sequence[Try], title: str) -> Diagram:
    fitting, limit = [one for one in ordered if one.fits], min(ordered[-1].limits) / _MIB
    lines = (
        Line("peak of a rank", [one.size for one in fitting], [max(one.peaks) / _MIB for one in fitting], style="both"),
        Line("memory for tensors", [ordered[0].size, ordered[-1].size], [limit, limit], style="dashed"),
    )
    return Diagram("find_micro_memory", title, _MICRO, Axis("memory", "MiB"), lines)
