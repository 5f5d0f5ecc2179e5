"""What weakens the verdict of a report, and what is missing: one line per kind, with its count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from largebatch.records.regular_files import printable
from largebatch.records.report.batches import quality_of
from largebatch.records.report.evidence import Evidence, differing
from largebatch.records.report.groups import Group, num_seeds
from largebatch.records.report.seeds import merge_notes

_NOT_FINISHED = ("diverged", "stopped", "unfinished")
_MOST = 6  # of a kind that are named
_MOST_OF_PATH = 200


def caveats(evidence: Evidence, groups: Sequence[Group]) -> list[str]:
    """A line for each kind of caveat: how many there are, and which."""
    lines = [
        *_kind("One seed", [f"{group.name} at {_listed(single)}" for group in groups if (single := _single(group))],
               "Such an interval covers the validation samples, not the seed. Add seeds."),
        *_kind("Seeds that were run again", [
            f"{group.name}, batch {size:,}: {clause}" for group in groups for size, clause in _merged(group)
        ]),
        *_kind("Settings that differ besides the batch", [
            f"{group.name}: {', '.join(keys)}" for group in groups
            if not group.study and (keys := differing([run.settings for run in group.runs]))
        ]),
        *_kind("Data sets that augment by themselves", [
            run.name for group in groups for run in group.runs if run.is_gap_augmented
        ], "One side of the gap is augmented."),
        *_kind("Cooldowns", [
            place for group in groups for run in group.runs if (place := _trunk(run.name, run.plan))
        ], "Their rows begin there; the steps before are the trunk's."),
    ]  # fmt: skip
    for status in _NOT_FINISHED:
        ended = [
            run.name
            for group in groups
            for run in group.runs
            if run.status == status and not (group.study and status == "stopped")
        ]
        lines += _kind(f"Runs that are {status}", ended)
    if evidence.num_trials:
        lines.append(f"Tuning runs of a study ({evidence.num_trials:,}): it did not choose their settings; left out.")
    if not evidence.of("study") and (evidence.compared or not evidence.records):
        lines.append(
            "No study is among the folders: steps to a target and the critical batch size are not measured. "
            "`largebatch study` measures them."
        )
    return lines


def _kind(title: str, found: Sequence[str], meaning: str = "") -> list[str]:
    if not found:
        return []
    shown = "; ".join(found[:_MOST]) + (" ..." if len(found) > _MOST else "")
    return [f"{title} ({len(found):,}): {shown}.{f' {meaning}' if meaning else ''}"]


def _trunk(name: str, plan: dict[str, Any]) -> str:
    """Where a run left its trunk; empty if it has none, or does not say."""
    trunk = plan.get("trunk")
    if not isinstance(trunk, dict) or not isinstance(samples := trunk.get("samples_seen"), int):
        return ""
    return f"{name} leaves {printable(str(trunk.get('checkpoint')))[:_MOST_OF_PATH]} after {samples:,} samples"


def _single(group: Group) -> list[int]:
    return [size for size, runs in group.by_batch.items() if num_seeds(runs) == 1]


def _merged(group: Group) -> list[tuple[int, str]]:
    quality = quality_of(group)
    key = quality.key if quality else None
    return [(size, clause) for size, runs in group.by_batch.items() for clause in merge_notes(runs, key)]


def _listed(sizes: Sequence[int]) -> str:
    shown = ", ".join(f"{size:,}" for size in sizes[:_MOST])
    return f"batch {shown}{' ...' if len(sizes) > _MOST else ''}"
