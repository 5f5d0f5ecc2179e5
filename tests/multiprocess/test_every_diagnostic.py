"""Every diagnostic of a run, under every way to have the gradient, is the one that plain torch computes in one process.

The truth of a step: the gradient of every micro-batch and of the whole batch by autograd in float64, the formulas of
the diagnostics written out, LARS by its formula. All diagnostics measure in every step, so that they cannot hear each
other: sharpness takes derivatives between two steps, recomputation inside one, and a step that ran out of memory is
taken again.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import paired_views
from largebatch.diagnostics.sharpness.settings import SharpnessSettings
from largebatch.diagnostics.sharpness.subset import FixedSubset
from largebatch.distributed.runtime import Runtime
from largebatch.losses.coupled import InfoNCE
from largebatch.models import TwoViews
from largebatch.optim import LARS, parameters_by_name
from largebatch.training.guard import Guard
from largebatch.training.loop import Run, train
from largebatch.training.observers import (
    CommunicationObserver,
    LayersObserver,
    LedgerObserver,
    MetricsObserver,
    NoiseScaleObserver,
    RowLog,
    SharpnessObserver,
)
from largebatch.training.step_report import StepReport
from tests.multiprocess.made_run import made_run
from tests.multiprocess.test_contract import SEED, model_and_data
from tests.watching import AfterStep

STEPS, BATCH, MICRO = 2, 24, 2
LR, DECAY, TRUST, CLIP = 0.5, 1e-2, 0.1, 0.05
GROUPS = {"weights": ["weight$"], "biases": ["bias$"]}
SETTINGS = SharpnessSettings(lanczos_iterations=4, lanczos_tolerance=1e-9, trace_samples=2, m=3, rho=0.05)

# A way to have the gradient -> what of it a run is told. Every way gives all diagnostics but those that need a
# gradient of each micro-batch's own (`COUPLED`) or ranks that reduce with DDP (communication).
WAYS: dict[str, dict[str, Any]] = {
    "all_reduce": {},
    "recomputed": {"recompute_every": 1},
    "ordered": {"ordered": True},
    "lower": {"halves_micro_batches": True},
    "lower, twice": {"halves_micro_batches": True},
    "bf16": {"compression": "bf16"},
    "fp16": {"compression": "fp16"},
    "exact": {"exact_batch_norm": True},
    "coupled": {},
    "coupled, ordered": {"ordered": True},
    "coupled, exact": {"exact_batch_norm": True},
}
COUPLED = {"exact": "norm", "coupled": "views", "coupled, ordered": "views", "coupled, exact": "views and norm"}
SEPARABLE = ("mlp", "masked", "routed")
COMPRESSED = {"bf16": 2**-9, "fp16": 2**-12}  # their unit roundoff


@dataclass(frozen=True)
class Problem:
    """A model with one frozen parameter, a loss and 48 or 50 samples."""

    model: nn.Module
    loss: Any
    data: Any


class Routed(nn.Module):
    """Leaves its experts out of the graph of the micro-batches that take the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(16, 5), nn.Linear(16, 5)])
        self.head = nn.Linear(5, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.experts[int(inputs[0, 0] > 0)](inputs))


def problem_of(kind: str) -> Problem:
    if kind in ("mlp", "masked"):
        model, loss, data, _ = model_and_data(kind)
    else:
        _, loss, data, _ = model_and_data("mlp")
        norm = [nn.BatchNorm1d(8)] if "norm" in kind else []
        model = nn.Sequential(nn.Linear(16, 8), *norm, nn.Tanh(), nn.Linear(8, 5))
        if kind == "routed":
            model = Routed()
        if "views" in kind:
            model, loss, data = TwoViews(model), InfoNCE(temperature=0.5), paired_views(50, (16,), "train")
    *_, last = model.parameters()
    last.requires_grad_(False)
    return Problem(model, loss, data)


# --- what a run says


class Rows:
    """Keeps what is logged, under the key of the step."""

    run_id = None

    def __init__(self, found: dict[str, float]) -> None:
        self.found = found

    def log(self, row: Any) -> None:
        self.found |= {f"{row['step']} {key}": value for key, value in row.items() if key not in ("step", "wall_s")}


def cells(ways: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """(way, kind) -> all numbers that two steps log on this world."""
    return {f"{way}: {kind}": cell(way, kind) for way, kind in ways}


def cell(way: str, kind: str) -> dict[str, Any]:
    with Runtime.open(precision="fp32" if way in COMPRESSED else "fp64") as runtime:
        problem, found = problem_of(kind), {}
        if way == "lower, twice":
            problem.model.register_forward_pre_hook(fails_on_the_last_rank(runtime))
        micro = 2 * MICRO if way == "lower, twice" else MICRO
        plan = BatchPlan.solve(global_batch_size=BATCH, world_size=runtime.world_size, max_micro_batch_size=micro)
        train(
            made_run(
                runtime,
                problem.model,
                problem.loss,
                LARS(problem.model.parameters(), lr=LR, weight_decay=DECAY, trust_coefficient=TRUST),
                plan,
                problem.data,
                lambda _: LR,
                STEPS,
                seed=SEED,
                clip_norm=CLIP,
                log_every=1,
                guard=Guard("log", window=20, threshold=None, most_in_a_row=5),
                observers=observers(way, problem, runtime, found),
                groups={} if way in COUPLED else parameters_by_name(problem.model, GROUPS),
                **WAYS[way],
            )
        )
        return found


def fails_on_the_last_rank(runtime: Runtime) -> Any:
    def hook(module: nn.Module, inputs: Any) -> None:
        if module.training and runtime.rank == runtime.world_size - 1 and len(inputs[0]) > MICRO:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    return hook


def observers(way: str, problem: Problem, runtime: Runtime, found: dict[str, Any]) -> list[Any]:
    rows: Any = Rows(found)
    journal = RowLog([rows], num_samples=len(problem.data))
    chosen: list[Any] = [MetricsObserver(journal, every=1)]
    if way not in COUPLED:
        groups = parameters_by_name(problem.model, GROUPS)
        chosen.append(NoiseScaleObserver(journal, every=1, window=9, groups=groups))
    if runtime.world_size > 1 and way in ("all_reduce", "bf16", "fp16"):
        chosen.append(CommunicationObserver(journal, every=1, repetitions=1))
    if not way.startswith("coupled"):
        subset = FixedSubset(problem.data, np.arange(6), 4)
        chosen.append(
            SharpnessObserver(journal, subset=subset, loss=problem.loss, settings=SETTINGS, seed=SEED, every=BATCH)
        )
    chosen += [
        LayersObserver(journal, rows if runtime.is_main else None, every=1),
        LedgerObserver(rows if runtime.is_main else None, parameters_every=9),
        AfterStep(functools.partial(watch, found)),
    ]
    return chosen


def watch(found: dict[str, Any], run: Run, report: StepReport) -> None:
    """What the guard judges, and the weights."""
    assert report.sums is not None
    found[f"{report.step} judged"] = report.sums.grad_norm
    found[f"{report.step} weights"] = torch.cat([one.detach().flatten() for one in run.module.parameters()])


# --- what plain torch says


def truth_of(kind: str) -> tuple[dict[str, Any], dict[str, float]]:
    """All numbers of two steps, and the size of the terms that each of them was added up from."""
    problem = problem_of(kind)
    model, order = problem.model.double(), SampleOrder(len(problem.data), SEED)
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    velocity = [torch.zeros_like(one) for _, one in trained]
    found: dict[str, Any] = {}
    terms: dict[str, float] = {}
    means: dict[str, list[tuple[float, float]]] = {}
    for step in range(1, STEPS + 1):
        ids = order.ids((step - 1) * BATCH, BATCH)
        inputs, targets = problem.data.fetch(ids)
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        units = int(problem.loss.units_per_sample(targets).sum())
        cuts = (slice(at, at + MICRO) for at in range(0, BATCH, MICRO)) if kind == "routed" else [slice(None)]
        loss = sum(loss_sum(kind, model, inputs[rows], targets[rows]) for rows in cuts) / units
        gradient = torch.autograd.grad(loss, [one for _, one in trained])
        norm = math.sqrt(sum(float(one.square().sum()) for one in gradient))
        row: dict[str, Any] = {"train/loss": loss.item(), "loss": loss.item(), "train/lr": LR, "train/grad_norm": norm}
        row |= {"judged": norm, "guard/bad": 0, "samples_seen": step * BATCH, "train/global_batch_size": BATCH}
        row["ids"] = hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()
        if kind in SEPARABLE:
            parts = gradients_of_micro_batches(kind, model, inputs, targets, trained, units)
            noise = noise_of(parts, gradient, [name for name, _ in trained], len(problem.data))
            for key, value in noise.items():
                means.setdefault(key, []).append(value)  # running means are logged
                row[key], terms[f"{step} {key}"] = np.mean(means[key], axis=0)
        factor = min(1.0, CLIP / (norm + 1e-6))  # as torch clips
        row |= lars_step(trained, [factor * one for one in gradient], velocity)
        row["weights"] = torch.cat([one.detach().flatten() for one in model.parameters()])
        found |= {f"{step} {key}": value for key, value in row.items()}
    return found, terms


def loss_sum(kind: str, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    outputs = model(inputs)
    if "views" in kind:  # NT-Xent as its authors write it, of the mean over both views
        views = F.normalize(torch.cat([outputs[:, 0], outputs[:, 1]]), dim=1)
        logits = (views @ views.T / 0.5).masked_fill(torch.eye(len(views), dtype=torch.bool), -math.inf)
        return F.cross_entropy(logits, torch.arange(len(views)).roll(len(outputs)), reduction="sum") / 2
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")


def gradients_of_micro_batches(
    kind: str, model: nn.Module, inputs: Tensor, targets: Tensor, trained: list[Any], units: int
) -> list[list[Tensor]]:
    """The mean gradient of the samples of each micro-batch; a sample's is over the mean units of a sample."""
    found = []
    for start in range(0, BATCH, MICRO):
        rows = slice(start, start + MICRO)
        total = loss_sum(kind, model, inputs[rows], targets[rows]) * BATCH / units / MICRO
        found.append(list(torch.autograd.grad(total, [one for _, one in trained], materialize_grads=True)))
    return found


def sq_norm(gradient: Any, chosen: list[int]) -> float:
    return float(sum(gradient[place].square().sum() for place in chosen))


def noise_of(parts: Any, gradient: Any, names: list[str], num_samples: int) -> dict[str, tuple[float, float]]:
    """McCandlish et al., appendix A.1, for draws without replacement: (value, size of its terms)."""
    found = {}
    for prefix, ending in (("noise_scale", ""), ("noise_scale/weights", "weight"), ("noise_scale/biases", "bias")):
        chosen = [place for place, name in enumerate(names) if name.endswith(ending)]
        weighted = sum(MICRO * sq_norm(part, chosen) for part in parts)
        whole = sq_norm(gradient, chosen)
        trace = (weighted - BATCH * whole) / (len(parts) - 1)
        share = trace / num_samples
        found[f"{prefix}/trace"] = (trace - share, weighted)
        found[f"{prefix}/grad_sq_norm"] = (whole - trace / BATCH + share, whole + weighted / BATCH)
    return found


@torch.no_grad()
def lars_step(trained: list[Any], gradient: list[Tensor], velocity: list[Tensor]) -> dict[str, float]:
    """You et al., algorithm 1, in place; trust ratios and relative updates of each layer and their quantiles."""
    ratios, updates = {}, {}
    for (name, weight), grad, moved in zip(trained, gradient, velocity, strict=True):
        norm, grad_norm = weight.norm(), grad.norm()
        ratio = TRUST * norm / (grad_norm + DECAY * norm) if norm * grad_norm > 0 else torch.ones(())
        moved.mul_(0.9).add_(LR * ratio * (grad + DECAY * weight))
        ratios[name], updates[name] = float(ratio), float(moved.norm() / norm)
        weight.sub_(moved)
    row = {f"trust_ratio/{name}": ratio for name, ratio in ratios.items()}
    row |= {f"update_to_weight/{name}": update for name, update in updates.items()}
    for kind, values in (("trust_ratio", ratios), ("update_to_weight", updates)):
        finite = [one for one in values.values() if math.isfinite(one)]
        for label, at in (("min", 0), ("q25", 0.25), ("median", 0.5), ("q75", 0.75), ("max", 1)):
            row[f"{kind}/{label}"] = float(np.quantile(finite, at))
    return row


# --- the table


@functools.cache
def in_one_process() -> dict[str, dict[str, Any]]:
    return cells([("all_reduce", "mlp"), ("all_reduce", "masked"), ("all_reduce", "routed"), ("exact", "norm")])


def assert_equal(name: str, found: dict[str, Any], truth: dict[str, Any], terms: dict[str, float], rel: float) -> None:
    for key, value in truth.items():
        assert key in found, f"{name} does not give {key}"
        ours = float.fromhex(found[key]) if key.endswith(" loss") else found[key]
        if isinstance(value, str):
            assert ours == value, (name, key)
        elif isinstance(value, Tensor):
            assert (ours - value).abs().max() <= rel * value.abs().max(), (name, key)
        else:
            assert ours == pytest.approx(value, rel=0, abs=rel * max(abs(value), terms.get(key, 0.0))), (name, key)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_diagnostic_is_that_of_one_process_in_every_way_to_have_the_gradient(ranks, world_size):
    plain = [way for way in WAYS if way not in COUPLED and (way not in COMPRESSED or world_size > 1)]
    ways = [(way, kind) for way in plain for kind in ("mlp", "masked")] + list(COUPLED.items())
    ways.append(("lower", "routed"))  # not with DDP, which wants all gradients of every rank
    of_one = in_one_process()
    found, *others = ranks(world_size).run(cells, ways)
    if world_size == 1:
        ways.append(("all_reduce", "routed"))
        found["all_reduce: routed"] = of_one["all_reduce: routed"]
    for way, kind in ways:
        name, (truth, terms) = f"{way}: {kind}", truth_of(kind)
        # The dense truth of a Hessian is tests/multiprocess/test_sharpness.py's: here it is what one process measured.
        reference = of_one.get(f"{'exact' if way == 'exact' else 'all_reduce'}: {kind}", {})
        truth |= {key: value for key, value in reference.items() if " sharpness/" in key and "residual" not in key}
        assert (" sharpness/" in "".join(truth)) == ("views" not in kind)
        # float64: two steps of sums over 24 samples. Compression rounds what each rank sends, and their sum, in both
        # steps: a few units of roundoff of the largest term, here at most 20; a wrong scale is off by a factor of W.
        rel = 20 * COMPRESSED[way] if way in COMPRESSED else 1e-9
        assert_equal(name, found[name], truth, terms, rel)
        for other in others:
            assert torch.equal(other[name]["2 weights"], found[name]["2 weights"]), name
            shared = (truth.keys() & other[name].keys()) - {"1 weights", "2 weights"}  # others than rank 0 log less
            assert shared >= {"2 train/loss", "2 judged"}
            assert all(other[name][key] == found[name][key] for key in shared), name
        if "2 communication/gradient_bytes" in found[name]:
            num_trained = sum(one.numel() for one in problem_of(kind).model.parameters() if one.requires_grad)
            assert found[name]["2 communication/gradient_bytes"] == num_trained * (2 if way in COMPRESSED else 8)
