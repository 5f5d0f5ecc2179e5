"""One name and one colour for each optimizer, on the page, in pictures and in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# In the order of their colours: another optimizer's runs never change them.
_NAMES = ("SGD", "LARS", "LAMB", "AdamW", "Muon")
_CLASSES = {"muonwithadamw": "Muon"}


def optimizer_name(given: str) -> str:
    """The name for people of a class or of a choice of the config; one of somebody else's stays as it is.

    >>> [optimizer_name(given) for given in ("sgd", "LAMB", "MuonWithAdamW", "Lion")]
    ['SGD', 'LAMB', 'Muon', 'Lion']
    """
    known = {name.lower(): name for name in _NAMES} | _CLASSES
    return known.get(given.lower(), given)


def optimizer_places(others: Iterable[str] = ()) -> Mapping[str, int]:
    """Name in lower case -> place of its colour; `others` take the places after those that are known.

    >>> optimizer_places(["Lion", "SGD"])["lion"], optimizer_places()["lars"]
    (5, 1)
    """
    names = dict.fromkeys((*_NAMES, *map(optimizer_name, others)))
    return {name.lower(): place for place, name in enumerate(names)}
