"""The quadratic part of a problem: dense, low-rank or sparse.

All three have the methods of `Quadratic`, in float64, and build no dense copy
unasked. Arrays are shared with the caller, not copied, when they already have the
right dtype and layout; treat them as read-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError

if TYPE_CHECKING:
    from jaxtyping import Float64, Integer, Shaped

Floats = NDArray[np.float64]
Numbers = NDArray[np.generic]

# A matrix given by its entries is kept sparse below this share of non-zero ones.
SPARSE_DENSITY = 0.1


@runtime_checkable
class Quadratic(Protocol):
    """A symmetric n x n matrix Q, as used in E(x) = offset + linear.x + 1/2 x.Q.x."""

    @property
    def size(self) -> int:
        """Number of variables n."""
        ...

    def diagonal(self) -> Float64[Floats, " n"]:
        """The diagonal of Q, shape (n,)."""
        ...

    def row(self, index: int) -> Float64[Floats, " n"]:
        """Row ``index`` of Q, shape (n,); read-only."""
        ...

    def product(self, x: Shaped[Numbers, "*reads n"]) -> Float64[Floats, "*reads n"]:
        """Q x for every row of x, shape (..., n) -> (..., n)."""
        ...

    def values(self, x: Shaped[Numbers, "reads n"]) -> Float64[Floats, " reads"]:
        """1/2 x.Q.x for every row of x, shape (reads, n) -> (reads,)."""
        ...

    def dense(self) -> Float64[Floats, "n n"]:
        """Q as an (n, n) array."""
        ...

    def restrict(self, indices: Integer[NDArray[np.integer], " k"]) -> Quadratic:
        """The rows and columns ``indices`` of Q."""
        ...


def _as_floats(array: ArrayLike, what: str) -> Floats:
    floats = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(floats.sum()) and not np.isfinite(floats).all():
        where = np.argwhere(~np.isfinite(floats))[0]
        raise InvalidProblemError(
            f"{what} has a non-finite entry at {tuple(where.tolist())}; "
            "every coefficient must be a finite number"
        )
    return floats


@dataclass(frozen=True, eq=False)
class Dense:
    """Q stored in full.

    Args:
        matrix: symmetric, shape (n, n).

    Raises:
        InvalidProblemError: the matrix is not square, not symmetric or not finite.

    Example:
        >>> Dense([[2.0, 1.0], [1.0, 0.0]]).product(np.array([1.0, 1.0])).tolist()
        [3.0, 1.0]
    """

    matrix: Floats

    def __post_init__(self) -> None:
        matrix = _as_floats(self.matrix, "the quadratic matrix")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidProblemError(
                f"the quadratic matrix must be square, not of shape {matrix.shape}"
            )
        asymmetry = np.abs(matrix - matrix.T).max(initial=0.0)
        if asymmetry > 1e-9 * max(1.0, np.abs(matrix).max(initial=0.0)):
            i, j = np.unravel_index(np.abs(matrix - matrix.T).argmax(), matrix.shape)
            raise InvalidProblemError(
                f"the quadratic matrix is not symmetric: entry ({i}, {j}) is {matrix[i, j]:g}, "
                f"entry ({j}, {i}) is {matrix[j, i]:g}; pass (Q + Q.T) / 2"
            )
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def trusted(cls, matrix: Float64[Floats, "n n"]) -> Dense:
        """A matrix known to be square, symmetric, finite and float64; it is not checked."""
        dense = object.__new__(cls)
        object.__setattr__(dense, "matrix", matrix)
        return dense

    @property
    def size(self) -> int:
        return self.matrix.shape[0]

    def diagonal(self) -> Float64[Floats, " n"]:
        return np.diagonal(self.matrix).copy()

    def row(self, index: int) -> Float64[Floats, " n"]:
        return self.matrix[index]

    def product(self, x: Shaped[Numbers, "*reads n"]) -> Float64[Floats, "*reads n"]:
        return np.asarray(x, dtype=np.float64) @ self.matrix

    def values(self, x: Shaped[Numbers, "reads n"]) -> Float64[Floats, " reads"]:
        x = np.asarray(x, dtype=np.float64)
        return 0.5 * np.einsum("ri,ri->r", x @ self.matrix, x)

    def dense(self) -> Float64[Floats, "n n"]:
        return self.matrix

    def scaled(self, factor: float) -> Dense:
        """The matrix times a ``factor``."""
        return Dense.trusted(self.matrix * factor)

    def restrict(self, indices: Integer[NDArray[np.integer], " k"]) -> Dense:
        return Dense.trusted(self.matrix[np.ix_(indices, indices)])


@dataclass(frozen=True, eq=False)
class LowRank:
    """Q = factor.T @ factor, positive semidefinite by construction.

    Args:
        factor: shape (m, n); m is the number of samples of an empirical Fisher.

    Raises:
        InvalidProblemError: the factor is not two-dimensional or not finite.

    Example:
        >>> LowRank([[1.0, 2.0]]).dense().tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    factor: Floats

    def __post_init__(self) -> None:
        factor = _as_floats(self.factor, "the low-rank factor")
        if factor.ndim != 2:
            raise InvalidProblemError(
                f"the low-rank factor must have shape (m, n), not {factor.shape}"
            )
        object.__setattr__(self, "factor", factor)

    @property
    def size(self) -> int:
        return self.factor.shape[1]

    @property
    def rank(self) -> int:
        """Number of rows m of the factor, an upper bound of the rank of Q."""
        return self.factor.shape[0]

    def diagonal(self) -> Float64[Floats, " n"]:
        return np.einsum("mi,mi->i", self.factor, self.factor)

    def row(self, index: int) -> Float64[Floats, " n"]:
        return self.factor[:, index] @ self.factor

    def product(self, x: Shaped[Numbers, "*reads n"]) -> Float64[Floats, "*reads n"]:
        return (np.asarray(x, dtype=np.float64) @ self.factor.T) @ self.factor

    def values(self, x: Shaped[Numbers, "reads n"]) -> Float64[Floats, " reads"]:
        projected = np.asarray(x, dtype=np.float64) @ self.factor.T
        return 0.5 * np.einsum("rm,rm->r", projected, projected)

    def dense(self) -> Float64[Floats, "n n"]:
        return self.factor.T @ self.factor

    def scaled(self, factor: float) -> LowRank:
        """The matrix times a ``factor`` of at least 0."""
        return LowRank(self.factor * factor**0.5)

    def compact(self) -> Dense | LowRank:
        """Itself, or multiplied out where that is smaller."""
        return Dense.trusted(self.dense()) if self.rank > self.size else self

    def restrict(self, indices: Integer[NDArray[np.integer], " k"]) -> LowRank:
        return LowRank(self.factor[:, indices])


@dataclass(frozen=True, eq=False)
class Sparse:
    """Q in compressed rows.

    Args:
        matrix: symmetric ``scipy.sparse`` array, shape (n, n).

    Raises:
        InvalidProblemError: the matrix is not square, not symmetric or not finite.

    Example:
        >>> Sparse(sparse.csr_array([[0.0, 3.0], [3.0, 0.0]])).values(np.array([[1, 1]])).tolist()
        [3.0]
    """

    matrix: sparse.csr_array

    def __post_init__(self) -> None:
        matrix: Any = sparse.csr_array(self.matrix, dtype=np.float64)
        matrix.sum_duplicates()
        _as_floats(matrix.data, "the sparse quadratic matrix")
        rows, columns = matrix.shape
        if rows != columns:
            raise InvalidProblemError(
                f"the quadratic matrix must be square, not of shape {(rows, columns)}"
            )
        difference = abs(matrix - matrix.T)
        if difference.nnz and difference.max() > 1e-9 * max(1.0, abs(matrix).max()):
            raise InvalidProblemError(
                "the sparse quadratic matrix is not symmetric; pass (Q + Q.T) / 2"
            )
        object.__setattr__(self, "matrix", matrix)

    @property
    def size(self) -> int:
        return len(self.matrix.indptr) - 1

    def diagonal(self) -> Float64[Floats, " n"]:
        return np.asarray(self.matrix.diagonal(), dtype=np.float64)

    def row(self, index: int) -> Float64[Floats, " n"]:
        return np.asarray(self.matrix[[index]].toarray(), dtype=np.float64)[0]

    def product(self, x: Shaped[Numbers, "*reads n"]) -> Float64[Floats, "*reads n"]:
        # The matrix is symmetric, so x @ Q and Q @ x agree and no transpose is formed.
        return np.asarray((self.matrix @ np.asarray(x, dtype=np.float64).T).T)

    def values(self, x: Shaped[Numbers, "reads n"]) -> Float64[Floats, " reads"]:
        x = np.asarray(x, dtype=np.float64)
        return 0.5 * np.einsum("ri,ri->r", self.product(x), x)

    def dense(self) -> Float64[Floats, "n n"]:
        return self.matrix.toarray()

    def restrict(self, indices: Integer[NDArray[np.integer], " k"]) -> Sparse:
        return Sparse(self.matrix[indices][:, indices])


def dense_or_sparse(matrix: sparse.csr_array) -> Dense | Sparse:
    """A symmetric sparse matrix as `Dense` or `Sparse`, by size and share of non-zero entries."""
    size = matrix.shape[0]  # pyright: ignore[reportOptionalSubscript]
    if size <= 64 or matrix.nnz > SPARSE_DENSITY * size * size:
        return Dense(matrix.toarray())
    return Sparse(matrix)
