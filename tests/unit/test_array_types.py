"""Shapes and dtypes in annotations are checked while the tests run."""

import jaxtyping
import numpy as np
import pytest
import torch

from qprune.network.groups import Global, prune_lowest
from qprune.network.weights import find_weights
from qprune.steps.formulate import Block
from solvers import Dense


def _block(**other):
    vectors = dict.fromkeys(("current", "keep_value", "gradient"), np.zeros(3))
    whole = dict.fromkeys(("indices", "groups"), np.arange(3))
    return Block(
        **vectors | whole | {"pruned": np.zeros(3, np.int8), "counts": np.ones(1, int)} | other
    )


def _lowest(scores, kept):
    weights = find_weights(torch.nn.Linear(4, 2))
    return prune_lowest(scores, kept, Global().groups(weights, 0.5), 4)


def test_what_is_annotated_passes():
    assert _block().counts.tolist() == [1]
    assert _lowest(torch.rand(8), torch.ones(8, dtype=torch.bool)).sum() == 4


@pytest.mark.parametrize(
    "other",
    [{"gradient": np.zeros(4)}, {"pruned": np.zeros(3, bool)}, {"counts": np.ones((1, 1), int)}],
    ids=["length", "dtype", "dimensions"],
)
def test_a_dataclass_refuses_an_array_of_another(other):
    with pytest.raises(jaxtyping.TypeCheckError, match=next(iter(other))):
        _block(**other)


def test_arguments_must_agree():
    with pytest.raises(jaxtyping.TypeCheckError, match="kept"):
        _lowest(torch.rand(8), torch.ones(7, dtype=torch.bool))


def test_a_method_with_an_array_of_the_wrong_rank_is_refused():
    with pytest.raises(jaxtyping.TypeCheckError, match="x"):
        Dense(np.eye(3)).values(np.ones(3))
