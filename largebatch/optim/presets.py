"""Settings of LARS and LAMB that reproduce a source: `LARS(params, lr=..., **LARS_PRESETS["timm"])`.

A preset names every option that chooses the formula, and nothing that is tuned: rate, momentum, betas and decay are the
run's. Which parameters neither decay nor adapt is said by the groups: `parameter_groups` excludes biases and norms.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from largebatch.optim.forms import LambForm, LarsForm

LARS_PRESETS: dict[str, dict[str, Any]] = {
    # You, Gitman, Ginsburg 2017, Algorithm 1: the defaults of LARS. The paper excludes no parameter,
    # parameter_groups(..., exclude_from_decay=[], exclude_from_adaptation=[]).
    "paper": {"trust_coefficient": 0.001, **asdict(LarsForm())},
    # MLPerf's ResNet-50 reference, TF1 and tf.contrib: the paper's formula. What it adds is in the groups: biases and
    # batch norms neither decay nor adapt, the default of parameter_groups. Its TF2 code turns the eps of 0 into 1e-7.
    "mlperf": {"trust_coefficient": 0.001, **asdict(LarsForm())},
    # See below: not a re-scaled paper.
    "textbook": {"trust_coefficient": 1.0, **asdict(LarsForm())},
    # SimCLR's LARSOptimizer with classic_momentum=True, its default. optax.lars is the same with its eps=0.
    "simclr": {"trust_coefficient": 0.001, **asdict(LarsForm(denominator="joint"))},
    # timm.optim.Lars with its defaults; with always_adapt=True: adapt_undecayed=True; with trust_clip=True: clip=True.
    # torch_optimizer.LARS differs in trust_coefficient=0.01, and does not even decay a tensor with a norm of 0.
    "timm": {
        "trust_coefficient": 0.001,
        **asdict(LarsForm(lr_placement="outside", eps=1e-8, adapt_undecayed=False)),
    },
}
"""Of LARS. `textbook` is the formula as it is usually told: lr_l = lr |w| / (|g| + weight_decay |w|), one global rate.

With lr = 0.001 times the paper's, tensors that adapt step as under `paper`. But what has ratio 1 (excluded parameters,
and tensors with a norm of 0) then steps with that small rate itself: 1000 times shorter than under `paper`, where the
trust coefficient shrinks the adapted tensors alone. A rate found for one of the two is wrong for the other.
"""

LAMB_PRESETS: dict[str, dict[str, Any]] = {
    # You et al. 2019, version 5, Algorithm 2, phi the identity: the defaults of LAMB. optax.lamb is the same.
    "paper": asdict(LambForm()),
    # Version 3 of the paper has no bias correction. It gives no bounds for phi, so there are none here. torch_optimizer
    # is this with norm_bounds=(0, 10), "clamp_value", which acts on tensors with a norm above 10.
    "paper_v3": asdict(LambForm(bias_correction=False)),
    # NVIDIA's BERT: apex.optimizers.FusedLAMB with use_nvlamb=True and otherwise its defaults.
    "nvlamb": asdict(LambForm(max_grad_norm=1.0)),
    # timm.optim.Lamb with its defaults; apex.optimizers.FusedLAMB with its own (use_nvlamb=False) is the same.
    "timm": asdict(LambForm(max_grad_norm=1.0, adapt_undecayed=False)),
}
"""Of LAMB. `paper` is tested against optax and timm, `paper_v3` against torch_optimizer, `timm` against timm, `nvlamb`
against timm with always_adapt=True. apex itself, which needs a GPU to build, was read and not run.
"""
