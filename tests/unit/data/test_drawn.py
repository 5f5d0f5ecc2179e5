from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from largebatch.batch.order import SampleOrder
from largebatch.batch.plan import BatchPlan
from largebatch.data import DrawnImages, DrawnTokens, MaskedWords, MicroBatchLoader

IDS = np.array([5, 1_281_166, 0, 5])


@pytest.mark.parametrize(
    ("short", "long", "other"),
    [
        (
            DrawnImages(1_281_167, 7, (3, 5, 6), "train"),
            DrawnImages(10**12, 7, (3, 5, 6), "train"),
            DrawnImages(1_281_167, 7, (3, 5, 6), "validation"),
        ),
        (
            DrawnTokens(1_281_167, 9, 11, "train"),
            DrawnTokens(10**12, 9, 11, "train"),
            DrawnTokens(1_281_167, 9, 11, "validation"),
        ),
    ],
)
def test_a_sample_depends_on_its_number_and_its_split_alone(short: Any, long: Any, other: Any) -> None:
    inputs, targets = short.fetch(IDS)
    assert len(short) == 1_281_167
    assert torch.equal(inputs[0], inputs[3])
    assert not torch.equal(inputs[0], inputs[2])
    for place, index in enumerate(IDS.tolist()):
        for one in (short[index], long[index]):
            assert torch.equal(one[0], inputs[place])
            assert torch.equal(one[1], targets[place])
    assert not torch.equal(other.fetch(IDS)[0], inputs)
    with pytest.raises(IndexError):
        short[len(short)]


def test_images_are_half_the_pattern_of_their_class() -> None:
    dataset = DrawnImages(4000, 4, (3, 8, 8), "train")
    stored, complete = dataset.stored_form()
    pixels, labels = stored.fetch(np.arange(4000))
    assert pixels.dtype == torch.uint8
    assert torch.equal(complete(pixels), dataset.fetch(np.arange(4000))[0])
    counts = torch.bincount(labels, minlength=4)
    assert counts.tolist() == pytest.approx([1000] * 4, abs=5 * (4000 * 3 / 16) ** 0.5)
    means = torch.stack([pixels[labels == one].double().mean(dim=0) for one in range(4)])
    # Of two independent uniform bytes: the noise adds half of its mean, rounding down a quarter on average.
    validation, their_labels = DrawnImages(200, 4, (3, 8, 8), "validation").stored_form()[0].fetch(np.arange(200))
    nearest = (validation.double()[:, None] - means).flatten(2).norm(dim=2).argmin(dim=1)
    assert torch.equal(nearest, their_labels)
    patterns = 2 * (means - 255 / 4)
    assert float(patterns.mean()) == pytest.approx(127.5, abs=5 * 74 / (4 * 192) ** 0.5)


def test_tokens_follow_the_rule_of_their_walk() -> None:
    inputs, targets = DrawnTokens(2000, 30, 17, "train").fetch(np.arange(2000))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    step = (targets - 5 * inputs - 3) % 17
    assert set(step.unique().tolist()) == {0, 1}
    assert float(step.double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / 60_000**0.5)


def test_masked_words_have_the_shares_of_bert() -> None:
    plain = DrawnTokens(500, 200, 1000, "train")
    words = MaskedWords(plain, vocab_size=1000, mask_token=999, special_tokens=[7, 8])
    torch.manual_seed(0)
    inputs, targets = (torch.stack(one) for one in zip(*(words[index] for index in range(500)), strict=True))
    tokens = plain.fetch(np.arange(500))[0]
    chosen = targets != -100
    assert torch.equal(targets[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    special = (tokens == 7) | (tokens == 8)
    assert special.any()
    assert not (chosen & special).any()

    def share(part: Any, of: Any) -> tuple[float, float]:
        return float(part.sum() / of.sum()), 5 * 0.5 / float(of.sum()) ** 0.5

    found, tolerance = share(chosen, ~special)
    assert found == pytest.approx(0.15, abs=tolerance)
    hidden, kept = chosen & (inputs == 999), chosen & (inputs == tokens)
    for part, expected in ((hidden, 0.8), (kept, 0.1), (chosen & ~hidden & ~kept, 0.1)):
        found, tolerance = share(part, chosen)
        assert found == pytest.approx(expected, abs=tolerance)


def test_masks_are_new_in_every_epoch_and_the_same_on_any_cut() -> None:
    words = MaskedWords(DrawnTokens(6, 20, 50, "train"), vocab_size=50, mask_token=49)

    def masked(*sizes: int) -> torch.Tensor:
        plan = BatchPlan(12, 1, sizes, (0,) * len(sizes))
        batches: list[Any] = list(MicroBatchLoader(words, SampleOrder(6, 0), plan, 0).micro_batches(0, 1))
        return torch.cat([torch.cat([one.inputs, one.targets], dim=1) for one in batches])

    whole = masked(12)
    assert torch.equal(whole, masked(5, 7))
    first, second = (
        whole[part][np.argsort(SampleOrder(6, 0).ids(start, 6))] for part, start in ((slice(6), 0), (slice(6, 12), 6))
    )
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize(
    "options", [{"mask_token": 50}, {"mask_token": 3, "special_tokens": [-1]}, {"mask_token": 3, "share": 0.0}]
)
def test_numbers_outside_their_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tokens lie in|probability of a token"):
        MaskedWords(DrawnTokens(6, 20, 50, "train"), vocab_size=50, **options)
