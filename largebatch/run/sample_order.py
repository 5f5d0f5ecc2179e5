"""Makes the order of the training samples that a config asks for."""

from __future__ import annotations

import inspect
from typing import Any

from torch.utils.data import Sampler

from largebatch.batch.order import SampleOrder
from largebatch.batch.orders import Order, OwnOrder, SequentialOrder, WeightedOrder
from largebatch.data.iterables import order_of, stream_of
from largebatch.run.config.schema import TrainConfig
from largebatch.run.config.targets import TargetError, find_target, make

_KEY = "data.order"
_CONTRACT = (
    "An order has ids_at(positions), a pure function: num_samples, seed and dataset are given to a class that takes "
    "them. See largebatch/batch/README.md."
)


def sample_order(config: TrainConfig, dataset: Any, seed: int | None = None) -> Order:
    """The order of a training set.

    Args:
        config: of the run.
        dataset: as the run reads it, with `data.limit`.
        seed: None: the config's.

    Raises:
        TargetError: if `data.order` names nothing that is an order.
        ValueError: if it does not fit the data set.
    """
    seed, node = config.seed if seed is None else seed, config.data.order
    if node is None or stream_of(dataset) is not None:  # which has its own; `stream_problems` refuses another
        return order_of(dataset, seed)
    if isinstance(node, str):
        return SequentialOrder(len(dataset), seed)
    target = find_target(_KEY, node)
    if isinstance(target, type) and issubclass(target, Sampler):
        raise TargetError(
            f"{_KEY}._target_={node['_target_']}: a Sampler of torch goes by its own state, which no other rank and no "
            f"resumed run has. In place of WeightedRandomSampler write "
            f"'{_KEY}={{_target_: largebatch.batch.WeightedOrder, weights: weights.npy}}'. {_CONTRACT}"
        )
    known = {"num_samples": len(dataset), "seed": seed, "dataset": dataset}
    try:
        takes = inspect.signature(target).parameters
    except (TypeError, ValueError):
        takes = {}  # type: ignore[assignment]
    made = make(_KEY, node, **{name: value for name, value in known.items() if name in takes})
    if isinstance(made, (SampleOrder, SequentialOrder, WeightedOrder)):
        return made
    if not callable(getattr(made, "ids_at", None)):
        raise TargetError(f"{_KEY}._target_={node['_target_']}: a {type(made).__name__} has no ids_at. {_CONTRACT}")
    return OwnOrder(len(dataset), made)
