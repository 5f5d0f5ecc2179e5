"""Data sets, and the micro-batches that a rank computes."""

from __future__ import annotations

from largebatch.data.array import ArrayDataset
from largebatch.data.augmentation import Augmentation
from largebatch.data.checked_labels import CheckedLabels, with_checked_labels
from largebatch.data.collation import Collated
from largebatch.data.digits import digits
from largebatch.data.drawn import DrawnImages, DrawnTokens
from largebatch.data.errors import DataError
from largebatch.data.folder import image_folder
from largebatch.data.images import hub_images, parquet_images
from largebatch.data.iterables import StreamSamples
from largebatch.data.label_noise import NoisyLabels
from largebatch.data.loader import EvaluationLoader, MicroBatchLoader, evaluation_batches
from largebatch.data.masked_words import MaskedWords
from largebatch.data.micro_batch import MicroBatchData
from largebatch.data.mixing import Mixing
from largebatch.data.probing import changing_samples, form_of_most, notes_of_items
from largebatch.data.resized_crop import RandomResizedCrop, with_random_crops
from largebatch.data.samplers import GlobalBatchSampler, OrderSampler
from largebatch.data.samples import Screen, as_sample
from largebatch.data.saved_datasets import saved_dataset
from largebatch.data.screened import ScreenedSamples
from largebatch.data.solvable import linear_regression, noisy_quadratic
from largebatch.data.streams import token_stream
from largebatch.data.subset import FirstSamples
from largebatch.data.synthetic import masked_tokens, paired_views, random_classification
from largebatch.data.tokens import TokenWindows
from largebatch.data.transforms import TransformedSamples
from largebatch.data.views import SeveralViews

__all__ = [
    "ArrayDataset",
    "Augmentation",
    "CheckedLabels",
    "Collated",
    "DataError",
    "DrawnImages",
    "DrawnTokens",
    "EvaluationLoader",
    "FirstSamples",
    "GlobalBatchSampler",
    "MaskedWords",
    "MicroBatchData",
    "MicroBatchLoader",
    "Mixing",
    "NoisyLabels",
    "OrderSampler",
    "RandomResizedCrop",
    "Screen",
    "ScreenedSamples",
    "SeveralViews",
    "StreamSamples",
    "TokenWindows",
    "TransformedSamples",
    "as_sample",
    "changing_samples",
    "digits",
    "evaluation_batches",
    "form_of_most",
    "hub_images",
    "image_folder",
    "linear_regression",
    "masked_tokens",
    "noisy_quadratic",
    "notes_of_items",
    "paired_views",
    "parquet_images",
    "random_classification",
    "saved_dataset",
    "token_stream",
    "with_checked_labels",
    "with_random_crops",
]
