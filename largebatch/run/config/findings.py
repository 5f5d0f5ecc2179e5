"""Collects what is wrong with a run, or worth telling, so that one run of a command shows all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from largebatch.run.config.reading import ConfigError
from largebatch.run.config.targets import TargetError

T = TypeVar("T")


class Findings:
    """Findings about a run's input, one line each.

    Attributes:
        errors: what stops it.
        notes: what does not, and is told before it starts: what of the input is used in another way than one may think.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []

    def attempt(self, key: str, function: Callable[[], T]) -> T | None:
        """What `function` returns; None if it raised an error of the user's input, which is noted under `key`."""
        try:
            return function()
        except ConfigError as error:
            self.errors += error.errors
        except TargetError as error:  # names its key itself
            self.errors += map(str, error.args)
        except (ValueError, OSError) as error:
            self.errors.append(f"{key}: {error}")
        return None

    def attempt_in_turn(self, functions: Mapping[str, Callable[[], Any]]) -> Any:
        """What the last one returns; None from the first error on, former ones included: the rest could say no more."""
        result = None
        for key, function in functions.items():
            result = None if self.errors else self.attempt(key, function)
        return result

    def raise_if_any(self) -> None:
        """Raise ConfigError with all that was noted."""
        if self.errors:
            raise ConfigError(self.errors, self.notes)
