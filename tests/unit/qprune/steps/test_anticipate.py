"""The block's model when kept weights move along, against the minimum written out."""

import numpy as np
import pytest

from qprune.steps.anticipate import anticipated, worth

RIDGE = 0.3


def loss(gradient, factor, move):
    """The damped second-order model at a move of all weights."""
    return gradient @ move + 0.5 * np.square(factor @ move).sum() + 0.5 * RIDGE * move @ move


def minimum(gradient, factor, fixed):
    """The lowest loss where some weights move as ``fixed`` says and the others as is best."""
    size = len(gradient)
    free = np.setdiff1d(np.arange(size), list(fixed))
    move = np.zeros(size)
    move[list(fixed)] = list(fixed.values())
    hessian = factor.T @ factor + RIDGE * np.eye(size)
    move[free] = -np.linalg.solve(hessian[np.ix_(free, free)], (gradient + hessian @ move)[free])
    return loss(gradient, factor, move), move


@pytest.fixture(params=[(30, 4, 7), (5, 4, 7)], ids=["more samples", "more weights"])
def made(request):
    samples, block, rest = request.param
    random = np.random.default_rng(0)
    gradient = random.normal(size=block + rest)
    return gradient, random.normal(size=(samples, block + rest)), block


def test_what_is_left_is_the_minimum_over_the_rest(made):
    gradient, factor, size = made
    left = anticipated(gradient, factor, size, RIDGE)
    present, _ = minimum(gradient, factor, dict.fromkeys(range(size), 0.0))
    for seed in range(5):
        move = np.random.default_rng(seed).normal(size=size)
        slope, curved = left.along(move)
        wanted, _ = minimum(gradient, factor, dict(enumerate(move)))
        found = slope + 0.5 * curved + 0.5 * RIDGE * move @ move
        assert found == pytest.approx(wanted - present, rel=1e-9)


def test_the_rest_answers_the_block(made):
    gradient, factor, size = made
    left = anticipated(gradient, factor, size, RIDGE)
    move = np.random.default_rng(7).normal(size=size)
    _, still = minimum(gradient, factor, dict.fromkeys(range(size), 0.0))
    _, answered = minimum(gradient, factor, dict(enumerate(move)))
    np.testing.assert_allclose(left.response @ move, (answered - still)[size:], rtol=1e-8)


def test_worth_is_that_of_one_change_where_all_kept_weights_move(made):
    gradient, factor, size = made
    kept = np.arange(len(gradient)) >= size
    values = np.random.default_rng(1).normal(size=len(gradient)) * kept
    each = worth(gradient, factor, values, kept, RIDGE)
    gone = dict.fromkeys(np.nonzero(~kept)[0].tolist(), 0.0)
    present, _ = minimum(gradient, factor, gone)
    for weight in range(len(gradient)):
        if kept[weight]:
            changed, _ = minimum(gradient, factor, gone | {weight: -values[weight]})
            assert each.keep_value[weight] == values[weight]
        else:
            others = {other: 0.0 for other in gone if other != weight}
            changed, move = minimum(gradient, factor, others)
            assert each.keep_value[weight] == pytest.approx(move[weight], rel=1e-8)
        assert each.cost[weight] == pytest.approx(changed - present, rel=1e-8)
