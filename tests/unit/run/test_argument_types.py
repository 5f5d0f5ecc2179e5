"""Values of a config against the types of a signature: a text that looks like something else is refused, and told.

Each row of FITS would be a false refusal: what annotations and defaults leave open is left to the target.
"""

from __future__ import annotations

import collections.abc
import enum
import numbers
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NewType, Optional, TypeVar, Union

import numpy as np
import pytest
import torch
from torch import nn

from largebatch.run.config.targets import TargetError, check_arguments, make
from largebatch.run.config.targets.wording import problem_of_type

if TYPE_CHECKING:
    from somewhere_else import Unknown  # type: ignore[import-not-found]

HERE = "tests.unit.run.test_argument_types"
T = TypeVar("T")
Number = TypeVar("Number", int, float)
Whole = TypeVar("Whole", bound=int)
Width = NewType("Width", int)


class Mode(enum.Enum):
    NO = "no"


@dataclass
class Options:
    width: int = 8
    rates: tuple[float, float] = (0.9, 0.999)


class Base(Generic[T]):
    def __init__(self, flag: bool = False, *sizes: int, text: str = "a", **rates: float) -> None:
        self.given = (flag, sizes, text, rates)


class Inherits(Base[int]):
    pass


class MadeByNew:
    def __new__(cls, width: int) -> MadeByNew:
        return super().__new__(cls)


def own(
    flag: bool = False,
    width: int = 8,
    rate: float = 0.1,
    name: str = "a",
    maybe: Optional[int] = None,  # noqa: UP045
    maybe_text: str | None = None,
    either: Union[int, Literal["auto"]] = "auto",  # noqa: UP007
    choice: Literal["sum", "mean", 2] = "sum",
    pair: tuple[float, float] = (0.9, 0.999),
    many: tuple[int, ...] = (),
    sizes: list[int] | None = None,
    words: collections.abc.Sequence[str] = (),
    numbers_: typing.Sequence[float] = (),
    table: dict[str, int] | None = None,
    whole: numbers.Integral = 3,  # type: ignore[assignment]
    implicit: int = None,  # type: ignore[assignment]  # noqa: RUF013
    nested: list[tuple[str, int]] | None = None,
    quoted: "int | None" = None,  # noqa: UP037
    new: Width = Width(1),
    annotated: typing.Annotated[int, "of layers"] = 1,
    constrained: Number = 1,  # type: ignore[assignment]
    bound: Whole = 1,  # type: ignore[assignment]
    variable: T = None,  # type: ignore[assignment]
    anything: Any = None,
    thing: object = False,
    elsewhere: Unknown = False,
    prose: "number of layers" = 1,  # type: ignore[valid-type]  # noqa: F722
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    weight: torch.Tensor | None = None,
    rate_or_tensor: float | torch.Tensor = 0.1,
    module: nn.Module | None = None,
    function: collections.abc.Callable[[int], int] | None = None,
    kind: type[nn.Module] = nn.Identity,
    path: Path | None = None,
    mode: Mode = Mode.NO,
    options: Options | None = None,
    untyped=None,  # type: ignore[no-untyped-def]
    untyped_flag=False,  # type: ignore[no-untyped-def]
    untyped_number=0,  # type: ignore[no-untyped-def]
    untyped_rate=0.5,  # type: ignore[no-untyped-def]
    untyped_text="a",  # type: ignore[no-untyped-def]
    **others: Any,
) -> None: ...


FITS: list[tuple[str, Any]] = [
    ("flag", True),
    ("flag", 1),
    ("flag", 0),
    ("rate_or_tensor", [0.5]),  # a target may make a tensor of it
    ("width", -3),
    ("width", np.int64(3)),
    ("rate", 1),
    ("rate", 1e-3),
    ("rate", float("nan")),
    ("rate", np.float32(0.5)),
    ("rate", torch.tensor(0.5)),
    ("name", ""),
    ("name", "no"),
    ("maybe", None),
    ("maybe", 3),
    ("maybe_text", "none"),  # may be a choice
    ("either", "auto"),
    ("choice", 2),
    ("pair", [0.9, 1]),
    ("many", []),
    ("many", [1, 2, 3]),
    ("sizes", (1, 2)),
    ("words", "abc"),  # a sequence of texts, if an odd one
    ("words", ["no"]),
    ("numbers_", [1, 2.5]),
    ("table", {"a": 1}),
    ("table", {3: 1}),
    ("whole", 3),
    ("implicit", None),
    ("nested", [["a", 1]]),
    ("nested", [["a", {"_target_": "fractions.Fraction"}]]),
    ("quoted", None),
    ("new", 3),
    ("annotated", 3),
    ("constrained", 1.5),
    ("bound", 2),
    *((name, value) for value in ("no", "None", 2, []) for name in ("variable", "anything", "thing", "elsewhere")),
    ("prose", "no"),
    ("dtype", "float32"),
    ("device", "cpu"),
    ("weight", [1.0, 2.0]),
    ("weight", "weights.safetensors"),
    ("module", {"_target_": "torch.nn.GELU"}),
    ("function", "relu"),
    ("kind", "torch.nn.ReLU"),
    ("path", "a/b"),
    ("mode", "no"),
    ("options", {"width": 3}),
    ("untyped", "no"),
    ("untyped", 3),
    ("untyped_flag", 2),
    ("untyped_flag", "imagenet"),
    ("untyped_number", 0.5),
    ("untyped_number", "auto"),
    ("untyped_rate", False),
    ("untyped_text", 3),
    ("whatever", "no"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), FITS, ids=lambda one: str(one)[:20])
def test_what_a_signature_admits_or_leaves_open_is_not_refused(name: str, value: Any):
    check_arguments("x", {"_target_": f"{HERE}.own", name: value})


REFUSED: list[tuple[str, Any, str]] = [
    ("flag", "no", "true or false, and this is a text, which counts as true. Write false."),
    ("flag", "On", "true or false, and this is a text, which counts as true. Write true."),
    ("flag", "False", "true or false, and this is a text, which counts as true. Write false."),
    ("flag", 2, "true or false, and this is a number. Give such a value."),
    ("flag", 1.0, "true or false, and this is a number. Write true."),
    ("flag", None, "true or false, and this is null. Leave it out for its default."),
    ("width", "8", "a whole number, and this is a text. Write the number without quotes."),
    ("width", 3e-4, "a whole number, and this is a number. Give such a value."),
    ("width", 64.0, "a whole number, and this is a number. Write 64."),
    ("width", True, "a whole number, and this is true. Give such a value."),
    ("width", None, "a whole number, and this is null. Leave it out for its default."),
    ("width", [8], "a whole number, and this is a list of 1. Give such a value."),
    ("rate", "1e-3", "a number, and this is a text. Write the number without quotes."),
    ("rate", "nan", "a number, and this is a text. Write .nan in a file, nan on the command line."),
    ("rate", "-.inf", "a number, and this is a text. Write -.inf in a file, -inf on the command line."),
    ("rate_or_tensor", "1e-3", "a number or Tensor, and this is a text. Write the number without quotes."),
    ("rate", "fast", "a number, and this is a text. Give such a value."),
    ("rate", False, "a number, and this is false. Give such a value."),
    ("name", 5, "a text, and this is a number. Put it into quotes, '\"5\"'."),
    ("name", False, "a text, and this is false. Give such a value."),
    ("maybe", "None", "a whole number or null, and this is a text. Write null."),
    ("maybe", "none", "a whole number or null, and this is a text. Write null."),
    ("maybe_text", "None", "null for nothing, and this is the text None. Write null."),
    ("either", "atuo", "a whole number or one of 'auto', and this is another text. Did you mean 'auto'?"),
    ("choice", "men", "one of 'sum', 'mean', 2, and this is another text. Did you mean 'mean'?"),
    ("choice", 3, "one of 'sum', 'mean', 2, and this is a number. Give such a value."),
    ("pair", [0.9], "a list of 2, each a number, and this is a list of 1. Give such a value."),
    ("pair", ["0.9", 1], "a list of 2, each a number, and this is a list in which '0.9' is a text. Write the"),
    ("many", [1, 2.5], "a list, each a whole number, and this is a list in which 2.5 is a number. Gi"),
    ("many", 3, "a list, each a whole number, and this is a number. Write [3]."),
    ("sizes", "8", "a list, each a whole number or null, and this is a text. Give such a value."),
    ("numbers_", "12", "a list, each a number, and this is a text. Give such a value."),
    ("words", [1], "a list, each a text, and this is a list in which 1 is a number. Put it into"),
    ("table", {"a": "b"}, "a group of keys, each with a whole number or null, and this is another group of keys. Give"),
    ("whole", "3", "a whole number, and this is a text."),
    ("nested", [["a", "1"]], "a list, each a list of 2, each a text and a whole number or null, and this is a"),
    ("quoted", "3", "a whole number or null, and this is a text."),
    ("new", "3", "a whole number, and this is a text."),
    ("annotated", "3", "a whole number, and this is a text."),
    ("constrained", "3", "a whole number or a number, and this is a text."),
    ("bound", "3", "a whole number, and this is a text."),
    ("untyped", "None", "null for nothing, and this is the text None. Write null."),
    ("untyped_flag", "no", "true or false, as its default False is, and this is a text, which counts as true. Wr"),
    ("untyped_number", "1e-3", "a whole number, as its default 0 is, and this is a text. Write the number without"),
    ("untyped_rate", "none", "a number, as its default 0.5 is, and this is a text. Give such a value."),
]  # fmt: skip


@pytest.mark.bad_input("a value of another type than the target takes, as `nesterov=no`, a text, which counts as true")
@pytest.mark.parametrize(("name", "value", "told"), REFUSED, ids=lambda one: str(one)[:20])
def test_a_value_of_another_type_is_one_line_with_what_is_taken_and_a_remedy(name: str, value: Any, told: str):
    with pytest.raises(TargetError) as caught:
        check_arguments("x", {"_target_": f"{HERE}.own", name: value})
    (line,) = caught.value.args
    assert line.startswith(f"x.{name}={value}: {HERE}.own takes {told}")


def test_classes_positional_arguments_and_those_without_a_name_are_checked_too():
    def problems(name: str, **arguments: Any) -> list[str]:
        try:
            check_arguments("x", {"_target_": f"{HERE}.{name}", **arguments})
        except TargetError as error:
            return [str(one).partition(":")[0] for one in error.args]
        return []

    assert problems("Inherits", flag="no", text=3, rate="1e-3") == ["x.flag=no", "x.text=3", "x.rate=1e-3"]
    assert problems("Inherits", _args_=["no", 1, "2"]) == ["x._args_.0=no", "x._args_.2=2"]
    assert problems("MadeByNew", width="3") == ["x.width=3"]
    assert problems("Options", width=2, rates=[1]) == ["x.rates=[1]"]
    assert problems("Inherits", flag=True, text="b", rate=1, _recursive_=True) == []
    assert make("x", {"_target_": f"{HERE}.Inherits", "_args_": [True, 1]}).given == (True, (1,), "a", {})


@pytest.mark.bad_input("a value of another type than the target takes, as `nesterov=no`, a text, which counts as true")
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "torch.optim.SGD", "nesterov": "no"},
        {"_target_": "torch.optim.AdamW", "betas": [0.9]},
        {"_target_": "torch.optim.AdamW", "eps": "1e-8"},
        {"_target_": "largebatch.optim.LAMB", "eps": "1e-6"},
        {"_target_": "largebatch.optim.LARS", "nesterov": "off"},
        {"_target_": "largebatch.losses.CrossEntropy", "label_smoothing": "0.1"},
        {"_target_": "largebatch.models.MLP", "in_features": 4, "num_classes": 2, "hidden": 8},
        {"_target_": "largebatch.models.resnet18", "num_classes": "10"},
        {"_target_": "largebatch.data.random_classification", "num_samples": 8.0, "shape": [4], "num_classes": 2},
        {"_target_": "torch.nn.CrossEntropyLoss", "label_smoothing": "0.1"},
        {"_target_": "torch.nn.Dropout", "inplace": "yes"},
        {"_target_": "torch.nn.Sequential", "_args_": [{"_target_": "torch.nn.Dropout", "p": "0.5"}]},
    ],
    ids=lambda node: node["_target_"],
)
def test_what_torch_and_largebatch_bring_is_held_to_its_types(node: dict[str, Any]):
    with pytest.raises(TargetError, match=r"(?m)^x\.\S+=.*: \S+ takes "):
        make("x", node, **({"params": []} if ".optim." in node["_target_"] else {}))


def test_the_defaults_of_every_layer_and_optimizer_of_torch_fit():
    import inspect

    from largebatch.run.config.targets.arguments import Hints

    for kind in [*map(nn.__dict__.get, nn.modules.__all__), *map(torch.optim.__dict__.get, torch.optim.__all__)]:
        assert kind is not None
        if isinstance(kind, type):
            for one in inspect.signature(kind).parameters.values():
                if one.default not in (one.empty, None):  # None stands for what is not given, whatever the type says
                    assert problem_of_type(one.default, Hints(kind)(one), object()) == "", f"{kind}.{one}"
