"""Several functions side by side, one at a time, each up to the place where all of them have something to exchange."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _push_mode

Result = TypeVar("Result")


class LockstepError(RuntimeError):
    """The functions did not come to the same places."""


class Lockstep:
    """Runs functions in threads of their own, of which only one is awake at any time: cooperation, not parallelism.

    Function 0 runs until it calls `exchange(place, value)`, then function 1, and so on. When all have come to the
    place, `meet(place, values)` is called in the thread of `run`, `exchange` returns one of its results to each, and
    function 0 goes on. So a computation that is written for one micro-batch can use a quantity of all of them.

    Each function has random numbers of its own: torch's global generators are put aside and back when it is left and
    entered. What autograd records in them is one graph, which one backward pass goes through.

    Args:
        device: whose generator the functions draw from, besides the CPU's.
        meet: (place, values of all functions in their order) -> what each of them gets, in the same order.
    """

    def __init__(self, device: torch.device, meet: Callable[[Any, list[Any]], list[Any]]) -> None:
        self._device = device
        self._meet = meet
        self._generators = [torch.default_generator]
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or 0])
        self._own = threading.local()
        self._modes: list[TorchDispatchMode] = []

    @property
    def is_inside(self) -> bool:
        """Whether the caller is one of the functions: whether it may call `exchange`."""
        return getattr(self._own, "task", None) is not None

    def exchange(self, place: Any, value: Any) -> Any:
        """Wait until all functions are at `place`; returns this one's part of what `meet` makes of their values."""
        task: _Task[Any] = self._own.task
        return task.wait_at(place, value)

    def run(self, functions: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of all functions.

        Raises:
            LockstepError: if one of them comes to another place than the others, or ends while others wait.
            Exception: whatever a function or `meet` raises; the other functions end where they wait.
        """
        self._modes = _get_current_dispatch_mode_stack()
        tasks = [_Task(function, self._enter) for function in functions]
        states = [[generator.get_state() for generator in self._generators] for _ in tasks]
        try:
            while True:
                for number, task in enumerate(tasks):
                    states[number] = self._advance(task, states[number])
                places = [task.place for task in tasks if task.is_waiting]
                if not places:
                    return [task.result() for task in tasks]
                if len(places) < len(tasks) or any(place is not places[0] for place in places):
                    raise LockstepError(
                        f"{len(places)} of {len(tasks)} functions wait, at {len({id(place) for place in places})} "
                        "different places: each must come to the same places in the same order."
                    )
                answers = self._meet(places[0], [task.value for task in tasks])
                for task in reversed(tasks):
                    task.value = answers.pop()  # no list keeps alive what a function has left behind
        finally:
            for task in tasks:
                task.cancel()

    def _enter(self, task: _Task[Any]) -> None:
        """In the thread of a task, before its function."""
        self._own.task = task
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)  # a new thread would use GPU 0
        for mode in self._modes:  # such as a counter of operations around the step
            _push_mode(mode)

    def _advance(self, task: _Task[Any], states: list[Tensor]) -> list[Tensor]:
        """Let a task run up to its next place or its end; random states before and after."""
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)
        task.resume()
        return [generator.get_state() for generator in self._generators]


class _Cancelled(BaseException):
    """Ends a function that nobody waits for any more."""


class _Task(Generic[Result]):
    """A function in a thread, and whose turn it is."""

    def __init__(self, function: Callable[[], Result], enter: Callable[[_Task[Result]], None]) -> None:
        self._function = function
        self._enter = enter
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._turn, self._pause = threading.Semaphore(0), threading.Semaphore(0)
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._is_cancelled = False
        self.is_waiting = False
        self.place: Any = None
        self.value: Any = None

    def _run(self) -> None:
        self._turn.acquire()
        try:
            if not self._is_cancelled:
                self._enter(self)
                self._results.append(self._function())
        except BaseException as error:
            self._error = error
        self._pause.release()

    def resume(self) -> None:
        """Run up to the next place or the end; raises what the function raises."""
        self.is_waiting = False
        if self._thread.ident is None:
            self._thread.start()
        self._turn.release()
        self._pause.acquire()
        if self._error is not None:
            raise self._error

    def wait_at(self, place: Any, value: Any) -> Any:
        """In the function: hand over, and go on with what was put in place of `value`."""
        self.place, self.value, self.is_waiting = place, value, True
        self._pause.release()
        self._turn.acquire()
        if self._is_cancelled:
            raise _Cancelled
        answer, self.value = self.value, None
        return answer

    def result(self) -> Result:
        """What the function returned, once it has ended."""
        return self._results[0]

    def cancel(self) -> None:
        """End the thread, which is at most in one stretch between two places."""
        if self._thread.ident is not None:
            self._is_cancelled = True
            self._turn.release()
            self._thread.join()
