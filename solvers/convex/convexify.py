"""Problems made convex: a diagonal moved between the quadratic and the linear part.

For binary x, x_i^2 = x_i, so Q + diag(s) with linear - s / 2 is the same problem. With s large
enough it is convex, and its continuous relaxation then bounds the binary minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cholesky, eigh, eigvalsh_tridiagonal, solve_triangular

from solvers.host.clock import Deadline
from solvers.problem.problem import Integers, QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, LowRank, Quadratic, Sparse

# Up to this size eigenvalues are computed from the dense matrix, also of a sparse one.
_DENSE = 1024
# Columns of one block of the Cholesky factorisation.
_COLUMNS = 64
# Multiplications per second of it, and seconds of all eigenvalues over n^3, on a slow
# machine.
_OPERATIONS_PER_SECOND = 5e9
_SECONDS_OF_EIGENVALUES = 1e-9
_LANCZOS_STEPS = 200
_EPS = float(np.finfo(np.float64).eps)


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
        method: "" where Q was positive semidefinite, else the name of the shift.
        missing: bound on how negative an eigenvalue of ``quadratic`` may be, by rounding.
    """

    quadratic: Quadratic
    linear: Floats
    diagonal: Floats
    offset: float
    starts: Integers
    counts: Integers
    order: Integers | None = None
    method: str = ""
    missing: float = 0.0

    @property
    def size(self) -> int:
        """Number of variables."""
        return self.linear.size

    @property
    def operator(self) -> Any:
        """The matrix as `solvers.convex.newton_kernels` takes it."""
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
            missing=self.missing,
        )

    def as_dense(self) -> Convex:
        """The same with Q in full."""
        return replace(self, quadratic=Dense.trusted(self.quadratic.dense()))


def convexify(problem: QuadraticProblem, deadline: Deadline | None = None) -> Convex:
    """``problem`` sorted by group and, where it is not convex, with a shifted diagonal.

    A low-rank Q is convex as it is, and so is one whose diagonal dominates. Otherwise Q + t R is
    tried for R = I and for R the squared row norms: a Gram matrix without its diagonal has rows
    in proportion to the root of what is missing. t is the least eigenvalue of R^-1/2 Q R^-1/2,
    with a margin for what its computation can be off by. The shift that makes the diagonal
    dominate needs none of that. Of those, the one of least trace is taken.

    Args:
        problem: with or without counts.
        deadline: shifts that take longer are not tried; the result may be larger then.

    Example:
        >>> problem = QuadraticProblem([0.0, 0.0], [[0.0, 1.0], [1.0, 0.0]])
        >>> convex = convexify(problem)
        >>> convex.method != "", bool(convex.diagonal.min() >= 1.0)
        (True, True)
    """
    deadline = deadline or Deadline()
    quadratic, linear, order = problem.quadratic, problem.linear, None
    starts, counts = np.zeros(1, np.int64), np.zeros(0, np.int64)
    if problem.groups is not None and problem.counts is not None:
        starts = np.concatenate([starts, np.cumsum(problem.group_sizes)])
        counts = problem.counts
        if (np.diff(problem.groups) < 0).any():
            order = np.argsort(problem.groups, kind="stable")
            quadratic, linear = quadratic.restrict(order), linear[order]
    diagonal = quadratic.diagonal()
    method, missing = "", 0.0
    if not isinstance(quadratic, LowRank) and diagonal.size:
        n = diagonal.size
        lacking = np.maximum(0.0, _row_sums(quadratic) - np.abs(diagonal) - diagonal)
        missing = 4.0 * n * _EPS * float(diagonal.max())
        if lacking.any():
            # A Cholesky factorisation succeeds on a matrix within (n + 1) eps / 2 tr Q of Q
            # (Higham, Accuracy and Stability of Numerical Algorithms, theorem 10.3).
            missing = (n + 1) * _EPS * float(np.maximum(diagonal, 0.0).sum())
            if not _positive(quadratic, diagonal, missing, deadline):
                shift = _least_shift(quadratic, lacking, deadline)
                quadratic = _shifted(quadratic, shift)
                linear, diagonal = linear - 0.5 * shift, diagonal + shift
                method, missing = "diagonal shift", 0.0
    return Convex(
        quadratic,
        linear,
        diagonal,
        problem.offset,
        starts,
        counts,
        order=order,
        method=method,
        missing=1.5 * missing,
    )


def _positive(quadratic: Quadratic, diagonal: Floats, more: float, deadline: Deadline) -> bool:
    """True where Q with ``more`` on its diagonal is proved positive semidefinite."""
    n = diagonal.size
    if (diagonal < 0).any() or (n > _DENSE and isinstance(quadratic, Sparse)):
        return False
    matrix = np.array(quadratic.dense())
    matrix[np.diag_indices(n)] += more
    try:
        for low in range(0, n, _COLUMNS):
            if deadline.remaining <= _COLUMNS * low * (n - low) / _OPERATIONS_PER_SECOND:
                return False
            high = min(low + _COLUMNS, n)
            # Subtract the part of the factorised columns to the left.
            matrix[low:, low:high] -= matrix[low:, :low] @ matrix[low:high, :low].T
            block = cholesky(matrix[low:high, low:high], lower=True, check_finite=False)
            matrix[high:, low:high] = solve_triangular(
                block, matrix[high:, low:high].T, lower=True, check_finite=False
            ).T
    except LinAlgError:
        return False
    return True


def _row_sums(quadratic: Quadratic) -> Floats:
    """The sum of the sizes of each row's entries."""
    if isinstance(quadratic, Sparse):
        return np.asarray(abs(quadratic.matrix).sum(axis=1)).ravel()
    matrix = quadratic.dense()
    rows = [np.abs(matrix[i : i + _COLUMNS]).sum(1) for i in range(0, len(matrix), _COLUMNS)]
    return np.concatenate(rows)


def _row_norms(quadratic: Quadratic) -> Floats:
    """Squared Euclidean norms of the rows."""
    if isinstance(quadratic, Sparse):
        return np.asarray(quadratic.matrix.multiply(quadratic.matrix).sum(axis=1)).ravel()
    matrix = quadratic.dense()
    return np.einsum("ij,ij->i", matrix, matrix)


def _least_shift(quadratic: Quadratic, lacking: Floats, deadline: Deadline) -> Floats:
    """The shift of least trace among those tried, shape (n,).

    Args:
        quadratic: Q.
        lacking: the shift with which the diagonal dominates, shape (n,).
        deadline: when to stop.
    """
    # The sums themselves are rounded.
    candidates = [lacking + 4.0 * lacking.size * _EPS * float(lacking.max())]
    squared = _row_norms(quadratic)
    for weight in (np.ones(squared.size), squared / squared.max() + 1e-6):
        least = _least_eigenvalue(quadratic, 1.0 / np.sqrt(weight), deadline)
        candidates.append(np.maximum(0.0, -least) * weight)
    return min(candidates, key=lambda shift: float(shift.sum()))


def _least_eigenvalue(quadratic: Quadratic, scale: Floats, deadline: Deadline) -> float:
    """A number below the least eigenvalue of diag(scale) Q diag(scale); -inf without time."""
    n = scale.size
    if n <= _DENSE and deadline.remaining > _SECONDS_OF_EIGENVALUES * n**3:
        matrix = quadratic.dense() * scale[:, None] * scale
        ends = eigh(matrix, eigvals_only=True, check_finite=False)[[0, -1]]
        return float(ends[0] - 16.0 * n * _EPS * np.abs(ends).max())

    def product(v: Floats) -> Floats:
        return scale * quadratic.product(scale * v)

    return _lanczos(product, n, deadline)


def _lanczos(product: Callable[[Floats], Floats], n: int, deadline: Deadline) -> float:
    """A number below the least eigenvalue, by Lanczos steps from a random start.

    After k of them the least Ritz value is further from it than a share e of the spectrum's width
    with a probability of at most 1.648 sqrt(n) exp(-(2 k - 1) sqrt(e)) over the start (Kuczynski
    and Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992, theorem 4.2). That e is taken off for
    which it is 1e-15. No step begins after a quarter of the time that is left.
    """
    certain = float(np.log(1.648 * np.sqrt(n) * 1e15))
    enough = 0.25 * deadline.remaining
    v = np.random.default_rng(0).normal(size=n)
    v /= np.linalg.norm(v)
    before, beta = np.zeros(n), 0.0
    diagonal: list[float] = []
    beside: list[float] = []
    last = 0.0
    for _ in range(min(n, _LANCZOS_STEPS)):
        if deadline.passed or deadline.remaining - 4.0 * last < 3.0 * enough:
            break
        last = deadline.elapsed
        w = product(v) - beta * before
        alpha = float(w @ v)
        w -= alpha * v
        diagonal.append(alpha)
        beta = float(np.linalg.norm(w))
        if beta <= 1e-14 * abs(alpha):
            break
        beside.append(beta)
        before, v = v, w / beta
        last = deadline.elapsed - last
    k = len(diagonal)
    share = (certain / max(1, 2 * k - 1)) ** 2
    if share >= 0.4:
        return -float("inf")
    ends: Any = eigvalsh_tridiagonal(np.array(diagonal), np.array(beside[: k - 1]))
    ends = ends[[0, -1]]
    # The Ritz values lie inside the spectrum: its width is larger by that share at both ends.
    return float(ends[0] - share / (1.0 - 2.0 * share) * (ends[1] - ends[0]))


def _shifted(quadratic: Quadratic, shift: Floats) -> Quadratic:
    """Q + diag(shift)."""
    if isinstance(quadratic, Sparse) and shift.size > _DENSE:
        from scipy import sparse

        return Sparse(sparse.csr_array(quadratic.matrix + sparse.diags_array(shift)))
    matrix = np.array(quadratic.dense())
    matrix[np.diag_indices(shift.size)] += shift
    return Dense.trusted(matrix)
