"""Kept weights around a block, moving as they will once it is decided.

With B a block, R kept weights outside of it, g and H gradient and curvature on both, and a ridge
rho, the minimum of the second-order model over the move of R is, for a move d of the block,

    d_R = -(H_RR + rho)^-1 (g_R + H_RB d)

and, up to what the rest would gain anyway, a quadratic function of d is left, with the Schur
complement for its curvature:

    gradient = g_B - H_BR (H_RR + rho)^-1 g_R       curvature = H_BB - H_BR (H_RR + rho)^-1 H_RB

With the block only what answers it is moved, -(H_RR + rho)^-1 H_RB d; the rest of d_R is left to
the compensation, which sees more samples.

One weight alone gives the saliency of Optimal Brain Surgeon (Hassibi and Stork 1993, eq. 5), here
for removing a kept weight, and likewise for restoring a pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from solvers import Dense, LowRank

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Anticipated:
    """The model of the loss left for a block when the rest moves along.

    Attributes:
        gradient: of the block, shape (n,).
        curvature: of the block.
        response: the rest's move by each of the block's, shape (r, n); None where there is none.
    """

    gradient: Floats
    curvature: Dense | LowRank
    response: Floats | None

    def along(self, move: Floats) -> Floats:
        """(g . d, d . H d) for a move d (n,) of the block."""
        return np.array([self.gradient @ move, 2 * self.curvature.values(move[None])[0]])

    def compact(self) -> Anticipated:
        """With the curvature multiplied out where that is smaller."""
        if isinstance(self.curvature, Dense):
            return self
        return replace(self, curvature=self.curvature.compact())


def anticipated(gradient: Floats, factor: Floats, size: int, ridge: float) -> Anticipated:
    """Eliminate all weights but the first ``size``.

    Args:
        gradient: of the block, then of the rest, shape (n + r,).
        factor: F, H = F'F, shape (m, n + r).
        size: n.
        ridge: rho, positive.
    """
    block, others = factor[:, :size], gradient[size:]
    rest = _Moving.of(factor[:, size:], ridge)
    alone = -rest.inverse(others[:, None])[:, 0]
    return Anticipated(
        gradient[:size] + block.T @ (rest.factor @ alone),
        rest.left(block),
        -rest.response(block),
    )


@dataclass(frozen=True, eq=False)
class Worth:
    """The worth of each change alone where all kept weights move along.

    Attributes:
        cost: change of the loss by changing one decision, nats, shape (k,).
        keep_value: value of each weight if kept, shape (k,).
    """

    cost: Floats
    keep_value: Floats


def worth(
    gradient: Floats, factor: Floats, values: Floats, kept: NDArray[np.bool_], ridge: float
) -> Worth:
    """The worth of removing each kept weight, and of restoring each pruned one.

    Args:
        gradient: shape (k,).
        factor: F, H = F'F, shape (m, k).
        values: of the weights now, shape (k,).
        kept: shape (k,).
        ridge: rho, positive.
    """
    moving, pruned = _Moving.of(factor[:, kept], ridge), factor[:, ~kept]
    alone = -moving.inverse(gradient[kept, None])[:, 0]
    slope = gradient[~kept] + pruned.T @ (moving.factor @ alone)
    curved = moving.left_alone(pruned) + ridge
    cost, keep_value = np.zeros_like(values), values.copy()
    cost[kept] = 0.5 * (values[kept] + alone) ** 2 / moving.inverse_diagonal()
    cost[~kept] = -0.5 * slope**2 / curved
    keep_value[~kept] = -slope / curved
    return Worth(cost, keep_value)


@dataclass(frozen=True, eq=False)
class _Moving:
    """Weights that move along: A = F'F + ridge over them, through the smaller side of F.

    Attributes:
        factor: F, shape (m, r).
        ridge: positive.
        lower: Cholesky factor of A (r, r), or of F F' + ridge (m, m) where that is smaller.
    """

    factor: Floats
    ridge: float
    lower: Floats

    @classmethod
    def of(cls, factor: Floats, ridge: float) -> _Moving:
        rows, size = factor.shape
        product = factor.T @ factor if size <= rows else factor @ factor.T
        product.flat[:: len(product) + 1] += ridge
        return cls(factor, ridge, np.asarray(np.linalg.cholesky(product), np.float64))

    @property
    def _by_weights(self) -> bool:
        return self.factor.shape[1] <= self.factor.shape[0]

    def _halfway(self, right: Floats) -> Floats:
        return linalg.solve_triangular(self.lower, right, lower=True, check_finite=False)

    def _solved(self, right: Floats) -> Floats:
        return linalg.cho_solve((self.lower, True), right, check_finite=False)

    def inverse(self, right: Floats) -> Floats:
        """A^-1 v over the columns v of ``right`` (r, k)."""
        if self._by_weights:
            return self._solved(right)
        return (right - self.factor.T @ self._solved(self.factor @ right)) / self.ridge

    def inverse_diagonal(self) -> Floats:
        """The diagonal of A^-1, shape (r,)."""
        if self._by_weights:
            return np.square(self._halfway(np.eye(len(self.lower)))).sum(0)
        return (1 - np.square(self._halfway(self.factor)).sum(0)) / self.ridge

    def response(self, others: Floats) -> Floats:
        """A^-1 F'G for columns G (m, n) of other weights, shape (r, n)."""
        if self._by_weights:
            return self._solved(self.factor.T @ others)
        return self.factor.T @ self._solved(others)

    def left(self, others: Floats) -> Dense | LowRank:
        """G'G - G'F A^-1 F'G for columns G (m, n) of other weights."""
        if not self._by_weights:
            return LowRank(self.ridge**0.5 * self._halfway(others)).compact()
        halfway = self._halfway(self.factor.T @ others)
        return Dense.trusted(others.T @ others - halfway.T @ halfway)

    def left_alone(self, others: Floats) -> Floats:
        """The diagonal of `left`, shape (n,)."""
        if not self._by_weights:
            return self.ridge * np.square(self._halfway(others)).sum(0)
        halfway = self._halfway(self.factor.T @ others)
        return np.maximum(np.square(others).sum(0) - np.square(halfway).sum(0), 0.0)
