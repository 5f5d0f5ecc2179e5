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
    """One step by the formulas of `LambTerms`, tensor by tensor: what every other path is held to."""
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
        compile: bool = False,
    ) -> None:
        form = LambForm(
            bias_correction, decay_placement, norm_bounds, trust_clip, max_grad_norm, grad_averaging, adapt_undecayed
        )
        own = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapts": adapts}
        super().__init__(params, {**own, **vars(form), "foreach": foreach, "fused": fused, "compile": compile})
