"""Every registered curvature: value, gradient, diagonal and blocks of one expansion."""

import pytest
import torch
from small import broken, objective, shuffled

from qprune.errors import NonFiniteError
from qprune.objective import CURVATURES

NAMES = sorted(CURVATURES)
#: Drawn curvatures are compared after an average over so many draws.
DRAWS = 400
DRAWN = {"fisher", "sampled"}


def expanded(name, made, seed=0):
    return CURVATURES[name].expand(made, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_those_of_the_objective(name):
    made = objective()
    expansion = expanded(name, made)
    assert expansion.loss == pytest.approx(made.value(), rel=1e-9)
    torch.testing.assert_close(expansion.gradient, made.gradient(), rtol=1e-9, atol=1e-12)
    step = 1e-6
    values = made.weights.read()
    for index in (0, 17, made.weights.size - 1):
        changed = values.clone()
        changed[index] += step
        made.weights.write(changed)
        slope = (made.value() - expansion.loss) / step
        made.weights.write(values)
        assert slope == pytest.approx(float(expansion.gradient[index]), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_symmetric_and_have_the_diagonal(name):
    expansion = expanded(name, objective())
    chosen = [torch.tensor([0, 3, 31, 40]), torch.tensor([1, 2])]
    blocks = expansion.curvature.blocks(chosen)
    for indices, block in zip(chosen, blocks, strict=True):
        dense = torch.from_numpy(block.dense())
        torch.testing.assert_close(dense, dense.T)
        diagonal = dense.diagonal().clamp(min=0)
        torch.testing.assert_close(diagonal, expansion.diagonal[indices], rtol=1e-6, atol=1e-9)
    assert (expansion.diagonal >= 0).all()


@pytest.mark.parametrize("name", sorted(DRAWN))
def test_drawn_curvatures_are_the_exact_hessian_on_average_at_the_dense_network(name):
    # At the dense network the KL's Hessian is the Gauss-Newton matrix.
    exact = expanded("hessian", objective(moved=0.0)).diagonal
    draws = [expanded(name, objective(moved=0.0), seed).diagonal for seed in range(DRAWS)]
    mean = torch.stack(draws).mean(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", sorted(set(NAMES) - DRAWN))
def test_the_order_of_the_samples_changes_nothing(name):
    one, other = expanded(name, objective()), expanded(name, shuffled(objective()))
    torch.testing.assert_close(one.gradient, other.gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.diagonal, other.diagonal, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_expansion(name):
    one, other = expanded(name, objective(), 5), expanded(name, objective(), 5)
    assert torch.equal(one.diagonal, other.diagonal)
    assert torch.equal(one.gradient, other.gradient)


# NaN in the exact Hessian is named by the walk, whichever curvature it uses.
@pytest.mark.parametrize("name", sorted(set(NAMES) - {"hessian"}))
def test_a_weight_that_is_not_a_number_is_named(name):
    with pytest.raises(NonFiniteError, match="'0'"):
        expanded(name, broken(objective()))
