"""Composes conf/ with Hydra for a verb, and turns what goes wrong into one report and an exit code."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

EXIT_FAILED, EXIT_WRONG_INPUT, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130

Verb = Callable[[DictConfig, list[str]], int]


def conf_dir() -> str:
    """The folder conf/: inside the package when installed, beside it in a checkout.

    Absolute, because Hydra reads a relative one differently for `python -m` and for a console script.
    """
    inside = Path(__file__).resolve().parents[1] / "conf"
    return str(inside if inside.is_dir() else Path(__file__).resolve().parents[2] / "conf")


def compose_config(overrides: Sequence[str] = (), *, config_name: str = "train") -> DictConfig:
    """The config that a command line of these overrides would have, without one.

    Inside a verb, too: Hydra's state is put back.

    Raises:
        hydra.errors.HydraException: if the overrides cannot be composed.
    """
    state = GlobalHydra.instance()
    outer = state.hydra
    state.clear()  # Hydra refuses to begin inside of itself
    try:
        with initialize_config_dir(conf_dir(), version_base="1.3"):
            return compose(config_name, overrides=list(overrides))
    finally:
        GlobalHydra.instance().hydra = outer


def run_verb(verb: str, function: Verb, arguments: Sequence[str], *, config_name: str = "train") -> int:
    """Compose conf/`config_name`.yaml with `arguments` and call `function(config, overrides)`.

    Returns:
        the function's exit code, the worst one of a sweep; 2 if the arguments cannot be composed.
    """
    if _is_sweep(arguments) and _number("WORLD_SIZE", 1) > 1:
        _report(
            "--multirun inside a launcher: every rank would run the sweep by itself. Start one job per value instead:\n"
            f"  for value in ...; do torchrun ... -m largebatch {verb} KEY=$value; done"
        )
        return EXIT_WRONG_INPUT
    codes: list[int] = []
    screen = sys.stderr
    sys.argv = [f"largebatch {verb}", *arguments]

    @hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)
    def compose(config: DictConfig) -> None:
        with contextlib.redirect_stderr(screen):
            codes.append(_call(function, config))

    # Of Hydra's own errors one copy is enough.
    muted = contextlib.redirect_stderr(io.StringIO()) if _number("LOCAL_RANK", 0) else contextlib.nullcontext()
    try:
        with muted:
            compose()
    except SystemExit as exit_:
        if not codes:
            return EXIT_WRONG_INPUT if exit_.code else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return max(codes, default=0)


def _call(function: Verb, config: DictConfig) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    overrides = list(HydraConfig.get().overrides.task)
    try:
        # Inside hydra.main: outside of it, torchrun would not see which rank failed first and why.
        return record(_with_report)(function, config, overrides) or 0
    except KeyboardInterrupt:
        raise
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED


def _with_report(function: Verb, config: DictConfig, overrides: list[str]) -> int:
    """Wrong input is a report and an exit code, not a failure to be traced back."""
    from largebatch.checkpoint import CheckpointError
    from largebatch.config import ConfigError
    from largebatch.runtime import LauncherError

    try:
        return function(config, overrides)
    except (ConfigError, LauncherError, CheckpointError) as error:
        _report(str(error))
        return EXIT_WRONG_INPUT


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(argument in ("-m", "--multirun") for argument in arguments)


def _number(variable: str, default: int) -> int:
    """A launcher's number; the default where it is none, which is reported with everything else."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def _report(message: str) -> None:
    """One copy per machine."""
    if _number("LOCAL_RANK", 0) == 0:
        print(f"largebatch: {message}", file=sys.stderr)
