"""Finds numbers in the user's YAML files that YAML 1.1 misreads: 010 as 8, 1:30 as 90."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

_ODD = re.compile(r"[-+]?0[0-7_]+|[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def misread_numbers(own_folder: str) -> list[str]:
    """An error for each misread number in the composed files, except those of `own_folder`."""
    settings = HydraConfig.get()
    names = [f"{group}/{choice}" for group, choice in settings.runtime.choices.items() if choice]
    folders = [Path(one.path) for one in settings.runtime.config_sources if one.schema == "file"]
    files = [folder / f"{name}.yaml" for folder in folders for name in (*names, settings.job.config_name)]
    return [
        f"{file}, line {line}: YAML 1.1 reads {text} as {value}. Write {value}, or '{text}' for the text."
        for file in files
        if not file.is_relative_to(own_folder) and file.is_file()
        for line, text, value in _misread(file.read_text(encoding="utf-8"))
    ]


def _misread(text: str) -> Iterator[tuple[int, str, int]]:
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken) and token.plain and _ODD.fullmatch(token.value):
            yield token.start_mark.line + 1, token.value, yaml.safe_load(token.value)
