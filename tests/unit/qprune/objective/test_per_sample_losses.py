"""Losses per sample, in nats."""

import pytest
import torch
from torch.nn import functional

from qprune.errors import CalibrationError
from qprune.objective.losses import DenseOutputs, Labels, PerSample


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)


def divergence(dense, ours):
    p, q = dense.double().softmax(-1), ours.double().softmax(-1)
    return (p * (p.log() - q.log())).sum(-1)


def test_the_divergence_and_its_sign(logits):
    ours, dense = logits
    losses = DenseOutputs().per_sample(ours, dense)
    torch.testing.assert_close(losses.double(), divergence(dense, ours))
    assert (losses > 0).all()
    assert not torch.allclose(losses, DenseOutputs().per_sample(dense, ours))


def test_the_divergence_is_zero_and_flat_at_the_dense_outputs(logits):
    dense = logits[1]
    # A constant added to all logits changes no distribution.
    outputs = (dense + 3.0).requires_grad_()
    losses = DenseOutputs().per_sample(outputs, dense)
    torch.testing.assert_close(losses, torch.zeros(6), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(losses.sum(), outputs)
    torch.testing.assert_close(gradient, torch.zeros(6, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5, 4), -1), ((3, 4, 2, 5), 1)])
def test_losses_of_tokens_and_pixels_are_means_over_them(shape, dim):
    generator = torch.Generator().manual_seed(0)
    ours, dense = (torch.randn(shape, generator=generator) for _ in range(2))
    last = ours.movedim(dim, -1)
    wanted = divergence(dense.movedim(dim, -1), last).flatten(1).mean(1)
    torch.testing.assert_close(DenseOutputs().per_sample(ours, dense).double(), wanted)
    labels = torch.randint(0, 4, last.shape[:-1], generator=generator)
    nll = -last.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(Labels().per_sample(ours, labels), nll.flatten(1).mean(1))


def test_labels_are_cross_entropy(logits):
    labels = torch.tensor([0, 3, 1, 1, 2, 0])
    wanted = functional.cross_entropy(logits[0], labels, reduction="none")
    torch.testing.assert_close(Labels().per_sample(logits[0], labels), wanted)
    torch.testing.assert_close(Labels().per_sample(logits[0], labels[:, None]), wanted)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3)])
def test_the_scale_is_refitted_to_its_best(shape):
    generator = torch.Generator().manual_seed(1)
    dense = 6 * torch.randn(shape, generator=generator)
    ours = 0.2 * dense + 0.3 * torch.randn(shape, generator=generator)
    fitted = DenseOutputs().refit(ours, dense)
    assert 1.0 < fitted.scale < 64.0

    def mean(scale):
        return DenseOutputs(scale=scale).per_sample(ours.double(), dense.double()).mean()

    for factor in (0.9, 0.99, 1.01, 1.1):
        assert mean(fitted.scale) < mean(fitted.scale * factor)


def test_the_scale_stays_within_its_limits(logits):
    ours, dense = logits
    assert DenseOutputs().refit(100 * dense, dense).scale == 1.0
    assert DenseOutputs().refit(dense, dense).scale == pytest.approx(1.0)
    assert DenseOutputs().refit(1e-6 * dense, dense).scale == 64.0
    assert DenseOutputs().refit(0 * ours, dense).scale <= 64.0


def test_when_the_scale_is_fitted(logits):
    small, dense = 0.1 * logits[1], logits[1]
    for asked, values_move, fitted in [
        (None, False, True),
        (None, True, False),
        (True, True, True),
        (False, False, False),
    ]:
        loss = DenseOutputs(fit_scale=asked)
        assert loss.fits(values_move=values_move) == fitted
        assert loss.refit(small, dense).scale > 5
        assert loss.refit(small, dense).fit_scale is asked


def test_sampled_losses_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0]]).repeat(20_000, 1)
    losses = DenseOutputs().sampled(logits, torch.Generator().manual_seed(0))
    nll = -logits[0].log_softmax(-1)
    shares = torch.stack([(losses - value).abs() < 1e-5 for value in nll]).float().mean(1)
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.01, rtol=0)
    again = DenseOutputs().sampled(logits, torch.Generator().manual_seed(0))
    assert torch.equal(losses, again)


def test_sampled_losses_differ_between_tokens():
    logits = torch.zeros(3, 400, 2)
    logits[..., 0] = 1.0
    losses = DenseOutputs().sampled(logits, torch.Generator().manual_seed(0))
    # The sum of independent draws over the root of their number.
    spread = 400 * 0.5 / 400**0.5
    assert losses.shape == (3,)
    assert len(set(losses.tolist())) == 3
    assert (losses < 3 * spread).all()


def test_drawing_leaves_the_global_generator_alone(logits):
    before = torch.random.get_rng_state()
    Labels().sampled(logits[0], torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_loss_of_ones_own(logits):
    loss = PerSample(lambda outputs, targets: (outputs - targets).abs().sum(1))
    wanted = (logits[0] - logits[1]).abs().sum(1)
    torch.testing.assert_close(loss.per_sample(*logits), wanted)
    assert not loss.fits(values_move=False)
    assert loss.refit(*logits) is loss
    assert loss.needs_labels
    assert not PerSample(loss.function, needs_labels=False).needs_labels


def test_a_loss_that_took_the_mean(logits):
    loss = PerSample(functional.mse_loss)
    with pytest.raises(CalibrationError, match=r"one number per sample, shape \(6,\), not \(\)"):
        loss.per_sample(*logits)


def test_a_loss_without_a_distribution(logits):
    loss = PerSample(lambda outputs, targets: outputs.sum(1))
    with pytest.raises(CalibrationError, match="EmpiricalFisher"):
        loss.sampled(logits[0], torch.Generator())


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (torch.tensor([0, 1, 2, 3, 4, 0]), r"0\.\.3"),
        (torch.tensor([0, 1, 2, -1, 3, 0]), r"0\.\.3"),
        (torch.zeros(6, 4), "one label"),
        (torch.zeros(3, dtype=torch.long), "one label"),
    ],
)
def test_labels_that_do_not_fit(logits, labels, reason):
    with pytest.raises(CalibrationError, match=reason):
        Labels().per_sample(logits[0], labels)


@pytest.mark.parametrize("outputs", [torch.zeros(6), torch.zeros(6, 1)])
def test_outputs_that_are_no_distribution(outputs):
    with pytest.raises(CalibrationError, match="PerSample"):
        DenseOutputs().per_sample(outputs, outputs)
