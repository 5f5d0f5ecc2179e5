"""What no memory holds is refused from its size alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from largebatch.data.solvable import linear_regression, noisy_quadratic
from largebatch.data.synthetic import masked_tokens, paired_views, random_classification
from largebatch.distributed import host_memory as machine_memory
from largebatch.models import Quadratic
from largebatch.run.checks.memory import require_memory_for_weights

GIB, MIB = 1 << 30, 1 << 20


def weights(**arguments: object) -> Callable[[], None]:
    return lambda: require_memory_for_weights({"_target_": "largebatch.models.MLP", "num_classes": 10, **arguments})


@pytest.mark.bad_input("a width or a number of samples that no memory holds")
def test_what_is_larger_than_all_memory_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: 2 * GIB)
    machine_memory.require_memory("4 numbers", 2 * GIB)
    with pytest.raises(ValueError, match=r"^5 numbers take 2\.5 GiB, and this machine has 2\.0 GiB of memory\. Ask"):
        machine_memory.require_memory("5 numbers", 5 * GIB // 2)


def test_the_limit_of_a_container_counts_where_it_is_the_lower_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}.__getitem__)
    for limit, usable in ((None, 4_096_000), (4_000_000, 4_000_000), (2**63, 4_096_000)):
        monkeypatch.setattr(machine_memory, "container_limit", lambda limit=limit: limit)
        assert machine_memory.machine_memory() == usable


# Each is above 1 MiB, and small enough to be made where the refusal is broken.
LARGE: dict[str, tuple[Callable[[], object], str]] = {
    "samples": (lambda: random_classification(5000, 2, (32,), "train"), "5,000 times 32 random numbers take"),
    "classes": (lambda: random_classification(2, 5000, (32,), "train"), "5,000 times 32 random numbers take"),
    "views": (lambda: paired_views(5000, (32,), "train"), "5,000 times 96 random numbers take"),
    "tokens": (lambda: masked_tokens(5000, 32, 7, "train"), "5,000 samples of 32 tokens take"),
    "features": (lambda: linear_regression(5000, 31, "train"), "5,000 times 32 random numbers take"),
    "copies of noise": (lambda: noisy_quadratic(4, [1.0], "train", copies=200_000), "200,000 copies of 1 coord"),
    "copies of curvature": (lambda: Quadratic([1.0, 2.0], copies=200_000), "200,000 copies of 2 coordinates take"),
    "weights": (weights(in_features=64, hidden=[8000]), "its weights take"),
}


@pytest.mark.bad_input("a width or a number of samples that no memory holds")
@pytest.mark.parametrize(("make", "message"), LARGE.values(), ids=LARGE)
def test_made_up_sets_and_models_that_no_memory_holds_are_refused_before_they_are_made(
    make: Callable[[], object], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: MIB)
    with pytest.raises(ValueError, match=message):
        make()


def test_the_weights_of_a_model_are_counted_to_the_byte(monkeypatch: pytest.MonkeyPatch):
    num_bytes = 4 * (64 * 20 + 20 + 20 * 10 + 10)
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: num_bytes)
    weights(in_features=64, hidden=[20])()
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: num_bytes - 1)
    with pytest.raises(ValueError, match="its weights"):
        weights(in_features=64, hidden=[20])()


def test_what_cannot_be_made_is_told_elsewhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine_memory, "machine_memory", lambda: 0)
    weights(in_features=64, hidden=[])()
    require_memory_for_weights({"_target_": None})
    require_memory_for_weights({"_target_": "largebatch.models.TwoViews", "encoder": {"_target_": "elsewhere.Model"}})
