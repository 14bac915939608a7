"""Swaps with every kept value refitted, row by row, from the row's sweep tableau."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from solvers.errors import InvalidProblemError
from solvers.row_kernels import exact_swap_row, oscillate_row
from solvers.row_tableau import tableau_of

Floats = NDArray[np.float64]

RowMarginals = tuple[float, int, float, int]

#: The marginals of a row not yet settled: nothing to trade.
NO_MARGINALS: RowMarginals = (np.inf, 0, -np.inf, 0)

# Ridges as shares of the mean diagonal, tried in order: float64 Gram matrices need the first.
RIDGES = (1e-9, 1e-7, 1e-5, 1e-3)


def regular(gram: Floats) -> Floats:
    """A with a ridge that leaves every principal part an inverse, and 1 for inputs that never fire.

    The ridge is the first of `RIDGES` that makes A positive definite in float64.

    Raises:
        InvalidProblemError: none of them does, so A is not positive semidefinite.
    """
    diagonal = np.diagonal(gram)
    dead = diagonal <= 0
    for ridge in RIDGES:
        result = gram + np.diag(np.where(dead, 1.0, ridge * diagonal.mean()))
        try:
            linalg.cholesky(result, check_finite=False)
        except linalg.LinAlgError:
            continue
        return result
    raise InvalidProblemError("gram is not positive semidefinite; pass X @ X.T in float64")


def marginals_of(tableau: Floats, kept: NDArray[np.bool_], diagonal: Floats) -> RowMarginals:
    """(cost, input) of the cheapest prune and (gain, input) of the best restore, values refitted.

    Pruning i costs w_i^2 / (2 C_ii), restoring j gains r_j^2 / (2 Z_jj).
    """
    entries = np.diagonal(tableau)[:-1]
    column = tableau[-1, :-1]
    half_squares = 0.5 * column**2
    cost = np.where(kept, half_squares / np.where(kept, -entries, 1.0), np.inf)
    usable = ~kept & (entries > 1e-9 * diagonal) & (diagonal > 0)
    gain = np.where(usable, half_squares / np.where(usable, entries, 1.0), -np.inf)
    i, j = int(cost.argmin()), int(gain.argmax())
    return float(cost[i]), i, float(gain[j]), j


def settled_row(
    gram: Floats,
    target: Floats,
    kept: NDArray[np.bool_],
    run: int,
    tolerance: float,
    depth: int,
) -> tuple[int, Floats, RowMarginals]:
    """Swap one row to its optimum, with oscillations up to ``depth``; ``kept`` changes in place.

    Returns:
        The number of swaps and swings made, the kept values (0 elsewhere), and `marginals_of`
        the result.
    """
    pull = gram @ target
    tableau = tableau_of(gram, pull, float(pull @ target), kept)
    diagonal = np.diagonal(gram).copy()
    moves = exact_swap_row(tableau, gram, kept, diagonal, run, tolerance, np.iinfo(np.int64).max)
    moves += oscillate_row(tableau, gram, kept, diagonal, run, tolerance, depth)
    values = np.where(kept, tableau[-1, :-1], 0.0)
    return moves, values, marginals_of(tableau, kept, diagonal)
