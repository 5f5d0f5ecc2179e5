"""LAMB and LARS in the kernels of `kernels.c`: one call for all tensors of a group, shared out to threads."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import torch

from largebatch.optim.forms import LambTerms, LarsTerms
from largebatch.optim.kernels.compiler import kernels
from largebatch.optim.kernels.flat import Row
from largebatch.optim.kernels.waves import plan

BLOCK_NUMEL = 2**16
"""Most elements of a block, the unit of work of a thread."""

WAVE_NUMEL = 2**20
"""Tensors up to this size together are read twice in a row: 16 MiB of weights, gradients and two moments."""

LAMB_PLACES = {"nowhere": 0, "inside": 1, "outside": 2}  # as kernels.c numbers them
JOINT, DECAYS, NESTEROV = 1, 2, 4
READY = -1

RatioOf = Callable[[float, float], float]


def compiled_lamb(rows: Sequence[Row], terms: LambTerms) -> None:
    """One LAMB step on rows of parameter, gradient and two moments and the step number, which it only reads.

    The second pass makes the update again from the moments, by `LambTerms.scale_and_eps`.

    Bytes per float32 parameter: 24 to read w, g, m, v and to write m, v; then 16 to read w, m, v and to write w.
    """
    work = _Work([row[:4] for row in rows])
    steps = torch.stack([row[4] for row in rows]).tolist()
    scales = {step: terms.scale_and_eps(step, root=_power) for step in set(steps)}
    work.of_tensor[:, 1:] = [scales[step] for step in steps]
    divisor = terms.divisor(rows[0][2].device, rows[0][2].dtype)
    factor = 1.0 if divisor is None else 1 / float(divisor)
    work.of_group[:6] = terms.beta1, terms.grad_share, terms.beta2, 1 - terms.beta2, terms.decay, factor
    work.run("lamb", LAMB_PLACES[terms.place], terms.lr, _no_ratio if terms.ratio is None else terms.ratio.of_numbers)
    # Kernels write without autograd, which must learn that tensors it saved for a backward pass have changed.
    torch.autograd.graph.increment_version([tensor for row in rows for tensor in (row[0], row[2], row[3])])


def compiled_lars(rows: Sequence[Row], terms: LarsTerms) -> None:
    """One LARS step on rows of parameter, gradient and velocity.

    Bytes per float32 parameter: 8 for the norms of w and g, then 20 to read w, g, v and to write w, v.
    """
    work = _Work(rows)
    work.of_group[:3] = terms.decay, terms.momentum, terms.outer_lr
    switches = {JOINT: terms.is_joint, DECAYS: terms.decay != 0, NESTEROV: terms.looks_ahead}
    form = sum(bit for bit, is_on in switches.items() if is_on)
    work.run("lars", form, terms.inner_lr, None if terms.ratio is None else terms.ratio.of_numbers)
    torch.autograd.graph.increment_version([tensor for row in rows for tensor in (row[0], row[2])])


def _no_ratio(weight_norm: float, direction_norm: float) -> float:
    return 1.0


def _power(number: float) -> float:
    """The square root by `**`: its last bit differs from math.sqrt for one number in 600, and old runs must resume."""
    power: float = number**0.5
    return power


_SetRates = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class _Job(ctypes.Structure):
    """`Job` of kernels.c."""

    _fields_ = (
        ("tensors", ctypes.c_void_p),
        ("blocks", ctypes.c_void_p),
        ("visits", ctypes.c_void_p),
        ("num_visits", ctypes.c_int64),
        ("num_taken", ctypes.c_int64),
        ("num_left", ctypes.c_void_p),
        ("set_rates", _SetRates),
        ("of_tensor", ctypes.c_void_p),
        ("of_group", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
        ("form", ctypes.c_int64),
    )


class _Work:
    """The tensors of a step, and the inputs and outputs of its kernel."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows  # keeps alive what the addresses point to
        self._tensors = np.zeros((len(rows), 4), dtype=np.int64)
        self._tensors[:, : len(rows[0])] = [[tensor.data_ptr() for tensor in row] for row in rows]
        self._plan = plan(tuple(row[0].numel() for row in rows), BLOCK_NUMEL, WAVE_NUMEL)
        self._sums = np.zeros((len(self._plan.blocks), 2))
        self.of_tensor = np.zeros((len(rows), 3))
        self.of_group = np.zeros(6)
        self._error: BaseException | None = None

    def run(self, name: str, form: int, lr: float, ratio_of: RatioOf | None) -> None:
        """Call a kernel from as many threads as torch has; without a ratio, the second pass alone at the rate lr."""
        order, dtype = self._plan, self._rows[0][0].dtype
        visits, num_left = order.visits, order.num_left.copy()
        if ratio_of is None:
            visits, num_left[:], self.of_tensor[:, 0] = order.second_visits, READY, lr
        set_rates = _SetRates(partial(self._set_rates, lr, ratio_of or _no_ratio))
        data = [array.ctypes.data for array in (self._tensors, order.blocks, visits, num_left)]
        numbers = [array.ctypes.data for array in (self.of_tensor, self.of_group, self._sums)]
        job = _Job(*data[:3], len(visits), 0, data[3], set_rates, *numbers, form)
        # Each writing thread holds all tensors, in case the main thread is interrupted.
        call = partial(_call, _kernel(f"{name}_{'float' if dtype == torch.float32 else 'double'}"), job, self, num_left)
        num_others = min(torch.get_num_threads(), order.num_shares) - 1
        others = [_pool(num_others).submit(call) for _ in range(num_others)]
        call()
        wait(others)
        if self._error is not None:
            raise self._error

    def _set_rates(self, lr: float, ratio_of: RatioOf, wave: int) -> None:
        """Compute the rates of a wave's tensors from its sums; the kernel calls it on any thread."""
        first, end = self._plan.waves[wave]
        try:
            self._set_rates_of(first, end, lr, ratio_of)
        except BaseException as error:  # Ctrl-C may come here, where an exception has nowhere to go: after the step
            self._error = error
            self._set_rates_of(first, end, lr, ratio_of)

    def _set_rates_of(self, first: int, end: int, lr: float, ratio_of: RatioOf) -> None:
        starts = self._plan.starts[first : end + 1]
        sums = self._sums[starts[0] : starts[-1]]
        norms = np.sqrt(np.add.reduceat(sums, starts[:-1] - starts[0], axis=0)).tolist()
        self.of_tensor[first:end, 0] = [lr * ratio_of(*pair) for pair in norms]


def _call(kernel: Callable[[_Job], None], job: _Job, *held: object) -> None:
    kernel(job)


@functools.cache
def _kernel(name: str) -> Callable[[_Job], None]:
    kernel = kernels()[name]
    kernel.argtypes, kernel.restype = [ctypes.POINTER(_Job)], None
    return kernel  # a call lets go of the interpreter's lock


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="largebatch-optim")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not outlive a fork
