"""The equation of one block, for every decision x at small n."""

import itertools

import dimod
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from qprune import Objective
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import find_weights
from qprune.objective import ExactHessian
from qprune.objective.losses import PerSample
from qprune.objective.trace.recorder import Samples, mean_loss
from qprune.steps.formulate import Block, formulate, repriced, with_terms
from solvers import Dense, LowRank, QuadraticProblem

NUMBERS = st.floats(-4, 4).map(lambda x: round(x, 3))
QUICK = settings(max_examples=30, deadline=None)


def every_decision(size):
    return np.array(list(itertools.product((0, 1), repeat=size)), dtype=np.int8)


@st.composite
def blocks(draw):
    """A block of up to six weights, and curvature for it in either form."""
    size = draw(st.integers(1, 6))
    pruned = draw(arrays(np.int8, size, elements=st.integers(0, 1)))
    keep_value = draw(arrays(np.float64, size, elements=NUMBERS))
    groups = draw(arrays(np.int64, size, elements=st.integers(0, 1)))
    factor = draw(arrays(np.float64, (3, size), elements=NUMBERS))
    block = Block(
        indices=np.arange(size) * 3 + 5,
        current=np.where(pruned, 0.0, keep_value),
        keep_value=keep_value,
        pruned=pruned,
        gradient=draw(arrays(np.float64, size, elements=NUMBERS)),
        groups=groups,
        counts=np.bincount(groups, weights=pruned, minlength=2).astype(np.int64),
    )
    return block, draw(st.sampled_from([LowRank(factor), Dense(factor.T @ factor)]))


def predicted_change(block, H, x, ridge, price):
    """g.d + 1/2 d.H.d + ridge |d|^2 + price * changes, written out."""
    d = (1 - x) * block.keep_value - block.current
    changes = int((x != block.pruned).sum())
    return block.gradient @ d + 0.5 * d @ H @ d + ridge * d @ d + price * changes


def feasible(problem):
    states = every_decision(problem.num_variables)
    return states[problem.feasible(states)]


@QUICK
@given(blocks(), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.7]))
def test_energies_are_predicted_changes_of_the_loss(case, ridge, price):
    block, curvature = case
    problem = formulate(block, curvature, ridge=ridge, price=price)
    states = every_decision(block.indices.size)
    H = curvature.dense()
    wanted = [predicted_change(block, H, x, ridge, price) for x in states]
    np.testing.assert_allclose(problem.energies(states), wanted, atol=1e-9)


@QUICK
@given(blocks(), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.7]))
def test_staying_costs_nothing(case, ridge, price):
    block, curvature = case
    problem = formulate(block, curvature, ridge=ridge, price=price)
    assert problem.energy(block.pruned) == pytest.approx(0.0, abs=1e-9)
    assert problem.feasible(block.pruned).all()


@QUICK
@given(blocks(), st.sampled_from([-0.4, 0.9]))
def test_repricing_is_formulating_at_the_other_price(case, change):
    block, curvature = case
    states = every_decision(block.indices.size)
    np.testing.assert_allclose(
        repriced(formulate(block, curvature, price=0.5), block, change).energies(states),
        formulate(block, curvature, price=0.5 + change).energies(states),
        atol=1e-9,
    )


@QUICK
@given(blocks())
def test_a_higher_price_never_buys_more_changes(case):
    block, curvature = case
    fewest = []
    for price in (0.0, 0.1, 1.0, 10.0, 1e4):
        problem = formulate(block, curvature, price=price)
        states = feasible(problem)
        energies = problem.energies(states)
        best = states[energies <= energies.min() + 1e-9]
        fewest.append(int((best != block.pruned).sum(1).min()))
    assert fewest == sorted(fewest, reverse=True)
    assert fewest[-1] == 0


def energies_of_bqm(problem, states):
    bqm = problem.to_bqm()
    return bqm.energies((states, list(problem.variables)))


def energies_of_cqm(problem, states):
    cqm = problem.to_cqm()
    samples = [dict(zip(problem.variables, map(int, x), strict=True)) for x in states]
    return [cqm.objective.energy(sample) for sample in samples]


def energies_of_ising(problem, states):
    h, J, offset = problem.to_ising()
    spins = 2.0 * states - 1
    at = {label: i for i, label in enumerate(problem.variables)}
    linear = sum(bias * spins[:, at[v]] for v, bias in h.items())
    couplings = sum(bias * spins[:, at[u]] * spins[:, at[v]] for (u, v), bias in J.items())
    return offset + linear + couplings


def energies_there_and_back(problem, states):
    back = QuadraticProblem.from_ising(*problem.to_ising())
    order = [problem.variables.index(label) for label in back.variables]
    return back.energies(states[:, order])


def energies_through_cqm(problem, states):
    back = QuadraticProblem.from_cqm(problem.to_cqm())
    order = [problem.variables.index(label) for label in back.variables]
    np.testing.assert_array_equal(back.feasible(states[:, order]), problem.feasible(states))
    return back.energies(states[:, order])


@pytest.mark.parametrize(
    "energies",
    [
        energies_of_bqm,
        energies_of_cqm,
        energies_of_ising,
        energies_there_and_back,
        energies_through_cqm,
    ],
)
@settings(QUICK, max_examples=15)
@given(case=blocks())
def test_signs_survive_every_transformation(energies, case):
    block, curvature = case
    problem = formulate(block, curvature, ridge=0.1, price=0.2)
    states = every_decision(block.indices.size)
    np.testing.assert_allclose(energies(problem, states), problem.energies(states), atol=1e-8)


@QUICK
@given(blocks(), arrays(np.float64, 3, elements=NUMBERS))
def test_terms_of_a_bqm_add_to_every_change(case, biases):
    block, curvature = case
    labels = block.indices.tolist()
    bqm = dimod.BinaryQuadraticModel({labels[0]: biases[0]}, {}, biases[1], "BINARY")
    if len(labels) > 1:
        bqm.add_quadratic(labels[0], labels[1], biases[2])
    problem = formulate(block, curvature)
    joined = with_terms(problem, block, lambda _: bqm)
    assert joined.energy(block.pruned) == pytest.approx(0.0, abs=1e-9)
    states = every_decision(len(labels))
    columns = [labels.index(v) for v in bqm.variables]
    extra = bqm.energies((states[:, columns], list(bqm.variables)))
    now = bqm.energies((block.pruned[None, columns], list(bqm.variables)))
    np.testing.assert_allclose(
        joined.energies(states), problem.energies(states) + extra - now, atol=1e-8
    )
    np.testing.assert_array_equal(joined.feasible(states), problem.feasible(states))


def two_weights():
    block = Block(
        indices=np.array([4, 9]),
        current=np.array([1.0, 0.0]),
        keep_value=np.array([1.0, 2.0]),
        pruned=np.array([0, 1], dtype=np.int8),
        gradient=np.array([0.5, -1.0]),
        groups=np.zeros(2, dtype=np.int64),
        counts=np.array([1]),
    )
    return block, formulate(block, Dense(np.array([[2.0, 0.5], [0.5, 1.0]])))


def test_the_equation_by_hand():
    _, problem = two_weights()
    # Prune the first (-1), restore the second (+2):
    # -0.5 - 2.0 + 1/2 (2 - 2 * 0.5 * 2 + 4) = -0.5
    assert problem.energy([1, 0]) == pytest.approx(-0.5)
    assert problem.energy([0, 1]) == 0.0
    # Both kept: -2 + 1/2 4 = 0. Both pruned: -0.5 + 1/2 2 = 0.5.
    assert problem.energies([[0, 0], [1, 1]]).tolist() == pytest.approx([0.0, 0.5])
    assert problem.variables == (4, 9)
    assert not problem.feasible([[0, 0], [1, 1]]).any()


def test_terms_of_a_spin_model():
    block, problem = two_weights()
    spins = dimod.BinaryQuadraticModel({4: 1.0}, {(4, 9): 0.25}, 0.0, "SPIN")
    joined = with_terms(problem, block, lambda _: spins)
    assert joined.energy([0, 1]) == pytest.approx(0.0)
    # The field rises from -1 to +1; the product of the spins stays -1.
    assert joined.energy([1, 0]) == pytest.approx(-0.5 + 2.0)


def test_terms_of_pyqubo():
    pyqubo = pytest.importorskip("pyqubo")
    block, problem = two_weights()

    def together(block):
        first, second = (pyqubo.Binary(str(i)) for i in block.indices)
        return 3.0 * first * second + 7.0 * first

    joined = with_terms(problem, block, together)
    assert joined.energy([0, 1]) == pytest.approx(0.0)
    assert joined.energy([1, 0]) == pytest.approx(-0.5 + 7.0)
    assert joined.energy([1, 1]) == pytest.approx(0.5 + 10.0)


@pytest.mark.parametrize("label", ["3", "x[0]", 3])
def test_terms_over_strangers(label):
    block, problem = two_weights()

    def strangers(_):
        if isinstance(label, int):
            return dimod.BinaryQuadraticModel({label: 1.0}, {}, 0.0, "BINARY")
        pyqubo = pytest.importorskip("pyqubo")
        return 1.0 * pyqubo.Binary(label)

    with pytest.raises(ImpossibleRequestError, match=r"block\.indices") as caught:
        with_terms(problem, block, strangers)
    assert str(label) in str(caught.value)


@pytest.mark.parametrize("nothing", [None, 3.0, "a + b"])
def test_terms_that_are_neither(nothing):
    block, problem = two_weights()
    with pytest.raises(ImpossibleRequestError, match="BQM or a pyqubo expression"):
        with_terms(problem, block, lambda _: nothing)


@pytest.mark.parametrize("seed", range(4))
def test_an_exactly_quadratic_loss_changes_as_predicted(seed):
    """A linear network under squared error: the expansion is the loss, for all x."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 4, generator=generator))
    layers = find_weights(model)
    inputs = torch.randn(9, 4, generator=generator, dtype=torch.double)
    targets = torch.randn(9, 2, generator=generator, dtype=torch.double)
    samples = Samples(inputs, targets)
    loss = PerSample(lambda outputs, wanted: ((outputs - wanted) ** 2).sum(1))

    original = model.weight.detach().flatten().clone()
    pruned = torch.rand(8, generator=generator) < 0.5
    model.weight.data.view(-1)[pruned] = 0.0
    expansion = ExactHessian().expand(Objective(model, layers, samples, loss, 4), generator)
    indices = torch.tensor([0, 2, 3, 5, 6])
    block = Block(
        indices=indices.numpy(),
        current=model.weight.detach().flatten()[indices].numpy().copy(),
        keep_value=original[indices].numpy(),
        pruned=pruned[indices].numpy().astype(np.int8),
        gradient=expansion.gradient[indices].double().numpy(),
        groups=np.zeros(5, dtype=np.int64),
        counts=np.array([int(pruned[indices].sum())]),
    )
    problem = formulate(block, expansion.curvature.blocks([indices])[0])
    before = mean_loss(model, samples, loss, 4)
    for x in every_decision(5):
        model.weight.data.view(-1)[indices] = torch.from_numpy((1 - x) * block.keep_value)
        real = mean_loss(model, samples, loss, 4) - before
        assert problem.energy(x) == pytest.approx(real, abs=1e-5)
