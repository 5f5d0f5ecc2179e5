"""The augmentation of a config, and what does not go with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from largebatch.data import (
    Augmentation,
    Mixing,
    RandomResizedCrop,
    SeveralViews,
    TransformedSamples,
    changing_samples,
    with_random_crops,
)
from largebatch.data.transforms import Takes
from largebatch.losses import MixedLabels
from largebatch.run.config.augment import AugmentConfig
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import make


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
        views=augment.views,
    )


@dataclass(frozen=True)
class ItemChanges:
    """Random changes of samples as they are loaded, one by one.

    Attributes:
        crop: random boxes of whole images.
        transform: of a library, or the user's own.
        takes: what it gets, see `TransformedSamples`.
        views: of each sample.
    """

    crop: RandomResizedCrop | None = None
    transform: Any = None
    takes: Takes = "tensor"
    views: int = 1

    @classmethod
    def of(cls, config: TrainConfig) -> ItemChanges:
        """Those of a config.

        Raises:
            ValueError: if the transform cannot be made, or a setting has no effect.
        """
        augment, made = config.data.augment, None
        if augment.transform is None and augment.transform_takes != "tensor":
            raise ValueError(
                f"transform_takes={augment.transform_takes}: has no effect without a transform. Leave it at tensor."
            )
        if augment.transform is not None:
            made = make("data.augment.transform", augment.transform)
            if not callable(made):
                raise ValueError(
                    f"transform: a {type(made).__name__} cannot be called. Name a class whose objects take an image "
                    "and return one, or a function with _partial_: true."
                )
        crop = augment.random_resized_crop
        box = None if crop is None else RandomResizedCrop(tuple(crop.scale), tuple(crop.ratio))  # type: ignore[arg-type]
        return cls(box, made, augment.transform_takes, augment.views)

    def changed(self, dataset: Any) -> Any:
        """A set with all of them."""
        return self.transformed(self.cropped(dataset))

    def cropped(self, dataset: Any) -> Any:
        """A set as it was made, with random boxes."""
        return dataset if self.crop is None else with_random_crops(dataset, self.crop)

    def transformed(self, dataset: Any) -> Any:
        """The training samples of a set, with everything else."""
        if self.transform is not None:
            dataset = TransformedSamples(dataset, self.transform, takes=self.takes)
        return dataset if self.views == 1 else SeveralViews(dataset, self.views)

    def problems(self, training: Any, *, seed: int) -> list[str]:
        """Errors of samples that are not the same under the same key: another rank, or a resumed run, had others."""
        if self.transform is None or not (changing := changing_samples(training, seed=seed, epochs=(0, 0))):
            return []
        return [
            f"data.augment.transform: {type(self.transform).__name__} gave two images of sample {changing[0]} under "
            "one random key: it draws from a generator of its own, or counts its calls, so that the result would "
            "depend on ranks and workers. Draw from the global generators of torch, numpy (np.random) or Python "
            "(random)."
        ]


def training_loss(config: TrainConfig, loss: Any) -> Any:
    """The loss of training samples: of mixed ones, if they are mixed.

    Raises:
        ValueError: if their labels cannot be mixed.
    """
    return MixedLabels(loss) if config.data.augment.mixes else loss


def augment_rows(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Rows of the plan (quantity, value, source)."""
    augment = config.data.augment
    changes = ["random resized crops"] * (augment.random_resized_crop is not None)
    changes += [] if augment.transform is None else [str(augment.transform["_target_"]).rpartition(".")[2]]
    if changes:
        how = f"one by one, keyed by seed, epoch and sample; data.num_workers={config.data.num_workers}"
        yield "changed items", ", ".join(changes), how
    if augment.views > 1:
        yield "views", f"{augment.views} of each sample", "each with draws of its own; in evaluations always the same"
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
