"""A problem laid out for the kernels: variables sorted by group, one dtype, plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.host.clock import Deadline
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank, Quadratic, Sparse

# Bytes of the largest dense matrix that is formed from a factor.
_MOST_BYTES = 4e9
# Range of coefficients in which single precision neither overflows nor loses one.
_SINGLE_LIMIT = 1e15
# Of one thread on a slow machine, when it forms a matrix.
_MULTIPLICATIONS_PER_SECOND = 2e10


@dataclass(frozen=True, eq=False)
class Layout:
    """The arrays that kernels read, see `solvers.search.kernels.common` for their names.

    Attributes:
        problem: the problem that is laid out.
        dtype: float32 or float64.
        starts: group boundaries, (g + 1,); ``[0, n]`` where there are no counts.
        order: position -> variable, or None where the variables are sorted already.
    """

    problem: QuadraticProblem
    dtype: np.dtype[np.floating]
    starts: NDArray[np.int64]
    order: NDArray[np.int64] | None

    @classmethod
    def of(cls, problem: QuadraticProblem, dtype: Any = np.float64) -> Layout:
        """The layout of ``problem``; a dense float64 matrix in group order is not copied."""
        order = None
        starts = np.array([0, problem.num_variables], dtype=np.int64)
        if problem.groups is not None:
            starts = np.concatenate([[0], np.cumsum(problem.group_sizes)]).astype(np.int64)
            if (np.diff(problem.groups) < 0).any():
                order = np.argsort(problem.groups, kind="stable")
        return cls(problem, np.dtype(dtype), starts, order)

    @cached_property
    def linear(self) -> NDArray[np.floating]:
        """The linear part, shape (n,)."""
        return self.sorted(self.problem.linear).astype(self.dtype)

    @cached_property
    def half(self) -> NDArray[np.floating]:
        """Half the diagonal, shape (n,)."""
        return self.sorted(0.5 * self.problem.quadratic.diagonal()).astype(self.dtype)

    @cached_property
    def matrix(self) -> Any:
        """Q as an (n, n) array, or as (indptr, indices, data) where it is sparse."""
        quadratic = self._quadratic
        if isinstance(quadratic, Sparse):
            csr = quadratic.matrix
            indptr, indices = csr.indptr.astype(np.int64), csr.indices.astype(np.uint32)
            return indptr, indices, csr.data.astype(self.dtype)
        if isinstance(quadratic, LowRank):
            factor = quadratic.factor.astype(self.dtype, copy=False)
            return np.ascontiguousarray(factor.T @ factor)
        return np.ascontiguousarray(quadratic.dense(), dtype=self.dtype)

    @cached_property
    def factor(self) -> NDArray[np.floating]:
        """U' of a low-rank Q = U'U, shape (n, m)."""
        quadratic = self._quadratic
        assert isinstance(quadratic, LowRank)
        return np.ascontiguousarray(quadratic.factor.T, dtype=self.dtype)

    def affords_matrix(self, deadline: Deadline) -> bool:
        """True if ``matrix`` is there, or can be formed in half of the time left."""
        quadratic = self.problem.quadratic
        if not isinstance(quadratic, LowRank) or "matrix" in self.__dict__:
            return True
        seconds = quadratic.factor.size * quadratic.size / _MULTIPLICATIONS_PER_SECOND
        return self.has_matrix and seconds < 0.5 * deadline.remaining

    @property
    def row_length(self) -> int:
        """Entries of a row of the matrix, on average."""
        quadratic = self.problem.quadratic
        if isinstance(quadratic, Sparse):
            return quadratic.matrix.nnz // max(1, quadratic.size)
        return quadratic.size

    @property
    def has_matrix(self) -> bool:
        """True if ``matrix`` is there, or small enough to be made from the factor."""
        n = self.problem.num_variables
        if not isinstance(self.problem.quadratic, LowRank):
            return True
        return n * n * self.dtype.itemsize <= _MOST_BYTES

    @property
    def _quadratic(self) -> Quadratic:
        quadratic = self.problem.quadratic
        return quadratic if self.order is None else quadratic.restrict(self.order)

    def sorted(self, states: NDArray[Any]) -> NDArray[Any]:
        """``states`` (..., n) with columns in the kernels' order, a new array."""
        if self.order is None:
            return states.copy()
        return np.ascontiguousarray(states[..., self.order])

    def unsorted(self, states: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `sorted`."""
        if self.order is None:
            return states
        result = np.empty_like(states)
        result[..., self.order] = states
        return result

    def fields(self, states: NDArray[np.int8]) -> NDArray[np.floating]:
        """Fields linear + Q x of sorted states (reads, n), computed in float64."""
        fields = self.problem.fields(self.unsorted(states))
        return np.ascontiguousarray(self.sorted(fields), dtype=self.dtype)

    def projection(self, x: NDArray[np.int8]) -> NDArray[np.floating]:
        """U x of one sorted state of a low-rank problem, computed in float64, shape (m,)."""
        quadratic = self.problem.quadratic
        assert isinstance(quadratic, LowRank)
        return (quadratic.factor @ self.unsorted(x).astype(np.float64)).astype(self.dtype)


def search_dtype(problem: QuadraticProblem) -> type[np.floating]:
    """float32 where its range suffices: half the memory traffic; results are polished later."""
    largest = max(
        np.abs(problem.linear).max(initial=0.0),
        np.abs(problem.quadratic.diagonal()).max(initial=0.0),
        _largest_coupling(problem.quadratic),
    )
    return np.float32 if largest < _SINGLE_LIMIT else np.float64


def _largest_coupling(quadratic: Quadratic) -> float:
    """A bound on the largest |Q_ij|; a semidefinite matrix has it on its diagonal."""
    if isinstance(quadratic, LowRank):
        return 0.0
    if isinstance(quadratic, Sparse):
        return float(np.abs(quadratic.matrix.data).max(initial=0.0))
    matrix = quadratic.dense()
    return float(max(matrix.max(initial=0.0), -matrix.min(initial=0.0)))
