"""Every registered row method: exact counts, values on the mask, never worse than its start."""

import numpy as np
import pytest

from qprune.steps.reconstruct import ROWS, SampledRows
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem

METHODS = ROWS | {"sampled": SampledRows("swap-tabu", {"num_reads": 1})}
COUNTS = {
    "matrix": Counts(20),
    "row": Counts([3, 4, 2, 5, 4]),
    "2:4": Counts.n_of_m(2, 4),
}


def problem(counts):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((8, 40))
    return RowProblem(inputs @ inputs.T + 0.1 * np.eye(8), rng.standard_normal((5, 8)), counts)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("compensate", [True, False])
def test_counts_are_exact_and_values_lie_on_the_mask(name, counts, compensate):
    asked = problem(counts)
    solved = METHODS[name].solve(asked, compensate=compensate, seed=0)
    mask, values = np.asarray(solved.mask), np.asarray(solved.values)
    assert np.array_equal(np.asarray(asked.checked_mask(mask)), mask)
    assert np.array_equal(counts.of(mask), counts.wanted(*mask.shape))
    assert (values[~mask] == 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_one_seed_gives_the_same_bytes(name):
    one, other = (METHODS[name].solve(problem(Counts(20)), compensate=True, seed=4) for _ in "ab")
    assert np.array_equal(one.mask, other.mask)
    assert np.array_equal(one.values, other.values)


def error(name):
    asked = problem(Counts(20))
    solved = METHODS[name].solve(asked, compensate=True, seed=0)
    return float(np.asarray(asked.objectives(solved.values)).sum())


def test_a_search_leaves_less_error_than_one_shot_methods():
    shot = min(error(name) for name in ("magnitude", "wanda", "sparsegpt"))
    assert error("reconstruct") < shot
    assert error("sampled") < shot


@pytest.mark.parametrize("name", METHODS)
def test_work_counts_numbers(name):
    pairs, weights = METHODS[name].work
    assert pairs >= 1
    assert weights >= 1
