"""Problems made convex: a diagonal moved between the quadratic and the linear part.

For binary x, x_i^2 = x_i, so Q + diag(s) with linear - s / 2 is the same problem. With s large
enough it is convex, and its continuous relaxation then bounds the binary minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh
from scipy.sparse.linalg import LinearOperator, eigsh

from solvers.problem import QuadraticProblem
from solvers.quadratic import Floats, LowRank, Quadratic

# Up to here all eigenvalues are cheaper than one by iteration.
_SMALL = 400


@dataclass(frozen=True, eq=False)
class Convex:
    """A convex problem equal to ``problem`` on binary states.

    Attributes:
        problem: the original.
        shift: added to the diagonal of Q, shape (n,).
        linear: linear - shift / 2.
        method: "" where nothing had to be done, else how ``shift`` was found.
    """

    problem: QuadraticProblem
    shift: Floats
    linear: Floats
    method: str = ""

    def product(self, x: Floats) -> Floats:
        """(Q + diag(shift)) x, shape (n,)."""
        product = self.problem.quadratic.product(x)
        return product + self.shift * x if self.method else product

    def diagonal(self) -> Floats:
        """The diagonal of the shifted matrix, never below 0 but by rounding."""
        return self.problem.quadratic.diagonal() + self.shift

    def block(self, indices: np.ndarray) -> Floats:
        """The rows and columns ``indices`` of the shifted matrix, a new array."""
        block = np.array(self.problem.quadratic.restrict(indices).dense())
        block[np.diag_indices(indices.size)] += self.shift[indices]
        return block


def convexify(problem: QuadraticProblem) -> Convex:
    """``problem`` with the least of three diagonal shifts that make it convex.

    A low-rank Q is convex as it is. Otherwise Q + t R is tried for R = I and for R the squared
    row norms: a Gram matrix without its diagonal has rows in proportion to the root of what is
    missing. t is the least eigenvalue of R^-1/2 Q R^-1/2, with a margin for rounding.
    """
    n = problem.num_variables
    zero = np.zeros(n)
    if isinstance(problem.quadratic, LowRank) or n == 0 or _positive(problem.quadratic):
        return Convex(problem, zero, problem.linear)
    squared = _row_norms(problem.quadratic)
    candidates = [_shift(problem.quadratic, np.ones(n))]
    if squared.max() > 0:
        candidates.append(_shift(problem.quadratic, squared + 1e-6 * squared.max()))
    shift = min(candidates, key=lambda s: float(s.sum()))
    return Convex(problem, shift, problem.linear - 0.5 * shift, "diagonal shift")


def _positive(quadratic: Quadratic) -> bool:
    """Whether Q is positive semidefinite up to a relative 1e-11 of its largest entry."""
    diagonal = quadratic.diagonal()
    if (diagonal < 0).any():
        return False
    if not diagonal.any():
        return not _row_norms(quadratic).any()
    matrix = np.array(quadratic.dense())
    matrix[np.diag_indices(len(matrix))] += 1e-11 * diagonal.max()
    try:
        cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return False
    return True


def _row_norms(quadratic: Quadratic) -> Floats:
    """Squared Euclidean norms of the rows."""
    return np.array([float(row @ row) for row in map(quadratic.row, range(quadratic.size))])


def _shift(quadratic: Quadratic, weight: Floats) -> Floats:
    """``weight`` times the least t that makes Q + t diag(weight) positive semidefinite."""
    scale = 1.0 / np.sqrt(weight)
    least, largest = _extreme_eigenvalues(quadratic, scale)
    return max(0.0, -least + 1e-9 * max(abs(least), abs(largest))) * weight


def _extreme_eigenvalues(quadratic: Quadratic, scale: Floats) -> tuple[float, float]:
    """Least and largest eigenvalue of diag(scale) Q diag(scale)."""
    n = scale.size
    if n <= _SMALL:
        values = eigh(quadratic.dense() * scale[:, None] * scale, eigvals_only=True)
        return float(values[0]), float(values[-1])

    def product(v: Floats) -> Floats:
        return scale * quadratic.product(scale * np.ravel(v))

    start = np.random.default_rng(0).normal(size=n)
    operator: Any = LinearOperator(dtype=np.float64, shape=(n, n), matvec=product)  # pyright: ignore
    values = np.asarray(eigsh(operator, k=2, which="BE", v0=start, return_eigenvectors=False))
    # Lanczos comes from inside the spectrum; what it may lack is added.
    margin = 1e-4 * np.abs(values).max()
    return float(values.min() - margin), float(values.max())
