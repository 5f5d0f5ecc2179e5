"""A YAML file is parsed once per process: Hydra reads some twenty of them for a command line, and it does so twice.

That is a fifth of a small run. Texts are compared, not names: a file that changes is parsed anew.
"""

from __future__ import annotations

import functools
import pickle
from typing import Any

from omegaconf import OmegaConf

_KNOWN: dict[str, bytes] = {}


def parse_yaml_once() -> None:
    """From now on `OmegaConf.load` gives copies of what it has made of the same text before."""
    parse = OmegaConf.load

    @functools.wraps(parse)
    def load(file_: Any) -> Any:
        if not hasattr(file_, "seek"):
            return parse(file_)
        start = file_.tell()
        text = file_.read()
        if text not in _KNOWN:
            file_.seek(start)
            _KNOWN[text] = pickle.dumps(parse(file_))  # an error names the file, and is not kept
        return pickle.loads(_KNOWN[text])

    OmegaConf.load = load
