"""Freezes parameters by name, and what batch norms of frozen layers do."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from largebatch.optim.parameter_groups import named_trainable, parameters_by_name


def freeze(model: nn.Module, entries: Sequence[str], *, holds_statistics: bool = True) -> list[str]:
    r"""Set `requires_grad` of the parameters that an entry fits to False, before the model is wrapped.

    A shared parameter is frozen under all of its names. Dropout of frozen layers stays as it is.

    Args:
        model: unwrapped, in training mode.
        entries: as `parameter_groups` takes them: "bias", "norm", or a regular expression searched for in names.
        holds_statistics: whether batch norms inside frozen layers go into evaluation mode, where `train_mode` leaves
            them: they use their running statistics and do not move them. False: they go on with those of each batch.

    Returns:
        The names of the frozen parameters.

    Raises:
        ValueError: for an entry that is no regular expression or fits no parameter that trains.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> freeze(model, [r"^0\.", r"^1\."])
    ['0.weight', '0.bias', '1.weight', '1.bias']
    >>> [part.training for part in model]
    [True, False, True]
    """
    trainable = {id(one): name for name, one in named_trainable(model).items()}
    fitting = {id(one) for entry in entries for one in parameters_by_name(model, {"freeze": [entry]})["freeze"]}
    for one in model.parameters():
        if id(one) in fitting:
            one.requires_grad_(False)
    if holds_statistics:
        _hold_statistics(model, fitting)
    return [name for key, name in trainable.items() if key in fitting]


def _hold_statistics(model: nn.Module, frozen: set[int]) -> None:
    for name, norm in model.named_modules():
        if isinstance(norm, _NormBase) and norm.running_mean is not None:
            own = _nearest_parameters(model, name)
            if own and all(id(one) in frozen for one in own):
                norm.training = False


def _nearest_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """Those of a module; of one without any, as a norm with affine=False, those of the layer around it."""
    while not (found := list(model.get_submodule(name).parameters())) and name:
        name = name.rpartition(".")[0]
    return found
