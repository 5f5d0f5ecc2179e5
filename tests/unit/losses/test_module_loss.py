"""Losses of torch and modules like them: training minimises what they mean themselves, over the whole global batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from largebatch.experiments.verify.trajectories import units_by_own_mean
from largebatch.losses import CrossEntropy, LabelRule, ModuleLoss, NextToken, require_labels, scored

pytestmark = pytest.mark.quick

WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.25, 3.0])
CUT = [slice(0, 4), slice(4, 7), slice(7, 8)]  # ragged micro-batches


def logits(*rest: int) -> Tensor:
    return torch.randn(8, 5, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def classes(*rest: int) -> Tensor:
    labels = torch.randint(5, (8, *rest), generator=torch.Generator().manual_seed(2))
    labels.view(-1)[[1, 4, 6]] = -100
    return labels


def shares(*rest: int) -> Tensor:
    return torch.rand(8, 5, *rest, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Focal(nn.Module):
    """As it is found in public repositories: weights, and a mean over samples."""

    def __init__(
        self, reduction: str = "mean", *, divides_by_positives: bool = False, ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.reduction, self.divides_by_positives, self.ignore_index = reduction, divides_by_positives, ignore_index
        self.register_buffer("alpha", WEIGHT)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        alpha = self.alpha.to(inputs.dtype)
        loss = F.cross_entropy(inputs, targets, weight=alpha, reduction="none", ignore_index=self.ignore_index)
        loss = (1 - torch.exp(-loss)) ** 2 * loss
        if self.reduction == "none":
            return loss
        if self.divides_by_positives:
            return loss.sum() / (targets > 1).sum()
        return loss.sum() / (targets != self.ignore_index).sum()


MODULES = [
    (nn.CrossEntropyLoss(), logits(), classes()),
    (nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1), logits(), classes()),
    (nn.CrossEntropyLoss(ignore_index=2), logits(), classes().clamp(min=0)),
    (nn.CrossEntropyLoss(weight=WEIGHT), logits(3, 2), classes(3, 2)),
    (nn.CrossEntropyLoss(label_smoothing=0.2), logits(), shares() / shares().sum(dim=1, keepdim=True)),
    (nn.CrossEntropyLoss(weight=WEIGHT), logits(3), shares(3)),
    (nn.NLLLoss(weight=WEIGHT), logits().log_softmax(dim=1), classes()),
    (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), logits(), shares()),
    (nn.BCEWithLogitsLoss(weight=WEIGHT), logits(), (shares() > 0.5).long()),
    (nn.BCEWithLogitsLoss(), logits()[:, :1], (shares()[:, 0] > 0.5).double()),
    (nn.BCELoss(), logits().sigmoid(), shares()),
    (nn.MSELoss(), logits(), shares()),
    (nn.L1Loss(), logits(), shares().float()),
    (nn.HuberLoss(delta=0.3), logits(), shares()),
    (nn.SmoothL1Loss(), logits(), shares()),
    (nn.PoissonNLLLoss(), logits(), shares()),
    (nn.KLDivLoss(reduction="batchmean"), logits().log_softmax(dim=1), shares()),
    (nn.MultiMarginLoss(), logits(), classes().clamp(min=0)),
    (nn.MultiLabelSoftMarginLoss(), logits(), (shares() > 0.5).double()),
    (Focal(), logits(), classes()),
]


@pytest.mark.parametrize(
    ("module", "outputs", "targets"), MODULES, ids=[f"{number} {one[0]}" for number, one in enumerate(MODULES)]
)
def test_sums_of_ragged_parts_over_their_units_are_the_modules_own_mean_and_gradient(
    module: nn.Module, outputs: Tensor, targets: Tensor
) -> None:
    outputs = outputs.clone().requires_grad_()
    loss = ModuleLoss(module)
    loss.examine(outputs, targets)
    total = sum(loss.loss_per_sample(outputs[part], targets[part]).sum() for part in CUT)
    units = sum(float(loss.units_per_sample(targets[part]).sum()) for part in CUT)
    (ours,) = torch.autograd.grad(total / units, outputs)
    given = targets if targets.dim() == 1 and targets.dtype == torch.int64 else targets.reshape(-1, *targets.shape[1:])
    if not isinstance(module, (nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss, Focal)):
        given = targets.reshape(outputs.shape).double()
    own = module.double()(outputs, given)
    (theirs,) = torch.autograd.grad(own, outputs)
    # 8 to 48 terms of order 1 in float64, and weights that were written in float32.
    assert (total / units).item() == pytest.approx(own.item(), rel=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


def test_class_weights_of_ours_are_torchs() -> None:
    for loss, outputs, targets in (
        (CrossEntropy(0.1, weight=WEIGHT.tolist()), logits(), classes()),
        (CrossEntropy(weight=WEIGHT.tolist(), ignore_index=2), logits(4), classes(4).clamp(min=0)),
        (NextToken(weight=WEIGHT.tolist(), label_smoothing=0.1), logits(4).transpose(1, 2), classes(4)),
    ):
        scores = outputs.transpose(1, 2) if isinstance(loss, NextToken) else outputs
        own = F.cross_entropy(
            scores,
            targets,
            weight=WEIGHT.double(),
            ignore_index=loss.ignore_index,
            label_smoothing=loss.label_smoothing,
        )
        ours = loss.loss_per_sample(outputs, targets).sum() / loss.units_per_sample(targets).sum()
        assert float(ours) == pytest.approx(float(own), rel=1e-12)
        assert not loss.fixed_units


class Miscounting(CrossEntropy):
    """As the loss was before labels could be left out."""

    def units_per_sample(self, targets: Tensor) -> Tensor:
        return torch.ones(len(targets), dtype=torch.int64)


def test_verify_divides_by_the_mean_of_torch_and_not_by_what_the_loss_counts() -> None:
    assert units_by_own_mean(Miscounting(), logits(), classes()) == pytest.approx(5, rel=1e-12)
    outputs, targets = logits(4).transpose(1, 2), classes(4)
    for loss, given, labels in (
        (CrossEntropy(0.1, weight=WEIGHT.tolist()), logits(3, 2), classes(3, 2)),
        (CrossEntropy(ignore_index=None), logits(), classes().clamp(min=0)),
        (CrossEntropy(weight=WEIGHT.tolist()), logits(3), shares(3)),
        (ModuleLoss(nn.NLLLoss(weight=WEIGHT)), logits().log_softmax(dim=1), classes()),
        (NextToken(shift=True, label_smoothing=0.1), outputs, targets),
        (NextToken(weight=WEIGHT.tolist()), outputs, targets),
        (NextToken(), outputs, torch.full_like(targets, -100)),
    ):
        counted = float(loss.units_per_sample(labels).sum())
        assert units_by_own_mean(loss, given, labels) == pytest.approx(counted, rel=1e-12)


def test_accuracy_counts_labels_and_not_their_weights() -> None:
    outputs = F.one_hot(torch.tensor([0, 1, 2, 3]), 5).double()
    targets = torch.tensor([0, 1, 0, -100])
    for loss in (CrossEntropy(weight=WEIGHT.tolist()), ModuleLoss(nn.CrossEntropyLoss(weight=WEIGHT))):
        assert loss.correct_per_sample(outputs, targets).tolist() == [1, 1, 0, 0]
        assert loss.counted_per_sample(targets).tolist() == [1, 1, 1, 0]
        assert loss.units_per_sample(targets).tolist() == [0.5, 2.0, 0.5, 0.0]
    binary = ModuleLoss(nn.BCEWithLogitsLoss())
    assert binary.correct_per_sample(torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1])).tolist() == [1, 0]


def test_integers_of_any_width_are_class_numbers_as_torch_takes_int64() -> None:
    labels = torch.tensor([0, 3, 4, 1, 1, 2, 0, 3])
    expected = CrossEntropy().loss_per_sample(logits(), labels)
    for kind in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(CrossEntropy().loss_per_sample(logits(), labels.to(kind)), expected)
        assert torch.equal(ModuleLoss(nn.CrossEntropyLoss()).loss_per_sample(logits(), labels.to(kind)), expected)


def test_measurements_are_without_smoothing() -> None:
    plain = ModuleLoss(nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.3)).without_smoothing()
    expected = F.cross_entropy(logits(), classes(), weight=WEIGHT.double(), reduction="none")
    torch.testing.assert_close(plain.loss_per_sample(logits(), classes()), expected)
    sharp = ModuleLoss(nn.CrossEntropyLoss())
    assert sharp.without_smoothing() is sharp


class Coupled(nn.Module):
    """Standardises over the micro-batch."""

    reduction = "mean"

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        loss = ((inputs - inputs.mean(dim=0)) ** 2).sum(dim=1)
        return loss if self.reduction == "none" else loss.mean()


class Moving(Coupled):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        loss = inputs.square().sum(dim=1)
        return loss if self.reduction == "none" else loss.mean()


class Deaf(nn.Module):
    """Has a reduction and does not ask it."""

    reduction = "mean"

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        return inputs.square().mean()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Focal(divides_by_positives=True), "its divisor cannot be determined"),
        (Coupled(), "depends on the others of its micro-batch"),
        (Moving(), "changes its calls"),
        (Deaf(), r"returned \[\] for 8 samples"),
    ],
)
def test_a_module_that_is_no_mean_over_samples_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModuleLoss(module).examine(logits(), classes().clamp(min=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModuleLoss(nn.MSELoss(reduction="sum")), "reduction='sum'.*reduction=mean"),
        (lambda: ModuleLoss(nn.L1Loss(reduction="none")), "must define that mean"),
        (lambda: ModuleLoss(nn.AdaptiveLogSoftmaxWithLoss(4, 8, [2])), "reduction='None'"),
        (lambda: CrossEntropy(weight=[1.0, -1.0]), "number >= 0 per class"),
        (
            lambda: CrossEntropy(weight=[1.0, 2.0]).loss_per_sample(logits(), classes()),
            "2 numbers, the model 5 outputs",
        ),
        (lambda: ModuleLoss(nn.MSELoss()).loss_per_sample(logits(), shares()[:, :1]), "both need the same shape"),
        (lambda: CrossEntropy().loss_per_sample(logits(), classes().bool()), r"torch.bool.*\.long\(\)"),
        (lambda: CrossEntropy().loss_per_sample(logits(), F.one_hot(torch.arange(8) % 5, 5)), "class probabilities"),
        (lambda: CrossEntropy().loss_per_sample(torch.zeros(2, 6, 9), classes(6)[:2]), "loss=per_token"),
        (
            lambda: CrossEntropy().examine(logits(), torch.eye(8)[:, :5].roll(1, 1) + 1),
            "range from 5 to 6 and must be 1.*BCE",
        ),
    ],
)
def test_what_is_no_mean_or_does_not_fit_is_refused_with_the_remedy(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            CrossEntropy(),
            [0, 1, 5, 2],
            r"sample 30: the label 5 is none of the 5 classes, 0 to 4.*If labels start at 1",
        ),
        (CrossEntropy(), [0, 1, -1, 2], r"sample 30: the label -1 .*-100 for none.*loss.ignore_index"),
        (CrossEntropy(ignore_index=None), [0, -100, 1, 2], "sample 20: the label -100"),
        (ModuleLoss(nn.CrossEntropyLoss(ignore_index=-1)), [0, -1, 1, 77], "sample 40: the label 77"),
        (ModuleLoss(nn.MultiMarginLoss()), [9, 0, 1, 2], "sample 10: the label 9"),
    ],
)
def test_a_label_out_of_range_names_sample_value_and_range(loss: Any, targets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(loss, logits()[:4], torch.tensor(targets), [10, 20, 30, 40])


def test_a_probability_out_of_range_is_told_where_torch_says_nothing() -> None:
    targets = shares()
    loss = ModuleLoss(nn.BCEWithLogitsLoss())
    assert torch.equal(scored(loss, logits(), targets, range(8)), loss.loss_per_sample(logits(), targets))
    targets[3, 1] = 2.0
    with pytest.raises(ValueError, match=r"sample 3: the label 2\.0 is not a probability"):
        scored(loss, logits(), targets, range(8))


def test_probabilities_in_few_digits_and_class_numbers_are_examined_without_a_word() -> None:
    for targets in (shares().softmax(1), shares(3).softmax(1).bfloat16(), classes(), classes(3, 3)):
        CrossEntropy().examine(logits(), targets)


def test_the_rule_of_labels_lets_probabilities_and_masked_labels_pass() -> None:
    assert LabelRule(4, -100).problem(classes()) is None
    assert LabelRule(4, -100).problem(shares()) is None
    require_labels(None, torch.tensor([10**6]), [0])
