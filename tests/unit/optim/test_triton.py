"""The Triton kernels of LARS and LAMB: interpreted by Triton on the CPU, and compiled for a GPU that need not be there.

On a machine with one: `python -m pytest tests/unit/optim/test_cuda.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from largebatch.optim import LAMB, LARS
from largebatch.optim.kernels import paths, triton_steps, triton_tables
from tests.unit.optim import triton_cases as cases
from tests.unit.optim.forms import every_form, every_preset

BLOCK = triton_tables.CHUNK_NUMEL
both = pytest.mark.parametrize("name", ["LARS", "LAMB"])


@pytest.fixture(scope="module", autouse=True)
def needs_triton() -> None:
    if not triton_steps.has_triton():
        if os.environ.get("LARGEBATCH_TEST_ORACLES") == "required":
            pytest.fail("triton is missing")
        pytest.skip("triton is missing: it exists for Linux")


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """`interpreted(case, ...)`: what a function of `triton_cases` returns in the process of the interpreter."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=cases.prepare) as executor:
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
            executor.submit(int).result()  # starts it
        yield lambda case, *arguments: executor.submit(case, *arguments).result()


def assert_equal(ours: list[Any], expected: list[Any], tolerance: float) -> None:
    """Arrays of one after the other, to a share of the largest entry."""
    for one, other in zip(ours, expected, strict=True):
        scale = float(np.abs(other).max()) if other.size else 1.0
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


# --- what the kernels compute ---


@every_preset
def test_six_steps_of_a_preset_equal_the_reference_to_1e_6_in_float32(name, form, interpreted):
    interpreted(cases.is_true_at_every_step, name, form, torch.float32, 6)


@every_form
def test_every_form_equals_the_reference_to_1e_12_in_float64(name, form, interpreted):
    interpreted(cases.is_true_at_every_step, name, form, torch.float64, 2)


@both
@pytest.mark.parametrize("adapts", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)], ids=["64", "32"])
def test_ragged_sizes_equal_the_loop(name, adapts, dtype, tolerance, interpreted):
    ours, loop = interpreted(cases.both_paths, name, dtype, {"weight_decay": 0.05, "adapts": adapts})
    assert_equal(ours, loop, tolerance)


@both
def test_bfloat16_weights_are_rounded_once_and_their_state_is_float32(name, interpreted):
    """Both round to 8 bits what agrees to 1e-6: the same weights, but for a tie that one of them does not see."""
    ours, loop = interpreted(cases.both_paths, name, torch.bfloat16, {"weight_decay": 0.05}, 1)
    per_tensor = len(ours) // len(cases.SIZES)
    for number, (one, other) in enumerate(zip(ours, loop, strict=True)):
        if number % per_tensor == 0:
            assert np.count_nonzero(one != other) <= 0.05 * one.size
            np.testing.assert_allclose(one, other, rtol=2.0**-7)
        else:
            np.testing.assert_allclose(one, other, rtol=2e-6)


@both
def test_dtypes_of_one_group_are_stepped_apart(name, interpreted):
    ours, loop = interpreted(cases.kinds_of_one_group, name)
    per_tensor = len(ours) // 4
    for number, tolerance in enumerate((1e-13, 1e-6, 2.0**-7, 2.0**-10)):
        part = slice(number * per_tensor, (number + 1) * per_tensor)
        assert_equal(ours[part], loop[part], tolerance)


@both
def test_the_same_bits_come_out_every_time(name, interpreted):
    first, second = interpreted(cases.same_course_twice, name)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("adapts", [True, False])
def test_every_parameter_has_its_own_step_number_and_may_lack_a_gradient(adapts, interpreted):
    ours, loop = interpreted(cases.late_joiner, adapts)
    assert_equal(ours, loop, 1e-13)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LARS", {"weight_decay": 0.1}),
        ("LARS", {"weight_decay": 0.0, "adapts": False}),
        ("LARS", {"weight_decay": 0.1, "clip": True, "denominator": "joint"}),
        ("LAMB", {"weight_decay": 0.1, "norm_bounds": (0.5, 2.0), "trust_clip": True}),
        ("LAMB", {"weight_decay": 0.0, "eps": 0.0, "decay_placement": "outside"}),
        ("LAMB", {"weight_decay": 0.0, "adapts": False, "max_grad_norm": 1.0}),
    ],
)
def test_zero_norms_have_the_ratio_1_and_what_is_not_finite_stays_so(name, options, interpreted):
    ours, loop = interpreted(cases.at_the_edge_of_numbers, name, options)
    for one, other in zip(ours, loop, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


# --- where the tensors lie ---


@both
def test_tables_of_addresses_are_made_again_when_a_tensor_has_moved_and_only_then(name, interpreted):
    """Gradients of its own at the first step, the same ones at the second, then new ones, a new weight, new state."""
    made, ours, loop = interpreted(cases.moving_gradients, name)
    assert made == [1, 0, 1, 1, 1]
    assert_equal(ours, loop, 1e-13)


@both
def test_any_dense_layout_is_taken_and_nothing_beside_a_view_moves(name, interpreted):
    ours, loop = interpreted(cases.layouts, name)
    assert_equal(ours, loop, 1e-6)
    assert np.array_equal(ours[-1][:3], [0.0, 1.0, 2.0])
    assert np.array_equal(ours[-1][43:], np.arange(43.0, 50.0))


@both
def test_gradients_that_lie_end_to_end_in_a_bucket_need_not_be_aligned(name, interpreted):
    ours, loop = interpreted(cases.in_a_bucket, name)
    assert_equal(ours, loop, 1e-6)


def test_what_the_kernels_cannot_take_is_refused_before_anything_moves(interpreted):
    order, gaps = interpreted(cases.refusals)
    assert re.search(
        r"compile=True .* its gradient of torch.float32 with strides \(1, 2\): .* Set compile=False", order
    )
    assert re.search(r"compile=True takes plain float32, float64, bfloat16 and float16 tensors", order)
    assert re.search(r"shape \[2\], Parameter of torch.float32 on cpu with strides \(2,\)", gaps)


@both
def test_autograd_notices_that_a_saved_weight_moved(name, interpreted):
    assert "modified by an inplace operation" in interpreted(cases.backward_after_a_step, name)


# --- what it costs ---


@pytest.mark.parametrize(
    ("name", "adapts", "read", "written"),
    [("LARS", True, 20, 8), ("LAMB", True, 28, 12), ("LARS", False, 12, 8), ("LAMB", False, 16, 12)],
)
def test_a_step_moves_28_bytes_of_a_parameter_for_lars_and_40_for_lamb(name, adapts, read, written, interpreted):
    """And besides them at most 1 %: tables, sums and rates. Without a ratio they are those of SGD and AdamW."""
    moved = interpreted(cases.bytes_moved, name, adapts, BLOCK, 3 * BLOCK + 100)
    assert read <= moved["read"] <= read + 0.01 * (read + written) + 0.2  # a chunk that is not full is charged here
    assert written <= moved["written"] <= written + 0.01 * (read + written)


KERNELS = {
    "lars_norms": ({"JOINT": False}, (2, 0), 64),
    "lars_step": ({"DECAYS": True, "NESTEROV": False}, (3, 2), 128),
    "lamb_moments": ({"PLACE": "inside", "divisor": None, "scales": None}, (4, 2), 128),
    "lamb_step": ({"PLACE": "inside", "scales": None}, (3, 1), 64),
    "trust_rates": ({}, (0, 0), 64),
}
"""Form, how many streams are read and written, and most registers of a thread.

A processor has 65,536 registers, and a program 256 threads: 64 leave room for four programs, 128 for two.
"""

HOPPER = 90


@pytest.fixture
def compiled_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`compiled_for(name, dtype, capability)`: a kernel for parameters of a dtype and state in float32, compiled."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))

    def compiled(name: str, dtype: str = "float32", capability: int = HOPPER) -> Any:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, compile

        kernel, language = getattr(triton_steps.triton_kernels(), name), triton_steps.triton_kernels().tl
        kind, block = getattr(language, dtype), triton_steps.SUMS_NUMEL
        fixed = {"KIND": kind, "GRAD": kind, "STATE": language.float32, "CHUNK": BLOCK, "BLOCK": block}
        fixed |= KERNELS[name][0]
        types = {"table": "*i64", "chunks": "*i32", "firsts": "*i32", "sums": "*fp64", "rates": "*fp64"}
        signature = {arg: "constexpr" if arg in fixed else types.get(arg, "fp64") for arg in kernel.arg_names}
        source = ASTSource(kernel, signature, {arg: value for arg, value in fixed.items() if arg in signature})
        return compile(source, target=GPUTarget("cuda", capability, 32), options=dict(triton_steps._LAUNCH))

    return compiled


@pytest.mark.parametrize("name", [name for name in KERNELS if name != "trust_rates"])
def test_compiled_for_an_h200_a_kernel_moves_16_bytes_at_a_time_and_rounds_each_operation(name, compiled_for):
    """Triton drops to 4 bytes in silence when it cannot see that addresses are multiples of 16.

    Where the gradient alone is not aligned, as behind an odd bias in a bucket of DDP, the other streams keep 16 bytes.
    """
    ptx = compiled_for(name).asm["ptx"]
    (reads, writes), has_grad = KERNELS[name][1], name != "lamb_step"
    of_a_stream = BLOCK // (32 * triton_steps._LAUNCH["num_warps"]) // 4  # of a thread
    assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) == (reads + has_grad * (reads - 1)) * of_a_stream
    assert len(re.findall(r"st\.global\.v4\.b32", ptx)) == (1 + has_grad) * writes * of_a_stream
    assert not re.findall(r"(?:fma|div|sqrt)\.(?!rn)\S*f32|\.ftz|fma\.rn\.f32|\.local", ptx)


def test_compiled_for_an_h200_bfloat16_weights_are_rounded_to_the_nearest(compiled_for):
    """What the interpreter does not show: it cuts them off by itself."""
    roundings = re.findall(r"cvt\.(\w+)\.bf16(?:x2)?\.f32", compiled_for("lars_step", "bfloat16").asm["ptx"])
    assert set(roundings) == {"rn"}


@pytest.mark.parametrize("capability", [80, HOPPER, 100])
def test_the_code_of_a_gpu_spills_nothing_and_leaves_room_for_two_programs_at_least(capability, compiled_for, tmp_path):
    """As ptxas makes it for an A100, an H100 and a B200; nobody needs the GPU."""
    import triton

    reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not reader.exists():
        pytest.skip("this build of triton has no cuobjdump")
    for name, (_, _, most) in KERNELS.items():
        for dtype in ("float32", "bfloat16") if name != "trust_rates" else ("float32",):
            cubin = tmp_path / f"{name}-{dtype}.cubin"
            cubin.write_bytes(compiled_for(name, dtype, capability).asm["cubin"])
            command = [reader, "--dump-resource-usage", cubin]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            used = {what: int(number) for what, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
            assert used.pop("REG") <= most, (name, dtype)
            assert used == {"STACK": 0, "LOCAL": 0}, (name, dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_no_number_is_known_to_the_compiler(name):
    """Each is a double, which Triton does not look at: a rate of 1 or 0 compiles nothing anew."""
    kernel = getattr(triton_steps.triton_kernels(), name)
    tables = {"table", "chunks", "firsts", "sums", "rates", "scales", "divisor"}
    numbers = [param for param in kernel.params if not param.is_constexpr and param.name not in tables]
    assert all(param.annotation_type == "fp64" for param in numbers)
    assert numbers


# --- how it is chosen ---


@pytest.mark.parametrize("optimizer_class", [LARS, LAMB])
def test_without_triton_the_constructor_says_what_to_do(optimizer_class, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(paths, "is_on_gpu", lambda tensor: tensor.is_meta)
    monkeypatch.setattr(triton_steps, "importlib", SimpleNamespace(import_module=missing))
    triton_steps.triton_kernels.cache_clear()
    param = torch.nn.Parameter(torch.ones(2, device="meta"))
    with pytest.raises(
        ValueError, match=r"compile=True: .* Triton, .*No module named 'triton'.*pip install triton, or set"
    ):
        optimizer_class([param], lr=0.1, compile=True)
    optimizer = optimizer_class([param], lr=0.1)
    with pytest.raises(ValueError, match="pip install triton"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, device="meta"))], "compile": True})
    assert len(optimizer.param_groups) == 1
    triton_steps.triton_kernels.cache_clear()
