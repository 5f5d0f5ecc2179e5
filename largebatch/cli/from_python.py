"""The verbs `train` and `plan` as functions, for notebooks and programs: they return values, and raise errors."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from largebatch.run.train_quietly import Trained

Value = TypeVar("Value")


def train(
    overrides: Sequence[str] = (), *, config_dir: str | os.PathLike[str] | None = None, quiet: bool = False
) -> Trained:
    """Make the run that `largebatch train OVERRIDES` makes, on the ranks of the launcher, or in this process alone.

    May be called again and again, and inside a running event loop. All ranks of a launcher
    call it, and get the same but for the checkpoint, which the first one has written and names.

    Args:
        overrides: as on the command line, without quotes of a shell: `["batch.total=718", "optimizer=lars"]`.
        config_dir: a folder with choices of your own, as --config-dir names it.
        quiet: print nothing.

    Returns:
        The run with `status` (finished or diverged), `summary` (the plain values of summary.json), `folder`, `rows` of
        metrics.jsonl, and the `model` with its last weights.

    Raises:
        ConfigError: a ValueError with all that is wrong, before anything is started.
        LauncherError, CheckpointError, RunFailedError: as the command line reports them.
        KeyboardInterrupt: when Ctrl-C or another signal has stopped the run, on every rank, after it was saved. The
            same overrides with `run.dir=FOLDER` and `resume=auto` continue it.
        RuntimeError: if another thread of this process is inside of such a call.

    >>> run = train(["debug=tiny", "run.dir=tiny"], quiet=True)  # doctest: +SKIP
    >>> run.status, run.summary["eval/val_accuracy"]  # doctest: +SKIP
    ('finished', 0.9)
    """
    from largebatch.distributed.signals import Stopped

    def call(config: DictConfig, given: list[str]) -> tuple[Trained, str | None]:
        from largebatch.cli.train import train_config

        return train_config(config, given)

    trained, signal_name = _called("train", call, overrides, config_dir=config_dir, quiet=quiet)
    if trained.status == "stopped":
        raise Stopped(signal_name or "a signal on another rank")
    return trained


def plan(overrides: Sequence[str] = (), *, config_dir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What the run would do, as the plain values of its plan.json; starts nothing.

    Args:
        overrides: as for `train`; also `launcher.num_processes=48`, `plan.memory=80GiB`.
        config_dir: as for `train`.

    Raises:
        ConfigError: as for `train`.
    """

    def call(config: DictConfig, _: list[str]) -> dict[str, Any]:
        from largebatch.cli.plan import prepare_plan, record_of

        return record_of(*prepare_plan(config))

    return _called("plan", call, overrides, config_dir=config_dir, joins=False)


def _called(
    verb: str,
    call: Callable[[DictConfig, list[str]], Value],
    overrides: Sequence[str],
    *,
    config_dir: str | os.PathLike[str] | None,
    quiet: bool = False,
    joins: bool = True,
) -> Value:
    """The value of `call` for a config that is composed and checked as on the command line; its errors are raised."""
    from largebatch.cli.composition.composing import run_verb
    from largebatch.cli.process.refusing import kept_refusals
    from largebatch.cli.process.surroundings import AnotherRunError, restored_surroundings
    from largebatch.run.config.reading import ConfigError

    arguments = [*_arguments(overrides), *([] if config_dir is None else ["--config-dir", os.fspath(config_dir)])]
    values: list[Value] = []
    errors: list[BaseException] = []
    screen = sys.stderr
    notes = _Kept(screen)

    def keep(config: DictConfig, given: list[str]) -> int:
        screen.write(notes.getvalue())
        try:
            with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(io.StringIO() if quiet else sys.stdout):
                values.append(call(config, given))
        except BaseException as error:  # to be raised where it can be caught, not reported as an exit code
            errors.append(error)
        return 0

    try:
        with restored_surroundings(), _without_hydra_of_the_caller(), contextlib.redirect_stderr(notes):
            if os.getcwd() not in sys.path and "" not in sys.path:
                sys.path.append(os.getcwd())  # as on the command line: own models and data sets are importable
            with kept_refusals() as refusals:
                run_verb(verb, keep, arguments, config_name=verb, joins=joins)
    except AnotherRunError:
        raise RuntimeError("Another thread of this process is running a verb: wait for it.") from None
    if errors:
        raise errors[0]
    if not values:  # wrong before there was a config
        raise ConfigError(refusals or [notes.getvalue().strip()])
    return values[0]


class _Kept(io.StringIO):
    """What is printed; under a launcher, torch's fault handler gets the file behind the screen."""

    def __init__(self, screen: Any) -> None:
        super().__init__()
        self._screen = screen

    def fileno(self) -> int:
        return int(self._screen.fileno())


def _arguments(overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str):
        raise TypeError(f"overrides={overrides!r}: give a list with one text per setting: ['batch.total=64', ...].")
    if flags := [one for one in overrides if not isinstance(one, str) or one.startswith("-")]:
        raise TypeError(f"overrides: {flags[0]!r} is no KEY=VALUE. Sweep by a loop; config_dir is an argument.")
    return list(overrides)


@contextlib.contextmanager
def _without_hydra_of_the_caller() -> Iterator[None]:
    """A program may be one of Hydra's itself: its search path and config are put back."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    hydra, config = GlobalHydra.instance(), HydraConfig.instance()
    before = hydra.hydra, config.cfg
    hydra.clear()
    try:
        yield
    finally:
        hydra.hydra, config.cfg = before
