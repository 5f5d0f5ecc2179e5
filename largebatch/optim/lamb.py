"""LAMB: layer-wise adaptive moments (You et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from largebatch.optim.checks import check_hyperparameters, refuse_complex
from largebatch.optim.forms import LambForm, fill_with_paper
from largebatch.optim.kernels.flat import require_fused_form
from largebatch.optim.kernels.kernel_paths import prepare_kernels
from largebatch.optim.lamb_arithmetic import lamb
from largebatch.optim.state import load_unrounded, params_and_grads, wide_zeros
from largebatch.optim.trust_ratio import global_l2_norm


class LAMB(Optimizer):
    """Adam's update with decay, stretched in every tensor to lr times the norm of that tensor.

        m     = beta1 m + (1 - beta1) g                   v = beta2 v + (1 - beta2) g^2     m = v = 0 at first
        r     = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)                       t = 1 at the first step
        u     = r + weight_decay w
        ratio = |w| / |u|                                 1 where |w| = 0 or |u| = 0
        w     = w - lr ratio u

    for every tensor w with gradient g; |.| is the L2 norm of the whole tensor. Source: You et al. 2019, "Large batch
    optimization for deep learning: training BERT in 76 minutes" (arXiv 1904.00962 v5), Algorithm 2, with phi the
    identity. Hence a step is exactly lr |w| long, whatever the gradient; only at ratio 1 it is lr |u|.

    More than one algorithm has this name, and torch.optim.AdamW is this one with adapts=False. The options name every
    difference; `presets.LAMB_PRESETS` has the settings that reproduce both versions of the paper, NVLAMB and timm:

    - bias_correction: False leaves out both 1 - beta^t. Where nothing decays, the ratio cancels all of it but the eps:
      version 3 of the paper, torch_optimizer;
    - decay_placement: "inside" the ratio as above, or "outside": w = (1 - lr weight_decay) w first, then u = r with the
      norm of the decayed w, as in AdamW: Keras, timm's decoupled_decay;
    - norm_bounds: (lower, upper) of the paper's phi, ratio = min(max(|w|, lower), upper) / |u|, for which it gives no
      numbers; torch_optimizer has (0, 10);
    - trust_clip: a ratio is at most 1, so that no step is longer than Adam's: LAMBC, timm's trust_clip;
    - max_grad_norm: g is divided by max(1, |all gradients of all groups| / max_grad_norm) before the moments: 1 in
      NVLAMB, apex and timm;
    - grad_averaging: False adds g to m instead of (1 - beta1) g: apex and timm have the option;
    - adapt_undecayed: False gives groups with weight_decay=0 the ratio 1: timm, apex without use_nvlamb.

    Each parameter group has two independent flags: `weight_decay` (0: does not decay) and `adapts` (False: ratio 1). No
    parameter is treated apart by its shape or name: `parameter_groups` makes the groups.

    `p.grad` is only read. Norms, state and arithmetic are float32, or the parameter's dtype where that is wider; a
    bfloat16 or float16 weight is rounded once per step.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0: the length of a step relative to |w|; a schedule writes `group["lr"]`.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: >= 0. With 0 an element whose gradients were all 0 becomes NaN.
        weight_decay: >= 0. It turns the step towards -w; the length of the step stays.
        adapts: default of the group flag.
        bias_correction: whether the moments are divided by 1 - beta^t.
        decay_placement: "inside" or "outside" of the ratio.
        norm_bounds: 0 <= lower <= upper; None: phi is the identity.
        trust_clip: whether a ratio is at most 1.
        max_grad_norm: > 0; None: gradients are taken as they are. A group may have its own, for the norm over all.
        grad_averaging: whether the newest gradient enters m with the weight 1 - beta1.
        adapt_undecayed: whether groups without decay get a ratio too.
        foreach: True for one call per operation over many tensors, False for a plain loop; None takes the former unless
            a parameter is a tensor subclass. Temporary memory: 64 MiB, or twice the size of the largest tensor if more.
        fused: True for torch's fused AdamW kernel with 4.5 % of the group as temporary memory, False never. None takes
            it, if `foreach` is None too, for plain float32 and float64 tensors on a CPU whose gradient and state lie in
            memory in the same order, without gaps, and a form that it has (`forms`). True demands that of all.
        compile: True for kernels of our own, for every form: the fastest path, with next to no temporary memory. On a
            CPU they are in C, the constructor compiles them, once per machine and user, and `step` takes what `fused`
            says of tensors, of all, on as many threads as torch has. On a GPU they are in Triton, which compiles at the
            first step, once per machine and user: a few seconds; bfloat16 and float16 are taken there too.

    Raises:
        ValueError: if a value breaks its rule or has no effect, here or in a group, a parameter is complex, or
            fused=True or compile=True cannot be: there is no compiler, it fails, or Triton is missing.
        RuntimeError: from `step`, if a gradient is sparse.

    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> w.grad = torch.tensor([0.0, 2.0])
    >>> LAMB([w], lr=0.1, weight_decay=0.0).step()  # along [0, 1], 0.1 * 5 long
    >>> w.data
    tensor([3.0000, 3.5000])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapts: bool = True,
        *,
        bias_correction: bool = True,
        decay_placement: str = "inside",
        norm_bounds: tuple[float, float] | None = None,
        trust_clip: bool = False,
        max_grad_norm: float | None = None,
        grad_averaging: bool = True,
        adapt_undecayed: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapts": adapts,
            "bias_correction": bias_correction,
            "decay_placement": decay_placement,
            "norm_bounds": norm_bounds,
            "trust_clip": trust_clip,
            "max_grad_norm": max_grad_norm,
            "grad_averaging": grad_averaging,
            "adapt_undecayed": adapt_undecayed,
            "foreach": foreach,
            "fused": fused,
            "compile": compile,
        }
        check_hyperparameters(defaults)
        require_fused_form(fused, LambForm.of(defaults))
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; values it does not name are the optimizer's. Raises ValueError as the constructor does."""
        given = {**self.defaults, **param_group}
        check_hyperparameters(given)
        require_fused_form(given["fused"], LambForm.of(given))
        super().add_param_group(param_group)
        refuse_complex(self.param_groups)
        if given["compile"]:
            prepare_kernels(self.param_groups)  # now, so that the first step does not take longer than the others

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, at full precision and without sharing its memory."""
        load_unrounded(self, super().load_state_dict, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        fill_with_paper(self.param_groups, LambForm())

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
            lamb(
                params,
                grads,
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["step"] for state in states],
                foreach=group["foreach"],
                fused=group.get("fused"),
                compile=group.get("compile", False),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                eps=group["eps"],
                weight_decay=group["weight_decay"],
                adapts=group["adapts"],
                form=LambForm.of(group),
                grad_norm=grad_norm,
            )
        return loss

    def _grad_norm(self, grads: list[Tensor]) -> Tensor | None:
        """Norm of the gradients of all groups, if one of them asks for it."""
        is_asked_for = any(group["max_grad_norm"] is not None for group in self.param_groups)
        return global_l2_norm(grads) if grads and is_asked_for else None

    def _state(self, param: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # reading it there waits for no device
            state["exp_avg"] = wide_zeros(param)
            state["exp_avg_sq"] = wide_zeros(param)
        return state
