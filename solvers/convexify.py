"""Problems made convex: a diagonal moved between the quadratic and the linear part.

For binary x, x_i^2 = x_i, so Q + diag(s) with linear - s / 2 is the same problem. With s large
enough it is convex, and its continuous relaxation then bounds the binary minimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from solvers.problem import Integers, QuadraticProblem
from solvers.quadratic import Dense, Floats, LowRank, Quadratic, Sparse

# Up to this size eigenvalues are found, and a sparse matrix is worked with, in full.
_DENSE = 1500


@dataclass(frozen=True, eq=False)
class Convex:
    """A convex problem equal to the original on binary states, laid out for the kernels.

    Attributes:
        quadratic: positive semidefinite, variables sorted by group.
        linear: shape (n,), same order.
        diagonal: of ``quadratic``.
        offset: added to every energy.
        starts: group g holds positions ``starts[g]`` to ``starts[g + 1] - 1``; shape (1,) where
            there are no counts.
        counts: shape (g,).
        order: position -> variable, or None where they are the same.
        method: "" where Q was positive semidefinite, else how it was made so.
    """

    quadratic: Quadratic
    linear: Floats
    diagonal: Floats
    offset: float
    starts: Integers
    counts: Integers
    order: Integers | None = None
    method: str = ""

    @property
    def size(self) -> int:
        """Number of variables."""
        return self.linear.size

    @property
    def operator(self) -> Any:
        """The matrix as `solvers.newton_kernels` takes it."""
        if isinstance(self.quadratic, LowRank):
            return (self.quadratic.factor,)
        if isinstance(self.quadratic, Sparse):
            csr = self.quadratic.matrix
            return csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data
        return self.quadratic.dense()

    def energy(self, x: np.ndarray, product: Floats) -> float:
        """E of one point whose Q x is known."""
        return self.offset + float(self.linear @ x + 0.5 * (product @ x))

    def centre(self) -> Floats:
        """The point with all variables of a group alike, shape (n,)."""
        if self.counts.size == 0:
            return np.full(self.size, 0.5)
        sizes = np.diff(self.starts)
        return np.repeat(self.counts / np.maximum(sizes, 1), sizes)

    def unsorted(self, values: np.ndarray) -> np.ndarray:
        """``values`` (..., n) in the order of the original problem."""
        if self.order is None:
            return values
        result = np.empty_like(values)
        result[..., self.order] = values
        return result

    def sorted(self, values: np.ndarray) -> np.ndarray:
        """The inverse of `unsorted`."""
        return values if self.order is None else np.ascontiguousarray(values[..., self.order])

    def restrict(self, keep: Integers, x: np.ndarray, product: Floats) -> Convex:
        """The problem on the positions ``keep``, ascending, all others fixed as in ``x``.

        Args:
            keep: positions that stay free.
            x: shape (n,); entries outside ``keep`` are taken as they are.
            product: Q x.
        """
        inside = np.zeros(self.size, bool)
        inside[keep] = True
        block = self.quadratic.restrict(keep).dense()
        linear = self.linear[keep] + product[keep] - block @ x[keep]
        # E = linear.x + 1/2 x.Q.x; what the kept variables contribute is taken out again.
        total = float(self.linear @ x + 0.5 * (x @ product))
        mine = float(linear @ x[keep] + 0.5 * (x[keep] @ (block @ x[keep])))
        starts, counts = np.zeros(1, np.int64), self.counts
        if counts.size:
            cumulative = np.concatenate([[0], np.cumsum(inside)])
            starts = cumulative[self.starts]
            kept = np.add.reduceat(np.append(np.where(inside, 0.0, x), 0.0), self.starts[:-1])
            kept[np.diff(self.starts) == 0] = 0.0
            counts = counts - np.rint(kept).astype(np.int64)
        return Convex(
            Dense.trusted(block),
            linear,
            np.diagonal(block).copy(),
            self.offset + total - mine,
            starts.astype(np.int64),
            counts,
            method=self.method,
        )

    def as_dense(self) -> Convex:
        """The same with Q in full."""
        return replace(self, quadratic=Dense.trusted(self.quadratic.dense()))


def convexify(problem: QuadraticProblem) -> Convex:
    """``problem`` sorted by group and, where it is not convex, with a shifted diagonal.

    A low-rank Q is convex as it is. Otherwise Q + t R is tried for R = I and for R the squared
    row norms: a Gram matrix without its diagonal has rows in proportion to the root of what is
    missing. t is the least eigenvalue of R^-1/2 Q R^-1/2, with a margin for rounding; the R of
    least trace is taken.
    """
    quadratic, linear, order = problem.quadratic, problem.linear, None
    starts, counts = np.zeros(1, np.int64), np.zeros(0, np.int64)
    if problem.groups is not None and problem.counts is not None:
        starts = np.concatenate([starts, np.cumsum(problem.group_sizes)])
        counts = problem.counts
        if (np.diff(problem.groups) < 0).any():
            order = np.argsort(problem.groups, kind="stable")
            quadratic, linear = quadratic.restrict(order), linear[order]
    diagonal = quadratic.diagonal()
    method = ""
    if not (isinstance(quadratic, LowRank) or _positive(quadratic, diagonal)):
        shift = _least_shift(quadratic)
        quadratic = _shifted(quadratic, shift)
        linear, diagonal = linear - 0.5 * shift, diagonal + shift
        method = "diagonal shift"
    return Convex(
        quadratic, linear, diagonal, problem.offset, starts, counts, order=order, method=method
    )


def _positive(quadratic: Quadratic, diagonal: Floats) -> bool:
    """Whether Q is positive semidefinite up to a relative 1e-11 of its largest entry."""
    if diagonal.size == 0:
        return True
    if (diagonal < 0).any() or not diagonal.any():
        return not _row_norms(quadratic).any()
    if diagonal.size > _DENSE and isinstance(quadratic, Sparse):
        return False
    matrix = np.array(quadratic.dense())
    matrix[np.diag_indices(len(matrix))] += 1e-11 * diagonal.max()
    try:
        cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    except LinAlgError:
        return False
    return True


def _row_norms(quadratic: Quadratic) -> Floats:
    """Squared Euclidean norms of the rows."""
    if isinstance(quadratic, Sparse):
        return np.asarray(quadratic.matrix.multiply(quadratic.matrix).sum(axis=1)).ravel()
    matrix = quadratic.dense()
    return np.einsum("ij,ij->i", matrix, matrix)


def _least_shift(quadratic: Quadratic) -> Floats:
    """The one of least trace among the shifts tried, shape (n,)."""
    squared = _row_norms(quadratic)
    candidates = [_shift(quadratic, np.ones(squared.size))]
    if squared.max() > 0:
        candidates.append(_shift(quadratic, squared / squared.max() + 1e-6))
    return min(candidates, key=lambda shift: float(shift.sum()))


def _shift(quadratic: Quadratic, weight: Floats) -> Floats:
    """``weight`` times the least t that makes Q + t diag(weight) positive semidefinite."""
    scale = 1.0 / np.sqrt(weight)
    least = _least_eigenvalue(quadratic, scale)
    margin = 1e-9 * float(np.sqrt(_row_norms(quadratic).max()) * scale.max() ** 2)
    return max(0.0, -least + margin) * weight


def _least_eigenvalue(quadratic: Quadratic, scale: Floats) -> float:
    """A lower estimate of the least eigenvalue of diag(scale) Q diag(scale)."""
    n = scale.size
    if n <= _DENSE:
        matrix = quadratic.dense() * scale[:, None] * scale
        return float(eigh(matrix, eigvals_only=True, subset_by_index=[0, 0])[0])

    def product(v: Floats) -> Floats:
        return scale * quadratic.product(scale * np.ravel(v))

    start = np.random.default_rng(0).normal(size=n)
    operator: Any = LinearOperator(dtype=np.float64, shape=(n, n), matvec=product)  # pyright: ignore
    try:
        found: Any = eigsh(
            operator,
            k=1,
            which="SA",
            v0=start,
            return_eigenvectors=False,
            maxiter=200,
            tol=1e-3,  # pyright: ignore[reportArgumentType] - the stubs say int
        )
    except ArpackNoConvergence:
        # Gershgorin's circles: always right, seldom close.
        rows = (scale * np.abs(quadratic.row(i)) @ scale * scale[i] for i in range(n))
        return -float(max(rows))
    # Lanczos comes from inside the spectrum, by at most its tolerance; twice that is added.
    return float(found[0] - 2e-3 * abs(found[0]))


def _shifted(quadratic: Quadratic, shift: Floats) -> Quadratic:
    """Q + diag(shift)."""
    if isinstance(quadratic, Sparse) and shift.size > _DENSE:
        from scipy import sparse

        return Sparse(sparse.csr_array(quadratic.matrix + sparse.diags_array(shift)))
    matrix = np.array(quadratic.dense())
    matrix[np.diag_indices(shift.size)] += shift
    return Dense.trusted(matrix)
