"""The augmentation of a config, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from largebatch.data import Augmentation, Mixing
from largebatch.losses import MixedLabels
from largebatch.run.config.augment import AugmentConfig
from largebatch.run.config.schema import TrainConfig


def augmentation(config: TrainConfig) -> Augmentation | None:
    """Of training samples, once they are loaded; None: nothing changes them.

    Raises:
        ValueError: if a setting has no effect.
    """
    augment = config.data.augment
    _require_effect(augment)
    if not (augment.crop_padding or augment.flip or augment.cutout or augment.mixes):
        return None
    return Augmentation(
        config.seed,
        crop_padding=augment.crop_padding,
        flip=augment.flip,
        cutout=augment.cutout,
        mixing=_mixing(augment),
    )


def training_loss(config: TrainConfig, loss: Any) -> Any:
    """The loss of training samples: of mixed ones, if they are mixed.

    Raises:
        ValueError: if their labels cannot be mixed.
    """
    return MixedLabels(loss) if config.data.augment.mixes else loss


def augment_rows(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Rows of the plan (quantity, value, source)."""
    augment = config.data.augment
    if augment.mixes:
        both = bool(augment.mixup and augment.cutmix)
        ways = {"mixup": augment.mixup, "CutMix": augment.cutmix}
        value = " or ".join(f"{name} {alpha:g}" for name, alpha in ways.items() if alpha)
        value += f" ({augment.mix_switch:g} of them)" if both else ""
        share = "each sample" if augment.mix_probability == 1 else f"{augment.mix_probability:g} of the samples"
        yield "mixed samples", value, f"{share} with its neighbour in the order of the run; evaluations read plain ones"


def _mixing(augment: AugmentConfig) -> Mixing | None:
    if not augment.mixes:
        return None
    return Mixing(augment.mixup, augment.cutmix, probability=augment.mix_probability, switch=augment.mix_switch)


def _require_effect(augment: AugmentConfig) -> None:
    if augment.mix_probability != 1 and not augment.mixes:
        raise ValueError(
            f"mix_probability={augment.mix_probability:g}: has no effect without mixup or cutmix. Leave it at 1, or "
            "give alpha of one of them, such as data.augment.mixup=0.2."
        )
    if augment.mix_switch != 0.5 and not (augment.mixup and augment.cutmix):
        raise ValueError(
            f"mix_switch={augment.mix_switch:g}: has no effect unless both mixup and cutmix are on. Leave it at 0.5."
        )
