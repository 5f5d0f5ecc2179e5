"""The one table of exclusions: each choice says what it takes away and what it needs; `conflicts` lists the pairs.

The check of a config and the constructor of a gradient call the same function, with the same choices.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace


class Ability(enum.Enum):
    """What a choice may take away from a run, and another one may need."""

    JOINT_GRADIENT = "micro-batches may have one gradient together, and none of their own"
    OWN_GRADIENTS = "the gradient of a micro-batch depends on its own samples alone"
    REDUCTION = "how ranks become one is not settled yet"
    OWN_PART = "a rank holds its part of a gradient, computed once, before it is reduced"
    SENT_BY_DDP = "DDP sends the gradients"
    OVERLAP = "gradients are sent while the backward pass computes, and nothing else is"
    SMALLER_PARTS = "a step can be taken again in smaller micro-batches"
    ANY_SIZES = "micro-batches may be smaller than planned"
    PYTHON_FORWARD = "a forward pass can wait for others in Python"
    FORWARD_ONCE = "a micro-batch runs forward once"
    ONE_BY_ONE = "micro-batches run forward one after the other, each with the backward pass that belongs to it"
    OWN_LOSSES = "a sample has a loss of its own"
    SECOND_DERIVATIVES = "the loss of a subset has second derivatives"
    FEW_DIGITS = "gradients may lose digits on their way"
    AT_THE_WEIGHTS = "a gradient is taken at the weights that are stepped"
    SAME_BITS = "an operation gives the same bits each time"
    MEAN_OF_RANKS = "ranks get the mean of their gradients, up to rounding"
    ANY_GRADIENTS = "a step may have gradients that are not finite, or in other units"


@dataclass(frozen=True)
class Choice:
    """A way to compute something.

    Attributes:
        name: as a config writes it.
        instead: what a config writes to do without it; None: it was asked for by itself.
        needs: abilities that it cannot do without.
        lacks: abilities that it takes away, each with the reason: a clause about "it".
    """

    name: str
    instead: str | None = None
    needs: frozenset[Ability] = frozenset()
    lacks: Mapping[Ability, str] = field(default_factory=dict)


def conflicts(choices: Sequence[Choice]) -> Iterator[str]:
    r"""An error for each pair of choices of which one needs what the other takes away.

    >>> pinned = Choice("batch.micro=2", "batch.micro=null", lacks={Ability.SMALLER_PARTS: "it cannot be lowered"})
    >>> for error in conflicts([halving(), pinned]):
    ...     print(*error.split(": "), sep=":\n")
    batch.on_out_of_memory=lower:
    does not go with batch.micro=2:
    it cannot be lowered. Use batch.on_out_of_memory=stop or batch.micro=null.
    """
    for one in choices:
        for other in choices:
            reasons = [reason for ability, reason in other.lacks.items() if ability in one.needs]
            if reasons and one is not other:
                remedy = " or ".join(choice.instead for choice in (one, other) if choice.instead)
                yield f"{one.name}: does not go with {other.name}: {reasons[0]}. Use {remedy}."


def require_no_conflict(choices: Sequence[Choice]) -> None:
    """Raise ValueError with all `conflicts`."""
    if found := list(conflicts(choices)):
        raise ValueError("\n".join(found))


def in_order() -> Choice:
    """The reduction in one order on any number of ranks."""
    return Choice(
        "batch.reduction=ordered",
        "batch.reduction=all_reduce",
        needs=frozenset({Ability.REDUCTION, Ability.SAME_BITS}),
        lacks={
            Ability.JOINT_GRADIENT: "it adds the gradients of micro-batches one by one, and here they have none",
            Ability.OWN_PART: "it adds up micro-batches of several ranks one by one, and no rank has a part of its own",
            Ability.SENT_BY_DDP: "it is for audits, bit for bit",
            Ability.OVERLAP: _SENDS_LAST,
            Ability.SMALLER_PARTS: "it needs a pinned micro-batch",
        },
    )


def own_reduction() -> Choice:
    """A reduction of one's own, in a program."""
    return Choice(
        "make_run(reduction=...)",
        "a reduction of largebatch",
        lacks={
            Ability.REDUCTION: "it is the reduction",
            Ability.SENT_BY_DDP: "it sends the gradients itself",
            Ability.OWN_PART: "nothing says when a rank's own part is complete in it",
        },
    )


def double_precision() -> Choice:
    """Weights and gradients in float64."""
    return Choice(
        "precision.compute=fp64", "precision=fp32", lacks={Ability.FEW_DIGITS: "a few digits would be left of sixteen"}
    )


def exact_batch_norm() -> Choice:
    """Batch norm over the whole global batch: micro-batches side by side."""
    return Choice(
        "batch_norm=exact",
        "batch_norm=per_micro_batch",
        needs=frozenset({Ability.JOINT_GRADIENT, Ability.PYTHON_FORWARD, Ability.FORWARD_ONCE}),
        lacks={
            Ability.OWN_GRADIENTS: "the ranks meet in every batch norm, and a micro-batch has no gradient of its own",
            Ability.ONE_BY_ONE: "it runs micro-batches side by side",
            Ability.SENT_BY_DDP: "its gradients are summed by other means than DDP",
            Ability.OVERLAP: "the ranks also meet in every batch norm, which would be left out",
            Ability.SMALLER_PARTS: "all micro-batches of a rank are in memory at once",
            Ability.ANY_SIZES: _AS_PLANNED,
        },
    )


def coupled_loss(name: str) -> Choice:
    """A loss that compares the samples of the whole global batch; `name` is that of its class."""
    return Choice(
        f"loss._target_={name}",
        "a loss that is a sum over samples",
        lacks={
            Ability.OWN_GRADIENTS: "it compares the samples of all ranks, so that a micro-batch has no gradient of its "
            "own, and what one rank got wrong is in the gradients of the others",
            Ability.ONE_BY_ONE: "it runs each micro-batch twice",
            Ability.OWN_LOSSES: "it compares the samples of a batch, so that none has a loss of its own",
            Ability.SMALLER_PARTS: "it ties micro-batches together",
            Ability.ANY_SIZES: "it compares all samples of a global batch",
            Ability.SECOND_DERIVATIVES: "it compares the samples of a batch, so that the loss of a subset depends on "
            "how it is cut",
        },
    )


def sharpness_aware(rho: float, by: str) -> Choice:
    """A gradient that is taken where an ascent leads."""
    needs, lacks = {Ability.ONE_BY_ONE}, {Ability.AT_THE_WEIGHTS: "its gradients are those of raised weights"}
    lacks[Ability.SMALLER_PARTS] = "a step climbs by its micro-batches as they are"
    if by == "global":
        needs.add(Ability.MEAN_OF_RANKS)
        lacks[Ability.OWN_PART] = "it climbs by the sum over ranks, before a rank's part is complete"
        lacks[Ability.OVERLAP] = "it reduces two gradients in a step"
    return Choice(f"sam.rho={rho}", "sam.rho=null", needs=frozenset(needs), lacks=lacks)


def compression(dtype: str) -> Choice:
    """Gradients that are rounded on their way between ranks."""
    return Choice(
        f"precision.gradient_compression={dtype}",
        "precision.gradient_compression=none",
        needs=frozenset({Ability.SENT_BY_DDP, Ability.FEW_DIGITS}),
        lacks={Ability.SMALLER_PARTS: "DDP compresses, and sums nothing in steps that may be taken again"},
    )


def power_sgd() -> Choice:
    """Gradients that are sent as products of thin matrices."""
    rounded = compression("powersgd")
    lacks = {
        Ability.MEAN_OF_RANKS: "ranks get an approximation of their mean gradient, and errors of earlier steps",
        Ability.OVERLAP: "it sends each part in three rounds, each of another size",
        Ability.ANY_GRADIENTS: "it adds to a gradient what earlier steps left out, which must be finite and in the "
        "same units",
    }
    return replace(rounded, lacks={**rounded.lacks, **lacks})


def scaled_losses() -> Choice:
    """Losses in float16, times a scale that moves, and too large at times."""
    return Choice("precision.compute=fp16", "precision=bf16", needs=frozenset({Ability.ANY_GRADIENTS}))


def guard(policy: str) -> Choice:
    """Updates that are left out after a bad gradient."""
    return Choice(f"guard.policy={policy}", "guard.policy=log", needs=frozenset({Ability.ANY_GRADIENTS}))


def halving() -> Choice:
    """Steps that are taken again in smaller micro-batches after a shortage of memory."""
    return Choice(
        "batch.on_out_of_memory=lower",
        "batch.on_out_of_memory=stop",
        needs=frozenset({Ability.SMALLER_PARTS}),
        lacks={
            Ability.OWN_PART: "a step may be taken again by all ranks, and the rehearsal of one of them would not be",
            Ability.OVERLAP: _SENDS_LAST,
        },
    )


def recomputation(every: int) -> Choice:
    """Gradients that each rank computes twice."""
    return _observed("recompute", every, Ability.OWN_PART, Ability.OWN_GRADIENTS, Ability.SAME_BITS)


def ledger() -> Choice:
    """A record of every step by which two runs are compared."""
    return Choice(
        "observers.ledger.enabled=true", "observers.ledger.enabled=false", needs=frozenset({Ability.SAME_BITS})
    )


def varying_kernels(name: str, instead: str) -> Choice:
    """Kernels of a GPU that may add in another order each time.

    Args:
        name: as a config or a program writes it.
        instead: what it writes to do without.
    """
    return Choice(
        name,
        instead,
        lacks={Ability.SAME_BITS: "kernels of a GPU may then add in another order each time, and give other bits"},
    )


def noise_scale(every: int) -> Choice:
    """Norms of micro-batch gradients."""
    needs = Ability.OWN_GRADIENTS, Ability.MEAN_OF_RANKS, Ability.AT_THE_WEIGHTS
    return _observed("noise_scale", every, *needs, lacks={Ability.ANY_SIZES: _AS_PLANNED})


def communication(every: int) -> Choice:
    """A timeline of the gradient's reduction."""
    return _observed("communication", every, Ability.OVERLAP)


def sharpness(every: str) -> Choice:
    """The sharpness of the weights on a fixed subset."""
    return _observed(
        "sharpness", every, Ability.SECOND_DERIVATIVES, lacks={Ability.ANY_SIZES: "it measures a fixed subset"}
    )


def _observed(name: str, every: int | str, *needs: Ability, lacks: Mapping[Ability, str] | None = None) -> Choice:
    key = f"observers.{name}.every"
    return Choice(f"{key}={every}", f"{key}=null", frozenset(needs), lacks or {})


_SENDS_LAST = "it sends gradients after the last of them, so that all of it is exposed, as time/communication_s says"
_AS_PLANNED = "it takes micro-batches to be as large as planned"
