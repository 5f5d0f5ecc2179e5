"""Puts weights of a file into a model, and tells what fitted and what was left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

# What wrappers put before names: DistributedDataParallel, Lightning's and timm's attribute, torch.compile.
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_COMPILED = "_orig_mod."  # inside a name: of a block that was compiled by itself


@dataclass(frozen=True)
class FittedWeights:
    """What became of the tensors of a file.

    Attributes:
        loaded: how many of the model's tensors got values.
        total: how many the model has.
        prefix: that was taken from the names of the file.
        missing: names of the model that the file lacks; they keep their values.
        unexpected: names of the file that the model has not.
        misfits: tensors of the same name and another shape or kind, each with both.
        converted: number formats of the file that became the model's.
    """

    loaded: int
    total: int
    prefix: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    converted: tuple[str, ...]

    @property
    def left(self) -> list[str]:
        """What did not fit, one clause each; none if all did."""
        kinds = {
            "missing in the file": self.missing,
            "left over in the file": self.unexpected,
            "of another shape": self.misfits,
        }
        return [f"{len(names)} {kind} ({brief_names(names)})" for kind, names in kinds.items() if names]


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], into: str = "") -> FittedWeights:
    """Copy tensors into the parameters and buffers of the same names; what does not fit stays as it is.

    Prefixes of wrappers (`module.`, `model.`, `net.`, `_orig_mod.`) are taken off where more names fit without them.
    Values keep the number format of the model. Its own hooks of `load_state_dict` take part.

    Args:
        model: unwrapped.
        tensors: by name, on the CPU.
        into: the part of the model that the file is for, such as "backbone."; tensors outside of it are not missed.

    >>> source, model = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> fitted = fit_weights(model, {f"module.{name}": one for name, one in source.state_dict().items()})
    >>> fitted.loaded, fitted.prefix, bool((model.weight == source.weight).all())
    (2, 'module.', True)
    """
    own = {name: one for name, one in model.state_dict().items() if isinstance(one, Tensor)}
    named = {name.replace(_COMPILED, ""): one for name, one in tensors.items()}
    prefix = _prefix(named, [name.removeprefix(into) for name in own if name.startswith(into)])
    named = {into + name.removeprefix(prefix): one for name, one in named.items()}
    misfits = {name: _misfit(one, own[name]) for name, one in named.items() if name in own}
    misfits = {name: text for name, text in misfits.items() if text}
    fitting = {name: one for name, one in named.items() if name not in misfits}
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    filled = {own[name].data_ptr() for name in fitting if name in own}
    # A file may hold a shared tensor under one of its names only.
    kept = [name for name in missing if name not in misfits and own[name].data_ptr() not in filled]
    absent = [name for name in kept if name.startswith(into)]
    formats = {_format(one) for name, one in fitting.items() if name in own and one.dtype != own[name].dtype}
    fits_any = len(unexpected) < len(fitting)  # torch does not miss the counts of batch norms in files of before 2018
    return FittedWeights(
        len(own) - len(kept) - len(misfits) if fits_any else 0,
        len(own),
        prefix,
        tuple(absent),
        tuple(unexpected),
        tuple(f"{name}: {text}" for name, text in misfits.items()),
        tuple(sorted(formats)),
    )


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}


def likely_prefixes(names: Iterable[str], own: Iterable[str]) -> list[tuple[str, int]]:
    """Prefixes that turn names of the first kind into names of the second, with the number of these names.

    Only the best and those equal to it; none if there is none.

    >>> likely_prefixes(["q.stem.weight", "q.stem.bias", "queue"], ["stem.weight", "stem.bias", "head.bias"])
    [('q.', 2)]
    """
    own, counts = set(own), Counter[str]()
    for name in names:
        parts = name.split(".")
        counts.update(".".join(parts[:cut]) + "." for cut in range(1, len(parts)) if ".".join(parts[cut:]) in own)
    return [(prefix, count) for prefix, count in counts.most_common() if count == max(counts.values())]


def brief_names(names: Iterable[str], most: int = 4) -> str:
    """The first of some names, and how many there are beyond them."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _prefix(names: Iterable[str], own: Iterable[str]) -> str:
    """The combination of known prefixes without which most names fit; "" unless another one is better."""
    names, own, found = list(names), set(own), ""

    def fitting(prefix: str) -> int:
        return sum(name.startswith(prefix) and name.removeprefix(prefix) in own for name in names)

    tried = [first + second for first in ("", *_PREFIXES) for second in ("", *_PREFIXES)]
    for prefix in tried:
        if fitting(prefix) > fitting(found):
            found = prefix
    return found


def _misfit(given: Tensor, own: Tensor) -> str:
    if given.shape != own.shape:
        return f"{list(given.shape)} in the file, {list(own.shape)} in the model"
    if given.is_floating_point() != own.is_floating_point():
        return f"{_format(given)} in the file, {_format(own)} in the model"
    return ""


def _format(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
