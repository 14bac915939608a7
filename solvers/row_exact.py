"""Swaps with every kept value refitted, row by row, from the row's sweep tableau."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from solvers.errors import InvalidProblemError
from solvers.row_kernels import exact_swap_row, oscillate_row

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


def tableau_of(gram: Floats, pull: Floats, energy: float, kept: NDArray[np.bool_]) -> Floats:
    """The sweep of [[A, b], [b', c]] on the inputs that ``kept`` marks; see `exact_swap_row`.

    Filled are the kept inputs' rows (but for the last column), the diagonal and the last row.

    Args:
        gram: A, positive definite, shape (d, d).
        pull: b = A w0, shape (d,).
        energy: c = w0'A w0.
        kept: shape (d,).
    """
    inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
    full = np.empty((kept.size + 1, kept.size + 1))
    full[-1, :-1], full[-1, -1] = pull, energy
    full[outside, outside] = gram[outside, outside]
    if not inside.size:
        return full
    cross = gram[np.ix_(inside, outside)]
    factor = linalg.cholesky(gram[np.ix_(inside, inside)], check_finite=False)
    (invert,) = linalg.get_lapack_funcs(("potri",), (factor,))
    inverse, info = invert(factor)
    if info:
        raise np.linalg.LinAlgError(f"the kept inputs' Gram matrix has no inverse ({info})")
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    swept = inverse @ cross
    rows = np.empty((inside.size, kept.size))
    rows[:, inside], rows[:, outside] = -inverse, swept
    full[inside, :-1] = rows
    values = inverse @ pull[inside]
    full[-1, inside] = values
    full[-1, outside] -= pull[inside] @ swept
    full[-1, -1] -= pull[inside] @ values
    full[outside, outside] -= (cross * swept).sum(0)
    return full


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
