"""Reference models of large-batch training, and small ones whose experiments take seconds."""

from largebatch.models.checkpointing import checkpoint_activations
from largebatch.models.convnet import ConvNet
from largebatch.models.freezing import freeze
from largebatch.models.gpt import GPT
from largebatch.models.hugging_face import hugging_face
from largebatch.models.linear import Linear
from largebatch.models.mlp import MLP
from largebatch.models.quadratic import Quadratic
from largebatch.models.resnet import ResNet, resnet18, resnet50
from largebatch.models.start_weights import fit_weights
from largebatch.models.two_views import TwoViews

__all__ = [
    "GPT",
    "MLP",
    "ConvNet",
    "Linear",
    "Quadratic",
    "ResNet",
    "TwoViews",
    "checkpoint_activations",
    "fit_weights",
    "freeze",
    "hugging_face",
    "resnet18",
    "resnet50",
]
