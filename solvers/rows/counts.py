"""The exact counts of kept weights: of a matrix, of its rows, of runs of consecutive inputs.

Masks are True where a weight is kept; a higher score is a better reason to keep. Ties keep the
lower index. Scores and masks are numpy arrays or torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidProblemError
from solvers.rows.refit import Array, as_host, as_like, nth_smallest

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, Shaped

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Exact counts of the weights that a mask of shape (rows, inputs) keeps.

    Args:
        kept: one integer for the whole matrix; or one for each row, shape (rows,) or, where it is
            the same for all, (1,); or one for each of a row's runs of equally many consecutive
            inputs, shape (rows, runs).
        m: length of the runs where one integer, of shape (1, 1), holds for all; see `n_of_m`.

    Raises:
        InvalidProblemError: counts are not whole numbers, have more than two dimensions, or are
            not between 0 and ``m``.

    Example:
        >>> scores = np.array([[0.1, 0.2], [0.8, 0.9]])
        >>> Counts(2).select(scores).tolist()
        [[False, False], [True, True]]
        >>> Counts([1]).select(scores).tolist()
        [[False, True], [False, True]]
    """

    kept: ArrayLike
    m: int | None = None

    def __post_init__(self) -> None:
        array = np.asarray(self.kept)
        whole = array.astype(np.int64)
        if not np.array_equal(whole, array) or array.ndim > 2:
            raise InvalidProblemError(
                f"counts must be whole numbers, of a matrix, its rows or its runs, "
                f"not {self.kept!r}"
            )
        if self.m is not None and not (whole.shape == (1, 1) and 0 <= whole.item() <= self.m > 0):
            raise InvalidProblemError(
                f"{whole.squeeze()}:{self.m} is no structure; 0 <= N <= M, M >= 1"
            )
        object.__setattr__(self, "kept", whole)

    @classmethod
    def n_of_m(cls, n: int, m: int) -> Counts:
        """Keep ``n`` in each run of ``m`` consecutive inputs (2:4 keeps two in four).

        Raises:
            InvalidProblemError: not 0 <= n <= m, or m is below 1.

        Example:
            >>> Counts.n_of_m(1, 2).select(np.array([[0.1, 0.2, 0.9, 0.8]])).tolist()
            [[False, True, True, False]]
        """
        return cls([[n]], m)

    @property
    def trades(self) -> bool:
        """True if rows may trade kept weights with one another: the matrix has one count."""
        return self._kept.ndim == 0

    def run(self, inputs: int) -> int:
        """Length of the runs of consecutive inputs that swaps stay inside."""
        if self._kept.ndim < 2:
            return inputs
        return self.m or inputs // max(1, self._kept.shape[1])

    def check(self, rows: int, inputs: int) -> None:
        """Raise `InvalidProblemError` where a mask of that shape cannot have these counts."""
        kept = self._kept
        if self.m and inputs % self.m:
            raise InvalidProblemError(
                f"{kept.item()}:{self.m} needs a number of inputs that {self.m} divides, "
                f"not {inputs}; choose another M or leave this layer out"
            )
        fits = kept.shape in ((), (1,), (rows,)) or bool(self.m)
        if kept.ndim == 2 and not self.m:
            fits = len(kept) == rows and 0 < kept.shape[1] * self.run(inputs) == inputs
        if not fits:
            raise InvalidProblemError(
                f"the counts have shape {kept.shape}; pass one number for the whole matrix, or one "
                f"for each of the {rows} rows, or of the runs that its {inputs} inputs divide into"
            )
        most = rows * inputs if self.trades else self.run(inputs)
        for where in np.argwhere((kept < 0) | (kept > most)):
            place = (f"a layer of {rows} x {inputs} weights", *(f"row {row}" for row in where[:1]))
            raise InvalidProblemError(
                f"{place[-1]} cannot keep {kept[tuple(where)]} of {most} weights; the count must "
                f"lie in 0..{most}"
            )

    def select(
        self, scores: Shaped[Array, "rows columns"], start: int = 0, inputs: int | None = None
    ) -> Bool[Array, "rows columns"]:
        """The mask that keeps the highest of ``scores``.

        Args:
            scores: shape (rows, inputs), or the columns from ``start`` on of as many ``inputs``:
                whole runs, or else a part whose share of the counts is kept. The shares of
                consecutive parts add up to the exact counts.
            start: see ``scores``.
            inputs: see ``scores``.
        """
        kept, stop = self._kept, start + scores.shape[1]
        size = stop if inputs is None else inputs
        run = self.run(size)
        if run < size:
            by_count = scores.reshape(-1, run)
            kept = kept if self.m else kept[:, start // run : stop // run]
        else:
            by_count = scores.reshape(1, -1) if self.trades else scores
            kept = kept * stop // max(1, size) - kept * start // max(1, size)
        return highest(by_count, np.ravel(kept)).reshape(scores.shape)

    def of(self, mask: Bool[Array, "rows inputs"]) -> Int64[Integers, "*counts"]:
        """The counts that ``mask`` has, in the form of `wanted`."""
        mask = as_host(mask)
        if self._kept.ndim == 2:
            return mask.reshape(len(mask), -1, self.run(mask.shape[1])).sum(-1, dtype=np.int64)
        return np.atleast_1d(mask.sum(None if self.trades else 1, dtype=np.int64))

    def wanted(self, rows: int, inputs: int) -> Int64[Integers, "*counts"]:
        """The counts asked for, read-only: shape (1,), (rows,) or (rows, runs)."""
        shape = ((1,), (rows,), (rows, inputs // max(1, self.run(inputs))))[self._kept.ndim]
        return np.broadcast_to(self._kept, shape)

    @property
    def _kept(self) -> Integers:
        return cast(Integers, self.kept)


def highest(
    scores: Shaped[Array, "rows columns"], counts: Shaped[Array, " r"]
) -> Bool[Array, "rows columns"]:
    """True at the ``counts[r]`` highest entries of every row of ``scores``; ties by index.

    One count, of shape (1,), holds for all rows.
    """
    size = scores.shape[-1]
    counts = as_like(counts, scores, "int64")
    threshold_at = (size - counts).clip(0, size - 1)
    threshold = nth_smallest(scores, threshold_at)[:, None]
    above = scores > threshold
    tied = scores == threshold
    missing = counts - above.sum(-1)
    if bool((tied.sum(-1) == missing).all()):  # the common case: no tie to break
        return (above | tied) & (counts > 0)[:, None]
    mask = above | (tied & (tied.cumsum(-1) <= missing[:, None]))
    return mask & (counts > 0)[:, None]
