"""What the tests of the Triton kernels run in a process of its own, in which Triton interprets them on the CPU.

Triton decides at its import whether it interprets, and torch imports it for every optimizer: no other test may share
the process. Here a CPU counts as a GPU, and a chunk has 32 elements, so that small tensors have several.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from largebatch.optim import LAMB
from largebatch.optim.kernels import paths, triton_tables
from tests.unit.optim.forms import CLASSES, Chosen, assert_true_at_every_step

CHUNK_NUMEL = 32
SIZES = ((67,), (4, 8), (5, 3, 2), (1,), (), (0,))  # chunks: 3, a whole one, then less than one


def prepare() -> None:
    """Once, before any case."""
    import triton
    from triton.runtime import interpreter

    assert triton.knobs.runtime.interpret
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")  # numpy, of x / 0 and NaN
    paths.is_on_gpu = lambda tensor: True
    triton_tables.CHUNK_NUMEL = CHUNK_NUMEL
    _round_bfloat16(interpreter)
    # The interpreter swaps the functions of the language at every call, which is half of its time: once is enough.
    swap, done = interpreter._patch_lang, {}

    class Kept:
        def restore(self) -> None: ...

    def swap_once(function: Callable[..., Any]) -> Kept:
        if function.__module__ not in done:
            done[function.__module__] = swap(function)
        return Kept()

    interpreter._patch_lang = swap_once


def _round_bfloat16(interpreter: Any) -> None:
    """The interpreter cuts float32 off to bfloat16, where a GPU rounds to the nearest."""
    convert, language = interpreter._convert_float, interpreter.tl

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (language.float32, language.bfloat16):
            return convert(values, source, target, mode)
        narrow = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
        return narrow.view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = rounded


MATRIX, KERNEL, VECTOR, SCALAR, ZEROS = range(5)  # of `courses`
CHOSEN: Chosen = ((0, MATRIX), (0, ZEROS), (1, VECTOR), (1, SCALAR), (2, KERNEL), (2, ZEROS), (3, VECTOR), (3, SCALAR))
"""Two tensors in each of the four groups."""


def is_true_at_every_step(name: str, form: str, dtype: torch.dtype, num_steps: int) -> None:
    """A course at rising rates against the reference."""
    assert_true_at_every_step(name, form, dtype, {"compile": True}, num_steps=num_steps, chosen=CHOSEN)


def make(dtype: torch.dtype = torch.float32, sizes: Any = SIZES) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def gradients(params: list[torch.nn.Parameter], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty_like(param).copy_(torch.randn(param.shape, generator=generator)) for param in params]


def step(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter], seed: int) -> None:
    for param, grad in zip(params, gradients(params, seed), strict=True):
        param.grad = grad
    optimizer.step()


def everything(optimizer: torch.optim.Optimizer, params: list[torch.nn.Parameter]) -> list[Any]:
    """Weights, gradients and state as numpy arrays, bfloat16 as float32."""
    values = [value for param in params for value in (param, param.grad, *optimizer.state[param].values())]
    return [
        value.detach().float().numpy() if value.dtype == torch.bfloat16 else value.detach().numpy() for value in values
    ]


def both_paths(
    name: str, dtype: torch.dtype, options: dict[str, Any], num_steps: int = 3
) -> tuple[list[Any], list[Any]]:
    """Everything after some steps of the kernels, and of the loop."""
    results = []
    for path in ({"compile": True}, {"foreach": False}):
        params = make(dtype)
        optimizer = CLASSES[name](params, lr=0.03, **path, **options)
        for seed in range(num_steps):
            step(optimizer, params, seed)
        results.append(everything(optimizer, params))
    return results[0], results[1]


def same_course_twice(name: str) -> list[list[Any]]:
    return [both_paths(name, torch.float32, {"weight_decay": 0.05})[0] for _ in range(2)]


def late_joiner(adapts: bool) -> list[list[Any]]:
    """Parameters that lack a gradient at times, so that each has a step number of its own."""
    results = []
    for path in ({"compile": True}, {"foreach": False}):
        params = make(torch.float64)
        optimizer = LAMB(params, lr=0.1, adapts=adapts, **path)
        optimizer.step()  # no gradient at all
        for seed in range(3):
            for param, grad in zip(params, gradients(params, seed), strict=True):
                param.grad = grad
            for param in params[seed + 1 :: 2]:
                param.grad = None
            optimizer.step()
            optimizer.zero_grad()
        states = [value.numpy() for param in params for value in optimizer.state[param].values()]
        results.append([*(param.detach().numpy() for param in params), *states])
    return results


def moving_gradients(name: str) -> tuple[list[int], list[Any], list[Any]]:
    """How many tables of addresses each step made; where the tensors lie changes at the third, fourth and fifth."""
    made, results = [], []
    for path in ({"compile": True}, {"foreach": False}):
        params = make(torch.float64)
        held = []
        optimizer = CLASSES[name](params, lr=0.03, **path)
        for seed in range(5):
            new = gradients(params, seed)
            if seed in (1, 2):
                held.append([param.grad for param in params])  # memory that is held is not given out again
            if seed in (0, 2):
                for param, grad in zip(params, new, strict=True):
                    param.grad = grad
            else:
                torch._foreach_copy_([param.grad for param in params], new)
            if seed == 3:
                held.append(params[0].data)
                params[0].data = params[0].data.clone()
            if seed == 4:
                state = optimizer.state_dict()
                held.append(optimizer.state)
                optimizer.load_state_dict(state)
            before = list(triton_tables._known)
            optimizer.step()
            made.append(len(set(triton_tables._known) - set(before)))
        results.append(everything(optimizer, params))
    return made[:5], results[0], results[1]


def at_the_edge_of_numbers(name: str, options: dict[str, Any]) -> list[list[Any]]:
    inf, nan = math.inf, math.nan
    weights = [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [nan, 1.0], [inf, 1.0], [3.0, 4.0]]
    grads = [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [nan, 1.0], [inf, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    results = []
    for path in ({"compile": True}, {"foreach": False}):
        params = [torch.nn.Parameter(torch.tensor(weight)) for weight in weights]
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer = CLASSES[name](params, lr=1, **path, **options)
        optimizer.step()
        results.append(everything(optimizer, params))
    return results


def layouts(name: str) -> list[list[Any]]:
    """A weight in channels_last, one that is transposed, and one that is a view at an odd address."""
    results = []
    for path in ({"compile": True}, {"foreach": False}):
        whole = torch.arange(50.0)
        values = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        laid_out = [values.to(memory_format=torch.channels_last), values[:, :, 0, 0].t(), whole[3:43]]
        params = [torch.nn.Parameter(value.clone(memory_format=torch.preserve_format)) for value in laid_out[:2]]
        params.append(torch.nn.Parameter(laid_out[2]))
        optimizer = CLASSES[name](params, lr=0.03, **path)
        for seed in range(2):
            step(optimizer, params, seed)
        results.append([*everything(optimizer, params), whole.numpy()])
    return results


def in_a_bucket(name: str) -> list[list[Any]]:
    """Gradients that are views of one buffer, the first one a number behind its start: whole chunks and ragged ones."""
    results, shapes = [], [(3,), (64,), (67,), (128,)]
    for path in ({"compile": True}, {"foreach": False}):
        params = make(torch.float32, shapes)
        bucket = torch.randn(1 + sum(map(torch.numel, params)), generator=torch.Generator().manual_seed(0))
        for param, part in zip(params, bucket[1:].split(list(map(torch.numel, params))), strict=True):
            param.grad = part
        optimizer = CLASSES[name](params, lr=0.03, weight_decay=0.05, **path)
        for _ in range(2):
            optimizer.step()
        results.append(everything(optimizer, params))
    return results


def kinds_of_one_group(name: str) -> list[list[Any]]:
    """Parameters of four dtypes in one group, one bfloat16 weight with a gradient in float32."""
    results = []
    for path in ({"compile": True}, {"foreach": False}):
        dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        params = [make(dtype, [(37,)])[0] for dtype in dtypes]
        optimizer = CLASSES[name](params, lr=0.03, weight_decay=0.1, **path)
        for seed in range(3):
            step(optimizer, params, seed)
        results.append(everything(optimizer, params))
    return results


def bytes_moved(name: str, adapts: bool, chunk_numel: int, numel: int) -> dict[str, float]:
    """Bytes per parameter that a step reads and writes, tables and sums included; each lane of an access counts."""
    from triton.runtime.interpreter import interpreter_builder

    moved: Counter[str] = Counter()
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def counted_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        values = load(pointers, mask, *rest)
        moved["read"] += int(mask.data.sum()) * values.data.itemsize
        return values

    def counted_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        moved["written"] += int(mask.data.sum()) * value.data.itemsize
        return store(pointers, value, mask, *rest)

    param = make(sizes=[(numel,)])[0]
    optimizer = CLASSES[name]([param], lr=0.1, adapts=adapts, compile=True)
    triton_tables.CHUNK_NUMEL = chunk_numel
    interpreter_builder.create_masked_load, interpreter_builder.create_masked_store = counted_load, counted_store
    try:
        step(optimizer, [param], 0)
    finally:
        triton_tables.CHUNK_NUMEL = CHUNK_NUMEL
        interpreter_builder.create_masked_load, interpreter_builder.create_masked_store = load, store
    return {kind: count / numel for kind, count in moved.items()}


def refusals() -> list[str]:
    """What is said of a gradient in another order and of a weight with gaps; no parameter moved."""
    said = []
    for value, grad in (
        (torch.ones(2, 3), torch.ones(3, 2).t()),
        (torch.ones(4)[::2], torch.ones(2)),
    ):
        first, param = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(value)
        first.grad, param.grad = torch.ones(2), grad
        optimizer = LAMB([first, param], lr=0.1, compile=True)
        try:
            optimizer.step()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("")
        assert first.tolist() == [1.0, 1.0]
        assert float(optimizer.state[first]["step"]) == 0
    return said


def backward_after_a_step(name: str) -> str:
    """What autograd says of a weight that it saved and a kernel moved."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    loss = (param**2).sum()
    CLASSES[name]([param], lr=0.1, compile=True).step()
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return ""
