"""Muon for hidden matrices and AdamW for everything else, as one optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from largebatch.optim.checks import check_hyperparameters

ADAMW_PATTERNS = (r"embed", r"(^|\.)w[tp]e\.", r"(^|[._])head([._]|$)", r"(^|\.)classifier\.", r"^(module\.)?fc\.")
"""Usual names of embeddings and last layers: they are matrices too, but their inputs or outputs are one-hot."""

_MUON_EPS = 1e-7  # torch.optim.Muon's default; it guards a matrix norm, not AdamW's square root


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon on the matrices of hidden layers, torch.optim.AdamW on all other parameters.

    Muon replaces the momentum of a matrix by (nearly) the nearest orthogonal matrix. That makes sense between hidden
    activations only: AdamW takes biases, norms, convolution kernels, embeddings and the last layer. One `lr` and one
    `weight_decay` serve both, because Muon runs with adjust_lr_fn="match_rms_adamw". It multiplies the step of an A x B
    matrix by 0.2 sqrt(max(A, B)), so that its entries have AdamW's usual root mean square, about 0.2 lr. The arithmetic
    is torch's own. Sources: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et
    al. 2025, "Muon is scalable for LLM training" (arXiv 2502.16982).

    The key `muon` of a group (bool) says who takes it. Groups without the key are split: Muon takes parameters with two
    dimensions whose name fits no pattern. Such groups need names, from `parameter_groups` or
    `model.named_parameters()`.

    `param_groups` and `state` are the very objects that torch's optimizers use: writing `group["lr"]` acts, and a state
    dict has the usual structure.

    Args:
        params: named parameters, or groups with `param_names`, or groups with `muon`.
        lr: learning rate of both, >= 0.
        weight_decay: decoupled, w *= 1 - lr weight_decay, default of the groups that have no own one.
        momentum: Muon's, in [0, 1); Nesterov.
        betas: AdamW's.
        eps: AdamW's.
        adamw_patterns: regular expressions looked for (`re.search`) in the names of matrices; AdamW takes those.
            None: `ADAMW_PATTERNS`, which may fit nothing; a pattern of your own must fit a matrix.
        fused: whether AdamW takes torch's fused kernels; None: torch chooses. Muon has none.

    Raises:
        ValueError: if a number is out of range, names are missing, no matrix is left for Muon, or a pattern fits no
            matrix.

    >>> model = torch.nn.Sequential()
    >>> model.add_module("hidden", torch.nn.Linear(4, 4))
    >>> model.add_module("head", torch.nn.Linear(4, 2))
    >>> for group in MuonWithAdamW(model.named_parameters()).param_groups:
    ...     print(group["muon"], group["param_names"])
    True ['hidden.weight']
    False ['hidden.bias', 'head.weight', 'head.bias']
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adamw_patterns: Sequence[str] | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps}
        check_hyperparameters(defaults)
        self._optimizers: list[Optimizer] = []
        super().__init__(_split(params, adamw_patterns), {**defaults, "fused": fused})
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group with the key `muon`: True (matrices only) or False. Raises ValueError without it."""
        check_hyperparameters({**self.defaults, **param_group})
        if not isinstance(param_group.get("muon"), bool):
            raise ValueError(
                f"muon={param_group.get('muon')!r} in a parameter group: it says which optimizer takes the group. "
                "Set it to True (Muon, matrices only) or False (AdamW)."
            )
        if param_group["muon"]:
            param_group.setdefault("eps", _MUON_EPS)
        super().add_param_group(param_group)
        if param_group["muon"]:
            del param_group["fused"]
        shapes = [list(param.shape) for param in param_group["params"] if param_group["muon"] and param.ndim != 2]
        if shapes:
            self.param_groups.pop()
            raise ValueError(
                f"muon=True in a group with parameters of shapes {shapes}: Muon takes matrices only, two dimensions. "
                "Put the others into a group with muon=False."
            )
        if self._optimizers:
            self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Pass loaded or copied groups and state on to torch's optimizers."""
        super().__setstate__(state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on every parameter that has a gradient; returns what `closure` returned, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self._optimizers:
            optimizer.step()
        return loss

    def _share(self) -> None:
        """Build torch's optimizers on the groups and the state of this one. They fill in what a group lacks."""
        matrices = [group for group in self.param_groups if group["muon"]]
        others = [group for group in self.param_groups if not group["muon"]]
        if not matrices:
            raise ValueError(
                "No parameter is left for Muon: it takes matrices (two dimensions) that no AdamW pattern fits. "
                "Use AdamW for this model, or name narrower adamw_patterns."
            )
        self._optimizers = [Muon(matrices, adjust_lr_fn="match_rms_adamw")]
        if others:
            self._optimizers.append(AdamW(others, fused=self.defaults.get("fused")))
        for optimizer in self._optimizers:
            optimizer.state = self.state


def _split(
    params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]], adamw_patterns: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The groups, split so that each belongs to either Muon or AdamW."""
    given: list[Any] = list(params)
    groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
    patterns = _compiled(ADAMW_PATTERNS if adamw_patterns is None else adamw_patterns)
    parts = []
    matrix_names = []
    for group in groups:
        if "muon" in group:
            parts.append(group)
            continue
        named = _named(group)
        matrix_names += [name for name, param in named if param.ndim == 2]
        for muon in (True, False):
            members = [(name, param) for name, param in named if _is_for_muon(name, param, patterns) == muon]
            if members:
                names = [name for name, _ in members]
                parts.append({**group, "params": [param for _, param in members], "param_names": names, "muon": muon})
    if adamw_patterns is not None:
        _check_effect(patterns, matrix_names)
    return parts


def _is_for_muon(name: str, param: Tensor, patterns: Sequence[re.Pattern[str]]) -> bool:
    return param.ndim == 2 and not any(pattern.search(name) for pattern in patterns)


def _named(group: dict[str, Any]) -> list[tuple[str, Tensor]]:
    params = list(group["params"])
    if "param_names" in group:
        return list(zip(group["param_names"], params, strict=True))
    if not all(isinstance(param, tuple) for param in params):
        raise ValueError(
            f"A group of {len(params)} parameters has no names: only names distinguish embeddings and the last layer "
            "from hidden matrices. Pass parameter_groups(model, ...) or model.named_parameters(), or set muon=True or "
            "False in each group."
        )
    return params


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    if isinstance(patterns, str):
        raise ValueError(f"adamw_patterns={patterns!r}: a list of patterns, not one string. Write [{patterns!r}].")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ValueError(
            f"adamw_patterns={patterns!r}: not all are regular expressions ({error}). Escape special characters with a "
            "backslash."
        ) from error


def _check_effect(patterns: Sequence[re.Pattern[str]], matrix_names: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(pattern.search(name) for name in matrix_names):
            raise ValueError(
                f"adamw_patterns: {pattern.pattern!r} fits no matrix, so it has no effect. Remove it or correct it; "
                f"the matrices are {', '.join(matrix_names[:8]) or 'none'}{', ...' if len(matrix_names) > 8 else ''}."
            )
