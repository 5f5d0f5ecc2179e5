"""Handwritten digits that come with scikit-learn: real images without a download."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from largebatch.batch.order import SampleOrder
from largebatch.data.array import ArrayDataset
from largebatch.data.errors import Split, check_split

# Mean and standard deviation of all 1797 x 64 values after division by 16, rounded. Fixed, because constants computed
# from a split would change the data whenever the split changes.
DIGITS_MEAN = 0.3053
DIGITS_STD = 0.3760
_NUM_IMAGES = 1797
_FILE = Path("datasets", "data", "digits.csv.gz")
_SPLIT_SEED = 1797


def digits(split: Split, *, validation_size: int = 360) -> ArrayDataset:
    """Images [N, 1, 8, 8] float32 of digits and their labels 0..9: 1437 for training, 360 for validation.

    Values 0..16 are divided by 16 and standardised with `DIGITS_MEAN` and `DIGITS_STD`. The split is a fixed
    permutation, the same for every seed of a run. The file itself is ordered by writer: a validation set from its end
    would have other handwritings than the training set.

    Args:
        split: "train" or "validation".
        validation_size: images held out, from 1 to 1796.

    Raises:
        ValueError: for another `split` or `validation_size`.

    Source: E. Alpaydin and C. Kaynak 1998, "Optical recognition of handwritten digits", UCI; test part.
    """
    check_split(split)
    if not 1 <= validation_size < _NUM_IMAGES:
        raise ValueError(
            f"validation_size={validation_size}: both splits need images. Choose from 1 to {_NUM_IMAGES - 1}."
        )
    images, labels = _all_images()
    permutation = SampleOrder(_NUM_IMAGES, seed=_SPLIT_SEED).ids(0, _NUM_IMAGES)
    chosen = permutation[:-validation_size] if split == "train" else permutation[-validation_size:]
    values = torch.from_numpy(images[chosen]).to(torch.float32).unsqueeze(1)
    return ArrayDataset(
        (values / 16 - DIGITS_MEAN) / DIGITS_STD, torch.from_numpy(labels[chosen]).to(torch.int64), num_classes=10
    )


@functools.cache
def _all_images() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Images [N, 8, 8] and labels [N], cached: parsing takes longer than a short run of a study. Splits are copies.

    Reads the file of `sklearn.datasets.load_digits` directly, with the same values: importing scikit-learn, with
    SciPy's statistics and pandas, would add two seconds to the start of every process.
    """
    found = importlib.util.find_spec("sklearn")
    assert found is not None
    assert found.origin is not None
    values = np.loadtxt(Path(found.origin).parent / _FILE, delimiter=",")
    return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
