"""Describes an exception of the user's code: its text, its place, and the data that it failed on."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = ("site-packages", "dist-packages")
_STANDARD = Path(traceback.__file__).resolve().parent


class RunFailedError(Exception):
    """A run ended with an error of its model, loss or data. The message is complete; no traceback is needed."""


def error_text(error: BaseException) -> str:
    """Type and first sentence of an error, and the line of the user's own code that raised it, if there is one.

    >>> error_text(KeyError("pixel_values"))
    "KeyError: 'pixel_values'"
    """
    place = where_raised(error)
    first, *others = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{first} {others[0]}" if first.endswith(":") and others else first
    return f"{type(error).__name__}: {text.rstrip('.')}{f' ({place})' if place else ''}"


def where_raised(error: BaseException) -> str | None:
    """File, line and function of the innermost frame that is neither ours nor of an installed library."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        parents = path.resolve().parents
        if path.is_file() and not {_PACKAGE, _STANDARD} & set(parents) and not set(_LIBRARIES) & set(path.parts):
            return f"{path.name}:{frame.lineno} in {frame.name}"
    return None


def is_ours(error: BaseException) -> bool:
    """Whether this package raised it about wrong input; then it needs no explanation."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and _PACKAGE in Path(frames[-1].filename).resolve().parents


def described(inputs: torch.Tensor | Mapping[str, Any], targets: Any, ids: Sequence[int] = ()) -> str:
    """Types and shapes of a micro-batch, the range of its integers, and its NaNs.

    Args:
        inputs: [n, ...], or a dict of such.
        targets: [n, ...].
        ids: of its samples; those with the smallest and the largest number, or without one, are named.

    >>> described(torch.zeros(2, 3), torch.tensor([1, 7]))
    'inputs float32 [2, 3], targets int64 [2] from 1 to 7'
    >>> described(torch.tensor([[0, 3], [9, 1]]), torch.zeros(2), ids=[11, 40])
    'inputs int64 [2, 2] from 0 (sample 11) to 9 (sample 40), targets float32 [2]'
    """
    parts = {**inputs} if isinstance(inputs, Mapping) else {"inputs": inputs}
    return ", ".join(f"{name} {_described(part, ids)}" for name, part in (parts | {"targets": targets}).items())


def _described(part: Any, ids: Sequence[int]) -> str:
    if not isinstance(part, torch.Tensor):
        return type(part).__name__
    text = f"{str(part.dtype).removeprefix('torch.')} {list(part.shape)}"
    if part.numel() == 0:
        return text
    rows = part.reshape(len(part), -1) if part.dim() else part.reshape(1, 1)

    def of(row: int) -> str:
        return f" (sample {ids[row]})" if len(ids) == len(rows) else ""

    if part.is_floating_point() or part.is_complex():
        bad = (~torch.isfinite(rows)).any(dim=1).nonzero()[:, 0].tolist()
        return f"{text} with NaN or infinity{of(bad[0])}" if bad else text
    lowest, highest = rows.amin(1), rows.amax(1)
    return (
        f"{text} from {int(lowest.min())}{of(int(lowest.argmin()))} to {int(highest.max())}{of(int(highest.argmax()))}"
    )
