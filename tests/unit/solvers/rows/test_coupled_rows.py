"""Coupled rows: the objective, the best values on a support, swaps that pay, what is refused."""

import numpy as np
import pytest

from solvers.errors import InvalidOptionError, InvalidProblemError
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.search import refit_coupled, solve_coupled, solve_rows
from solvers.rows.starts import admm, magnitude

COUNTS = {
    "matrix": Counts(30),
    "rows": Counts([3, 4, 5, 6, 7, 5]),
    "2:4": Counts.n_of_m(2, 4),
}
EVERY = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)


def coupled(counts, seed=0, rows=6, inputs=8):
    """Rows whose errors two directions feel most."""
    rng = np.random.default_rng(seed)
    x, g = rng.normal(size=(30, inputs)), rng.normal(size=(40, 2)) @ rng.normal(size=(2, rows))
    felt = g.T @ g / 40 + 0.1 * np.eye(rows)
    return RowProblem(x.T @ x, rng.laplace(size=(rows, inputs)), counts, felt)


def kronecker(problem):
    """The same objective of all weights as one vector: its matrix."""
    return np.kron(problem.felt, problem.gram)


@EVERY
def test_the_objective_is_that_of_the_kronecker_product(counts):
    problem = coupled(counts)
    values = np.random.default_rng(1).normal(size=problem.targets.shape)
    change = (values - problem.targets).ravel()
    assert problem.objectives(values).sum() == pytest.approx(
        0.5 * change @ kronecker(problem) @ change
    )


@EVERY
def test_values_are_the_best_ones_on_their_mask(counts):
    problem = coupled(counts)
    mask = magnitude(problem).mask
    found = solve_coupled(problem, mask=mask, values=problem.targets)
    matrix, kept = kronecker(problem), mask.ravel()
    best = np.zeros(kept.size)
    pull = matrix[kept] @ problem.targets.ravel()
    best[kept] = np.linalg.solve(matrix[np.ix_(kept, kept)], pull)
    np.testing.assert_allclose(found.values.ravel(), best, atol=5e-2)
    change = best - problem.targets.ravel()
    assert found.objective == pytest.approx(0.5 * change @ matrix @ change, rel=1e-3)


def test_errors_are_moved_to_where_they_are_not_felt():
    problem = coupled(Counts(20))
    alone = RowProblem(problem.gram, problem.targets, problem.counts)
    own, others = (admm(one, damping=0.0) for one in (problem, alone))
    values = refit_coupled(problem, own.mask, own.values)
    rows = solve_rows(alone, mask=others.mask, values=others.values).values
    assert problem.objectives(values).sum() < 0.7 * problem.objectives(rows).sum()


def test_rows_that_are_felt_alike_are_rows_on_their_own():
    problem = coupled(Counts(20))
    alone = RowProblem(problem.gram, problem.targets, problem.counts)
    alike = RowProblem(problem.gram, problem.targets, problem.counts, np.eye(6))
    assert np.array_equal(admm(alone, damping=0.0).mask, admm(alike, damping=0.0).mask)


@EVERY
@pytest.mark.parametrize("seed", range(3))
def test_swaps_of_held_values_keep_counts_and_end_where_no_best_swap_pays(counts, seed):
    problem = coupled(counts, seed)
    start = magnitude(problem)
    found = solve_coupled(
        problem, mask=start.mask, values=problem.targets, compensate=False, max_rounds=500
    )
    assert problem.checked_mask(found.mask).shape == found.mask.shape
    assert np.array_equal(found.values, problem.targets * found.mask)
    assert found.objective < found.start.sum()
    again = solve_coupled(problem, mask=found.mask, values=problem.targets, compensate=False)
    assert again.swaps == 0


def test_what_is_refused():
    gram, targets = np.eye(3), np.ones((2, 3))
    for felt, words in (
        (np.ones((2, 3)), "felt must be square"),
        (np.eye(3), r"must have shape \(3, 3\), not \(2, 3\)"),
        (np.array([[1.0, 2.0], [0.0, 1.0]]), "felt is not symmetric"),
        (np.diag([1.0, -1.0]), "felt has a negative diagonal"),
        (np.diag([1.0, np.nan]), r"felt has a non-finite entry at \(1, 1\)"),
    ):
        with pytest.raises(InvalidProblemError, match=words):
            RowProblem(gram, targets, Counts(2), felt)
    coupled_rows = RowProblem(gram, targets, Counts(2), np.eye(2))
    mask = magnitude(coupled_rows).mask
    with pytest.raises(InvalidOptionError, match="solve_coupled"):
        solve_rows(coupled_rows, mask=mask)
    with pytest.raises(InvalidOptionError, match="not coupled"):
        solve_coupled(RowProblem(gram, targets, Counts(2)), mask=mask, values=targets)
