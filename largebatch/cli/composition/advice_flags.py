"""`plan --advise --measured FOLDER...`: the two flags of our own, as the overrides that they stand for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

ADVISE, MEASURED = "--advise", "--measured"


def with_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments of `plan` with the flags replaced; others stay as they are, in their order.

    What follows `--measured` is a folder: the first argument always, a further one unless it is a flag, or KEY=VALUE
    and no folder of that name exists.

    Raises:
        ValueError: if `--measured` has no folder, or stands beside plan.measured.

    >>> with_overrides(["--advise", "--measured", "runs/a", "runs/b", "seed=1"])
    ['seed=1', 'plan.advise=true', 'plan.measured=["runs/a", "runs/b"]']
    >>> with_overrides(["--measured=runs/a", "seed=1"])
    ['seed=1', 'plan.measured=["runs/a"]']
    """
    kept: list[str] = []
    folders: list[str] = []
    is_advised, is_open = False, False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == ADVISE:
            if equals:
                raise ValueError(f"{argument}: the flag has no value. Write {ADVISE}, or plan.advise={value}.")
            is_advised, is_open = True, False
        elif name == MEASURED:
            folders += [value] if equals else []
            is_open = not equals
        elif is_open and not argument.startswith("-") and (not equals or os.path.exists(argument)):
            folders.append(argument)
        else:
            kept.append(argument)
            is_open = False
    if any(one.partition("=")[0] == MEASURED for one in arguments):
        if not any(folders):
            raise ValueError(f"{MEASURED}: names no folder. Add folders of runs behind it, or leave it out.")
        if any(one.startswith("plan.measured=") for one in kept):
            raise ValueError(f"{MEASURED} and plan.measured= both name folders. Keep one of them.")
        kept.append(f"plan.measured={_listed(folders)}")
        return [*kept[:-1], *(["plan.advise=true"] if is_advised else []), kept[-1]]
    return [*kept, *(["plan.advise=true"] if is_advised else [])]


def _listed(folders: Sequence[str]) -> str:
    r"""A list in Hydra's grammar, where inside of quotes a backslash is one unless a quote follows.

    >>> print(_listed(["a", 'b"c']), _listed(["d\\e"]))
    ["a", "b\"c"] ["d\e"]
    """
    escaped = [re.sub(r'(\\*)("|$)', lambda one: one[1] * 2 + ('\\"' if one[2] else ""), folder) for folder in folders]
    return "[" + ", ".join(f'"{one}"' for one in escaped) + "]"
