"""Settings of LARS and LAMB that reproduce a source: `LARS(params, lr=..., **LARS_PRESETS["timm"])`.

They are the files of conf/lars/ and conf/lamb/, which `largebatch train optimizer=lars lars=timm` composes. Each file
says what it reproduces. It names every option that chooses the formula, and nothing that is tuned: rate, momentum,
betas and decay are the run's. Parameters that neither decay nor adapt are the groups' matter: `parameter_groups`
excludes biases and norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from largebatch import conf_dir


def _presets(group: str) -> dict[str, dict[str, Any]]:
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in Path(conf_dir(), group).glob("*.yaml")
    }
    return {name: files[name].get("optimizer", files[name]) for name in sorted(files)}


LARS_PRESETS = _presets("lars")
"""Presets of LARS, by name."""

LAMB_PRESETS = _presets("lamb")
"""Presets of LAMB, by name."""
