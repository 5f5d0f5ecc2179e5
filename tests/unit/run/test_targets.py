"""Objects named by `_target_`: found, checked against their signature, made; errors say which part is wrong."""

from __future__ import annotations

import collections
import fractions
from typing import Any

import pytest

from largebatch.run.config.targets import TargetError, check_arguments, find_target, make

HERE = "tests.unit.run.test_targets"
CALLS: list[dict[str, Any]] = []


def record(first: Any, second: Any = 2, *, third: Any = 3) -> dict[str, Any]:
    call = {"first": first, "second": second, "third": third}
    CALLS.append(call)
    return call


def anything(first: Any, **others: Any) -> dict[str, Any]:
    return {"first": first, **others}


class Refuses:
    """A class whose constructor explains itself."""

    def __init__(self, error: str) -> None:
        raise {"value": ValueError, "import": ImportError, "type": TypeError, "empty": AssertionError}[error](
            "" if error == "empty" else "first line\nsecond line"
        )


def target(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_a_dotted_name_is_found_at_any_depth():
    assert find_target("loss", {"_target_": "fractions.Fraction"}) is fractions.Fraction
    assert find_target("loss", {"_target_": "fractions.Fraction.from_float"}) == fractions.Fraction.from_float
    assert find_target("loss", {"_target_": "builtins.dict"}) is dict


@pytest.mark.bad_input("an unknown optimizer")
@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, r"^loss\._target_=None: the dotted name of a class or function is missing\.$"),
        ({"_target_": 3}, r"^loss\._target_=3: the dotted name"),
        (
            {"_target_": "nowhere.Loss"},
            r"^loss\._target_=nowhere\.Loss: cannot be imported \(ModuleNotFoundError: No module named 'nowhere'\)\. "
            r"Check the dotted name; your own modules must be on PYTHONPATH or in the current folder\.$",
        ),
        ({"_target_": "fractions.Fractoin"}, r"^loss\._target_=fractions\.Fractoin: cannot be imported \(.*Fractoin"),
        ({"_target_": ""}, r"^loss\._target_=: cannot be imported"),
        ({"_target_": "math.pi"}, r"^loss\._target_=math\.pi: is a float, not a class or function\.$"),
        ({"_target_": "fractions"}, r"^loss\._target_=fractions: is a module, not a class or function\.$"),
    ],
)
def test_a_name_that_leads_nowhere_is_reported_with_its_cause(node: dict[str, Any], message: str):
    with pytest.raises(TargetError, match=message):
        find_target("loss", node)


@pytest.mark.bad_input("a target that cannot be imported")
def test_the_error_that_hid_a_module_of_ones_own_is_shown(tmp_path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "largebatch_test_broken.py").write_text("import a_library_that_is_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(TargetError, match=r"No module named 'a_library_that_is_not_installed'"):
        find_target("model", {"_target_": "largebatch_test_broken.Model"})


@pytest.mark.parametrize(
    ("node", "supplied"),
    [
        (target("record", first=1), ()),
        (target("record", second=1), ("first",)),
        (target("record", first=1, third=1, _convert_="all"), ()),
        (target("record", _args_=[1]), ()),
        (target("anything", first=1, whatever=2), ()),
        ({"_target_": "builtins.dict", "a": 1}, ()),  # has no signature
    ],
)
def test_arguments_that_fit_pass(node: dict[str, Any], supplied: tuple[str, ...]):
    check_arguments("x", node, supplied=supplied)


@pytest.mark.bad_input("an unknown argument of the optimizer")
@pytest.mark.parametrize(
    ("node", "supplied", "message"),
    [
        (
            target("record", first=1, secnd=2),
            (),
            r"^x\.secnd=2: .*\.record has no such argument\. Did you mean 'second'\?$",
        ),
        (target("record", first=1, zzz=2), (), r"^x\.zzz=2: .* It takes first, second, third\. Leave it out: ~x\.zzz$"),
        # What we give ourselves is no proposal.
        (target("record", zzz=2), ("first",), r"^x\.zzz=2: .* It takes second, third\. Leave it out: ~x\.zzz$"),
        (
            target("record", first=1, second=2),
            ("first",),
            r"^x\.first=1: largebatch sets this argument itself\. Remove it\.$",
        ),
        (target("record", third=1), (), r"^x: .*\.record needs first\. Give x\.first=\.\.\. in the config\.$"),
        (target("anything"), (), r"^x: .*\.anything needs first\. "),
        (target("Refuses", eror=1), (), r"^x\.eror=1: .* Did you mean 'error'\?$"),
    ],
)
def test_arguments_that_do_not_fit_are_named(node: dict[str, Any], supplied: tuple[str, ...], message: str):
    with pytest.raises(TargetError, match=message):
        check_arguments("x", node, supplied=supplied)


def test_nothing_is_called_when_the_arguments_do_not_fit():
    CALLS.clear()
    with pytest.raises(TargetError):
        make("x", target("record", first=1, secnd=2))
    assert CALLS == []
    assert make("x", target("record", first=1)) == {"first": 1, "second": 2, "third": 3}
    assert len(CALLS) == 1


def test_supplied_objects_arrive_as_they_are():
    held = [object(), collections.OrderedDict(a=1)]
    made = make("x", target("record", second=[1, {"a": 2}]), first=held)
    assert made["first"][0] is held[0], "no copies: an optimizer must hold the model's own parameters"
    assert made["second"] == [1, {"a": 2}]
    assert type(made["second"]) is list
    assert type(made["second"][1]) is dict


def test_targets_may_be_nested():
    made = make("x", target("record", first={"_target_": "fractions.Fraction", "numerator": 1, "denominator": 3}))
    assert made["first"] == fractions.Fraction(1, 3)


def test_the_node_is_left_as_it_was():
    node = target("record", first=[1])
    make("x", node, second=5)
    assert node == target("record", first=[1])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("value", "first line\nsecond line"),  # meant for the reader: in full
        ("import", "first line\nsecond line"),
        ("type", "TypeError: first line"),
        ("empty", "AssertionError: "),
    ],
)
def test_an_error_of_the_target_itself_is_reported_under_its_key(error: str, message: str):
    with pytest.raises(TargetError) as caught:
        make("x", target("Refuses", error=error))
    assert str(caught.value) == f"x ({HERE}.Refuses): {message}"


@pytest.mark.bad_input("a target outside of what is allowed")
def test_what_hydra_forbids_stays_forbidden():
    # Hydra's block-list: names that run commands or code.
    with pytest.raises(TargetError, match=r"os\.system"):
        make("x", {"_target_": "os.system", "command": "exit 1"})


def test_a_target_that_changes_what_it_was_given_leaves_the_config_as_it_was():
    node = {"_target_": "random.shuffle", "x": list(range(100))}
    make("own", node)
    assert node["x"] == list(range(100))
