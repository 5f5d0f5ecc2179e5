"""The large-batch gap between runs at different batch sizes, read from their folders."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from largebatch.diagnostics import MATCHES, Evaluations, Interval, LargeBatchGap, large_batch_gap
from largebatch.diagnostics.gap.large_batch_gap import merge_reruns
from largebatch.records.figures.comparison_figures import large_batch_gap_figures
from largebatch.records.regular_files import printable
from largebatch.records.report.evaluated_runs import EvaluatedRun, read_evaluated
from largebatch.records.report.evidence import differing
from largebatch.records.report.seeds import by_seed, no_interval
from largebatch.records.result import Result, Table

# Runs that differ here measure different things, and cannot be compared.
_MEASURED_WITH = ("data.validation", "loss._target_")


@dataclass(frozen=True)
class _Seed:
    """The runs of one seed at one batch size: they count as one value."""

    runs: Sequence[EvaluatedRun]
    evaluations: Evaluations
    num_merged: int  # the others were broken off, or evaluated elsewhere


def compare_runs(folders: Sequence[str], *, on_left_out: Callable[[str], object]) -> tuple[Result, list[str]]:
    """The gap of each batch size against the smallest, from these runs; and a line for each run left out.

    Args:
        folders: run folders.
        on_left_out: called with a line for each run left out, also where nothing remains to be compared.

    Raises:
        ValueError: if there is nothing to compare.
    """
    runs, left_out = _read_all(folders)
    for line in left_out:
        on_left_out(line)
    groups = _by_batch_size(runs)
    base, *_ = groups
    seeds = {size: _seeds(group) for size, group in groups.items()}
    gaps = _gaps(seeds)
    merged, keys = [printable(line) for line in _merged(seeds)], differing([run.settings for run in runs])
    result = Result(
        title="Large-batch gap",
        sentences=[*_sentences(base, seeds, gaps), *merged, *_of_differing(keys)],
        tables=[_table(base, seeds, gaps)],
        figures=large_batch_gap_figures({size: [run.rows for run in group] for size, group in groups.items()}),
        numbers=_numbers(groups, gaps, keys) | {"merged": merged, "left_out": left_out},
        picture="gap.png",
        heading=f"{len(runs)} runs at {len(groups)} batch sizes",
    )
    return result, left_out


def _read_all(given: Sequence[str]) -> tuple[list[EvaluatedRun], list[str]]:
    """The runs that can be compared, and why others, or lines of them, cannot."""
    runs, left_out = [], []
    for folder in map(Path, given):
        try:
            run = read_evaluated(folder)
        except (OSError, ValueError) as error:  # noqa: PERF203  a run is a folder
            left_out.append(f"left out: {printable(error)}")
        else:
            runs.append(run)
            left_out += [f"damaged: {printable(folder)}: {fault}" for fault in run.faults]
    return runs, left_out


def _by_batch_size(runs: Sequence[EvaluatedRun]) -> dict[int, list[EvaluatedRun]]:
    """Ascending. Raises ValueError if there is one size only, a folder twice, or the runs measure different things."""
    folders = [os.path.realpath(run.folder) for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a folder is given twice: a copy of a run is no replicate. Name each run once.")
    groups = {size: [run for run in runs if run.global_batch_size == size] for size in _sizes(runs)}
    if not groups:
        raise ValueError("none of the runs can be compared.")
    if len(groups) < 2:
        (size,) = groups
        raise ValueError(f"all runs have batch {size:,}: a gap needs two batch sizes. Add runs of another.")
    for key in _MEASURED_WITH:
        if found := _values(runs, key):
            raise ValueError(
                f"the runs differ in {key}: {found}. They measure different things; compare like with like."
            )
    return groups


def _sizes(runs: Sequence[EvaluatedRun]) -> list[int]:
    return sorted({run.global_batch_size for run in runs})


def _values(runs: Sequence[EvaluatedRun], prefix: str) -> str:
    """The different settings that begin with `prefix`, or "" if there are none."""
    parts = [{key: text for key, text in run.settings.items() if key.startswith(prefix)} for run in runs]
    differing = [part for part in parts if part != parts[0]]
    return f"{_brief(parts[0])} and {_brief(differing[0])}" if differing else ""


def _brief(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={text}" for key, text in settings.items())


def _seeds(runs: Sequence[EvaluatedRun]) -> list[_Seed]:
    return [_Seed(same, *merge_reruns([run.evaluations for run in same])) for same in by_seed(runs)]


def _merged(seeds: dict[int, list[_Seed]]) -> list[str]:
    """A line for each seed whose runs are merged into one value."""
    lines = []
    for size, group in seeds.items():
        for one in group:
            if len(one.runs) > 1:
                left_out = len(one.runs) - one.num_merged
                but = f", without {left_out} that ended earlier or evaluated elsewhere" if left_out else ""
                seed = one.runs[0].settings.get("seed")
                lines.append(f"batch {size:,}: {len(one.runs)} runs of seed {seed} merged into one value{but}")
    return lines


def _gaps(seeds: dict[int, list[_Seed]]) -> list[tuple[int, LargeBatchGap]]:
    base, *others = seeds
    small = [one.evaluations for one in seeds[base]]
    return [
        (size, large_batch_gap(small, [one.evaluations for one in seeds[size]], match=match))
        for size in others
        for match in MATCHES
    ]


def _sentences(base: int, seeds: dict[int, list[_Seed]], gaps: Sequence[tuple[int, LargeBatchGap]]) -> list[str]:
    """The loss gap of each batch size at equal samples: the match that every pair of runs has."""
    return [
        f"At equal samples, batch {size:,} {_outcome(gap.loss, min(len(seeds[base]), len(seeds[size])))}."
        for size, gap in gaps
        if gap.match == "samples"
    ]


def _outcome(one: Interval | None, fewer: int) -> str:
    if one is None:
        return "cannot be compared with the smallest batch"
    value, interval = _cells(one, fewer)
    if math.isnan(one.low):
        return f"differs by {value} in validation loss ({interval}): that cannot be told from noise"
    apart = "is worse" if one.low > 0 else "is better" if one.high < 0 else "shows no clear difference"
    return f"{apart}: {value} in validation loss (95 %: {interval})"


def _of_differing(keys: Sequence[str]) -> list[str]:
    return [f"Besides the batch, the runs differ in: {printable(', '.join(keys))}."] if keys else []


def _table(base: int, seeds: dict[int, list[_Seed]], gaps: Sequence[tuple[int, LargeBatchGap]]) -> Table:
    headers = ("batch", "matched at", "value", "loss gap", "95 % interval", "accuracy gap", "95 % interval")
    title = f"large-batch gap on validation, against batch {base:,} ({_count(len(seeds[base]))}); positive: worse"
    return Table(title, headers, [_row(size, len(seeds[base]), len(seeds[size]), gap) for size, gap in gaps])


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def _row(size: int, num_base: int, num_seeds: int, gap: LargeBatchGap) -> tuple[str, ...]:
    batch, match = f"{size:,} ({_count(num_seeds)})", MATCHES[gap.match]
    if gap.at is None:
        return batch, match, "none", gap.reason, "", "", ""
    at = f"{gap.at:.4g}" if gap.match == "train_loss" else f"{gap.at:,.0f}"
    fewer = min(num_base, num_seeds)
    return batch, match, at, *_cells(gap.loss, fewer), *_cells(gap.accuracy, fewer)


def _cells(one: Interval | None, fewer: int) -> tuple[str, str]:
    if one is None:
        return "", ""
    return f"{one.value:+.4f}", no_interval(fewer) if math.isnan(one.low) else f"{one.low:+.4f} to {one.high:+.4f}"


def _numbers(
    groups: dict[int, list[EvaluatedRun]], gaps: Sequence[tuple[int, LargeBatchGap]], differing: list[str]
) -> dict[str, Any]:
    base, *_ = groups
    return {
        "base_batch_size": base,
        "runs": {size: [str(run.folder) for run in group] for size, group in groups.items()},
        "differing": differing,
        "large_batch_gap": [{"global_batch_size": size} | dataclasses.asdict(gap) for size, gap in gaps],
    }
