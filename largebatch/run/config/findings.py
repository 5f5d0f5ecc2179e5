"""Collects all errors and notes about a run's input, so that one start of a command shows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from largebatch.run.config.reading import ConfigError
from largebatch.run.config.targets import TargetError

T = TypeVar("T")


class Findings:
    """Findings about a run's input, one line each.

    Attributes:
        errors: reasons that the run cannot start.
        notes: facts to print before it starts: input that is used differently than a user may expect.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.notes: list[str] = []

    def attempt(self, key: str, function: Callable[[], T]) -> T | None:
        """The result of `function`; None if it raised an error of the user's input, which is noted under `key`."""
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
        """The result of the last function; after the first error, earlier ones included, None without calling it."""
        result = None
        for key, function in functions.items():
            result = None if self.errors else self.attempt(key, function)
        return result

    def raise_if_any(self) -> None:
        """Raise ConfigError with all errors and notes, if there is an error."""
        if self.errors:
            raise ConfigError(list(dict.fromkeys(self.errors)), self.notes)  # two parts may try the same object
