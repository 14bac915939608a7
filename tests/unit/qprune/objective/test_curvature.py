"""Fisher, Gauss-Newton and exact Hessians against matrices formed the long way."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from qprune import Objective
from qprune.errors import CalibrationError, ImpossibleRequestError, NonFiniteError
from qprune.moving.compensate import Compensation, conjugate_gradients, gauss_newton
from qprune.network.weights import find_weights
from qprune.objective import (
    CURVATURES,
    EmpiricalFisher,
    ExactHessian,
    SampledFisher,
    SketchedFisher,
)
from qprune.objective.losses import DenseOutputs, Labels, PerSample
from qprune.objective.trace.recorder import Samples
from solvers import LowRank


class Small(nn.Module):
    """Two convolutions, one of them grouped and strided, and a Linear: 57 weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 2, 2)
        self.norm = nn.BatchNorm2d(2)
        self.second = nn.Conv2d(2, 4, 2, stride=2, groups=2)
        self.unused = nn.Linear(3, 3)
        self.last = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        x = torch.tanh(self.norm(self.first(x)))
        return self.last(torch.tanh(self.second(x)).mean((-2, -1)))


@pytest.fixture
def setup():
    torch.manual_seed(3)
    model = Small().eval()
    inputs = torch.randn(12, 1, 5, 5)
    with torch.no_grad():
        dense = model(inputs)
        for p in model.parameters():
            p.mul_(torch.rand_like(p) + 0.3)
    return model, find_weights(model), Samples(inputs, dense)


def expand(strategy, setup, loss=None, seed=0, batch_size=5):
    model, layers, samples = setup
    generator = torch.Generator().manual_seed(seed)
    loss = loss or DenseOutputs()
    return strategy.expand(Objective(model, layers, samples, loss, batch_size), generator)


def outputs_of_weights(setup):
    """flat weights (N,) -> outputs (m, classes), in float64."""
    model, layers, samples = setup
    rest = {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}

    def function(flat):
        parts = zip(layers, layers.split(flat), strict=True)
        own = {y.parameter_name: part.view_as(y.module.weight) for y, part in parts}
        return functional_call(model, rest | own, (samples.inputs.double(),))

    return function, layers.read().double()


def gauss_newton_matrix(setup, loss):
    """1/m sum_s J_s' C_s J_s with every matrix written out."""
    function, weights = outputs_of_weights(setup)
    targets = setup[2].targets.double()
    jacobian = torch.autograd.functional.jacobian(function, weights)
    outputs = function(weights).detach()
    total = torch.zeros(len(weights), len(weights), dtype=torch.double)
    for J, out, target in zip(jacobian.flatten(1, -2), outputs, targets, strict=True):
        C = torch.autograd.functional.hessian(
            lambda o, t=target: loss.per_sample(o[None], t[None]).sum(), out
        )
        total += J.T @ C.view(len(J), len(J)) @ J
    return total / len(outputs)


def test_the_exact_hessian_is_that_of_autograd(setup):
    function, weights = outputs_of_weights(setup)
    targets = setup[2].targets.double()
    loss = DenseOutputs(scale=1.7)

    def mean(flat):
        return loss.per_sample(function(flat), targets).mean()

    wanted = torch.autograd.functional.hessian(mean, weights)
    expansion = expand(ExactHessian(), setup, loss)
    everything = torch.arange(len(weights))
    hessian = expansion.curvature.blocks([everything])[0].dense()
    np.testing.assert_allclose(hessian, wanted.numpy(), atol=1e-9)
    some = torch.tensor([3, 1, 40])
    np.testing.assert_allclose(
        expansion.curvature.blocks([some])[0].dense(), wanted[some][:, some].numpy(), atol=1e-9
    )
    torch.testing.assert_close(expansion.diagonal, wanted.diagonal().clamp(min=0).float())
    assert expansion.loss == pytest.approx(mean(weights).item())


def test_the_exact_hessian_refuses_large_networks():
    model = nn.Linear(10, 5)
    setup = model, find_weights(model), Samples(torch.randn(4, 10), torch.randn(4, 5))
    with pytest.raises(ImpossibleRequestError, match=r"50 weights .*SketchedFisher"):
        expand(ExactHessian(max_weights=49), setup)


@pytest.mark.parametrize("strategy", CURVATURES.values(), ids=CURVATURES)
def test_value_and_gradient_are_those_of_the_mean_loss(strategy, setup):
    function, weights = outputs_of_weights(setup)
    weights.requires_grad_()
    loss = DenseOutputs().per_sample(function(weights), setup[2].targets.double()).mean()
    (gradient,) = torch.autograd.grad(loss, weights)
    expansion = expand(strategy, setup)
    assert expansion.loss == pytest.approx(loss.item(), rel=1e-4)
    torch.testing.assert_close(expansion.gradient, gradient.float(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("strategy", CURVATURES.values(), ids=CURVATURES)
def test_the_model_is_left_as_it_was(strategy, setup):
    model = setup[0]
    model.train()
    model.last.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expand(strategy, setup)
    assert model.training
    assert not model.last.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("strategy", [SketchedFisher(), SampledFisher(), EmpiricalFisher()])
def test_diagonal_and_blocks_agree(strategy, setup):
    expansion = expand(strategy, setup)
    everything = torch.arange(setup[1].size)
    whole = expansion.curvature.blocks([everything])[0]
    assert isinstance(whole, LowRank)
    assert whole.factor.shape == (12, setup[1].size)
    np.testing.assert_allclose(whole.diagonal(), expansion.diagonal.numpy(), rtol=1e-3, atol=1e-8)
    some = torch.tensor([2, 9, 30, 41])
    np.testing.assert_allclose(
        expansion.curvature.blocks([some])[0].dense(), whole.dense()[np.ix_(some, some)], atol=1e-8
    )


def test_the_empirical_fisher_is_the_mean_of_outer_products(setup):
    function, weights = outputs_of_weights(setup)
    targets = torch.randint(0, 3, (12,))
    labelled = setup[0], setup[1], Samples(setup[2].inputs, targets)
    G = torch.autograd.functional.jacobian(
        lambda flat: Labels().per_sample(function(flat), targets), weights
    )
    (fisher,) = expand(EmpiricalFisher(), labelled, Labels()).curvature.blocks(
        [torch.arange(len(weights))]
    )
    np.testing.assert_allclose(fisher.dense(), (G.T @ G / 12).numpy(), atol=1e-6)


def test_recomputed_traces_are_the_kept_ones(setup, monkeypatch):
    indices = torch.tensor([1, 20, 50])
    kept = expand(SampledFisher(), setup).curvature.blocks([indices])[0]
    monkeypatch.setattr("qprune.objective.fisher.KEEP_FLOATS", 10)
    recomputed = expand(SampledFisher(), setup).curvature.blocks([indices])[0]
    np.testing.assert_allclose(recomputed.factor, kept.factor)


def test_one_seed_one_draw_of_labels(setup):
    indices = torch.arange(setup[1].size)
    first, again, other = (
        expand(SampledFisher(), setup, seed=seed).curvature.blocks([indices])[0].factor
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_draws_do_not_depend_on_the_size_of_batches(setup):
    indices = torch.arange(setup[1].size)
    whole, pieces = (
        expand(SampledFisher(), setup, batch_size=size).curvature.blocks([indices])[0].factor
        for size in (12, 5)
    )
    np.testing.assert_allclose(pieces, whole, atol=1e-6)


@pytest.mark.parametrize("loss", [DenseOutputs(), DenseOutputs(scale=1.5)], ids=["plain", "scaled"])
@pytest.mark.parametrize("strategy", [SampledFisher(), SketchedFisher()], ids=["drawn", "signs"])
def test_fishers_are_the_gauss_newton_matrix_on_average(setup, loss, strategy):
    wanted = gauss_newton_matrix(setup, loss).numpy()
    indices = torch.arange(setup[1].size)
    draws = np.stack(
        [
            expand(strategy, setup, loss, seed, 12).curvature.blocks([indices])[0].dense()
            for seed in range(300)
        ]
    )
    error = np.abs(draws.mean(0) - wanted)
    spread = draws.std(0) / len(draws) ** 0.5
    # Of some 2,000 entries a few lie past four standard errors by chance alone.
    assert (error > 5 * spread + 1e-7).mean() < 0.003
    assert np.linalg.norm(draws.mean(0) - wanted) < 0.1 * np.linalg.norm(wanted)


@pytest.mark.parametrize("strategy", [SampledFisher(), SketchedFisher()], ids=["drawn", "signs"])
def test_fishers_of_tokens_are_the_gauss_newton_matrix_on_average(strategy):
    torch.manual_seed(0)
    model = nn.Linear(3, 2, bias=False)
    inputs = torch.randn(4, 5, 3)
    setup = model, find_weights(model), Samples(inputs, torch.randn(4, 5, 2))
    wanted = gauss_newton_matrix(setup, DenseOutputs()).numpy()
    indices = torch.arange(6)
    draws = [
        expand(strategy, setup, seed=seed).curvature.blocks([indices])[0].dense()
        for seed in range(400)
    ]
    assert np.linalg.norm(np.mean(draws, 0) - wanted) < 0.1 * np.linalg.norm(wanted)


LOSSES = {
    "divergence": DenseOutputs(scale=1.3),
    "squares": PerSample(lambda o, t: ((o - t) ** 2).sum(1), needs_labels=False),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gauss_newton_products(setup, loss):
    matrix = gauss_newton_matrix(setup, loss).float()
    model, layers, samples = setup
    objective = Objective(model, layers, samples, loss, 5)
    product = gauss_newton(objective)
    torch.testing.assert_close(
        objective.gradient(), expand(EmpiricalFisher(), setup, loss).gradient
    )
    for seed in range(3):
        vector = torch.randn(layers.size, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(product(vector), matrix @ vector, atol=1e-5, rtol=1e-3)


def test_gauss_newton_stays_where_it_was_asked(setup):
    """Candidates are written into the model between two products."""
    model, layers, samples = setup
    product = gauss_newton(Objective(model, layers, samples, DenseOutputs(), 5))
    vector = torch.ones(layers.size)
    before = product(vector)
    layers.write(torch.zeros(layers.size))
    assert torch.equal(product(vector), before)


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradients_solve(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(20, 9, generator=generator, dtype=torch.double)
    A = root.T @ root + 0.1 * torch.eye(9)
    b = torch.randn(9, generator=generator, dtype=torch.double)
    iterates = list(conjugate_gradients(lambda v: A @ v, b, (1, 3, 9)))
    assert len(iterates) == 3
    torch.testing.assert_close(iterates[-1], torch.linalg.solve(A, b))
    residuals = [(v @ A @ v / 2 - b @ v).item() for v in iterates]
    assert residuals == sorted(residuals, reverse=True)


def test_conjugate_gradients_end_early():
    b = torch.tensor([3.0, 4.0])
    assert [x.tolist() for x in conjugate_gradients(lambda v: 2 * v, b, (1, 2, 50))] == [[1.5, 2.0]]
    assert list(conjugate_gradients(lambda v: v, torch.zeros(2), (1, 2))) == []
    assert list(conjugate_gradients(lambda v: -v, b, (1, 2))) == []


def test_compensation_never_revives_a_pruned_weight(setup):
    model, layers, samples = setup
    kept = torch.rand(layers.size, generator=torch.Generator().manual_seed(0)) < 0.6
    layers.write(layers.read() * kept)
    objective = Objective(model, layers, samples, DenseOutputs(), 5)
    steps = list(Compensation().moves(objective, kept, torch.Generator()))
    assert steps
    assert all((step[~kept] == 0).all() for step in steps)
    assert any((step[kept] != 0).any() for step in steps)


@pytest.mark.parametrize("strategy", [SketchedFisher(), SampledFisher(), EmpiricalFisher()])
def test_activations_that_are_not_numbers_name_layer_and_batch(strategy, setup):
    model, layers, samples = setup
    inputs = samples.inputs.clone()
    inputs[7] = torch.nan
    with pytest.raises(NonFiniteError, match=r"inputs of layer 'first' .* batch 1"):
        expand(strategy, (model, layers, Samples(inputs, samples.targets)))
    with torch.no_grad():
        model.second.weight.fill_(1e38)
        model.last.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"outputs of layer 'last' .* batch 0"):
        expand(strategy, setup)


def test_a_loss_that_is_not_a_number_names_the_batch(setup):
    loss = PerSample(lambda o, t: o.sum(1) / 0.0, needs_labels=False)
    with pytest.raises(NonFiniteError, match=r"loss is NaN or Inf in calibration batch 0"):
        expand(EmpiricalFisher(), setup, loss)


def test_layers_that_the_loss_does_not_depend_on(setup):
    loss = PerSample(lambda o, t: t.sum(1), needs_labels=False)
    with pytest.raises(CalibrationError, match="does not depend on any targeted weight"):
        expand(EmpiricalFisher(), setup, loss)
