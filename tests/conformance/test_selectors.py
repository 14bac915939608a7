"""Every registered selector: disjoint blocks of pairs, the same for one seed."""

import pytest
import torch
from small import objective

from qprune.network.groups import Global, PerLayer
from qprune.steps.select import SELECTORS, Offer

NAMES = sorted(SELECTORS)


def offer(seed=0, budget=None, resting=()):
    weights = objective().weights
    generator = torch.Generator().manual_seed(4)
    mask = torch.rand(weights.size, generator=generator) < 0.5
    cost = torch.randn(weights.size, generator=generator, dtype=torch.float64)
    rest = torch.zeros(weights.size, dtype=torch.bool)
    rest[list(resting)] = True
    groups = (budget or Global()).groups(weights, 0.5)
    return Offer(weights, groups, mask, cost, rest, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [Global(), PerLayer()], ids=["global", "layer"])
def test_blocks_are_disjoint_ascending_and_half_of_each_kind(name, budget):
    offered = offer(budget=budget)
    blocks = SELECTORS[name].blocks(offered, 8, 2)
    together = torch.cat(blocks)
    assert len(together.unique()) == len(together)
    for block in blocks:
        assert 2 <= len(block) <= 8
        assert torch.equal(block, block.sort().values)
        assert int(offered.mask[block].sum()) * 2 == len(block)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_blocks(name):
    first, second = (SELECTORS[name].blocks(offer(7), 8, 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_the_cheapest_change_is_offered_and_a_resting_one_is_not(name):
    offered = offer()
    cheapest = int(torch.where(offered.mask, offered.cost, torch.inf).argmin())
    assert cheapest in torch.cat(SELECTORS[name].blocks(offered, 8, 2)).tolist()
    rested = SELECTORS[name].blocks(offer(resting=[cheapest]), 8, 2)
    assert cheapest not in torch.cat(rested).tolist()


def test_the_boundary_starves_no_layer():
    offered = offer()
    offered.cost[offered.layers[1].offset :] += 100.0  # Nothing in the second layer is cheap.
    blocks = SELECTORS["boundary"].blocks(offered, 20, 1)
    assert offered.layers.count_by_layer(torch.cat(blocks)).keys() == {"0", "2"}
