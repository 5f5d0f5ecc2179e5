"""Choices of a folder of the user's own that Hydra passes over, because an earlier folder has the same name."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig


def hidden_choices() -> list[str]:
    """An error for each choice of this config that lies in two folders: Hydra takes the first, without a word."""
    runtime = HydraConfig.get().runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    problems = []
    for group, choice in runtime.choices.items():
        files = [folder / group / f"{choice}.yaml" for folder in folders]
        taken, *hidden = [file for file in files if file.is_file()] or [Path()]
        problems += [
            f"{group}={choice}: Hydra takes {taken} and passes over {file}, which has the same name. Give yours "
            f"another one, and write {group}=NAME."
            for file in hidden
            if not file.samefile(taken)
        ]
    return problems
