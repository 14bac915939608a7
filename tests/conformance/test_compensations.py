"""Every compensation: candidate moves hold the mask, and one of them lowers the loss."""

import pytest
import torch
from small import objective

import qprune
from qprune.errors import ImpossibleRequestError
from qprune.moving.compensate import Compensation, DoubleBackward, ForwardMode
from qprune.moving.distill import Distillation

STRATEGIES = {
    "forward mode": Compensation(iterations=(2, 4), derivatives=ForwardMode()),
    "double backward": Compensation(iterations=(2, 4), derivatives=DoubleBackward()),
    "distillation": Distillation(steps=30, samples_per_step=8, rate=0.02),
}


def test_every_compensation_is_tried():
    public = [getattr(qprune, name) for name in qprune.__all__]
    found = {one for one in public if isinstance(one, type) and hasattr(one, "moves")}
    assert found - {qprune.Compensate} == {type(strategy) for strategy in STRATEGIES.values()}


def moved(strategy, seed=0):
    """(objective, mask, values, candidates) at a network with a third of its weights pruned."""
    made = objective(moved=0.0)
    values = made.weights.read()
    mask = values.abs() > values.abs().quantile(1 / 3)
    values = values * mask
    made.weights.write(values)
    generator = torch.Generator().manual_seed(seed)
    moves = []
    for move in strategy.moves(made, mask, generator):
        moves.append(move.clone())
        made.weights.write(values)
    return made, mask, values, moves


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_pruned_weights_stay_zero(strategy):
    _, mask, _, moves = moved(strategy)
    assert moves
    assert all((move[~mask] == 0).all() for move in moves)
    assert all((move[mask] != 0).any() for move in moves)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_the_best_candidate_lowers_the_loss(strategy):
    made, _, values, moves = moved(strategy)
    made.weights.write(values)
    before = made.value()
    judged = []
    for move in moves:
        made.weights.write(values + move)
        judged.append(made.value())
    assert min(judged) < 0.7 * before


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_one_seed_gives_the_same_moves(strategy):
    first, second = moved(strategy, 3)[3], moved(strategy, 3)[3]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_its_cost_counts_the_candidates_that_it_gives(strategy):
    assert strategy.cost(24).candidates == len(moved(strategy)[3])


def test_products_of_both_derivatives_are_equal():
    by_name = [moved(STRATEGIES[name])[3] for name in ("forward mode", "double backward")]
    for one, other in zip(*by_name, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{"steps": 0}, {"rate": 0.0}, {"candidates": True}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ImpossibleRequestError, match=next(iter(options))):
        Distillation(**options)
