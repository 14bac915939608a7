"""The sweep tableau of one row, from the kept inputs' Gram matrix: LAPACK between two gathers.

Swaps with every kept value refitted, row by row, from the row's sweep tableau.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from solvers.errors import InvalidProblemError
from solvers.host.clock import Deadline
from solvers.rows.kernels import exact_swap_row, kernel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


def tableau_of(gram: Floats, pull: Floats, energy: float, kept: Mask) -> Floats:
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
def _gathered(gram: Floats, rows: Integers, columns: Integers) -> Floats:
    """``gram[rows][:, columns]``."""
    part = np.empty((rows.size, columns.size))
    for a in range(rows.size):
        for b in range(columns.size):
            part[a, b] = gram[rows[a], columns[b]]
    return part


@kernel
def _mirrored(upper: Floats) -> Floats:
    """The symmetric matrix with that upper triangle."""
    size = upper.shape[0]
    both = np.empty((size, size))
    for b in range(size):
        for a in range(b + 1):
            both[a, b] = upper[a, b]
            both[b, a] = upper[a, b]
    return both


@kernel
def _fill(
    full: Floats,
    inside: Integers,
    outside: Integers,
    inverse: Floats,
    cross: Floats,
    swept: Floats,
) -> None:
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


RowMarginals = tuple[float, int, float, int]

#: The marginals of a row that is not at its optimum yet: no trade.
NO_MARGINALS: RowMarginals = (np.inf, 0, -np.inf, 0)

# Ridges as shares of the mean diagonal, tried in order: float64 Gram matrices need the first.
RIDGES = (1e-9, 1e-7, 1e-5, 1e-3)

# Numbers of a tableau read between two looks at the clock.
_READS_PER_LOOK = 3e7
# Swaps per input between two checks of a tableau against its values.
_SWAPS_BETWEEN_CHECKS = 4


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


def marginals_of(tableau: Floats, kept: Mask, diagonal: Floats) -> RowMarginals:
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
    gram: Floats, target: Floats, kept: Mask, run: int, tolerance: float, deadline: Deadline
) -> tuple[int, Floats, RowMarginals]:
    """Swap one row to its optimum; ``kept`` changes in place.

    Where kept inputs are nearly linearly dependent, pivots lose digits. A tableau is
    therefore checked against its values, now and then and at the end; an inaccurate
    one is made again, and swaps that did not improve the row are undone.

    Args:
        gram: A, positive definite; see `regular`.
        target: w0.
        kept: the mask.
        run: counts hold in every run of this many inputs.
        tolerance: improvements of the objective smaller than this do not count.
        deadline: when to stop.

    Returns:
        The number of swaps made, the kept values (0 elsewhere), and `marginals_of` the result.
    """
    row = _Row(gram, target, kept, run, tolerance)
    while not deadline.passed and row.swap():
        continue
    values = row.finished()
    return row.swaps, values, marginals_of(row.tableau, kept, np.diagonal(gram))


class _Row:
    """One row, its tableau, and the best mask that was checked by its values.

    Attributes:
        tableau: as for `exact_swap_row`.
        swaps: number made.
    """

    def __init__(
        self, gram: Floats, target: Floats, kept: Mask, run: int, tolerance: float
    ) -> None:
        self._gram, self._target, self._kept = gram, target, kept
        self._tolerance = tolerance
        self._pull = gram @ target
        self._energy = float(self._pull @ target)
        together = max(1, int(_READS_PER_LOOK / (1.0 + kept.size**2)))
        self._rule = np.diagonal(gram).copy(), run, tolerance, together
        self.swaps, self._unchecked = 0, 0
        # False once a tableau that was made again shows no improvement.
        self._sound = True
        self._make()
        self._best, self._least = kept.copy(), float(self.tableau[-1, -1])

    def _make(self) -> None:
        self.tableau = tableau_of(self._gram, self._pull, self._energy, self._kept)

    def swap(self) -> bool:
        """Make some swaps; return False where none improves any more."""
        swaps = exact_swap_row(self.tableau, self._gram, self._kept, *self._rule)
        self.swaps += swaps
        self._unchecked += swaps
        if self._unchecked > _SWAPS_BETWEEN_CHECKS * self._kept.size:
            self._check()
        return swaps > 0 and self._sound

    def finished(self) -> Floats:
        """Set ``kept`` to the best mask and return its values."""
        self._check()
        return self._values()

    def _values(self) -> Floats:
        return np.where(self._kept, self.tableau[-1, :-1], 0.0)

    def _check(self) -> None:
        """Check the tableau against its values; make it again, or go back, where they differ."""
        self._unchecked = 0
        change = self._values() - self._target
        claimed = float(self.tableau[-1, -1])
        borne_out = abs(change @ self._gram @ change - claimed) <= (
            2.0 * self._tolerance + 1e-3 * abs(claimed)
        )
        if not borne_out:
            self._make()
            claimed = float(self.tableau[-1, -1])
        if claimed < self._least - 2.0 * self._tolerance or (self._kept == self._best).all():
            self._best, self._least = self._kept.copy(), claimed
            return
        self._sound = False
        self._kept[:] = self._best
        self._make()
