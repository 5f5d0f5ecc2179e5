"""The compiled path of LARS and LAMB: every form, at every boundary, on any number of threads; and its compiler."""

from __future__ import annotations

import functools
import importlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from largebatch.optim import LAMB, LARS
from largebatch.optim.kernels import compiler
from largebatch.optim.kernels.compiled import READY
from tests.unit.test_optim_fused import (
    Labelled,
    assert_same_course,
    both,
    make_params,
    set_grads,
    stepped,
)
from tests.unit.test_optim_variants import CLASSES, TOLERANCES, VARIANTS, every_course, every_variant, run, truth

COMPILED = importlib.import_module("largebatch.optim.kernels.compiled")


@pytest.fixture(scope="module", autouse=True)
def needs_a_compiler():
    if not compiler.has_compiler():
        message = "there is no C compiler: cc, gcc or clang"
        if os.environ.get("LARGEBATCH_TEST_ORACLES") == "required":
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of 7 elements, waves of 20: every tensor crosses boundaries, and small ones share a wave."""
    monkeypatch.setattr(COMPILED, "BLOCK_NUMEL", 7)
    monkeypatch.setattr(COMPILED, "WAVE_NUMEL", 20)


@pytest.fixture
def threads():
    """Sets the number of threads of torch, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A machine on which nothing was compiled yet: an empty cache folder; returns `again`.

    One function of one line stands for the kernels, since each compilation of all of them takes a second.
    """
    source = tmp_path / "kernels.c"
    source.write_text("int lamb_float(void) { return 7; }\n")
    monkeypatch.setattr(compiler, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    commands: list[list[str]] = []
    original = compiler._output
    monkeypatch.setattr(compiler, "_output", lambda command: (commands.append(command), original(command))[1])

    def again() -> int:
        """Load as a new process does; how often that compiled."""
        compiler.kernels.cache_clear()
        commands.clear()
        assert compiler.kernels().lamb_float() == 7
        return sum("-shared" in command for command in commands)

    yield again
    compiler.kernels.cache_clear()


# --- what it computes ---


@every_course
def test_every_step_equals_the_reference(name, variant, dtype, tolerance, tiny_blocks, threads, monkeypatch):
    threads(2)
    monkeypatch.setitem(CLASSES, name, functools.partial(CLASSES[name], compile=True))
    errors = run(name, variant, dtype, None).worst_errors(truth(name, variant))
    assert all(error <= TOLERANCES[dtype].get(kind, tolerance) for kind, error in errors.items()), errors


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_number_of_threads_changes_no_bit(name, variant, dtype, tiny_blocks, threads):
    def results(num_threads: int) -> list[torch.Tensor]:
        threads(num_threads)
        params = make_params(dtype)
        optimizer = stepped(CLASSES[name], params, compile=True, **VARIANTS[name, variant])
        return [*params, *(value for param in params for value in optimizer.state[param].values())]

    alone = results(1)
    for num_threads in (2, 3):
        assert all(torch.equal(one, other) for one, other in zip(alone, results(num_threads), strict=True))


@both
@pytest.mark.parametrize(("block_numel", "wave_numel"), [(1, 1), (5, 10**6), (256, 300), (1200, 1200), (2**16, 2**20)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_blocks_and_waves_do_not_change_the_result(
    optimizer_class, block_numel, wave_numel, dtype, tolerance, monkeypatch
):
    monkeypatch.setattr(COMPILED, "BLOCK_NUMEL", block_numel)
    monkeypatch.setattr(COMPILED, "WAVE_NUMEL", wave_numel)
    assert_same_course(optimizer_class, make_params(dtype), make_params(dtype), tolerance, compile=True)


@both
@pytest.mark.parametrize("adapts", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradients_stay_bit_identical(optimizer_class, adapts, dtype, tiny_blocks):
    params = make_params(dtype)
    options = {"max_grad_norm": 0.5} if optimizer_class is LAMB else {}
    optimizer = optimizer_class(params, lr=0.03, adapts=adapts, compile=True, **options)
    for seed in range(3):
        set_grads(params, seed)
        gradients, before = [param.grad for param in params], [param.grad.clone() for param in params]
        optimizer.step()
        for param, gradient, copy in zip(params, gradients, before, strict=True):
            assert param.grad is gradient
            assert torch.equal(gradient, copy)


@both
@pytest.mark.parametrize("layout", ["channels_last", "transposed"])
def test_any_dense_layout_is_taken(optimizer_class, layout):
    values = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    laid_out = (
        values.permute(3, 0, 2, 1) if layout == "transposed" else values.to(memory_format=torch.channels_last)
    ).clone(memory_format=torch.preserve_format)
    twin = torch.nn.Parameter(laid_out.clone(memory_format=torch.contiguous_format))
    assert_same_course(optimizer_class, [torch.nn.Parameter(laid_out)], [twin], 1e-6, compile=True)


@both
def test_a_view_into_a_larger_tensor_moves_nothing_beside_it(optimizer_class, tiny_blocks):
    memory = torch.ones(30)
    param = torch.nn.Parameter(memory[5:25])
    param.grad = torch.ones(20)
    optimizer_class([param], lr=0.1, weight_decay=0.1, compile=True).step()
    assert torch.equal(memory[:5], torch.ones(5))
    assert torch.equal(memory[25:], torch.ones(5))
    assert not (memory[5:25] == 1).any()


@both
def test_zero_norms_have_the_ratio_1_and_what_is_not_finite_stays_so(optimizer_class):
    def values(**options) -> list[torch.Tensor]:
        params = [torch.nn.Parameter(torch.tensor(value)) for value in weights]
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad)
        optimizer = optimizer_class(params, lr=0.1, weight_decay=0.1, **options)
        optimizer.step()
        return [*(param.detach() for param in params), *(v for p in params for v in optimizer.state[p].values())]

    inf, nan = math.inf, math.nan
    weights = [[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [nan, 1.0], [inf, 1.0]]
    grads = [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [nan, 1.0], [inf, 1.0], [1.0, 2.0], [1.0, 2.0]]
    for one, other in zip(values(compile=True), values(foreach=False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("decay_placement", ["inside", "outside"])
def test_without_decay_and_ratio_an_infinite_weight_stays_infinite(decay_placement):
    for optimizer_class, options in ((LAMB, {"decay_placement": decay_placement}), (LARS, {})):
        param = torch.nn.Parameter(torch.tensor([math.inf, 1.0]))
        param.grad = torch.tensor([1.0, 2.0])
        optimizer_class([param], lr=0.1, weight_decay=0.0, adapts=False, compile=True, **options).step()
        assert math.isinf(param.detach()[0])
        assert param.detach()[1] < 1


def test_a_nan_norm_of_all_gradients_reaches_every_moment():
    params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    params[0].grad, params[1].grad = torch.tensor([math.nan, 1.0]), torch.ones(2)
    optimizer = LAMB(params, lr=0.1, max_grad_norm=1.0, compile=True)
    optimizer.step()
    assert optimizer.state[params[1]]["exp_avg"].isnan().all()


@pytest.mark.parametrize("numel", [1, 1000, 1025, 2**22 + 5])
@pytest.mark.parametrize("constant", [False, True])
def test_norms_of_float32_tensors_are_right_to_1e_7(numel, constant):
    """Equal entries are the worst case. At momentum 0 the buffer is lr ratio g, with ratio |w| / |g| and g = 1."""
    weight = torch.full((numel,), 0.3) if constant else torch.randn(numel, generator=torch.Generator().manual_seed(0))
    param = torch.nn.Parameter(weight.clone())
    param.grad = torch.ones(numel)  # its norm has no error
    optimizer = LARS([param], lr=1.0, momentum=0.0, weight_decay=0.0, trust_coefficient=1.0, compile=True)
    optimizer.step()
    expected = float(weight.double().norm()) / math.sqrt(numel)
    assert optimizer.state[param]["momentum_buffer"][0].item() == pytest.approx(expected, rel=1.6e-7)  # and a rounding


@pytest.mark.parametrize("adapts", [True, False])
def test_every_parameter_has_its_own_step_number_and_may_lack_a_gradient(adapts, tiny_blocks):
    def late_joiner(**options) -> tuple[list[torch.nn.Parameter], list[float]]:
        params = make_params(torch.float64)
        optimizer = LAMB(params, lr=0.1, adapts=adapts, **options)
        optimizer.step()  # no gradient at all
        for step in range(3):
            set_grads(params, step)
            for param in params[step + 1 :: 2]:
                param.grad = None
            optimizer.step()
        assert all(state["step"].dtype == torch.float32 for state in optimizer.state.values())
        return params, [float(optimizer.state[param]["step"]) for param in params if param in optimizer.state]

    (ones, steps), (others, other_steps) = late_joiner(compile=True), late_joiner(foreach=False)
    assert steps == other_steps
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@both
def test_autograd_notices_that_a_saved_weight_moved(optimizer_class):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    loss = (param**2).sum()
    optimizer_class([param], lr=0.1, compile=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_interrupt_inside_a_step_comes_after_the_step(monkeypatch):
    """On the thread of a kernel an exception would be lost, and the tensors of a wave would miss their step."""
    params, twins = make_params(), make_params()
    original, calls = COMPILED.ratio_of_numbers, []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    stepped(LAMB, twins, num_steps=1, compile=True)
    monkeypatch.setattr(COMPILED, "ratio_of_numbers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stepped(LAMB, params, num_steps=1, compile=True)
    assert all(torch.equal(one, other) for one, other in zip(params, twins, strict=True))


def test_the_numbers_that_both_languages_know_are_the_same():
    source = compiler.SOURCE.read_text()
    assert f"#define READY ({READY})" in source
    assert "enum { NOWHERE, INSIDE, OUTSIDE };" in source
    assert list(COMPILED.LAMB_PLACES.items()) == [("nowhere", 0), ("inside", 1), ("outside", 2)]
    joint, decays, nesterov = COMPILED.JOINT, COMPILED.DECAYS, COMPILED.NESTEROV
    assert f"enum {{ JOINT = {joint}, DECAYS = {decays}, NESTEROV = {nesterov} }};" in source


# --- where it applies ---


@both
@pytest.mark.parametrize(
    ("value", "grad", "fact"),
    [
        (torch.ones(3, dtype=torch.float16), None, r"shape \[3\], Parameter of torch.float16 on cpu"),
        (torch.ones(3, device="meta"), None, "on meta"),
        (torch.ones(3).as_subclass(Labelled), None, "Labelled"),
        (torch.ones(2, 3), torch.ones(3, 2).t(), r"its gradient of torch.float32 with strides \(1, 2\)"),
    ],
)
def test_it_is_refused_where_it_cannot_be_before_anything_moves(optimizer_class, value, grad, fact):
    first, param = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(value)
    first.grad, param.grad = torch.ones(2), torch.ones_like(param) if grad is None else grad
    optimizer = optimizer_class([first, param], lr=0.1, compile=True)
    with pytest.raises(ValueError, match=rf"compile=True.*{fact}.*Set compile=False"):
        optimizer.step()
    assert first.tolist() == [1.0, 1.0]
    assert float(optimizer.state[first].get("step", 0.0)) == 0


@both
@pytest.mark.parametrize("other", ["foreach", "fused"])
def test_two_paths_at_once_are_refused(optimizer_class, other):
    with pytest.raises(ValueError, match=rf"^{other}=True and compile=True: these are different paths"):
        optimizer_class(make_params(), lr=0.1, compile=True, **{other: True})
    with pytest.raises(ValueError, match=rf"^{other}=True and compile=True"):
        optimizer_class([{"params": make_params(), "compile": True}], lr=0.1, **{other: True})
    optimizer = optimizer_class(make_params(), lr=0.1, **{other: True})
    optimizer.param_groups[0]["compile"] = True
    with pytest.raises(ValueError, match=rf"^{other}=True and compile=True"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"^compile='yes': compile is True or False"):
        optimizer_class(make_params(), lr=0.1, compile="yes")


@both
def test_state_that_was_saved_without_the_option_steps_on(optimizer_class):
    params = make_params()
    saved = stepped(optimizer_class, params).state_dict()
    for group in saved["param_groups"]:
        del group["compile"]
    optimizer = optimizer_class(params, lr=0.03, compile=True)
    optimizer.load_state_dict(saved)
    optimizer.step()


# --- its compiler ---


def test_it_compiles_once_and_is_private(fresh, tmp_path):
    assert fresh() == 1
    assert fresh() == 0
    assert (tmp_path / "largebatch").stat().st_mode & 0o777 == 0o700
    assert [file.suffix for file in (tmp_path / "largebatch").iterdir()] == [".so"]


def test_another_source_flag_or_processor_has_a_file_of_its_own(fresh, tmp_path, monkeypatch):
    fresh()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-g"))
    assert fresh() == 1
    monkeypatch.setattr(compiler, "_processor", lambda: "another one")
    assert fresh() == 1
    (tmp_path / "kernels.c").write_text(compiler.SOURCE.read_text() + "/* changed */\n")
    assert fresh() == 1
    assert len(list((tmp_path / "largebatch").iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "one bit", "another library", "not private"])
def test_a_file_that_is_not_what_was_written_is_compiled_anew(fresh, tmp_path, damage):
    fresh()
    (file,) = (tmp_path / "largebatch").iterdir()
    data = file.read_bytes()
    other = Path(torch._C.__file__).read_bytes()
    bit = data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    content = {"cut": data[:3000], "empty": b"", "one bit": bit, "another library": other}.get(damage, data)
    file.unlink()
    file.write_bytes(content)
    file.chmod(0o777 if damage == "not private" else 0o700)
    assert fresh() == 1
    assert file.read_bytes()[-32:] == compiler._digest(file.read_bytes()[:-32])
    assert fresh() == 0


@pytest.mark.parametrize("home", ["a file", "of others"])
def test_a_cache_folder_that_cannot_be_used_costs_a_compilation_and_no_error(fresh, tmp_path, home):
    if home == "a file":
        (tmp_path / "largebatch").write_text("")
    else:
        (tmp_path / "largebatch").mkdir()
        (tmp_path / "largebatch").chmod(0o777)
    assert fresh() == 1
    assert fresh() == 1


def test_two_processes_may_compile_at_once(tmp_path):
    program = (  # the module alone: it needs no torch
        "import importlib.util as u; from sys import argv; spec = u.spec_from_file_location('compiler', argv[1]); "
        "compiler = u.module_from_spec(spec); spec.loader.exec_module(compiler); "
        "print(type(compiler.kernels()).__name__)"
    )
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, compiler.__file__], env=environ, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in started] == 2 * ["CDLL"]
    assert [file.suffix for file in (tmp_path / "largebatch").iterdir()] == [".so"]


@both
def test_without_a_compiler_the_constructor_says_what_to_do(optimizer_class, fresh, monkeypatch, tmp_path):
    compiler.kernels.cache_clear()
    monkeypatch.setenv("CC", "no-such-cc -O1")
    with pytest.raises(
        ValueError, match=r"no-such-cc -O1.* not on PATH\. .*Install gcc or clang, or set compile=False"
    ):
        optimizer_class(make_params(), lr=0.1, compile=True)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"cc, gcc and clang is on PATH\. .*Install gcc or clang, or set compile=False"
    ):
        optimizer_class([{"params": make_params(), "compile": True}], lr=0.1)
    assert not compiler.has_compiler()
    optimizer_class(make_params(), lr=0.1)


def test_a_compiler_that_fails_is_quoted(fresh, monkeypatch):
    compiler.kernels.cache_clear()
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-include", "no_such_file.h"))
    with pytest.raises(ValueError, match=r"^compile=True: .*cc .*ended with 1: .*no_such_file.h: .*Install gcc"):
        LAMB(make_params(), lr=0.1, compile=True)


def test_a_forked_process_has_threads_of_its_own(threads, monkeypatch):
    """Threads do not outlive a fork: without a new pool the child would wait for ever."""
    threads(2)
    monkeypatch.setattr(COMPILED, "BLOCK_NUMEL", 4)
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
