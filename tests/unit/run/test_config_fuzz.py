"""Whatever stands in a config: it is a run that can start, or one readable report; never a traceback, never a wait."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings
from omegaconf import DictConfig, OmegaConf

from largebatch.run.config.reading import ConfigError
from largebatch.run.prepare import Prepared, prepare
from tests.unit.composing import compose_run

CHOICES = (
    ("model=mlp", "model.hidden=[4]"),
    ("model=convnet", "model.width=2", "optimizer=lars", "schedule=step", "scaling=sqrt"),
    ("data=synthetic", "model=linear", "optimizer=lamb", "schedule=polynomial", "precision=bf16"),
    ("data=noisy_quadratic", "optimizer=adamw", "logger=none"),
)
NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 3, 1000, 2**63, 10**30, -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "abc", "0", "-3", "1e3", "nan", "10ep", "0ep", "-1ep", "5steps", "1e400ep", "full", "ordered", "null",
    "é\u200b\N{PARTY POPPER}", "a" * 5000, "../../..", "/dev/null", "/proc/self/mem", "%s%n", "[1,2", "{}",
    "${nowhere}", "${oc.env:LARGEBATCH_NOT_SET}", "os.system", "builtins.eval", "largebatch.models.Linear", "[",
    [], [None], [1, 2], [-1], ["abc"], [[]], {}, {"a": 1}, {"_target_": "os.system"}, {"_target_": None},
]  # fmt: skip


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys of all values, and of the sections that hold them."""
    if isinstance(node, dict):
        for key, part in node.items():
            yield f"{prefix}{key}"
            yield from leaves(part, f"{prefix}{key}.")


def base(number: int) -> DictConfig:
    choices = [one for one in CHOICES[number] if "." not in one]
    config = compose_run(*choices)
    OmegaConf.set_struct(config, False)
    return config


@functools.cache
def keys(number: int) -> list[str]:
    return sorted(leaves(OmegaConf.to_container(base(number), resolve=False)))


# What a mutated config must not do to the machine that tests it: a folder is looked at, and none is written.
CHANGES = st.integers(0, len(CHOICES) - 1).flatmap(
    lambda number: st.tuples(
        st.just(number),
        st.lists(
            st.tuples(st.sampled_from([*keys(number), "nonsense", "optimizer.nonsense"]), st.sampled_from(NASTY)),
            min_size=1,
            max_size=3,
        ),
    )
)


def outcome(config: DictConfig) -> Prepared | str:
    try:
        return prepare(config, {})
    except ConfigError as error:
        return str(error)


@settings(max_examples=320, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(CHANGES)
def test_a_mutated_config_is_a_run_or_one_readable_report(change: tuple[int, list[tuple[str, Any]]]):
    number, changes = change
    config = base(number)
    for key, value in changes:
        parent, _, name = key.rpartition(".")
        # Nothing where an earlier change has put an interpolation that leads nowhere.
        holder = OmegaConf.select(config, parent, throw_on_resolution_failure=False) if parent else config
        if isinstance(holder, DictConfig):
            holder[name] = value
    said = outcome(config)
    if isinstance(said, str):
        head, *lines = said.splitlines()
        assert re.fullmatch(r"(1 error|\d+ errors) in the configuration:", head), said
        assert lines
        assert "Traceback" not in said
        assert all(line.strip() for line in lines), said
    else:
        assert said.numbers.num_steps > 0


@pytest.mark.parametrize("number", range(len(CHOICES)))
def test_the_configs_that_are_mutated_are_runs_themselves(number: int):
    assert isinstance(outcome(base(number)), Prepared)
