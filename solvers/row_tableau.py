"""The sweep tableau of one row, from the kept inputs' Gram matrix: LAPACK between two gathers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from solvers.row_kernels import kernel

Floats = NDArray[np.float64]


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
    cross = _gathered(gram, inside, outside)
    factor = linalg.cholesky(_gathered(gram, inside, inside), check_finite=False)
    (invert,) = linalg.get_lapack_funcs(("potri",), (factor,))
    triangle, info = invert(factor)
    if info:
        raise np.linalg.LinAlgError(f"the kept inputs' Gram matrix has no inverse ({info})")
    inverse = _mirrored(triangle)
    swept = inverse @ cross
    _fill(full, inside, outside, inverse, cross, swept)
    values = inverse @ pull[inside]
    full[-1, inside] = values
    full[-1, outside] -= pull[inside] @ swept
    full[-1, -1] -= pull[inside] @ values
    return full


@kernel
def _gathered(gram, rows, columns):
    """``gram[rows][:, columns]``."""
    part = np.empty((rows.size, columns.size))
    for a in range(rows.size):
        for b in range(columns.size):
            part[a, b] = gram[rows[a], columns[b]]
    return part


@kernel
def _mirrored(upper):
    """The symmetric matrix with that upper triangle."""
    size = upper.shape[0]
    both = np.empty((size, size))
    for b in range(size):
        for a in range(b + 1):
            both[a, b] = upper[a, b]
            both[b, a] = upper[a, b]
    return both


@kernel
def _fill(full, inside, outside, inverse, cross, swept):
    """The kept inputs' rows, and the diagonal of the rest, less what the kept inputs explain."""
    explained = np.zeros(outside.size)
    for a in range(inside.size):
        for b in range(inside.size):
            full[inside[a], inside[b]] = -inverse[a, b]
        for c in range(outside.size):
            full[inside[a], outside[c]] = swept[a, c]
            explained[c] += cross[a, c] * swept[a, c]
    for c in range(outside.size):
        full[outside[c], outside[c]] -= explained[c]
