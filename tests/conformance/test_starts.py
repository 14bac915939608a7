"""Every registered start: scores of every weight, higher where it is worth more."""

import pytest
import torch
from small import objective

from qprune.network.groups import PerRow, prune_lowest
from qprune.objective import EmpiricalFisher
from qprune.steps.start import STARTS

NAMES = sorted(STARTS)


def scored(name, seed=0, made=None):
    made = made or objective()
    generator = torch.Generator().manual_seed(seed)
    expansion = EmpiricalFisher().expand(made, torch.Generator().manual_seed(9))
    return STARTS[name].scores(made, expansion, made.weights.read(), generator)


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_has_a_finite_score(name):
    scores = scored(name)
    assert scores.shape == (objective().weights.size,)
    assert torch.isfinite(scores).all()
    assert len(scores.unique()) > len(scores) // 2


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_scores(name):
    assert torch.equal(scored(name, 3), scored(name, 3))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_scores_do_not_depend_on_the_seed(name):
    assert torch.equal(scored(name, 3), scored(name, 4))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"random"}))
def test_a_zero_weight_is_worth_least(name):
    made = objective()
    with torch.no_grad():
        made.weights[1].parameter[0, 0] = 0.0
    scores = scored(name, made=made)
    assert int(scores.argmin()) == made.weights[1].offset


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact_whatever_the_scores(name):
    weights = objective().weights
    groups = PerRow().groups(weights, 0.4)
    kept = torch.ones(weights.size, dtype=torch.bool)
    mask = prune_lowest(scored(name), kept, groups, groups.total)
    assert torch.equal(groups.sizes_of(~mask), groups.counts)
