"""Makes the data sets of a config, as the run reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from largebatch.data import (
    Collated,
    FirstSamples,
    NoisyLabels,
    Screen,
    ScreenedSamples,
    changing_samples,
    form_of_most,
    notes_of_items,
)
from largebatch.data.iterables import is_stream
from largebatch.data.probing import SAMPLES_READ
from largebatch.run.augmentation import ItemChanges
from largebatch.run.config.findings import Findings
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import make, make_function
from largebatch.run.streamed import stream_problems, streamed


@dataclass(frozen=True)
class DataSets:
    """The data sets of a run; None for a set that cannot be made.

    Attributes:
        train: training set.
        train_plain: the same without augmentation.
        validation: validation set.
        gap_is_augmented: whether one side of the gap changes at random from read to read.
    """

    train: Any
    train_plain: Any
    validation: Any
    gap_is_augmented: bool


def data_sets(config: TrainConfig, findings: Findings) -> DataSets:
    """Make the sets; errors and notes about them go into the findings."""
    data = config.data
    train = findings.attempt("data.train", lambda: _made("data.train", data.train, config, findings))
    change = findings.attempt("data.augment", lambda: ItemChanges.of(config)) or ItemChanges()
    # Views that are equal would be no task: both sides of the gap have random ones, the same in every evaluation.
    plain_change = change if data.augment.views > 1 else ItemChanges()

    def training_set(key: str, dataset: Any, change: ItemChanges) -> Any:
        return None if dataset is None else findings.attempt(key, lambda: _training_set(dataset, config, change))

    training = training_set("data.train", train, change)
    plain, training_plain = train, training
    if (node := data.train_plain) is not None:
        plain = findings.attempt("data.train_plain", lambda: _made("data.train_plain", node, config, findings))
    if node is not None or change != plain_change:
        training_plain = training_set(_plain_key(config), plain, plain_change)
    if training is not None and training_plain is not None and len(training) != len(training_plain):
        findings.errors.append(
            f"data.train_plain: has {len(training_plain)} samples and data.train {len(training)}: it must be the same "
            "set without random changes. Read both from the same place."
        )
    key = "data.validation"
    validation = findings.attempt(key, lambda: _made(key, data.validation, config, findings))
    evaluated = ((_plain_key(config), plain), (key, validation))
    is_augmented = [_changes_at_random(*one, config, findings) for one in evaluated]
    screened = None
    if validation is not None:
        screened = findings.attempt(key, lambda: _screened(plain_change.changed(validation), config))
    if training is not None:
        findings.errors += change.problems(training, seed=config.seed)
    findings.errors += stream_problems(config, training)
    training, training_plain, screened = _collated(config, findings, training, training_plain, screened)
    return DataSets(training, training_plain, screened, gap_is_augmented=any(is_augmented))


def _collated(config: TrainConfig, findings: Findings, *sets: Any) -> list[Any]:
    """The sets with the function of the config that makes their batches; one that is None stays None."""
    if (node := config.data.collate_fn) is None:
        return list(sets)
    if any(hasattr(one, "fetch") for one in sets):
        findings.errors.append(
            "data.collate_fn: has no effect on a set in memory, whose `fetch` makes the batches. Remove it."
        )
        return list(sets)
    collate_fn = findings.attempt("data.collate_fn", lambda: make_function("data.collate_fn", node))
    done: dict[int, Any] = {id(None): None}  # training set and plain one may be the same object, and stay so
    return [done.setdefault(id(one), Collated(one, collate_fn) if collate_fn else one) for one in sets]


def _plain_key(config: TrainConfig) -> str:
    return "data.train" if config.data.train_plain is None else "data.train_plain"


def _changes_at_random(key: str, dataset: Any, config: TrainConfig, findings: Findings) -> bool:
    """Whether an evaluated set changes its samples at random; if so, add a note."""
    if not _is_own(dataset):
        return False
    changing = changing_samples(dataset, seed=config.seed)
    if changing:
        remedy = {
            "data.train": "name the same set without random changes: data.train_plain={_target_: ..., ...}",
            "data.train_plain": "make this set without random changes",
            "data.validation": "make this set without random changes (parts of one set share its transform)",
        }
        findings.notes.append(
            f"{key}: {len(changing)} of {min(SAMPLES_READ, len(dataset))} samples that were read several times are not "
            f"the same each time (e.g. {changing[0]}): the set augments its samples itself, so one side of the "
            f"generalization gap is augmented. gap/* is marked; for a true gap {remedy[key]}."
        )
    return bool(changing)


def _is_own(dataset: Any) -> bool:
    """Whether it is the user's own map-style set; sets of this package never change at random."""
    is_ours = type(dataset).__module__.startswith("largebatch.")
    return dataset is not None and not is_ours


def _made(key: str, node: Any, config: TrainConfig, findings: Findings) -> Any:
    """The data set of a node; its notes go into the findings."""
    dataset = make(key, node)
    if is_stream(dataset):
        return streamed(key, dataset, config, findings)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(f"{type(dataset).__name__} has no length or no items: a map-style data set is needed.")
    if len(dataset) == 0:
        raise ValueError("the data set is empty. Check its path and its split.")
    findings.notes += [f"{key}: {note}" for note in getattr(dataset, "plan_notes", ())]
    if _is_own(dataset) and config.data.collate_fn is None:
        findings.notes += [f"{key}: {note}" for note in notes_of_items(dataset, seed=config.seed)]
    return dataset


def _training_set(dataset: Any, config: TrainConfig, change: ItemChanges) -> Any:
    data, dataset = config.data, change.cropped(dataset)
    limited = dataset if data.limit is None else FirstSamples(dataset, data.limit)
    if not data.label_noise:
        return _screened(change.transformed(limited), config)
    if data.num_classes is None:
        raise ValueError(
            f"data.label_noise={data.label_noise}: labels are replaced by one of data.num_classes, which {data.name} "
            "does not have. Only class labels can be noisy: leave it at 0."
        )
    try:
        noisy = NoisyLabels(limited, data.label_noise, num_classes=data.num_classes, seed=config.seed)
    except ValueError as error:
        raise ValueError(f"data.label_noise={data.label_noise}: {error}") from None
    return _screened(change.transformed(noisy), config)


def _screened(dataset: Any, config: TrainConfig) -> Any:
    """The set behind a screen, if bad samples are skipped."""
    if not config.data.skips or config.data.collate_fn is not None:
        return dataset  # raw items have no form to compare
    form = None if hasattr(dataset, "fetch") else form_of_most(dataset, seed=config.seed)
    return ScreenedSamples(dataset, Screen(finite=True, form=form))
