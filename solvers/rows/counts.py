"""Budgets of kept weights: per output row, over the whole layer, or N in M.

All budgets have the methods of `Budget`, for numpy arrays and torch tensors. Masks are
True where a weight is kept; a higher score is a better reason to keep. Ties keep the lower index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidProblemError
from solvers.rows.refit import Array, as_count, as_host, nth_smallest

Integers = NDArray[np.int64]


class Budget(Protocol):
    """The exact counts of a (rows, inputs) mask."""

    @property
    def trades(self) -> bool:
        """True if rows may trade kept weights with one another."""
        ...

    def check(self, rows: int, inputs: int) -> None:
        """Raise `InvalidProblemError` where the budget cannot be met."""
        ...

    def run(self, inputs: int) -> int:
        """Length of the runs of consecutive inputs that swaps stay inside."""
        ...

    def select(self, scores: Array) -> Array:
        """The mask that keeps the highest of ``scores``, shape (rows, inputs)."""
        ...

    def select_block(self, scores: Array, start: int, inputs: int) -> Array:
        """The mask of columns ``start ...`` alone, their fair share of the counts kept.

        The shares of consecutive blocks add up to the exact counts.
        """
        ...

    def kept(self, mask: Array) -> Integers:
        """The counts that ``mask`` has and this budget fixes."""
        ...

    def wanted(self, rows: int, inputs: int) -> Integers:
        """The counts that this budget asks for, in the form of `kept`."""
        ...


def highest(scores: Array, counts: Array) -> Array:
    """True at the ``counts[r]`` highest entries of every row of ``scores``; ties by index."""
    size = scores.shape[-1]
    counts = as_count(counts, scores)
    threshold_at = (size - counts).clip(0, size - 1)
    threshold = nth_smallest(scores, threshold_at)[:, None]
    above = scores > threshold
    tied = scores == threshold
    missing = counts - above.sum(-1)
    if bool((tied.sum(-1) == missing).all()):  # the common case: no tie to break
        return (above | tied) & (counts > 0)[:, None]
    mask = above | (tied & (tied.cumsum(-1) <= missing[:, None]))
    return mask & (counts > 0)[:, None]


def _whole(what: str, value: ArrayLike) -> Integers:
    array = np.asarray(value)
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise InvalidProblemError(f"{what} must be whole numbers, not {value!r}")
    return whole


def _share(count: Array, columns: int, inputs: int) -> Array:
    """The share of ``count`` for the first ``columns`` of ``inputs``, rounded down."""
    return count * columns // inputs


@dataclass(frozen=True, eq=False)
class RowBudget:
    """Every output row keeps its own number of weights.

    Args:
        kept_per_row: one integer for all rows, or one for each, shape (rows,).

    Example:
        >>> RowBudget(1).select(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist()
        [[False, True], [True, False]]
    """

    kept_per_row: ArrayLike
    trades = False

    def check(self, rows: int, inputs: int) -> None:
        counts = _whole("kept_per_row", self.kept_per_row)
        if counts.ndim and counts.shape != (rows,):
            raise InvalidProblemError(
                f"kept_per_row has shape {counts.shape}; pass one number, or one for each of "
                f"the {rows} rows"
            )
        bad = np.flatnonzero((self.wanted(rows, inputs) < 0) | (counts > inputs))
        if bad.size:
            raise InvalidProblemError(
                f"row {bad[0]} cannot keep {np.broadcast_to(counts, rows)[bad[0]]} of its "
                f"{inputs} inputs; kept_per_row must lie in 0..{inputs}"
            )

    def run(self, inputs: int) -> int:
        return inputs

    def select(self, scores: Array) -> Array:
        return highest(scores, self.wanted(*scores.shape))

    def select_block(self, scores: Array, start: int, inputs: int) -> Array:
        counts = self.wanted(len(scores), inputs)
        stop = start + scores.shape[1]
        return highest(scores, _share(counts, stop, inputs) - _share(counts, start, inputs))

    def kept(self, mask: Array) -> Integers:
        return as_host(mask).sum(1, dtype=np.int64)

    def wanted(self, rows: int, inputs: int) -> Integers:
        return np.broadcast_to(np.asarray(self.kept_per_row, dtype=np.int64), (rows,)).copy()


@dataclass(frozen=True)
class LayerBudget:
    """The layer keeps ``kept_in_all`` weights in all; rows may trade them.

    Example:
        >>> LayerBudget(2).select(np.array([[0.1, 0.2], [0.8, 0.9]])).tolist()
        [[False, False], [True, True]]
    """

    kept_in_all: int
    trades = True

    def check(self, rows: int, inputs: int) -> None:
        _whole("kept_in_all", self.kept_in_all)
        if not 0 <= self.kept_in_all <= rows * inputs:
            raise InvalidProblemError(
                f"a layer of {rows} x {inputs} weights cannot keep {self.kept_in_all}; "
                f"kept_in_all must lie in 0..{rows * inputs}"
            )

    def run(self, inputs: int) -> int:
        return inputs

    def select(self, scores: Array) -> Array:
        return highest(scores.reshape(1, -1), np.array([self.kept_in_all])).reshape(scores.shape)

    def select_block(self, scores: Array, start: int, inputs: int) -> Array:
        stop = start + scores.shape[1]
        total = int(self.kept_in_all)
        count = _share(total, stop, inputs) - _share(total, start, inputs)
        return highest(scores.reshape(1, -1), np.array([count])).reshape(scores.shape)

    def kept(self, mask: Array) -> Integers:
        return np.array([as_host(mask).sum(dtype=np.int64)])

    def wanted(self, rows: int, inputs: int) -> Integers:
        return np.array([self.kept_in_all], dtype=np.int64)


@dataclass(frozen=True)
class NofM:
    """N of every M consecutive inputs of a row are kept (2:4 keeps two in four, 1:4 one).

    Args:
        n: weights kept in every run.
        m: length of a run; it divides the number of inputs.

    Example:
        >>> NofM(1, 2).select(np.array([[0.1, 0.2, 0.9, 0.8]])).tolist()
        [[False, True, True, False]]
    """

    n: int
    m: int
    trades = False

    def check(self, rows: int, inputs: int) -> None:
        if not (self.m >= 1 and 0 <= self.n <= self.m):
            raise InvalidProblemError(f"{self.n}:{self.m} is no structure; 0 <= N <= M, M >= 1")
        if inputs % self.m:
            raise InvalidProblemError(
                f"{self.n}:{self.m} needs a number of inputs that {self.m} divides, "
                f"not {inputs}; choose another M or leave this layer out"
            )

    def run(self, inputs: int) -> int:
        return self.m

    def select(self, scores: Array) -> Array:
        runs = scores.reshape(-1, self.m)
        return highest(runs, np.full(len(runs), self.n)).reshape(scores.shape)

    def select_block(self, scores: Array, start: int, inputs: int) -> Array:
        return self.select(scores)

    def kept(self, mask: Array) -> Integers:
        mask = as_host(mask)
        return mask.reshape(len(mask), -1, self.m).sum(-1, dtype=np.int64)

    def wanted(self, rows: int, inputs: int) -> Integers:
        return np.full((rows, inputs // self.m), self.n, dtype=np.int64)
