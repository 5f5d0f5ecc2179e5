"""`largebatch verify scaling`: which quantity each scaling rule keeps, measured on the optimizer of the config."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from largebatch.optim.memory_probe import VECTOR, Response, followed_keys, respond
from largebatch.records.result import Result, Table
from largebatch.run.config.reading import ConfigError
from largebatch.run.config.schema import VerifyScalingConfig
from largebatch.run.following import Following, Values, following_anyway, maker_of
from largebatch.run.prepare import Prepared

EXACT = 1e-12  # relative: float64, some hundred roundings of half a last digit each
LONG_RUN = 1e-9  # of the decay through a velocity: what the first steps leave fades with the momentum
_FADED = 40  # e-foldings of the momentum after which only the slow decay is left
_FEWEST_AGES, _STEPS = 2, 48
_LARGEST_STEPS = 1 << 14


@dataclass(frozen=True)
class Kept:
    """How far a quantity at one batch is from that at the base batch, over ages of equal samples.

    Attributes:
        quantity: in words.
        rule: by which its hyperparameter follows the batch.
        batch: samples per step.
        difference: largest relative one.
        promised: the largest difference that the rule allows; None: it promises nothing.
        why: what it promises instead.
    """

    quantity: str
    rule: str
    batch: int
    difference: float
    promised: float | None
    why: str = ""

    @property
    def fails(self) -> bool:
        """Whether a promise is broken."""
        return self.promised is not None and not self.difference <= self.promised

    @property
    def verdict(self) -> str:
        """In words."""
        if self.fails:
            return f"BROKEN: the rule promises {self.promised:.0e}"
        return "kept" if self.promised is not None else f"not kept: {self.why}"


@dataclass(frozen=True)
class ScalingOutcome:
    """What was measured; `target`: the optimizer."""

    target: str
    base_batch: int
    found: tuple[Kept, ...]

    @property
    def failed(self) -> bool:
        """Whether a rule breaks its promise."""
        return any(one.fails for one in self.found)

    def result(self) -> Result:
        """As sentences, a table and numbers."""
        broken = sum(one.fails for one in self.found)
        kept = sum(one.promised is not None for one in self.found) - broken
        loose = len(self.found) - broken - kept
        first = f"{broken} of {kept + broken} promises are BROKEN" if broken else f"all {kept} promises are kept"
        first = first if kept + broken else "no rule promises anything"
        worst = {}
        for one in sorted(self.found, key=lambda one: (one.fails, one.difference)):
            worst[one.quantity, one.rule] = one
        order = dict.fromkeys((one.quantity, one.rule) for one in self.found)
        shown = [worst[key] for key in order]
        rows = [(one.quantity, one.rule, f"{one.difference:.1e}", f"{one.batch:,}", one.verdict) for one in shown]
        batches = ", ".join(f"{batch:,}" for batch in sorted({one.batch for one in self.found}))
        return Result(
            title="Scaling",
            sentences=[f"{first} by {self.target}, in float64, against its base batch of {self.base_batch:,}.",
                       f"{loose} quantities change with the batch, and no rule promises otherwise."],
            tables=[Table(f"a gradient, then none, after equal samples; batches of {batches}", _HEADERS, rows)],
            figures=[],
            numbers={"broken": broken, "base_batch_size": self.base_batch, "target": self.target,
                     "found": [asdict(one) | {"fails": one.fails} for one in self.found]},
        )  # fmt: skip


_HEADERS = ("quantity", "rule", "differs by", "at batch", "")


def verify_scaling(prepared: Prepared, options: VerifyScalingConfig) -> ScalingOutcome:
    """Drive the optimizer of the config at its base batch and at others, and compare after equal samples.

    Raises:
        ConfigError: if a rule has no value at one of the batches, or too many steps would be needed.
    """
    following = prepared.numbers.following or following_anyway(prepared.config)
    make, base = maker_of(prepared.config), following.base_batch_size
    batches = [base * factor for factor in options.factors]
    batches += [base // factor for factor in options.factors if base % factor == 0]
    try:
        found = [kept for batch in dict.fromkeys(batches) for kept in compare_batch(make, following, batch)]
    except ValueError as error:
        raise ConfigError([f"verify.scaling.factors={options.factors}: {error}"]) from None
    return ScalingOutcome(str(prepared.config.optimizer.get("_target_")), base, tuple(found))


class _Pair:
    """The optimizer at the base batch and at another one, driven over the same samples."""

    def __init__(
        self, make: Callable[..., Optimizer], following: Following, batch: int, ages: int | None = None
    ) -> None:
        self.make, self.sizes = make, (following.base_batch_size, batch)
        large = max(self.sizes)
        self.strides = tuple(large // size for size in self.sizes)
        self.values = tuple(following.values(size) for size in self.sizes)
        self.ages = max(_FEWEST_AGES, _STEPS // max(self.strides)) if ages is None else ages
        if (steps := max(self.strides) * self.ages) > _LARGEST_STEPS:
            raise ValueError(f"a batch of {batch:,} needs {steps:,} steps of the smaller one. Use smaller factors.")

    def respond(self, **options: Any) -> list[Response]:
        """Both answers; each has one step more than `ages` strides."""
        return [
            respond(self.make, written(values), steps=stride * self.ages + 1, **options)
            for values, stride in zip(self.values, self.strides, strict=True)
        ]

    def difference(self, read: Callable[[int, int], Tensor]) -> float:
        """Largest relative difference of `read(which, steps)` over ages of equal samples."""
        worst = 0.0
        for age in range(1, self.ages + 1):
            one, other = (read(which, self.strides[which] * age) for which in (0, 1))
            gap = ((one - other).abs() / one.abs().maximum(other.abs()).clamp_min(1e-300)).max().item()
            worst = max(worst, gap if math.isfinite(gap) else math.inf)
        return worst


def written(values: Values) -> dict[str, Any]:
    """Values by the names that parameter groups have."""
    found: dict[str, Any] = {name: values[name].value for name in ("lr", "momentum", "eps") if name in values}
    if "beta1" in values:
        found["betas"] = (values["beta1"].value, values["beta2"].value)
    return found


def compare_batch(make: Callable[..., Optimizer], following: Following, batch: int) -> Iterator[Kept]:
    """All quantities at one batch against the base batch."""
    pair = _Pair(make, following, batch)
    answers = pair.respond()
    yield from _memories(pair, answers, following, batch)
    if following.probed.form.adds and following.base.get("momentum"):
        yield _weight_of_gradient(pair, answers, following, batch)
    if following.base.get("weight_decay"):
        yield _decay(make, following, batch)


def _memories(pair: _Pair, answers: Sequence[Response], following: Following, batch: int) -> Iterator[Kept]:
    """What is left of a gradient in each state that fades by a hyperparameter."""
    for (parameter, state), one in answers[0].states.items():
        values = pair.values[0]
        by = [name for name in ("momentum", "beta1", "beta2") if name in values and _fades(one, values[name].value)]
        by = [name for name in by if _belongs(name, answers[0].groups[parameter])]
        if not by or (parameter, state) not in answers[1].states:
            continue
        both = [answer.states[parameter, state] for answer in answers]
        difference = pair.difference(lambda which, steps, both=both: both[which][steps] / both[which][0])  # type: ignore[misc]
        changed = pair.values[1][by[0]]
        promised, why = _promise(changed.rule, changed.inputs, changed.value)
        yield Kept(f"left of a gradient in {state}", f"{by[0]}: {changed.rule}", batch, difference, promised, why)


def _belongs(name: str, group: dict[str, Any]) -> bool:
    return ("momentum" if name == "momentum" else "betas") in followed_keys(group)


def _fades(states: Sequence[Tensor], by: float) -> bool:
    return bool((states[0] != 0).all()) and bool(((states[1] / states[0] - by).abs() <= 1e-9).all())


def _promise(rule: str, inputs: dict[str, Any], value: float) -> tuple[float | None, str]:
    if rule == "half_life" and "smallest" in inputs and value in (inputs["smallest"], inputs["largest"]):
        return None, "scaling.beta_bounds holds it"
    if rule == "half_life":
        return EXACT, ""
    return None, "it stays per step" if rule == "none" else "equal to first order in 1 - beta"


def _weight_of_gradient(pair: _Pair, answers: Sequence[Response], following: Following, batch: int) -> Kept:
    """How far one gradient has moved a weight, over the rule of the rate."""
    start = [answer.weights[VECTOR][0] for answer in respond_at_rest(pair)]
    rule = [values["lr"] for values in pair.values]
    rates = [1.0, (batch / following.base_batch_size) ** {"none": 0.0, "linear": 1.0, "sqrt": 0.5}[following.rule.lr]]

    def moved(which: int, steps: int) -> Tensor:
        return (start[which] - answers[which].weights[VECTOR][steps - 1]) / rates[which]

    promised, why = _promise(pair.values[1]["momentum"].rule, pair.values[1]["momentum"].inputs, 2.0)
    if promised is not None and following.probed.form.nesterov:
        promised, why = None, "Nesterov's step looks one step ahead, whatever its samples"
    name = f"momentum: {pair.values[1]['momentum'].rule}, rate: {rule[1].rule}"
    return Kept("moved by a gradient so far", name, batch, pair.difference(moved), promised, why)


def respond_at_rest(pair: _Pair) -> list[Response]:
    """The weights that nothing has moved."""
    return [respond(pair.make, written(values) | {"lr": 0.0}, steps=1) for values in pair.values]


def _decay(make: Callable[..., Optimizer], following: Following, batch: int) -> Kept:
    """What is left of a weight without a gradient, from one age to the next."""
    form, momentum = following.probed.form, float(following.base.get("momentum", 0.0))
    coupled = form.decays_coupled and momentum > 0
    smaller = min(1.0, batch / following.base_batch_size)
    ages, stride = 8, max(batch, following.base_batch_size) // min(batch, following.base_batch_size)
    if coupled:  # until the velocity has forgotten that it began at zero
        ages += math.ceil(_FADED / -math.log(momentum) / smaller / stride)
    pair = _Pair(make, following, batch, ages)
    first = ages - 8 if coupled else 0
    silent = [
        respond(make, written(values), steps=stride * ages + 1, impulse=0.0, weight_decay=values["weight_decay"].value)
        for values, stride in zip(pair.values, pair.strides, strict=True)
    ]
    changed = pair.values[1]["weight_decay"]

    def left(which: int, steps: int) -> Tensor:
        weights = silent[which].weights[VECTOR]
        return weights[max(steps, first * pair.strides[which])] / weights[first * pair.strides[which]]

    promised = (LONG_RUN if coupled else EXACT) if changed.rule == "timescale" else None
    why = "lr * weight_decay stays per step, or follows the rate"
    return Kept("left of a weight without gradients", f"weight_decay: {changed.rule}", batch,
                pair.difference(left), promised, why)  # fmt: skip
