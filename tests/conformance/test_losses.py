"""Every registered loss: a number for each sample, its gradient by finite differences."""

import pytest
import torch

from qprune.objective.loss_names import LOSSES

NAMES = sorted(LOSSES)
DRAWN = [name for name in NAMES if LOSSES[name].has_distribution]
TARGETS = {
    "cross-entropy": torch.tensor([0, 2, 1, 1]),
    "mse": torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "bce": torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]], dtype=torch.float64),
}


def case(name):
    """(loss, outputs, targets)"""
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = TARGETS.get(name)
    loss = LOSSES[name].resolved(outputs, labels)
    moved = outputs + 0.3 * torch.randn(
        4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    return loss, moved, labels if loss.needs_labels else outputs


@pytest.mark.parametrize("name", NAMES)
def test_one_finite_number_for_each_sample_whatever_the_others(name):
    loss, outputs, targets = case(name)
    each = loss.per_sample(outputs, targets)
    assert each.shape == (4,)
    assert torch.isfinite(each).all()
    alone = torch.cat([loss.per_sample(outputs[i : i + 1], targets[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(each, alone)


@pytest.mark.parametrize("name", NAMES)
def test_its_gradient_is_that_of_finite_differences(name):
    loss, outputs, targets = case(name)
    free = outputs.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss.per_sample(free, targets).sum(), free)
    step = 1e-6
    for index in ((0, 0), (2, 1), (3, 2)):
        changed = outputs.clone()
        changed[index] += step
        rise = (loss.per_sample(changed, targets) - loss.per_sample(outputs, targets)).sum() / step
        assert float(rise) == pytest.approx(float(slope[index]), abs=1e-4)


def test_the_dense_outputs_themselves_have_no_loss():
    loss, _, dense = case("dense")
    assert float(loss.per_sample(dense, dense).abs().max()) < 1e-12


@pytest.mark.parametrize("name", DRAWN)
def test_sketched_gradients_are_the_gauss_newton_matrix_on_average(name):
    loss, outputs, targets = case(name)
    hessian = torch.autograd.functional.hessian(
        lambda o: loss.per_sample(o[None], targets[:1]).sum(), outputs[0]
    )
    generator, total = torch.Generator().manual_seed(0), torch.zeros(3, 3, dtype=torch.float64)
    draws = 4000
    for _ in range(draws):
        free = outputs[:1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss.sketched(free, generator, targets[:1]).sum(), free)
        total += slope[0][:, None] * slope[0] / draws
    assert float((total - hessian).norm() / hessian.norm()) < 0.1
