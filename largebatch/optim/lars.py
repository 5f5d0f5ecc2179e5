"""LARS: layer-wise adaptive rate scaling (You, Gitman, Ginsburg 2017)."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.forms import LarsForm, LarsTerms
from largebatch.optim.kernels.compiled import compiled_lars
from largebatch.optim.kernels.foreach import foreach_lars
from largebatch.optim.kernels.fused_lars import fused_lars
from largebatch.optim.kernels.paths import Paths
from largebatch.optim.kernels.triton_steps import triton_lars
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.state import widened
from largebatch.optim.trust_ratio import l2_norm


def lars_loop(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], terms: LarsTerms) -> None:
    """One step by the formulas of `LarsTerms`, tensor by tensor: the reference for every other path."""
    for param, param_grad, velocity in zip(params, grads, velocities, strict=True):
        weight, grad = widened([param, param_grad], velocity.dtype)
        direction = grad.add(weight, alpha=terms.decay) if terms.decay != 0 else grad
        ratio = None
        if terms.ratio is not None:
            ratio = terms.ratio.of_tensors(l2_norm(weight), l2_norm(direction if terms.is_joint else grad))
        step = _add(velocity.mul_(terms.momentum), direction, ratio, terms.inner_lr)
        if terms.looks_ahead:
            step = _add(velocity.mul(terms.momentum), direction, ratio, terms.inner_lr)
        weight.sub_(step, alpha=terms.outer_lr)
        if weight is not param:
            param.copy_(weight)


def _add(to: Tensor, direction: Tensor, ratio: Tensor | None, lr: float) -> Tensor:
    """Add lr ratio direction to `to`, in place; without a ratio it is 1."""
    return to.add_(direction, alpha=lr) if ratio is None else to.addcmul_(direction, ratio, value=lr)


class LARS(LayerwiseOptimizer):
    """Momentum SGD in which the step of every tensor is proportional to the tensor's norm.

        ratio = trust_coefficient |w| / (|g| + weight_decay |w|)     1 where |w| = 0 or |g| = 0
        v     = momentum v + lr ratio (g + weight_decay w)           v = 0 at first
        w     = w - v

    for every tensor w with gradient g; |.| is the L2 norm of the whole tensor. Source: You, Gitman, Ginsburg 2017,
    "Large batch training of convolutional networks" (arXiv 1708.03888), Algorithm 1, which leaves norms of 0 open.
    A step without momentum is at most lr trust_coefficient |w| long. Where the ratio is 1, `lr` acts without the
    trust coefficient, which is a 1000 times larger rate.

    More than one algorithm has this name. The options from `denominator` to `adapt_undecayed` name every difference.
    `presets.LARS_PRESETS` reproduces the paper, MLPerf's reference, the textbook formula, SimCLR and timm.

    Each parameter group has two independent flags: `weight_decay` (0: does not decay) and `adapts` (False: ratio 1,
    momentum SGD). No parameter is treated apart by its shape or name: `parameter_groups` makes the groups.

    `p.grad` is only read. Norms, state and arithmetic are float32, or the parameter's dtype where that is wider. A
    bfloat16 or float16 weight is rounded once per step.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0; a schedule writes `group["lr"]`.
        momentum: in [0, 1).
        weight_decay: >= 0, added to the gradient as weight_decay w (L2 regularisation), and part of the ratio.
        trust_coefficient: > 0, "eta" in the paper. With 1 the ratio itself is |w| / (|g| + weight_decay |w|).
        adapts: default of the group flag.
        denominator: "split" as above, or "joint", |g + weight_decay w|: optax, SimCLR, Barlow Twins.
        lr_placement: "inside" the velocity as above: a new rate acts on new gradients only. Or "outside", as in
            torch.optim.SGD: v = momentum v + ratio (g + weight_decay w), w = w - lr v: timm, torch_optimizer, apex.
            Under a constant rate both are the same.
        nesterov: w = w - (momentum v + lr ratio (g + weight_decay w)) with the new v; needs momentum.
        clip: the rate of a tensor is min(ratio, lr) instead of lr ratio, and lr where a norm is 0: the default of
            apex's LARC, timm's trust_clip.
        eps: >= 0, added to the denominator: 1e-8 in timm and apex.
        adapt_undecayed: False gives groups with weight_decay=0 the ratio 1: timm, torch_optimizer.
        foreach: True: one call per operation over many tensors. False: the plain loop. None: the former, unless a
            parameter is a tensor subclass. Temporary memory: 32 MiB, or the size of the largest tensor if more.
        fused: True: torch's fused SGD kernel, without temporary memory. False: never. None: where it applies, if
            `foreach` is None too and `compile` takes nothing. It applies to the forms that `LarsForm.is_fused` names,
            and to plain float32 and float64 tensors on a CPU whose gradient and state lie in memory in the same order,
            without gaps.
        compile: True: kernels of our own, for every form and with next to no temporary memory; the fastest path. On a
            CPU they are C, compiled by the constructor once per machine and user; `step` takes the tensors that `fused`
            takes. On a GPU they are Triton, compiled at the first step, which takes seconds; bfloat16 and float16 too.
            False: never. None: where they apply, if `foreach` and `fused` are None too; the first step tries them, and
            warns where they do not work. Last digits differ between paths: ranks of one job must take the same one.

    Raises:
        ValueError: if a value breaks its rule or has no effect, here or in a group, a parameter is complex, or
            fused=True or compile=True cannot be: there is no compiler, it fails, or Triton is missing.
        RuntimeError: from `step`, if a gradient is sparse.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> w.grad = torch.tensor([0.0, 2.0])
    >>> LARS([w], lr=1.0, weight_decay=0.0, trust_coefficient=0.1).step()  # ratio 0.1 * 5 / 2
    >>> w.data
    tensor([3.0000, 3.5000])
    """

    form_type = LarsForm
    state_names = ("momentum_buffer",)
    paths = Paths(lars_loop, foreach_lars, fused_lars, compiled_lars, triton_lars)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        trust_coefficient: float = 0.001,
        adapts: bool = True,
        *,
        denominator: str = "split",
        lr_placement: str = "inside",
        nesterov: bool = False,
        clip: bool = False,
        eps: float = 0.0,
        adapt_undecayed: bool = True,
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool | None = None,
    ) -> None:
        form = LarsForm(denominator, lr_placement, nesterov, clip, eps, adapt_undecayed)
        own = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapts": adapts,
        }
        super().__init__(params, {**own, **vars(form), "foreach": foreach, "fused": fused, "compile": compile})
