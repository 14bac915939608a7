"""Losses by name and as torch has them, options included."""

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional

import qprune
from qprune.data.calibration import Calibration
from qprune.data.outputs import Bernoulli, Classes, Real
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.objective.loss_names import LOSSES, as_loss
from qprune.objective.losses import DenseOutputs, Labels, PerSample
from qprune.objective.samples import counted_samples

CLASSES = Labels(Classes(logits=True))
SQUARES = Labels(Real(), or_dense=True)
SIGMOIDS = Labels(Bernoulli(False), or_dense=True)
LOGITS = Labels(Bernoulli(True), or_dense=True)
OWN = PerSample(lambda outputs, targets: outputs.sum(1))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (None, DenseOutputs()),
        ("dense", DenseOutputs()),
        ("cross-entropy", Labels(Classes())),
        ("mse", SQUARES),
        ("bce", Labels(Bernoulli(), or_dense=True)),
        (nn.CrossEntropyLoss(), CLASSES),
        (nn.CrossEntropyLoss, CLASSES),
        (functional.cross_entropy, CLASSES),
        (nn.CrossEntropyLoss(ignore_index=0), Labels(Classes(logits=True), ignored=0)),
        (nn.CrossEntropyLoss(reduction="none"), CLASSES),
        (nn.NLLLoss(), CLASSES),
        (functional.nll_loss, CLASSES),
        (nn.MSELoss(), SQUARES),
        (functional.mse_loss, SQUARES),
        (nn.BCELoss(), SIGMOIDS),
        (functional.binary_cross_entropy, SIGMOIDS),
        (nn.BCEWithLogitsLoss(), LOGITS),
        (functional.binary_cross_entropy_with_logits, LOGITS),
        (DenseOutputs(scale=2.0), DenseOutputs(scale=2.0)),
        (Labels, Labels()),
        (OWN, OWN),
        (OWN.function, OWN),
    ],
)
def test_what_is_meant(given, meant):
    assert as_loss(given) == meant


ANSWERS = torch.randint(0, 2, (7, 4), generator=torch.Generator().manual_seed(0)).float()
PIXELS = torch.randint(0, 4, (7, 3, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("module", "targets", "per_sample"),
    [
        (nn.L1Loss(), torch.zeros(7, 4), None),
        (nn.SmoothL1Loss(beta=0.3), torch.zeros(7, 4), None),
        (nn.HuberLoss(delta=0.5), torch.zeros(7, 4), None),
        (nn.PoissonNLLLoss(), torch.ones(7, 4), None),
        (nn.MultiLabelSoftMarginLoss(), ANSWERS, None),
        (nn.MultiMarginLoss(), torch.arange(7) % 4, None),
        (nn.CrossEntropyLoss(label_smoothing=0.1), torch.arange(7) % 4, None),
        (nn.CrossEntropyLoss(label_smoothing=0.1), PIXELS, None),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])), ANSWERS, None),
        (nn.KLDivLoss(reduction="batchmean"), torch.rand(7, 4), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_other_losses_are_means_of_samples(module, targets, per_sample, dtype):
    shape = (7, 4, 3, 3) if targets is PIXELS else (7, 4)
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    loss = as_loss(module)
    assert isinstance(loss, PerSample)
    found = loss.per_sample(outputs, targets)
    assert found.shape == (7,)
    torch.testing.assert_close(found.mean(), module.to(dtype)(outputs, targets))
    module.float()


def test_weights_of_classes_multiply():
    weight = torch.tensor([1.0, 2.0, 0.5, 4.0])
    outputs, labels = torch.randn(7, 4, 3), torch.arange(21).view(7, 3) % 4
    labels[0, 1:] = 2
    module = nn.CrossEntropyLoss(weight, ignore_index=2)
    loss = as_loss(module)
    each = functional.cross_entropy(outputs, labels, weight, reduction="none", ignore_index=2)
    wanted = each.sum(1) / (labels != 2).sum(1)
    torch.testing.assert_close(loss.per_sample(outputs, labels), wanted)
    torch.testing.assert_close(loss.per_sample(outputs.double(), labels), wanted.double())
    assert loss.ignored == 2
    # The object that was given is as it was.
    assert module.reduction == "mean"
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("crossentropy", "did you mean 'cross-entropy'"),
        ("labels", "there are: dense, cross-entropy, mse, bce"),
        (3, "not 3"),
        (nn.MSELoss(reduction="sum"), "reduction"),
        (nn.TripletMarginWithDistanceLoss(reduction="sum"), "reduction"),
        (nn.Linear, "without arguments"),
        (type("Old", (), {"per_sample": None, "needs_labels": False})(), "no has_distribution"),
    ],
)
def test_what_is_no_loss(given, reason):
    with pytest.raises(ImpossibleRequestError, match=reason) as refusal:
        as_loss(given)
    assert "\n" not in str(refusal.value)


def test_names_without_labels():
    outputs = torch.randn(5, 1)
    assert as_loss("mse").resolved(outputs, None) == DenseOutputs(kind=Real())
    assert as_loss("bce").resolved(outputs, None) == DenseOutputs(kind=Bernoulli(True))
    # The run refuses it: "dense" is what it would be.
    assert as_loss("cross-entropy").resolved(torch.randn(5, 3), None).needs_labels


def test_losses_that_do_not_take_the_data_are_refused():
    with pytest.raises(ImpossibleRequestError, match=r"TypeError .* \(5, 3\) and targets"):
        as_loss(nn.MarginRankingLoss()).resolved(torch.randn(5, 3), torch.zeros(5))
    with pytest.raises(ImpossibleRequestError, match="no loss named 'mean"):
        as_loss("mean squared error")
    assert set(LOSSES) == {"dense", "cross-entropy", "mse", "bce"}


def test_a_loss_without_a_second_derivative_moves_weights_by_distillation(caplog):
    outputs, labels = torch.randn(5, 2), torch.zeros(5, 2)
    assert as_loss(nn.HuberLoss(delta=9.0)).resolved(outputs, labels).curved
    assert not as_loss(nn.L1Loss()).resolved(outputs, labels).curved
    data = torch.randn(40, 4), torch.randn(40, 3)
    options = {"sparsity": 0.5, "method": qprune.Networkwise(stages=1, rounds=0, block_size=4)}
    steps = qprune.prune(nn.Linear(4, 3), data, loss=nn.L1Loss(), **options).report.steps
    assert "moving them by Distillation()" in caplog.text
    assert any(step.kind == "compensate" and step.accepted for step in steps)


def test_a_loss_of_ones_own_takes_the_empirical_fisher(caplog):
    inputs, labels = torch.randn(40, 4), torch.randn(40, 3)
    method = qprune.Networkwise(stages=1, final_rounds=1, block_size=4)
    options = {"sparsity": 0.5, "method": method}
    with caplog.at_level(logging.INFO, logger="qprune"):
        found = qprune.prune(nn.Linear(4, 3), (inputs, labels), loss=nn.HuberLoss(), **options)
    assert found.report.settings["curvature"] == "EmpiricalFisher()"
    assert "the curvature is EmpiricalFisher()" in caplog.text
    found = qprune.prune(nn.Linear(4, 3), (inputs, labels), loss=nn.MSELoss(), **options)
    assert found.report.settings["curvature"] == "SketchedFisher()"


def test_samples_without_a_label_that_counts_are_left_out(caplog):
    data = Calibration(torch.arange(12.0).view(6, 2), torch.tensor([0, -100, 1, 2, -100, 0]))
    with caplog.at_level(logging.INFO, logger="qprune"):
        kept = counted_samples(data, Labels())
    assert kept.inputs[:, 0].tolist() == [0.0, 4.0, 6.0, 10.0]
    assert "2 of 6 samples are left out" in caplog.text
    assert counted_samples(data, DenseOutputs()) is data
    tokens = Calibration(torch.zeros(2, 3), torch.tensor([[-100, -100, 1], [-100, -100, -100]]))
    assert len(counted_samples(tokens, Labels())) == 1
    with pytest.raises(CalibrationError, match="all 1 calibration samples"):
        counted_samples(tokens.take(torch.tensor([1])), Labels())
