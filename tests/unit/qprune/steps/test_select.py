"""Blocks: pairs of kept and pruned weights, disjoint, across layers, the resting ones last."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qprune.errors import ImpossibleRequestError
from qprune.network.groups import Global, NofM, PerLayer, PerRow
from qprune.network.weights import find_weights
from qprune.steps.select import Boundary, LayerByLayer, Offer, RandomPairs

SELECTORS = [Boundary(), Boundary(layer_share=0.0), Boundary(1.0), RandomPairs(), LayerByLayer()]
BUDGETS = [Global(), PerLayer(), PerRow(), NofM(2, 4)]


def layers_of(*shapes):
    return find_weights(nn.ModuleList(nn.Linear(cols, rows) for rows, cols in shapes))


def offer_of(layers, budget=None, *, sparsity=0.5, seed=0, cost=None, resting=None):
    generator = torch.Generator().manual_seed(seed)
    size = layers.size
    return Offer(
        layers,
        (budget or Global()).groups(layers, sparsity),
        torch.rand(size, generator=generator) > sparsity,
        torch.randn(size, generator=generator) if cost is None else cost,
        torch.zeros(size, dtype=torch.bool) if resting is None else resting,
        generator,
    )


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SELECTORS),
    st.sampled_from(BUDGETS),
    st.integers(2, 30),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_blocks_are_disjoint_pairs_within_groups(select, budget, block_size, num_blocks, seed):
    layers = layers_of((3, 8), (5, 4), (1, 12))
    offer = offer_of(layers, budget, seed=seed)
    blocks = select.blocks(offer, block_size, num_blocks)
    assert len(blocks) <= num_blocks
    everything = torch.cat([*blocks, torch.zeros(0, dtype=torch.long)])
    assert len(everything.unique()) == len(everything)
    for block in blocks:
        assert 0 < len(block) <= block_size
        assert torch.equal(block, block.sort().values)
        kept = offer.mask[block]
        groups = offer.groups.of(block)
        assert torch.equal(groups[kept].sort().values, groups[~kept].sort().values)


@pytest.mark.parametrize("select", SELECTORS)
def test_one_offer_one_answer(select):
    layers = layers_of((6, 10), (4, 6))
    first, again = (select.blocks(offer_of(layers, seed=3), 12, 2) for _ in range(2))
    assert len(first) == 2
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_cheapest_are_taken_first_and_across_layers():
    layers = layers_of((2, 6), (2, 6))
    cost = torch.arange(24.0).flip(0)
    offer = offer_of(layers, cost=cost)
    kept, pruned = torch.nonzero(offer.mask)[:, 0], torch.nonzero(~offer.mask)[:, 0]
    number = min(len(kept), len(pruned))
    blocks = Boundary(layer_share=0.0).blocks(offer, 4, 2)
    for rank, block in enumerate(blocks):
        best = slice(2 * rank, 2 * rank + 2)
        wanted = torch.cat([side.flip(0)[best] for side in (kept, pruned)])
        assert torch.equal(block, wanted.sort().values)
    (whole,) = Boundary(layer_share=0.0).blocks(offer, 2 * number, 1)
    assert len(whole) == 2 * number
    assert (whole < 12).any()
    assert (whole >= 12).any()


def test_a_small_layer_is_not_starved():
    layers = layers_of((40, 50), (2, 5), (30, 40))
    cost = torch.rand(layers.size, generator=torch.Generator().manual_seed(0))
    cost[2000:2010] = 100.0
    offer = offer_of(layers, cost=cost)
    for block in Boundary().blocks(offer, 100, 3):
        counts = layers.count_by_layer(block)
        assert counts["1"] >= 2
        assert counts["0"] > 10
    assert "1" not in layers.count_by_layer(Boundary(layer_share=0.0).blocks(offer, 100, 1)[0])


def test_resting_weights_come_last_but_come():
    layers = layers_of((4, 10))
    mask = torch.arange(40) % 2 == 0
    cost = torch.arange(40.0)
    resting = cost < 20
    offer = Offer(
        layers, Global().groups(layers, 0.5), mask, cost, resting, torch.Generator().manual_seed(0)
    )
    (block,) = Boundary().blocks(offer, 20, 1)
    assert torch.equal(block, torch.arange(20, 40))
    (block,) = Boundary().blocks(offer, 24, 1)
    assert torch.equal(block, torch.cat([torch.arange(4), torch.arange(20, 40)]))


def test_layer_by_layer_takes_the_most_promising_layers():
    layers = layers_of((2, 6), (2, 6), (2, 6))
    cost = torch.ones(36)
    cost[12:24] = -5.0
    first, second = LayerByLayer().blocks(offer_of(layers, cost=cost), 6, 2)
    assert list(layers.count_by_layer(first)) == ["1"]
    assert len(layers.count_by_layer(second)) == 1


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("all_kept", [True, False])
def test_nothing_to_swap(select, budget, all_kept):
    layers = layers_of((3, 4), (2, 8))
    offer = offer_of(layers, budget)
    offer.mask[:] = all_kept
    assert select.blocks(offer, 8, 2) == []


@pytest.mark.parametrize("select", SELECTORS)
def test_few_candidates(select):
    layers = layers_of((3, 4))
    offer = offer_of(layers)
    offer.mask[:] = True
    offer.mask[5] = False
    (block,) = select.blocks(offer, 10, 3)
    assert len(block) == 2
    assert 5 in block


def test_equal_costs_without_end():
    layers = layers_of((50, 50))
    offer = offer_of(layers, cost=torch.zeros(2500))
    (block,) = Boundary().blocks(offer, 10, 1)
    assert len(block) == 10


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_impossible_shares(share):
    with pytest.raises(ImpossibleRequestError, match="layer_share"):
        Boundary(layer_share=share)
