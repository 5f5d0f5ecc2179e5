"""How the fused and the compiled path go by tensors: which they take, in what order, and that it changes no result."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from largebatch.optim import LAMB, LARS, state
from largebatch.optim.kernels import compiled, compiler, flat, fused_lamb
from largebatch.optim.kernels.compiled import READY
from largebatch.optim.kernels.flat import norm
from largebatch.optim.trust_ratio import TrustRatio, trust_ratio
from tests.unit.optim.forms import (
    CLASSES,
    FORMS,
    SHAPES,
    Labelled,
    assert_same_course,
    both,
    every_form,
    everything,
    make_params,
    set_grads,
    stepped,
)

PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
needs_compiler = pytest.mark.skipif(
    not compiler.has_compiler() and os.environ.get("LARGEBATCH_TEST_ORACLES") != "required",
    reason="there is no C compiler: cc, gcc or clang",
)
FAST = ["fused", pytest.param("compile", marks=needs_compiler)]
fast = pytest.mark.parametrize("path", FAST)


@pytest.fixture
def threads() -> Iterator[Any]:
    """Sets the number of threads of torch, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def paths_taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the paths that make steps, one entry per call; that of Triton has nothing to do here."""
    taken: list[str] = []

    def spied(name: str, original: Any) -> Any:
        def spy(*args: Any) -> None:
            taken.append(name)
            original(*args)

        return spy

    for optimizer_class in (LARS, LAMB):
        own = {name: spied(name, path) for name, path in optimizer_class.paths._asdict().items() if name != "triton"}
        monkeypatch.setattr(optimizer_class, "paths", optimizer_class.paths._replace(**own))
    return taken


# --- which path a tensor takes


@both
@pytest.mark.parametrize(
    ("options", "value", "path"),
    [
        pytest.param({}, torch.ones(3), "compiled", marks=needs_compiler),
        ({"compile": False}, torch.ones(3), "fused"),
        ({"fused": True}, torch.ones(3), "fused"),
        ({"fused": False}, torch.ones(3), "foreach"),
        ({"foreach": True}, torch.ones(3), "foreach"),
        ({"foreach": False}, torch.ones(3), "loop"),
        ({"foreach": False, "fused": True}, torch.ones(3), "fused"),
        pytest.param({"compile": True}, torch.ones(3), "compiled", marks=needs_compiler),
        ({}, torch.ones(3, dtype=torch.bfloat16), "foreach"),
        ({}, torch.ones(3, device="meta"), "foreach"),
        ({}, torch.ones(3).as_subclass(Labelled), "loop"),
    ],
)
def test_the_path_follows_the_options_and_the_tensor(optimizer_class, options, value, path, paths_taken):
    param = torch.nn.Parameter(value)
    param.grad = torch.ones_like(param)
    optimizer_class([param], lr=0.1, **options).step()
    assert paths_taken == [path]


def test_forms_that_the_fused_path_does_not_have_are_refused_or_take_another(paths_taken):
    for optimizer_class, form in ((LARS, {"nesterov": True}), (LAMB, {"max_grad_norm": 1.0})):
        options = {**form, "compile": False}
        with pytest.raises(ValueError, match=r"fused=True with .*the fused path does not have this form"):
            optimizer_class(make_params(), lr=0.1, fused=True, **form)
        stepped(optimizer_class, make_params(), num_steps=1, **options)
    assert set(paths_taken) == {"foreach"}


@both
def test_a_gradient_in_another_order_or_a_wider_weight_takes_another_path(optimizer_class, paths_taken):
    def run(**options: Any) -> torch.nn.Parameter:
        generator = torch.Generator().manual_seed(0)
        param = torch.nn.Parameter(torch.randn(6, 8, generator=generator))
        plain = torch.nn.Parameter(torch.randn(5, generator=generator))
        param.grad, plain.grad = torch.randn(8, 6, generator=generator).t(), torch.ones(5)
        optimizer_class([param, plain], lr=0.03, **options).step()
        return param

    assert torch.equal(run(compile=False), run(foreach=True))
    assert paths_taken == ["fused", "foreach", "foreach"]
    if compiler.has_compiler():
        paths_taken.clear()
        assert torch.equal(run(), run(foreach=True))
        assert paths_taken == ["compiled", "foreach", "foreach"]
    paths_taken.clear()
    params = make_params(torch.float32, [(3,)])
    optimizer = stepped(optimizer_class, params, num_steps=1, compile=False)
    params[0].data = params[0].data.double()  # as model.double() does; its state stays float32
    set_grads(params, 1)
    optimizer.step()
    assert paths_taken == ["fused", "foreach"]


@both
@fast
@pytest.mark.parametrize(
    ("value", "grad", "fact"),
    [
        (torch.ones(3, dtype=torch.float16), None, r"shape \[3\], Parameter of torch.float16 on cpu"),
        (torch.ones(3, device="meta"), None, "on meta"),
        (torch.ones(3).as_subclass(Labelled), None, "Labelled"),
        (torch.ones(2, 3), torch.ones(3, 2).t(), r"its gradient of torch.float32 with strides \(1, 2\)"),
    ],
)
def test_a_path_is_refused_where_it_cannot_be_before_anything_moves(optimizer_class, path, value, grad, fact):
    first, param = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(value)
    first.grad, param.grad = torch.ones(2), torch.ones_like(param) if grad is None else grad
    optimizer = optimizer_class([first, param], lr=0.1, **{path: True})
    remedy = "Set compile=False" if path == "compile" else "Set fused=None"
    with pytest.raises(ValueError, match=rf"{path}=True.*{fact}.*{remedy}"):
        optimizer.step()
    assert first.tolist() == [1.0, 1.0]
    assert float(optimizer.state[first].get("step", 0.0)) == 0


@both
@pytest.mark.parametrize(
    "pair", [("foreach", "fused"), ("foreach", "compile"), ("fused", "compile")], ids=lambda pair: "-".join(pair)
)
def test_two_paths_at_once_are_refused(optimizer_class, pair):
    one, other = pair
    rule = rf"^{one}=True and {other}=True: these are different paths"
    with pytest.raises(ValueError, match=rule):
        optimizer_class(make_params(), lr=0.1, **{one: True, other: True})
    with pytest.raises(ValueError, match=rule):
        optimizer_class([{"params": make_params(), other: True}], lr=0.1, **{one: True})
    optimizer = optimizer_class(make_params(), lr=0.1, **{one: True})
    optimizer.param_groups[0][other] = True
    with pytest.raises(ValueError, match=rule):
        optimizer.step()


def test_compile_is_true_false_or_none():
    with pytest.raises(ValueError, match=r"^compile='yes': compile is True, False or None"):
        LARS(make_params(), lr=0.1, compile="yes")


# --- results do not depend on how the tensors are cut


@both
@fast
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "with a size of 1"])
def test_any_dense_layout_is_taken(optimizer_class, path, layout, paths_taken):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((4, 3, 5, 5) if layout != "with a size of 1" else (4, 1, 5, 1), generator=generator)
    laid_out = values.permute(3, 0, 2, 1) if layout == "transposed" else values.to(memory_format=torch.channels_last)
    param = torch.nn.Parameter(laid_out)
    twin = torch.nn.Parameter(param.detach().clone(memory_format=torch.contiguous_format))
    assert_same_course(optimizer_class, [param], [twin], 1e-6, **{path: True})
    assert paths_taken == 4 * ["compiled" if path == "compile" else path] + 4 * ["loop"]


@both
@fast
@pytest.mark.usefixtures("tiny_blocks")
def test_a_view_into_a_larger_tensor_moves_nothing_beside_it(optimizer_class, path):
    memory = torch.ones(30)
    param = torch.nn.Parameter(memory[5:25])
    param.grad = torch.ones(20)
    optimizer_class([param], lr=0.1, weight_decay=0.1, **{path: True}).step()
    assert torch.equal(memory[:5], torch.ones(5))
    assert torch.equal(memory[25:], torch.ones(5))
    assert not (memory[5:25] == 1).any()


# All round each operation, in another order: a few 2^-53 or 2^-24 per step.
@both
@PRECISIONS
@pytest.mark.parametrize("scratch_share", [0.0, 0.3, 1.0])
def test_the_scratch_decides_the_speed_and_not_the_result(
    optimizer_class, scratch_share, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(fused_lamb, "SCRATCH_SHARE", scratch_share)
    monkeypatch.setattr(fused_lamb, "LEAST_SCRATCH_NUMEL", 1000)
    monkeypatch.setattr(fused_lamb, "BLOCK_NUMEL", 700)
    monkeypatch.setattr(flat, "SMALL_NUMEL", 512)
    assert_same_course(optimizer_class, make_params(dtype), make_params(dtype), tolerance, fused=True)


def test_making_an_update_again_changes_no_bit_of_the_moments(monkeypatch):
    monkeypatch.setattr(flat, "SMALL_NUMEL", 4)
    monkeypatch.setattr(fused_lamb, "SCRATCH_SHARE", 0.0)
    moments = []
    for scratch_numel in (5000, 100):  # all updates are kept, nearly none
        monkeypatch.setattr(fused_lamb, "LEAST_SCRATCH_NUMEL", scratch_numel)
        params = make_params()
        optimizer = stepped(LAMB, params, num_steps=1, compile=False)
        moments.append([optimizer.state[param][name] for param in params for name in ("exp_avg", "exp_avg_sq")])
    assert all(torch.equal(one, other) for one, other in zip(*moments, strict=True))


@needs_compiler
@both
@PRECISIONS
@pytest.mark.parametrize(("block_numel", "wave_numel"), [(1, 1), (5, 10**6), (256, 300), (1200, 1200), (2**16, 2**20)])
def test_blocks_and_waves_do_not_change_the_result(
    optimizer_class, block_numel, wave_numel, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(compiled, "BLOCK_NUMEL", block_numel)
    monkeypatch.setattr(compiled, "WAVE_NUMEL", wave_numel)
    assert_same_course(optimizer_class, make_params(dtype), make_params(dtype), tolerance, compile=True)


@needs_compiler
@every_form
@pytest.mark.usefixtures("tiny_blocks")
def test_the_number_of_threads_changes_no_bit(name, form, threads):
    def results(num_threads: int) -> list[torch.Tensor]:
        threads(num_threads)
        params = [*make_params(torch.float32, SHAPES[2:]), *make_params(torch.float64, SHAPES[2:])]
        return everything(stepped(CLASSES[name], params, num_steps=2, compile=True, **FORMS[name, form]), params)

    alone = results(1)
    for num_threads in (2, 3):
        assert all(torch.equal(one, other) for one, other in zip(alone, results(num_threads), strict=True))


@both
def test_the_foreach_path_goes_by_bunches_of_limited_size(optimizer_class, paths_taken, monkeypatch):
    whole, in_bunches = make_params(), make_params()
    stepped(optimizer_class, whole, foreach=True)
    monkeypatch.setattr(state, "MAX_BUNCH_NUMEL", 3000)
    stepped(optimizer_class, in_bunches, foreach=True)
    assert all(torch.equal(one, other) for one, other in zip(whole, in_bunches, strict=True))
    assert paths_taken == (4 + 4 * 3) * ["foreach"]  # 1200; 5000; 231 + 2700 + 6 + 1 + 0


# --- numbers at the edge


@both
@needs_compiler
def test_zero_norms_have_the_ratio_1_and_what_is_not_finite_stays_so(optimizer_class):
    inf, nan = math.inf, math.nan
    weights = [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [nan, 1.0], [inf, 1.0]]
    grads = [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [nan, 1.0], [inf, 1.0], [1.0, 2.0], [1.0, 2.0]]

    def values(**options: Any) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(torch.tensor(value)) for value in weights]
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer = optimizer_class(params, lr=0.1, weight_decay=0.1, **options)
        optimizer.step()
        return everything(optimizer, params)

    for one, other in zip(values(compile=True), values(foreach=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("decay_placement", ["inside", "outside"])
def test_without_decay_and_ratio_an_infinite_weight_stays_infinite(decay_placement):
    for optimizer_class, options in ((LAMB, {"decay_placement": decay_placement}), (LARS, {})):
        param = torch.nn.Parameter(torch.tensor([math.inf, 1.0]))
        param.grad = torch.tensor([1.0, 2.0])
        optimizer_class([param], lr=0.1, weight_decay=0.0, adapts=False, compile=True, **options).step()
        assert math.isinf(param.detach()[0])
        assert param.detach()[1] < 1


@needs_compiler
def test_a_nan_norm_of_all_gradients_reaches_every_moment():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    params[0].grad, params[1].grad = torch.tensor([math.nan, 1.0]), torch.ones(2)
    optimizer = LAMB(params, lr=0.1, max_grad_norm=1.0, compile=True)
    optimizer.step()
    assert optimizer.state[params[1]]["exp_avg"].isnan().all()


@pytest.mark.parametrize("lr", [1e-12, 1e-8, 1e-3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tiny_rate_keeps_all_its_digits(lr, dtype):
    """The kernel takes 1 - rate, which has lost all digits of a rate of 1e-17 and half of those of 1e-8."""
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=dtype))
    param.grad = torch.tensor([0.0, 1.0], dtype=dtype)
    optimizer = LARS([param], lr=lr, weight_decay=0.0, adapts=False, fused=True)
    optimizer.step()
    assert optimizer.state[param]["momentum_buffer"].tolist() == [0.0, torch.tensor(lr, dtype=dtype).item()]


@pytest.mark.parametrize("lr", [1e-9, 0.5])
def test_without_momentum_the_buffer_is_the_last_step(lr):
    param = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([param], lr=lr, momentum=0.0, weight_decay=0.0, adapts=False, fused=True)
    for grad in ([1.0, 2.0], [4.0, -2.0]):
        param.grad = torch.tensor(grad)
        optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.tensor(lr) * torch.tensor([4.0, -2.0]))


@pytest.mark.parametrize("adapts", [True, False])
@fast
@pytest.mark.usefixtures("tiny_blocks")
def test_every_parameter_has_its_own_step_number_and_may_lack_a_gradient(adapts, path):
    def late_joiner(**options: Any) -> tuple[list[torch.nn.Parameter], list[float]]:
        params = make_params(torch.float64, SHAPES[2:])
        optimizer = LAMB(params, lr=0.1, adapts=adapts, **options)
        optimizer.step()  # no gradient at all
        for step in range(3):
            set_grads(params, step)
            for param in params[step + 1 :: 2]:
                param.grad = None
            optimizer.step()
        assert all(one["step"].dtype == torch.float32 for one in optimizer.state.values())
        return params, [float(optimizer.state[param]["step"]) for param in params if param in optimizer.state]

    (ones, steps), (others, other_steps) = late_joiner(**{path: True}), late_joiner(foreach=False)
    assert steps == other_steps
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


# --- norms and ratios


@pytest.mark.parametrize("numel", [1, 1000, 1025, 2**22 + 5])
@pytest.mark.parametrize("constant", [False, True])
def test_norms_of_float32_tensors_are_right_to_1e_6_and_in_c_to_1e_7(numel, constant):
    """Equal entries are the worst case: every addition to the sum rounds the same way.

    At momentum 0 the buffer is lr ratio g, with ratio |w| / |g| and g = 1, whose norm has no error.
    """
    weight = torch.full((numel,), 0.3) if constant else torch.randn(numel, generator=torch.Generator().manual_seed(0))
    expected = float(weight.double().norm())
    assert norm(weight) == pytest.approx(expected, rel=1e-6)
    if not compiler.has_compiler():
        return
    param = torch.nn.Parameter(weight.clone())
    param.grad = torch.ones(numel)
    optimizer = LARS([param], lr=1.0, momentum=0.0, weight_decay=0.0, trust_coefficient=1.0, compile=True)
    optimizer.step()
    found = optimizer.state[param]["momentum_buffer"][0].item()
    assert found == pytest.approx(expected / math.sqrt(numel), rel=1.6e-7)  # and a rounding


@pytest.mark.parametrize("norms", [(5.0, 2.0), (0.0, 2.0), (5.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (1e-30, 1e30)])
def test_the_ratio_of_numbers_is_the_ratio_of_tensors(norms):
    for options in (
        {"coefficient": 0.02, "weight_decay": 0.1},
        {"coefficient": 0.02, "weight_decay": 0.1, "eps": 0.5, "at_most": 0.04},
        {"norm_bounds": (0.25, 3.0)},
        {"norm_bounds": (0.0, 3.0), "at_most": 1.0},
    ):
        tensors = (torch.tensor(value, dtype=torch.float64) for value in norms)
        expected = trust_ratio(*tensors, **options).item()
        assert TrustRatio(**options).of_numbers(*norms) == pytest.approx(expected, rel=1e-15, nan_ok=True)


# --- kernels in C beside the rest of the process


@needs_compiler
@both
def test_autograd_notices_that_a_saved_weight_moved(optimizer_class):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    loss = (param**2).sum()
    optimizer_class([param], lr=0.1, compile=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_compiler
def test_an_interrupt_inside_a_step_comes_after_the_step(monkeypatch):
    """On the thread of a kernel an exception would be lost, and the tensors of a wave would miss their step."""
    params, twins = make_params(), make_params()
    original, calls = TrustRatio.of_numbers, []

    def interrupted(*args: Any) -> float:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args)

    stepped(LAMB, twins, num_steps=1, compile=True)
    monkeypatch.setattr(TrustRatio, "of_numbers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stepped(LAMB, params, num_steps=1, compile=True)
    assert all(torch.equal(one, other) for one, other in zip(params, twins, strict=True))


def test_the_numbers_that_both_languages_know_are_the_same():
    source = compiler.SOURCE.read_text()
    assert f"#define READY ({READY})" in source
    assert "enum { NOWHERE, INSIDE, OUTSIDE };" in source
    assert list(compiled.LAMB_PLACES.items()) == [("nowhere", 0), ("inside", 1), ("outside", 2)]
    joint, decays, nesterov = compiled.JOINT, compiled.DECAYS, compiled.NESTEROV
    assert f"enum {{ JOINT = {joint}, DECAYS = {decays}, NESTEROV = {nesterov} }};" in source


@needs_compiler
def test_a_forked_process_has_threads_of_its_own(threads, monkeypatch):
    """Threads do not outlive a fork: without a new pool the child would wait for ever."""
    threads(2)
    monkeypatch.setattr(compiled, "BLOCK_NUMEL", 4)
    param = torch.nn.Parameter(torch.ones(64))
    param.grad = torch.ones(64)
    optimizer = LAMB([param], lr=0.1, compile=True)
    optimizer.step()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        try:
            optimizer.step()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
