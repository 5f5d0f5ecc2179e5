"""What somebody may have meant by a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """A sentence behind a blank, to be added to an error; empty if no name is near.

    >>> did_you_mean("trian", ["plan", "train"])
    " Did you mean 'train'?"
    """
    close = difflib.get_close_matches(given, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
