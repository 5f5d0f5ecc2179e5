"""The tables of the chapter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from largebatch.experiments.textbook.lesson.measured import Answers
from largebatch.records.report.html_parts import folded, table

_TRADE_OFF = (
    ("updates in an epoch", "many", "few", "N / B"),
    ("noise of the gradient", "large: wanders around the minimum", "small: follows the slope", "sigma / root of B"),
    ("learning rate", "small", "large, with warmup", "linear for SGD, root for Adam"),
    ("memory of activations", "little", "much; accumulate", "proportional to the micro-batch"),
    ("devices", "idle between small kernels", "busy", "B / (B + batch that doubles a step's time)"),
    ("communication", "once per few samples", "once per many", "1 / B per sample"),
    ("samples to a target", "fewest", "more beyond the noise scale", "E_min (1 + B / B_crit)"),
    ("generalization", "no worse", "may be worse; measure it", "`largebatch compare`"),
)
_SPECTRUM = (
    ("stochastic", "1", "N", "sigma", "one sample", "streams; tasks with little noise"),
    ("mini-batch", "32 to thousands", "N / B", "sigma / root of B", "B samples", "nearly everything"),
    ("batch", "N", "1", "none", "N samples, or N / B passes", "small sets; second-order methods"),
)
_RATES = (
    ("batch", "log(1 / eps)", "N log(1 / eps)", "multiplies the loss by (1 - lr h)^2 each step"),
    ("stochastic", "sigma^2 / eps", "sigma^2 / eps", "the rate must shrink with eps: noise sets a floor"),
    ("mini-batch", "sigma^2 / (B eps)", "sigma^2 / eps", "B times fewer steps, the same samples"),
)
# Critical batches of McCandlish et al. 2018 are those of table 1, averages over the run.
_FIELDS = (
    ("ImageNet, ResNet-50", "256 images; 8,192 with a warmup", "Goyal et al. 2017", "15,000 images, McCandlish"),
    ("CIFAR-10, ResNet", "128 images", "He et al. 2016", "900 images, McCandlish, another network"),
    ("detection, Mask R-CNN", "16 images", "He et al. 2017", ""),
    ("contrastive, SimCLR", "4,096 images", "Chen et al. 2020", ""),
    ("images and texts, CLIP", "32,768 pairs", "Radford et al. 2021", ""),
    ("diffusion, DDPM on CIFAR-10", "128 images", "Ho et al. 2020", ""),
    ("translation, Transformer", "25,000 tokens of each language", "Vaswani et al. 2017", ""),
    ("BERT", "256 sequences; 32,768 with LAMB", "Devlin et al. 2019; You et al. 2020", "12,800 sequences, atlas"),
    ("GPT-3 175B", "3.2 million tokens", "Brown et al. 2020", "16,200 sequences, atlas, extrapolated"),
    ("Atari, DQN", "32 transitions", "Mnih et al. 2015", "400 to 8,000 frames, McCandlish, policy gradients"),
)  # fmt: skip
_IN_USE = (
    "Batch sizes in use. The critical batch takes twice the fewest steps: McCandlish et al. 2018, or "
    "`largebatch study atlas`."
)
_DOUBLED = (
    ("variance of the gradient", "half"),
    ("its standard deviation", "1 / 1.41"),
    ("updates in an epoch", "half"),
    ("learning rate, linear rule (SGD)", "twice"),
    ("learning rate, root rule (Adam, LAMB)", "1.41 times"),
    ("steps to a target, far below the noise scale", "half"),
    ("steps to a target, far above it", "the same"),
    ("samples to a target, far above it", "twice"),
    ("limit of stability 2 (1 + m) / h", "the same"),
    ("the result, if only ranks or micro-batches change", "the same; `largebatch verify` proves it"),
)
_CLAIMS = (
    ("Mini-batches are closest to the minimum after the same epochs", "gd_variants"),
    ("Steps to a loss of eps: log(1/eps), sigma^2/eps, sigma^2/(B eps)", "convergence"),
    ("Descent diverges above 2 (1 + m) / h", "learning_rate"),
    ("The variance of the gradient is sigma^2 / B", "gradient_variance"),
    ("The mini-batch gradient is unbiased", "unbiasedness"),
    ("Accumulation gives the gradient of the large batch", "accumulation"),
    ("k times the batch, k times the rate", "linear_scaling"),
    ("A large rate needs a warmup", "warmup"),
    ("LARS holds accuracy at large batches", "lars"),
    ("Noise finds flatter minima, which generalize better", "noise_and_minima"),
    ("Momentum pays at large batches, averages at small ones", "quadratic_methods"),
    ("Powers of two are faster", "powers_of_two"),
)


def trade_off() -> str:
    """What a small and a large batch cost."""
    return _coded(("", "small batch", "large batch", "law"), _TRADE_OFF, "Core trade-off")


def reference_tables() -> str:
    """Spectrum, rates of convergence, batch sizes by field, and the summary."""
    spectrum = _coded(("variant", "batch", "updates in an epoch", "noise", "memory", "for"), _SPECTRUM,
                      "From stochastic to batch descent, N samples")  # fmt: skip
    rates = _coded(("variant", "steps to eps", "gradients of a sample", "why"), _RATES,
                   "Rates of convergence on a strongly convex loss")  # fmt: skip
    fields = _coded(("task", "batch", "source", "critical batch"), _FIELDS, _IN_USE)
    doubled = _coded(("of a batch twice as large", "is"), _DOUBLED, "Summary: double the batch")
    return doubled + spectrum + rates + fields


def claims(answers: Answers) -> str:
    """The claims of the chapter and what measurement says; without records, the command that measures."""
    rows = [(claim, f"`largebatch textbook {name}`", answers.cell(name)) for claim, name in _CLAIMS]
    return _coded(("claim of the textbook", "command", "measured"), rows, "")


def all_sources() -> str:
    """The papers that the tables and models rest on."""
    return folded("Sources", f"<ul>{''.join(f'<li>{one}</li>' for one in _SOURCES)}</ul>")


_SOURCES = (
    "Goyal et al. 2017, Accurate, Large Minibatch SGD: arXiv 1706.02677",
    "McCandlish et al. 2018, An Empirical Model of Large-Batch Training: arXiv 1812.06162",
    "Shallue et al. 2019, Measuring the Effects of Data Parallelism on Neural Network Training: arXiv 1811.03600",
    "Zhang et al. 2019, Which Algorithmic Choices Matter at Which Batch Sizes? (noisy quadratic): arXiv 1907.04164",
    "You et al. 2017, Large Batch Training of Convolutional Networks (LARS): arXiv 1708.03888",
    "You et al. 2020, Large Batch Optimization for Deep Learning (LAMB): arXiv 1904.00962",
)


def _coded(headers: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table whose backticks are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", table(headers, rows, caption=caption))
