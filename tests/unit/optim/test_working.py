"""Compiled kernels are the default where a trial shows that they work; elsewhere another path is taken with a word."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from largebatch.optim.kernels import compiled, compiler, paths, working
from largebatch.optim.kernels.working import reason_against
from tests.unit.optim.forms import both, everything, make_params, stepped

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    """As in a new process; and what a test has found is forgotten behind it."""
    caches = (compiler.kernels, compiled._kernel, working._tried)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-cc")


def results(optimizer_class: Any, **options: Any) -> list[torch.Tensor]:
    params = make_params()
    return everything(stepped(optimizer_class, params, num_steps=2, **options), params)


def same_bits(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


@both
@pytest.mark.skipif(not compiler.has_compiler(), reason="there is no C compiler: cc, gcc or clang")
def test_the_default_has_the_bits_of_the_compiled_kernels_and_says_nothing(optimizer_class):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(results(optimizer_class), results(optimizer_class, compile=True))


@both
@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_the_default_warns_and_has_the_bits_of_torchs_kernels(optimizer_class):
    with pytest.warns(UserWarning, match=r"do not work on cpu\. .*CC=no-such-cc is not on PATH.*compile=False on all"):
        default = results(optimizer_class)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(default, results(optimizer_class, compile=False))


@both
@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("path", [{"fused": True}, {"fused": False}, {"foreach": True}, {"foreach": False}])
def test_where_another_path_is_named_no_kernel_is_tried(optimizer_class, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(optimizer_class, **path)


def test_a_compiler_that_fails_is_a_reason(monkeypatch):
    monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-include", "no_such_file.h"))
    assert "no_such_file.h" in str(reason_against(CPU))


@pytest.mark.skipif(not compiler.has_compiler(), reason="there is no C compiler: cc, gcc or clang")
@pytest.mark.parametrize("name", ["LARS", "LAMB"])
def test_kernels_that_compute_something_wrong_are_not_taken(name, monkeypatch):
    foreach, in_c, in_triton = working._PATHS[name]

    def wrong(rows: Any, terms: Any) -> None:
        in_c(rows, terms)
        rows[0][0][-1] += 1e-3

    monkeypatch.setitem(working._PATHS, name, (foreach, wrong, in_triton))
    assert "differs from the plain one by" in str(reason_against(CPU))


def test_a_device_without_kernels_is_a_reason_and_no_warning():
    assert reason_against(torch.device("meta")) == "there are no kernels for meta"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not paths._work_for([torch.ones(1, device="meta")])


@both
def test_state_of_before_steps_on_as_it_did(optimizer_class):
    """A state_dict of the time when compile was False by default has that value."""
    params = make_params()
    saved = stepped(optimizer_class, params, num_steps=1, compile=False).state_dict()
    again = optimizer_class(params, lr=0.03)
    again.load_state_dict(saved)
    assert [group["compile"] for group in again.param_groups] == [False]
