"""Kinds of outputs: losses as torch has them, and curvatures that are the second derivative."""

import pytest
import torch
from torch.func import hessian
from torch.nn import functional

from qprune.data.outputs import Bernoulli, Classes, Real
from qprune.errors import CalibrationError
from qprune.objective.losses import DenseOutputs, Labels

GENERATOR = torch.Generator().manual_seed(0)


def outputs_of(kind, shape):
    """Random outputs of a kind, in float64."""
    numbers = torch.randn(shape, generator=GENERATOR, dtype=torch.float64)
    if isinstance(kind, Classes):
        return numbers if kind.logits else numbers.softmax(kind.dim)
    return numbers.sigmoid() if kind == Bernoulli(logits=False) else numbers


KINDS = {
    "classes": (Classes(-1, logits=True), (4,)),
    "log-probabilities": (Classes(-1, logits=True), (4,)),
    "tokens": (Classes(-1, logits=True), (3, 4)),
    "pixels": (Classes(1, logits=True), (3, 2, 2)),
    "probabilities": (Classes(-1, logits=False), (4,)),
    "probabilities of pixels": (Classes(1, logits=False), (3, 2, 2)),
    "sigmoids": (Bernoulli(logits=False), (5,)),
    "logits of sigmoids": (Bernoulli(logits=True), (5,)),
    "one logit": (Bernoulli(logits=True), ()),
    "real": (Real(), (3, 2)),
}


@pytest.mark.parametrize(("kind", "shape"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("how", ["sketched", "sampled"])
def test_the_mean_outer_product_is_the_second_derivative(kind, shape, how):
    loss = DenseOutputs(kind=kind)
    one = outputs_of(kind, (1, *shape))
    exact = hessian(lambda o: loss.per_sample(o, one).sum())(one).reshape(one.numel(), -1)
    draws = 40_000
    copies = one.repeat(draws, *[1] * len(shape)).requires_grad_()
    numbers = getattr(loss, how)(copies, torch.Generator().manual_seed(1))
    assert numbers.shape == (draws,)
    (rows,) = torch.autograd.grad(numbers.sum(), copies)
    rows = rows.reshape(draws, -1)
    products = rows[:, :, None] * rows[:, None, :]
    noise = products.std(0) / draws**0.5
    assert ((products.mean(0) - exact).abs() <= 5 * noise + 1e-9 * exact.abs().max()).all()
    assert exact.diagonal().min() > 0


@pytest.mark.parametrize(("kind", "shape"), KINDS.values(), ids=KINDS)
def test_the_divergence_is_smooth_and_zero_at_the_dense_outputs(kind, shape):
    loss = DenseOutputs(kind=kind)
    dense, ours = outputs_of(kind, (6, *shape)), outputs_of(kind, (6, *shape))
    torch.testing.assert_close(loss.per_sample(dense, dense), torch.zeros(6, dtype=torch.float64))
    assert (loss.per_sample(ours, dense) > 0).all()
    free = ours.requires_grad_()
    assert torch.autograd.gradcheck(lambda o: loss.per_sample(o, dense), free)
    assert torch.autograd.gradgradcheck(lambda o: loss.per_sample(o, dense), free)


def test_divergences_are_those_of_torchs_distributions():
    dense, ours = (torch.rand(6, 5, generator=GENERATOR) for _ in range(2))
    make = torch.distributions.Bernoulli
    wanted = torch.distributions.kl_divergence(make(dense), make(ours)).mean(1)
    found = DenseOutputs(kind=Bernoulli(logits=False)).per_sample(ours, dense)
    torch.testing.assert_close(found, wanted)
    found = DenseOutputs(kind=Bernoulli(logits=True)).per_sample(ours.logit(), dense.logit())
    torch.testing.assert_close(found, wanted)
    found = DenseOutputs(kind=Real()).per_sample(ours, dense)
    torch.testing.assert_close(found, (ours - dense).square().mean(1))


def test_probabilities_and_their_logits_have_one_loss():
    ours, dense = (torch.randn(6, 4, 3, 3, generator=GENERATOR) for _ in range(2))
    logits, shares = DenseOutputs(kind=Classes(1, True)), DenseOutputs(kind=Classes(1, False))
    torch.testing.assert_close(
        shares.per_sample(ours.softmax(1), dense.softmax(1)), logits.per_sample(ours, dense)
    )
    torch.testing.assert_close(
        logits.per_sample(ours.log_softmax(1), dense.log_softmax(1)),
        logits.per_sample(ours, dense),
    )
    scaled = shares.refit((0.2 * dense).softmax(1), dense.softmax(1))
    assert scaled.scale == pytest.approx(5.0, rel=1e-3)
    assert scaled.fits(values_move=False)
    for kind in (Real(), Bernoulli()):
        assert not DenseOutputs(fit_scale=True, kind=kind).fits(values_move=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [Classes(-1, False), Bernoulli(False)], ids=str)
def test_certain_outputs_have_finite_derivatives(dtype, kind):
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=dtype)
    free = certain.flip(0).requires_grad_()
    loss = DenseOutputs(kind=kind)
    (slope,) = torch.autograd.grad(loss.per_sample(free, certain).sum(), free, create_graph=True)
    (curved,) = torch.autograd.grad(slope.sum(), free)
    assert loss.per_sample(free, certain).dtype == torch.float32
    for numbers in (loss.per_sample(free, certain), slope, curved):
        assert torch.isfinite(numbers).all()


SHAPES = {
    "classes": (Classes(), functional.cross_entropy, (7, 4), (7,)),
    "tokens": (
        Classes(-1, True),
        lambda o, t: functional.cross_entropy(o.mT, t),
        (7, 5, 4),
        (7, 5),
    ),
    "pixels": (Classes(), functional.cross_entropy, (7, 4, 3, 2), (7, 3, 2)),
    "shares": (
        Classes(-1, False),
        lambda o, t: functional.nll_loss(o.log(), t),
        (7, 4),
        (7,),
    ),
    "sigmoids": (Bernoulli(False), functional.binary_cross_entropy, (7, 4), (7, 4)),
    "logits": (Bernoulli(), functional.binary_cross_entropy_with_logits, (7, 4), (7, 4)),
    "real": (Real(), functional.mse_loss, (7, 4, 2), (7, 4, 2)),
}


@pytest.mark.parametrize(("kind", "theirs", "shape", "labelled"), SHAPES.values(), ids=SHAPES)
def test_losses_and_gradients_against_labels_are_torchs(kind, theirs, shape, labelled):
    outputs = outputs_of(kind.seen(torch.randn(shape), None), shape)
    labels = torch.randint(0, 2 if isinstance(kind, Bernoulli) else 4, labelled).to(
        torch.int64 if isinstance(kind, Classes) else torch.float64
    )
    gradients = []
    for function in (theirs, lambda o, t: Labels(kind).per_sample(o, t).mean()):
        free = outputs.clone().requires_grad_()
        # Probabilities move along their sum of 1 alone.
        loss = function(free.softmax(-1) if kind == Classes(-1, False) else free, labels)
        gradients.append((loss, *torch.autograd.grad(loss, free)))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_targets_of_one_column_are_not_spread_over_samples():
    outputs, targets = torch.randn(7, 1), torch.randn(7)
    wanted = (outputs[:, 0] - targets) ** 2
    torch.testing.assert_close(Labels(Real()).per_sample(outputs, targets), wanted)
    torch.testing.assert_close(Labels(Real()).per_sample(outputs[:, 0], targets[:, None]), wanted)


def test_labels_that_are_distributions():
    outputs, shares = torch.randn(7, 4), torch.randn(7, 4).softmax(1)
    wanted = functional.cross_entropy(outputs, shares, reduction="none")
    torch.testing.assert_close(Labels().per_sample(outputs, shares), wanted)


@pytest.mark.parametrize(
    ("kind", "shape", "labels", "reason"),
    [
        (Real(), (6, 4), torch.zeros(6), r"\(6,\) do not fit outputs of shape \(6, 4\)"),
        (Real(), (6, 4, 3), torch.zeros(6, 3, 4), "do not fit"),
        (Real(), (6, 2), torch.zeros(3, 4), "do not fit"),
        (Bernoulli(), (6, 2), torch.full((6, 2), 2), "between 0 and 1"),
        (Bernoulli(), (6, 2), torch.full((6, 2), -1.0), "between 0 and 1"),
        (Classes(), (6, 4), torch.full((6,), 0.5), "fractions"),
        (Classes(), (6, 4), torch.full((6,), -99), r"0\.\.3"),
        (Classes(), (6, 4, 5, 3), torch.zeros(6, 3, 5).long(), "do not fit"),
    ],
)
def test_labels_of_another_kind(kind, shape, labels, reason):
    with pytest.raises(CalibrationError, match=reason):
        Labels(kind).per_sample(torch.randn(shape), labels)


def test_ignored_labels_neither_add_nor_divide():
    logits, labels = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    labels[0, 1:], labels[1] = -100, -100
    losses = Labels().per_sample(logits, labels)
    nll = functional.cross_entropy(logits.mT, labels, reduction="none")
    wanted = torch.stack([nll[0, 0], torch.tensor(0.0), nll[2].mean()])
    torch.testing.assert_close(losses, wanted)
    torch.testing.assert_close(losses[0], functional.cross_entropy(logits[0], labels[0]))
    labels[2, 0], labels[2, 1] = -1, 4
    with pytest.raises(CalibrationError, match=r"0\.\.4.* run from -1 to 4"):
        Labels().per_sample(logits, labels)


def test_ignored_labels_have_no_curvature():
    logits = torch.randn(1, 4, 5, dtype=torch.float64)
    labels = torch.tensor([[2, -100, -100, 1]])
    short = logits[:, [0, 3]]
    exact = hessian(lambda o: Labels().per_sample(o, labels).sum())(logits).reshape(20, 20)
    copies = logits.repeat(20_000, 1, 1).requires_grad_()
    for how in ("sketched", "sampled"):
        generator = torch.Generator().manual_seed(0)
        numbers = getattr(Labels(), how)(copies, generator, labels.repeat(20_000, 1))
        (rows,) = torch.autograd.grad(numbers.sum(), copies)
        assert not rows[:, 1:3].any()
        found = rows.reshape(20_000, 20).T @ rows.reshape(20_000, 20) / 20_000
        torch.testing.assert_close(found, exact, atol=0.02, rtol=0)
    assert Labels().per_sample(short, labels[:, [0, 3]]) == Labels().per_sample(logits, labels)


def test_binary_labels_can_be_ignored_too():
    outputs, labels = torch.randn(3, 2), torch.tensor([[1, -100], [0, 1], [-100, -100]])
    nll = functional.binary_cross_entropy_with_logits(
        outputs, labels.clamp(min=0).float(), reduction="none"
    )
    wanted = torch.stack([nll[0, 0], nll[1].mean(), torch.tensor(0.0)])
    torch.testing.assert_close(Labels(Bernoulli()).per_sample(outputs, labels), wanted)
    assert Labels(Bernoulli()).right(outputs, labels).numel() == 3


def test_what_is_right():
    shares = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
    labels = torch.tensor([1, 1, -100])
    assert Labels(Classes(-1, False)).right(shares, labels).tolist() == [True, False]
    answers = Labels(Bernoulli(False)).right(shares, torch.tensor([[0, 1], [0, 0], [1, 1]]))
    assert answers.tolist() == [True, True, False, True, True, False]
    assert Labels(Real()).right(shares, shares) is None
