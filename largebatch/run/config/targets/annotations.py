"""Checks values of a config against type annotations. In doubt a value passes.

Values that are not plain, and annotations that a config cannot fill, are left to the target.
"""

from __future__ import annotations

import collections.abc
import numbers
import types
import typing
from typing import Any

PLAIN = (type(None), bool, int, float, str, list, tuple, dict)
INTEGERS, REALS = (int, numbers.Integral), (float, complex, numbers.Real, numbers.Number)
SEQUENCES = (
    list, tuple, set, frozenset, collections.abc.Set, collections.abc.MutableSequence, collections.abc.Sequence,
    collections.abc.Reversible, collections.abc.Collection, collections.abc.Iterable, collections.abc.Container,
)  # fmt: skip
_OF_CHARACTERS, _OF_KEYS = SEQUENCES[6:], SEQUENCES[7:]  # sequence types that texts and mappings also fit
_ARRAYS = ("<class 'torch.Tensor'>", "<class 'numpy.ndarray'>")  # in a union with numbers, they take no texts
MAPPINGS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def fits(value: Any, annotation: Any) -> bool:
    """Whether an annotation admits a value; True if that is unknown.

    Integers count as numbers, lists as tuples, 0 and 1 as false and true; true and false do not count as numbers.

    >>> fits([0.9, 1], tuple[float, float]), fits(True, int), fits("3", float | None), fits("any", type)
    (True, False, False, True)
    """
    if type(value) not in PLAIN or (isinstance(value, dict) and "_target_" in value):
        return True
    kind, arguments = kind_of(annotation)
    if kind is typing.Union:
        if isinstance(value, str) and any(kind_of(one)[0] in REALS for one in arguments):
            arguments = tuple(one for one in arguments if str(one) not in _ARRAYS)
        return any(fits(value, one) for one in arguments)
    if kind is typing.Literal:
        return any(type(one) not in PLAIN or (type(one) is type(value) and one == value) for one in arguments)
    if kind is bool:
        return type(value) is bool or (type(value) is int and value in (0, 1))
    if kind in (str, type(None)):
        return type(value) is kind
    if kind in INTEGERS or kind in REALS:
        return type(value) is int or (type(value) is float and kind in REALS)
    if kind in SEQUENCES:
        return _fits_sequence(value, kind, arguments)
    if kind in MAPPINGS:
        # Keys are not checked: JSON has only texts, so a table by class may be given as {"3": 0.5}.
        return isinstance(value, dict) and all(fits(part, of) for part in value.values() for of in arguments[1:])
    return True


def _fits_sequence(value: Any, kind: Any, arguments: tuple[Any, ...]) -> bool:
    if isinstance(value, str):
        return kind in _OF_CHARACTERS and (not arguments or fits(value, arguments[0]))
    if isinstance(value, dict):
        return kind in _OF_KEYS
    if not isinstance(value, (list, tuple)):
        return False
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if any(typing.get_origin(one) is not None and "Unpack" in str(one) for one in arguments):
            return True
        own = () if arguments == ((),) else arguments  # tuple[()] of Python 3.10
        return len(own) == len(value) and all(map(fits, value, own))
    return not arguments or all(fits(one, arguments[0]) for one in value)


def misfit(value: list[Any] | tuple[Any, ...], annotation: Any) -> tuple[Any, Any] | None:
    """(element, annotation) of the first element of a list that does not fit; None if a union or the length misfits."""
    kind, arguments = kind_of(annotation)
    if kind not in SEQUENCES or not arguments:
        return None
    is_fixed = kind is tuple and arguments[-1] is not Ellipsis
    asked = arguments if is_fixed else arguments[:1] * len(value)
    pairs = zip(value, asked, strict=False) if len(asked) == len(value) else ()
    return next((pair for pair in pairs if not fits(*pair)), None)


def kind_of(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Origin and arguments of an annotation, with aliases resolved and a type variable replaced by its bound.

    >>> kind_of(typing.Optional[int])
    (typing.Union, (<class 'int'>, <class 'NoneType'>))
    """
    for _ in range(100):  # aliases of aliases; bounded because an alias may name itself
        origin = typing.get_origin(annotation)
        if isinstance(annotation, typing.TypeVar):
            if annotation.__constraints__:
                return typing.Union, annotation.__constraints__
            annotation = annotation.__bound__ or Any
        elif origin is typing.Annotated or origin in (typing.Final, typing.ClassVar):
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # `type X = ...` of Python 3.12
            annotation = annotation.__value__
        else:
            break
    kind = typing.Union if origin is types.UnionType else origin or annotation
    return kind if isinstance(kind, collections.abc.Hashable) else object, typing.get_args(annotation)
