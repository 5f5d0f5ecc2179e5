from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from largebatch.data import ArrayDataset, DataError, digits, masked_tokens, random_classification


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_uint8_images_are_normalised_per_channel_on_fetch() -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.0)
    data = ArrayDataset(pixels, torch.arange(5), mean=mean, std=std)
    images, targets = data.fetch(ids(4, 1, 4))
    exact = (pixels.double() / 255 - torch.tensor(mean).double().view(3, 1, 1)) / torch.tensor(std).double().view(
        3, 1, 1
    )
    assert images.dtype == torch.float32
    # Two float32 roundings of numbers up to 5: 2 x 5 x 2^-24 = 6e-7.
    torch.testing.assert_close(images.double(), exact[[4, 1, 4]], rtol=0, atol=1e-6)
    assert targets.tolist() == [4, 1, 4]
    torch.testing.assert_close(data[4][0], images[0], rtol=0, atol=0)


def test_uint8_images_without_mean_are_divided_by_255() -> None:
    data = ArrayDataset(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), torch.zeros(3))
    torch.testing.assert_close(data.fetch(ids(0, 1, 2))[0].flatten(), torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_other_inputs_pass_through_and_are_copies(dtype: torch.dtype) -> None:
    stored = torch.arange(6).view(3, 2).to(dtype)
    data = ArrayDataset(stored, torch.arange(3))
    inputs, targets = data.fetch(ids(2, 0))
    assert inputs.dtype == dtype
    assert inputs.tolist() == [[4, 5], [0, 1]]
    inputs.zero_()
    targets.zero_()
    assert data.inputs.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert data.targets.tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [-1, 3])
def test_an_id_outside_the_set_is_refused_and_never_wraps_around(bad: int) -> None:
    with pytest.raises(IndexError):
        ArrayDataset(torch.zeros(3, 1), torch.zeros(3)).fetch(ids(0, bad))


IMAGES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(3), {}, "2 inputs and 3 targets"),
        (torch.zeros(0, 1), torch.zeros(0), {}, "at least one"),
        (torch.zeros(2, 1), torch.zeros(2), {"mean": (0.5,), "std": (0.5,)}, "no effect"),
        (IMAGES, torch.zeros(2), {"mean": (0.5,) * 3}, "both or neither"),
        (IMAGES, torch.zeros(2), {"mean": (0.5,), "std": (0.5,)}, "3 channels"),
        (IMAGES, torch.zeros(2), {"mean": (125.0,) * 3, "std": (60.0,) * 3}, "Divide them by 255"),
        (IMAGES, torch.zeros(2), {"mean": (0.5,) * 3, "std": (0.5,) * 2 + (0.0,)}, r"std in \(0, 1\]"),
        (IMAGES[:, 0, 0], torch.zeros(2), {}, "Convert tokens to int64"),
        (IMAGES, torch.tensor([0, 10]), {"num_classes": 10}, r"labels from 0 to 10, outside \[0, 10\)"),
        (IMAGES, torch.tensor([-1, 1]), {"num_classes": 10}, "labels from -1"),
    ],
)
def test_bad_arrays_are_refused(inputs: torch.Tensor, targets: torch.Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrayDataset(inputs, targets, **options)


def test_digits_are_split_without_overlap_and_with_every_class_in_both() -> None:
    train, validation = digits("train"), digits("validation")
    assert (len(train), len(validation)) == (1437, 360)
    assert train.inputs.shape[1:] == (1, 8, 8)
    # Each class has 174 to 183 of the 1797 images; drawing 360 without replacement, a class has 36 +- 5.1 in
    # validation, so [18, 54] is 3.5 standard deviations away for the worst of the ten.
    for part, low, high in ((train, 120, 165), (validation, 18, 54)):
        counts = torch.bincount(part.targets, minlength=10)
        assert counts.min() >= low
        assert counts.max() <= high
    # Together they are the file: the same multiset of images, nothing twice, nothing lost.
    from sklearn.datasets import load_digits

    both = torch.cat([train.inputs, validation.inputs]).flatten(1) * 0.3760 + 0.3053
    ours = sorted(map(tuple, (both * 16).round().int().tolist()))
    assert ours == sorted(map(tuple, load_digits().data.astype(int).tolist()))


def test_digits_are_standardised_by_constants() -> None:
    values = torch.cat([digits("train").inputs, digits("validation").inputs]).double()
    # The constants are rounded to 4 places: 5e-5 / 0.376 = 1.3e-4.
    assert abs(float(values.mean())) < 2e-4
    assert abs(float(values.std()) - 1) < 2e-4


def test_digits_are_not_split_in_the_order_of_the_file() -> None:
    from sklearn.datasets import load_digits

    last = torch.from_numpy(load_digits().target[-360:])
    assert not torch.equal(digits("validation").targets, last)


@pytest.mark.parametrize("size", [0, 1797])
def test_digits_need_images_in_both_splits(size: int) -> None:
    with pytest.raises(ValueError, match=f"validation_size={size}"):
        digits("train", validation_size=size)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='test'"):
        digits("test")  # type: ignore[arg-type]


def test_random_classification_is_gaussian_and_its_splits_share_a_linear_teacher() -> None:
    train = random_classification(3000, 3, (1, 2, 3), "train", seed=1)
    validation = random_classification(1000, 3, (1, 2, 3), "validation", seed=1)
    # Mean of 18,000 normals: standard error 0.0075; of their squares: sqrt(2/18000) = 0.0105. Five of each.
    assert abs(float(train.inputs.mean())) < 0.04
    assert abs(float(train.inputs.square().mean()) - 1) < 0.055
    assert not torch.equal(train.inputs[:1000], validation.inputs)
    # Least squares on one split must predict the other far above chance (1/3): they have one teacher.
    x, y = (torch.cat([d.inputs.flatten(1), torch.ones(len(d), 1)], 1) for d in (train, validation))
    weights = torch.linalg.lstsq(x, torch.nn.functional.one_hot(train.targets, 3).float()).solution
    accuracy = ((y @ weights).argmax(1) == validation.targets).float().mean()
    assert accuracy > 0.85
    assert train.num_classes == 3


def test_a_synthetic_sample_does_not_depend_on_the_size_of_the_set() -> None:
    small, large = (random_classification(n, 4, (5,), "train") for n in (10, 50))
    assert torch.equal(small.inputs, large.inputs[:10])
    assert torch.equal(small.targets, large.targets[:10])
    assert not torch.equal(small.inputs, random_classification(10, 4, (5,), "train", seed=1).inputs)
    short, long = (masked_tokens(n, 7, 11, "train") for n in (10, 50))
    assert torch.equal(short.targets, long.targets[:10])


def test_masked_tokens_have_ragged_lengths_and_follow_their_rule() -> None:
    data = masked_tokens(2000, 6, 13, "train")
    valid = data.targets != -100
    lengths = valid.sum(1)
    # Valid positions are a prefix, and each length 1..6 has about a sixth of the samples (333 +- 17).
    assert torch.equal(valid, torch.arange(6) < lengths[:, None])
    counts = torch.bincount(lengths, minlength=7)
    assert counts[0] == 0
    assert counts[1:].min() > 333 - 85
    assert counts[1:].max() < 333 + 85
    assert data.inputs[~valid].unique().tolist() == [0]
    step = (data.targets[valid] - 5 * data.inputs[valid]) % 13
    assert step.unique().tolist() == [3, 4]
    # A token is the input after it.
    assert torch.equal(data.inputs[:, 1:][valid[:, 1:]], data.targets[:, :-1][valid[:, 1:]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_classification(0, 2, (1,), "train"),
        lambda: random_classification(1, 1, (1,), "train"),
        lambda: random_classification(1, 2, (0,), "train"),
        lambda: masked_tokens(1, 0, 2, "train"),
    ],
)
def test_empty_synthetic_tasks_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="at least 1 sample"):
        make()


@pytest.mark.bad_input("other classes than the model's outputs")
def test_a_label_error_is_a_data_error() -> None:
    with pytest.raises(DataError):
        ArrayDataset(torch.zeros(1, 1), torch.tensor([7]), num_classes=7)
