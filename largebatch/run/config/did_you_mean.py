"""Suggest the closest valid name for one that does not exist: a misspelling, or another tool's word for it.

A suggestion must not lead to another experiment. So digits are never corrected (resnet34 is not resnet18), short words
hardly, and a word that merely looks alike is no suggestion: `data.batch_size` is not `scaling.base_batch_size`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from largebatch.run.config.other_tools import normalised, same_choice, sentence_for_key

MOST_SUGGESTED = 3
_SHORTEST_WORD = 3  # of which the beginning says enough

_USUAL = "optimizer."  # `scaling.momentum` is the rule by which `optimizer.momentum` follows the batch
_NO_SLIPS = {"adam"}  # other methods, one letter away from one of ours


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """A suggestion with a leading blank, to append to an error; empty if no name is close.

    >>> did_you_mean("trian", ["plan", "train"])
    " Did you mean 'train'?"
    >>> did_you_mean("resnet", ["resnet18", "resnet50", "mlp"])
    " Did you mean 'resnet18' or 'resnet50'?"
    >>> did_you_mean("resnet34", ["resnet18", "resnet50", "mlp"])
    ''
    """
    close = nearest(given, list(names))
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def nearest(given: str, names: Sequence[str]) -> list[str]:
    """The names that `given` misspells, is a synonym of, or is a part of; at most `MOST_SUGGESTED`."""
    if given.casefold() in _NO_SLIPS:
        return []
    close = [name for name in names if same_choice(given) == name] or _closest(given, names)
    close = close or [name for name in names if _is_part(given, name)]
    return close if len(close) <= MOST_SUGGESTED else []


def meant_by_key(given: str, names: Sequence[str], value: str = "") -> str:
    """Suggest a replacement for a key that does not exist; empty without a suggestion.

    Args:
        given: the dotted key.
        names: all dotted keys.
        value: the given value.

    >>> meant_by_key("trainer.max_epochs", ["length", "seed"], "10")
    'Write length=10ep.'
    >>> meant_by_key("wandb.project", ["logger.wandb.project", "seed"])
    "Did you mean 'logger.wandb.project'?"
    >>> meant_by_key("data.mixup", ["data.augment.mixup", "seed"])
    "Did you mean 'data.augment.mixup'?"
    """
    if sentence := sentence_for_key(given, value):
        return sentence
    given = normalised(given)
    section, _, last = given.rpartition(".")
    inside = [name for name in names if name.endswith(f".{given}")]
    deeper = [name for name in names if name.endswith(f".{last}") and name.startswith(f"{section}.")] if section else []
    if len(inside) > 1 and (usual := [name for name in inside if name.startswith(_USUAL)]):
        inside = usual
    close = (
        inside if 0 < len(inside) <= MOST_SUGGESTED else _closest(given, names) or (deeper if len(deeper) == 1 else [])
    )
    return f"Did you mean {' or '.join(map(repr, close))}?" if 0 < len(close) <= MOST_SUGGESTED else ""


def _closest(given: str, names: Iterable[str]) -> list[str]:
    apart = {name: edits for name in names if (edits := _edits(given, name)) is not None}
    return [name for name, edits in apart.items() if edits == min(apart.values())]


def _edits(given: str, name: str) -> int | None:
    """Edits between two names, word by word; None if a word needs too many, that is, for different names."""
    given, name = given.casefold(), name.casefold()
    if re.findall(r"\d+", given) != re.findall(r"\d+", name):
        return None
    words, others = _words(given), _words(name)
    if len(words) != len(others):  # written apart, or in one
        edits = _distance("".join(words), "".join(others))
        return edits if edits == 0 else None
    apart = [_distance(word, other) for word, other in zip(words, others, strict=True)]
    allowed = [_slips(min(len(word), len(other))) for word, other in zip(words, others, strict=True)]
    return sum(apart) if all(one <= most for one, most in zip(apart, allowed, strict=True)) else None


def _slips(letters: int) -> int:
    return 0 if letters < _SHORTEST_WORD else 1 if letters < 8 else 2


def _is_part(given: str, name: str) -> bool:
    """Whether every word of `given` is one of `name`, or begins one."""
    words, others = _words(given.casefold()), _words(name.casefold())
    return len(given) >= _SHORTEST_WORD and all(
        word in others or (len(word) >= _SHORTEST_WORD and any(other.startswith(word) for other in others))
        for word in words
    )


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^0-9a-z]+", name) if word]


def _distance(one: str, other: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, letter_2 in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != letter_2))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == letter_2:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
