"""`largebatch compare RUN...`: the large-batch gap between runs at different batch sizes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from largebatch.diagnostics import Evaluations, Interval, LargeBatchGap
    from largebatch.trackers import Row

EXIT_DONE, EXIT_WRONG_INPUT = 0, 2
# What the numbers are measured with: where it differs there is nothing to compare.
_MEASURED_WITH = ("data.validation", "loss._target_")


@dataclass(frozen=True)
class _Run:
    """A run's folder as read."""

    folder: Path
    global_batch_size: int
    rows: Sequence[Row]
    evaluations: Evaluations
    settings: dict[str, str]


@dataclass(frozen=True)
class _Seed:
    """The runs of one seed with one setting, which are one value."""

    runs: Sequence[_Run]
    evaluations: Evaluations
    num_merged: int  # the others were broken off, or evaluated elsewhere


def main(arguments: Sequence[str]) -> int:
    """`compare RUN... [--out FOLDER]`; returns 0, or 2 for wrong input."""
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as exit_:
        return EXIT_WRONG_INPUT if exit_.code else EXIT_DONE
    from largebatch.durable_files import write_record
    from largebatch.run_folder import new_folder
    from largebatch.run_report.records import differing
    from largebatch.trackers import plot_large_batch_gap, print_table

    try:
        runs = [_read(Path(given)) for given in options.runs]
        groups = _by_batch_size(runs)
    except (OSError, ValueError) as error:
        print(f"largebatch compare: {error}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    base, *_ = groups
    seeds = {size: _seeds(group) for size, group in groups.items()}
    gaps = _gaps(seeds)
    headers = ("batch", "matched at", "which is", "loss gap", "95 % interval", "accuracy gap", "95 % interval")
    title = f"large-batch gap on validation, against batch {base:,} ({_count(len(seeds[base]))}); positive: worse"
    print_table(headers, [_row(size, len(seeds[base]), len(seeds[size]), gap) for size, gap in gaps], title=title)
    merged = _merged(seeds)
    for line in merged:
        print(line)
    if keys := differing([run.settings for run in runs]):
        print(f"besides the batch, the runs differ in: {', '.join(keys)}")
    folder = Path(options.out) if options.out else new_folder("runs", "compare")
    record = folder / "large_batch_gap.json"
    write_record(record, _record(groups, gaps, keys) | {"merged": merged})
    rows = {size: [run.rows for run in group] for size, group in groups.items()}
    print(record)
    print(plot_large_batch_gap(rows, folder / "gap.png", title=f"{len(runs)} runs at {len(groups)} batch sizes"))
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="largebatch compare",
        description="Large-batch gap: how much worse runs with a larger batch do on validation than those with the "
        "smallest, at equal samples, equal steps and equal training loss. Seeds of one batch size are replicates: give "
        "three or more of each for an interval. Runs that repeat a seed are one value.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument("--out", metavar="FOLDER", help="for gap.png and large_batch_gap.json; default: a new one")
    return parser


def _read(folder: Path) -> _Run:
    """Raises ValueError if the folder holds no run that can be compared."""
    from omegaconf import OmegaConf

    from largebatch.run_folder import RunFolder
    from largebatch.run_report.run_files import flat_settings
    from largebatch.trackers import read_metrics

    run = RunFolder(folder)
    plan, config = folder / "plan.json", folder / "config.yaml"
    for file in (plan, config, run.metrics):
        if not file.is_file():
            raise ValueError(f"{file} does not exist. Give the folder of a run of `largebatch train`.")
    values = json.loads(plan.read_text(encoding="utf-8"))
    if values.get("ramp"):
        raise ValueError(
            f"{folder}: its batch changes over the run, so that it belongs to no batch size. Leave it out."
        )
    rows = read_metrics(run.metrics)
    settings = flat_settings(OmegaConf.to_container(OmegaConf.load(config), resolve=False))
    return _Run(folder, int(values["global_batch_size"]), rows, _evaluations(rows, folder), settings)


def _evaluations(rows: Sequence[Row], folder: Path) -> Evaluations:
    import numpy as np

    from largebatch.diagnostics import Evaluations

    keys = ("samples_seen", "step", "eval/train_loss", "eval/val_loss", "eval/val_accuracy")
    by_step = {row["step"]: row for row in rows if all(key in row for key in keys[:4])}
    table = [[float(row.get(key, math.inf)) for key in keys] for _, row in sorted(by_step.items())]
    found = np.array([line for line in table if all(map(math.isfinite, line[:4]))]).reshape(-1, len(keys))
    if not len(found):
        raise ValueError(f"{folder}: its metrics have no evaluation with finite losses. Train with evaluation.")
    accuracy = found[:, 4] if np.isfinite(found[:, 4]).all() else None
    return Evaluations(found[:, 0], found[:, 1], found[:, 2], found[:, 3], accuracy)


def _by_batch_size(runs: Sequence[_Run]) -> dict[int, list[_Run]]:
    """Ascending. Raises ValueError if there is one size only, a folder twice, or the runs measure different things."""
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a folder is given twice: a copy of a run is no replicate. Name each run once.")
    groups = {size: [run for run in runs if run.global_batch_size == size] for size in _sizes(runs)}
    if len(groups) < 2:
        (size,) = groups
        raise ValueError(f"all runs have batch {size:,}: a gap needs two batch sizes. Add runs of another.")
    for key in _MEASURED_WITH:
        if found := _values(runs, key):
            raise ValueError(
                f"the runs differ in {key}: {found}. They measure different things; compare like with like."
            )
    return groups


def _sizes(runs: Sequence[_Run]) -> list[int]:
    return sorted({run.global_batch_size for run in runs})


def _values(runs: Sequence[_Run], prefix: str) -> str:
    """The different settings that begin with `prefix`, or "" if there are none."""
    parts = [{key: text for key, text in run.settings.items() if key.startswith(prefix)} for run in runs]
    differing = [part for part in parts if part != parts[0]]
    return f"{_brief(parts[0])} and {_brief(differing[0])}" if differing else ""


def _brief(settings: dict[str, str]) -> str:
    return ", ".join(f"{key}={text}" for key, text in settings.items())


def _seeds(runs: Sequence[_Run]) -> list[_Seed]:
    from largebatch.diagnostics.large_batch_gap import merge_reruns
    from largebatch.run_report.seeds import by_seed

    return [_Seed(same, *merge_reruns([run.evaluations for run in same])) for same in by_seed(runs)]


def _merged(seeds: dict[int, list[_Seed]]) -> list[str]:
    """What was not counted as a replicate."""
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
    from largebatch.diagnostics import MATCHES, large_batch_gap

    base, *others = seeds
    small = [one.evaluations for one in seeds[base]]
    return [
        (size, large_batch_gap(small, [one.evaluations for one in seeds[size]], match=match))
        for size in others
        for match in MATCHES
    ]


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' * (seeds > 1)}"


def _row(size: int, num_base: int, num_seeds: int, gap: LargeBatchGap) -> tuple[str, ...]:
    from largebatch.diagnostics import MATCHES

    batch, match = f"{size:,} ({_count(num_seeds)})", MATCHES[gap.match]
    if gap.at is None:
        return batch, match, "none", gap.reason, "", "", ""
    at = f"{gap.at:.4g}" if gap.match == "train_loss" else f"{gap.at:,.0f}"
    fewer = min(num_base, num_seeds)
    return batch, match, at, *_shown(gap.loss, fewer), *_shown(gap.accuracy, fewer)


def _shown(one: Interval | None, fewer: int) -> tuple[str, str]:
    from largebatch.diagnostics.bootstrap import LEAST_SEEDS

    if one is None:
        return "", ""
    why = f"{_count(fewer)}: no interval" if fewer < LEAST_SEEDS else "all seeds alike: no interval"
    return f"{one.value:+.4f}", why if math.isnan(one.low) else f"{one.low:+.4f} to {one.high:+.4f}"


def _record(
    groups: dict[int, list[_Run]], gaps: Sequence[tuple[int, LargeBatchGap]], differing: list[str]
) -> dict[str, Any]:
    base, *_ = groups
    return {
        "base_batch_size": base,
        "runs": {size: [str(run.folder) for run in group] for size, group in groups.items()},
        "differing": differing,
        "large_batch_gap": [{"global_batch_size": size} | _finite(dataclasses.asdict(gap)) for size, gap in gaps],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """An end that is not known is null, not NaN, which is no JSON."""
    return {
        key: _finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in values.items()
    }
