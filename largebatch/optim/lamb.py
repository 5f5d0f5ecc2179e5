"""LAMB: layer-wise adaptive moments (You et al. 2019)."""

from __future__ import annotations

from torch import Tensor
from torch.optim.optimizer import ParamsT

from largebatch.optim.forms import LambForm, LambTerms
from largebatch.optim.kernels.compiled import compiled_lamb
from largebatch.optim.kernels.foreach import foreach_lamb
from largebatch.optim.kernels.fused_lamb import fused_lamb
from largebatch.optim.kernels.paths import Paths
from largebatch.optim.kernels.triton_steps import triton_lamb
from largebatch.optim.layerwise import LayerwiseOptimizer
from largebatch.optim.state import widened
from largebatch.optim.trust_ratio import l2_norm


def lamb_loop(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    terms: LambTerms,
) -> None:
    """One step by the formulas of `LambTerms`, tensor by tensor: the reference for every other path."""
    for param, param_grad, exp_avg, exp_avg_sq, state_step in zip(
        params, grads, exp_avgs, exp_avg_sqs, state_steps, strict=True
    ):
        weight, grad = widened([param, param_grad], exp_avg.dtype)
        divisor = terms.divisor(exp_avg.device, exp_avg.dtype)
        if divisor is not None:
            grad = grad.div(divisor)
        exp_avg.mul_(terms.beta1).add_(grad, alpha=terms.grad_share)
        exp_avg_sq.mul_(terms.beta2).addcmul_(grad, grad, value=1 - terms.beta2)
        if terms.place == "outside":
            weight.add_(weight, alpha=-terms.decay)  # 1 - decay would be rounded, each time alike
        update = lamb_update(weight, exp_avg, exp_avg_sq, state_step, terms)
        if terms.ratio is not None:
            weight.addcmul_(update, terms.ratio.of_tensors(l2_norm(weight), l2_norm(update)), value=-terms.lr)
        else:
            weight.add_(update, alpha=-terms.lr)
        if weight is not param:
            param.copy_(weight)


def lamb_update(weight: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, state_step: Tensor, terms: LambTerms) -> Tensor:
    """The update u of a tensor, whose norm the ratio is taken of, from moments that have seen this step's gradient."""
    correction1, correction2 = terms.corrections(float(state_step))
    update = exp_avg.div(correction1).div_(exp_avg_sq.div(correction2).sqrt_().add_(terms.eps))
    return update.add_(weight, alpha=terms.decay) if terms.place == "inside" else update


class LAMB(LayerwiseOptimizer):
    """Adam's update with decay, scaled in every tensor to lr times the norm of the tensor.

        m     = beta1 m + (1 - beta1) g                   v = beta2 v + (1 - beta2) g^2     m = v = 0 at first
        r     = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)                       t = 1 at the first step
        u     = r + weight_decay w
        ratio = |w| / |u|                                 1 where |w| = 0 or |u| = 0
        w     = w - lr ratio u

    for every tensor w with gradient g; |.| is the L2 norm of the whole tensor. Source: You et al. 2019, "Large batch
    optimization for deep learning: training BERT in 76 minutes" (arXiv 1904.00962 v5), Algorithm 2, with phi the
    identity. Hence a step is exactly lr |w| long, whatever the gradient; only at ratio 1 it is lr |u|.

    More than one algorithm has this name, and torch.optim.AdamW is this one with adapts=False. The options from
    `bias_correction` to `adapt_undecayed` name every difference. `presets.LAMB_PRESETS` reproduces both versions of the
    paper, NVLAMB and timm.

    Groups, precision and gradients are as in `LARS`.

    Args:
        params: parameters, named parameters, or groups.
        lr: learning rate >= 0: the length of a step relative to |w|; a schedule writes `group["lr"]`.
        betas: decay of the first and of the second moment, each in [0, 1).
        eps: >= 0. With 0 an element whose gradients were all 0 becomes NaN.
        weight_decay: >= 0. It turns the step towards -w; the length of the step stays.
        adapts: default of the group flag.
        bias_correction: False leaves out both 1 - beta^t. Where nothing decays, the ratio cancels all of it but the
            eps: version 3 of the paper, torch_optimizer.
        decay_placement: "inside" the ratio as above, or "outside", as in AdamW: w = (1 - lr weight_decay) w first, then
            u = r with the norm of the decayed w: Keras, timm's decoupled_decay.
        norm_bounds: (lower, upper) of the paper's phi, which gives no numbers: ratio = min(max(|w|, lower), upper) /
            |u|; torch_optimizer has (0, 10). None: phi is the identity.
        trust_clip: a ratio is at most 1, so that no step is longer than Adam's: LAMBC, timm's trust_clip.
        max_grad_norm: > 0: g is divided by max(1, |all gradients of all groups| / max_grad_norm) before the moments: 1
            in NVLAMB, apex and timm. A group may have its own, for the norm over all. None: g is taken as it is.
        grad_averaging: False adds g to m instead of (1 - beta1) g: apex and timm have the option.
        adapt_undecayed: False gives groups with weight_decay=0 the ratio 1: timm, apex without use_nvlamb.
        foreach: as of `LARS`, with twice the temporary memory.
        fused: as of `LARS`: torch's fused AdamW kernel, for the forms that `LambForm.is_fused` names, with 4.5 % of the
            group as temporary memory.
        compile: as of `LARS`.

    Raises:
        ValueError: if a value breaks its rule or has no effect, here or in a group, a parameter is complex, or
            fused=True or compile=True cannot be: there is no compiler, it fails, or Triton is missing.
        RuntimeError: from `step`, if a gradient is sparse.

    >>> import torch
    >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> w.grad = torch.tensor([0.0, 2.0])
    >>> LAMB([w], lr=0.1, weight_decay=0.0).step()  # along [0, 1], 0.1 * 5 long
    >>> w.data
    tensor([3.0000, 3.5000])
    """

    form_type = LambForm
    state_names = ("step", "exp_avg", "exp_avg_sq")
    paths = Paths(lamb_loop, foreach_lamb, fused_lamb, compiled_lamb, triton_lamb)

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
        compile: bool | None = None,
    ) -> None:
        form = LambForm(
            bias_correction, decay_placement, norm_bounds, trust_clip, max_grad_norm, grad_averaging, adapt_undecayed
        )
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapts": adapts}
        super().__init__(params, {**own, **vars(form), "foreach": foreach, "fused": fused, "compile": compile})
