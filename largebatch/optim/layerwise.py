"""The base of LARS and LAMB: checks, state, loading, and one step of every group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from largebatch.optim.checks import check_hyperparameters, check_paths, refuse_complex
from largebatch.optim.forms import LambForm, LambTerms, LarsForm, LarsTerms, form_of
from largebatch.optim.kernels.paths import PathOptions, Paths, prepare_kernels, take_step
from largebatch.optim.state import load_unrounded, params_and_grads, wide_zeros
from largebatch.optim.trust_ratio import global_l2_norm


class LayerwiseOptimizer(Optimizer):
    """An optimizer whose step on a tensor depends on the tensor's norm; subclasses supply the parts."""

    form_type: ClassVar[type[LarsForm] | type[LambForm]]
    state_names: ClassVar[tuple[str, ...]]
    paths: ClassVar[Paths]

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; values it does not name are the optimizer's. Raises ValueError as the constructor does."""
        given = {**self.defaults, **param_group}
        self._check(given)
        super().add_param_group(param_group)
        refuse_complex(self.param_groups)
        if given["compile"]:
            prepare_kernels(self.param_groups)  # now, so that the first step does not take longer than the others

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict` at full precision, without sharing its memory."""
        load_unrounded(self, super().load_state_dict, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give groups saved before an option existed the value that they were stepped with: the paper's."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in vars(self.form_type()).items():
                group.setdefault(name, value)

    def terms(self, group: Mapping[str, Any], grad_norm: Tensor | None = None) -> LarsTerms | LambTerms:
        """The coefficients of a step on this group; `grad_norm` is the norm of the gradients of all groups."""
        return form_of(self.form_type, group).terms(group, grad_norm)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; returns what `closure` returned, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        collected = [params_and_grads(group) for group in self.param_groups]
        grad_norm = self._grad_norm([grad for _, grads in collected for grad in grads])
        for group, (params, grads) in zip(self.param_groups, collected, strict=True):
            states = [self._state(param) for param in params]
            columns = {name: [state[name] for state in states] for name in self.state_names}
            steps = columns.pop("step", None)
            form = form_of(self.form_type, group)
            terms, options = form.terms(group, grad_norm), _path_options(group, form)
            take_step(self.paths, [params, grads, *columns.values()], steps, terms, **options)
        return loss

    def _check(self, group: Mapping[str, Any]) -> None:
        check_hyperparameters(group)
        _path_options(group, form_of(self.form_type, group))

    def _grad_norm(self, grads: list[Tensor]) -> Tensor | None:
        """Norm of the gradients of all groups, if one of them asks for it."""
        is_asked_for = any(group.get("max_grad_norm") is not None for group in self.param_groups)
        return global_l2_norm(grads) if grads and is_asked_for else None

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            for name in self.state_names:
                state[name] = _zero_step() if name == "step" else wide_zeros(param)
        return state


def _zero_step() -> Tensor:
    return torch.zeros((), dtype=torch.float32, device="cpu")  # reading it there waits for no device


def _path_options(group: Mapping[str, Any], form: LarsForm | LambForm) -> PathOptions:
    """The path options of the group: None becomes False where another option, or the form, excludes the path."""
    foreach, fused = group["foreach"], group.get("fused")
    compile = group.get("compile", False)
    check_paths(foreach, fused, compile=compile)
    if fused and not form.is_fused:
        raise ValueError(
            f"fused=True with {form}: the fused path does not have this form. Set fused=None, which takes another path."
        )
    if compile is None and not (foreach is None and fused is None):
        compile = False
    return PathOptions(foreach=foreach, fused=fused if form.is_fused else False, compile=compile)
