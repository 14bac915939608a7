"""Greedy repair: flip the cheapest variables until every group has its exact count."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem.problem import Integers, QuadraticProblem, States


def repair(problem: QuadraticProblem, states: ArrayLike) -> States:
    """Every row of ``states`` with exact counts, at most |violation| flips away.

    While a group has too few ones, the zero whose flip costs least is set; while it has too
    many, the one whose removal gains most is cleared. Costs are true energy differences, kept
    up to date after each flip; the group whose flip is cheapest goes first.

    Args:
        problem: with or without counts; without, the states are returned as they are.
        states: binary states, shape (reads, n).

    Returns:
        New states, shape (reads, n), int8.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> repair(problem, [[1, 1, 1], [0, 0, 0]]).tolist()
        [[0, 1, 1], [0, 1, 1]]
    """
    repaired = np.array(np.atleast_2d(states), dtype=np.int8)
    if problem.groups is None or problem.counts is None:
        return repaired
    for index in np.flatnonzero(~problem.feasible(repaired)):
        _repair_row(problem, problem.groups, problem.counts, repaired[index])
    return repaired


def _repair_row(problem: QuadraticProblem, groups: Integers, counts: Integers, x: States) -> None:
    """Repair one state, shape (n,), in place."""
    ones = np.bincount(groups, weights=x, minlength=counts.size).astype(np.int64)
    missing = counts - ones
    field = problem.fields(x)[0]
    half_diagonal = 0.5 * problem.quadratic.diagonal()
    while missing.any():
        need = missing[groups]
        sign = 1.0 - 2.0 * x
        cost = sign * field + half_diagonal
        cost[sign * need <= 0] = np.inf
        flip = int(np.argmin(cost))
        field += sign[flip] * problem.quadratic.row(flip)
        missing[groups[flip]] -= int(sign[flip])
        x[flip] = 1 - x[flip]
