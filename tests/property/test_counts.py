"""Exact whole counts, whatever the sparsity, the shapes and the scores."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from qprune.errors import ImpossibleRequestError
from qprune.network.groups import (
    Global,
    Groups,
    NofM,
    PerLayer,
    PerRow,
    apportion,
    checked_sparsity,
    prune_lowest,
)
from qprune.network.weights import find_weights

QUICK = settings(max_examples=30, deadline=None)
SPARSITIES = st.floats(0, 1, exclude_max=True)
SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)
STRUCTURES = st.sampled_from([(1, 4), (2, 4), (4, 8), (1, 2), (3, 4), (1, 8)])


def layers_of(shapes):
    return find_weights(nn.ModuleList(nn.Linear(cols, rows) for rows, cols in shapes))


def groups_of(budget, layers, sparsity):
    try:
        return budget.groups(layers, sparsity)
    except ImpossibleRequestError:
        assume(False)


def every_group(groups, layers):
    """The group of every weight, also where there is one only."""
    return groups.of(torch.arange(layers.size))


@QUICK
@given(SHAPES, SPARSITIES, st.sampled_from([Global(), PerLayer(), PerRow()]))
def test_counts_are_whole_near_and_add_up(shapes, sparsity, budget):
    layers = layers_of(shapes)
    groups = groups_of(budget, layers, sparsity)
    assert int(groups.counts.sum()) == round(sparsity * layers.size)
    assert (groups.counts < groups.sizes).all()
    assert (groups.counts >= 0).all()
    assert ((groups.counts - groups.sizes * sparsity).abs() <= 1.0).all()
    sizes = every_group(groups, layers).bincount(minlength=len(groups.sizes))
    assert torch.equal(sizes, groups.sizes)
    assert torch.equal(groups.sizes_of(torch.ones(layers.size, dtype=torch.bool)), groups.sizes)


@QUICK
@given(SHAPES, STRUCTURES)
def test_structures_keep_n_of_every_m(shapes, structure):
    n, m = structure
    layers = layers_of([(rows, cols * m) for rows, cols in shapes])
    structure = NofM(n, m)
    groups = structure.groups(layers, structure.sparsity)
    kept = torch.ones(layers.size, dtype=torch.bool)
    mask = prune_lowest(torch.rand(layers.size), kept, groups, int(groups.counts.sum()))
    for part in layers.by_name(mask).values():
        assert (part.reshape(-1, m).sum(1) == n).all()
    assert 1 - mask.sum().item() / layers.size == pytest.approx(1 - n / m)


@QUICK
@given(
    SHAPES,
    SPARSITIES,
    st.sampled_from([Global(), PerLayer(), PerRow()]),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_stages_prune_ever_more_and_end_exactly(shapes, sparsity, budget, shares, random):
    layers = layers_of(shapes)
    groups = groups_of(budget, layers, sparsity)
    mask = torch.ones(layers.size, dtype=torch.bool)
    final = int(groups.counts.sum())
    for share in [*sorted(shares), 1.0]:
        # Few distinct scores, so that there are ties; another expansion has other scores.
        scores = torch.tensor([random.randrange(3) for _ in range(layers.size)]).float()
        before, mask = mask, prune_lowest(scores, mask, groups, round(share * final))
        assert not (mask & ~before).any()
        assert int((~mask).sum()) == round(share * final)
        assert (groups.sizes_of(~mask) <= groups.counts).all()
    assert torch.equal(groups.sizes_of(~mask), groups.counts)


@QUICK
@given(SHAPES, STRUCTURES, st.integers(1, 5), st.integers(0, 2**31))
def test_staged_structures(shapes, structure, stages, seed):
    n, m = structure
    layers = layers_of([(rows, cols * m) for rows, cols in shapes])
    groups = NofM(n, m).groups(layers, 1 - n / m)
    mask = torch.ones(layers.size, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for stage in range(stages):
        total = round((stage + 1) / stages * int(groups.counts.sum()))
        mask = prune_lowest(torch.rand(layers.size, generator=generator), mask, groups, total)
        assert int((~mask).sum()) == total
    assert (mask.view(-1, m).sum(1) == n).all()


def test_early_stages_of_a_structure_prune_by_score_not_by_place():
    layers = layers_of([(2, 4), (2, 4)])
    groups = NofM(2, 4).groups(layers, 0.5)
    scores = torch.arange(16.0, 0.0, -1.0)
    mask = prune_lowest(scores, torch.ones(16, dtype=torch.bool), groups, 3)
    # The last two of the last row, which is then full, and the lowest of the row before it.
    assert torch.nonzero(~mask)[:, 0].tolist() == [11, 14, 15]


def test_ties_are_broken_by_index():
    groups = Groups(torch.tensor([6]), torch.tensor([6]))
    kept = torch.tensor([True, False, True, True, True, True])
    scores = torch.tensor([1.0, 9.0, 0.0, 0.0, 0.0, 0.0])
    mask = prune_lowest(scores, kept, groups, 3)
    assert mask.tolist() == [True, False, False, False, True, True]


def test_ties_within_groups_are_broken_by_index():
    ids = torch.tensor([0, 1, 0, 1, 0, 1])
    groups = Groups(torch.tensor([3, 3]), torch.tensor([1, 2]), lambda: ids)
    mask = prune_lowest(torch.zeros(6), torch.ones(6, dtype=torch.bool), groups, 3)
    assert mask.tolist() == [False, False, True, False, True, True]


def test_masks_have_the_shapes_of_their_parameters():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 2))
    layers = find_weights(model)
    mask = torch.arange(layers.size) % 3 == 0
    parts = layers.by_name(mask)
    assert {name: part.shape for name, part in parts.items()} == {
        "0.weight": (6, 2, 3, 3),
        "1.weight": (2, 5),
    }
    assert torch.equal(torch.cat([part.flatten() for part in parts.values()]), mask)


def test_whole_numbers_by_largest_remainder():
    wanted = torch.tensor([0.5, 1.7, 2.5, 0.3]).double()
    limit = torch.tensor([9, 9, 2, 9])
    assert apportion(wanted, 5, limit).tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf"), "0.5", True])
def test_impossible_sparsities(sparsity):
    with pytest.raises(ImpossibleRequestError, match=r"\[0, 1\)"):
        checked_sparsity(sparsity, None)


def test_a_structure_says_the_sparsity():
    assert checked_sparsity(None, NofM(1, 4)) == 0.75
    with pytest.raises(ImpossibleRequestError, match="say how sparse"):
        checked_sparsity(None, None)


@pytest.mark.parametrize("text", ["2/4", "4", "a:b", "", "2:4:8", "-1:4"])
def test_structures_that_cannot_be_read(text):
    with pytest.raises(ImpossibleRequestError, match="N:M"):
        NofM.parse(text)


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4"])
def test_structures_that_make_no_sense(text):
    with pytest.raises(ImpossibleRequestError, match="between 1 and M - 1"):
        NofM.parse(text)


def test_a_structure_that_does_not_divide():
    with pytest.raises(ImpossibleRequestError, match=r"'1' has 6 inputs .* multiple of 4"):
        NofM(2, 4).groups(layers_of([(3, 8), (3, 6)]), 0.5)


def test_a_structure_of_another_sparsity():
    with pytest.raises(ImpossibleRequestError, match=r"2:4 means sparsity 0\.5, not 0\.7"):
        NofM(2, 4).groups(layers_of([(3, 8)]), 0.7)


@pytest.mark.parametrize(
    ("budget", "where"),
    [(Global(), "model"), (PerLayer(), "layer '1'"), (PerRow(), "row of layer '1'")],
)
def test_nothing_would_be_left(budget, where):
    # Of two rows of three, one would lose 2.4 weights, rounded up to all of them.
    shapes = [(3, 2)] if where == "model" else [(20, 30), (2, 3)]
    sparsity = {"model": 0.95, "layer '1'": 0.95, "row of layer '1'": 0.85}[where]
    with pytest.raises(ImpossibleRequestError, match=f"{where}.* none of them"):
        budget.groups(layers_of(shapes), sparsity)
