"""A problem laid out for the kernels: variables sorted by group, one dtype, plain arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.problem import QuadraticProblem
from solvers.quadratic import Sparse

# Beyond this single precision could overflow or lose whole coefficients.
_SINGLE_LIMIT = 1e15


@dataclass(frozen=True, eq=False)
class Layout:
    """The arrays that kernels read, see `solvers.kernels` for their names.

    Attributes:
        problem: where they come from.
        matrix: (n, n) array, or (indptr, indices, data).
        half: half the diagonal, shape (n,).
        starts: group boundaries, (g + 1,); ``[0, n]`` where there are no counts.
        order: position -> variable, or None where the variables are sorted already.
    """

    problem: QuadraticProblem
    matrix: Any
    half: NDArray[np.floating]
    starts: NDArray[np.int64]
    order: NDArray[np.int64] | None

    @classmethod
    def of(cls, problem: QuadraticProblem, dtype: type[np.floating] = np.float64) -> Layout:
        """The layout of ``problem``; a dense float64 matrix in group order is not copied."""
        order = None
        starts = np.array([0, problem.num_variables], dtype=np.int64)
        if problem.groups is not None:
            starts = np.concatenate([[0], np.cumsum(problem.group_sizes)]).astype(np.int64)
            if (np.diff(problem.groups) < 0).any():
                order = np.argsort(problem.groups, kind="stable")
        half = 0.5 * problem.quadratic.diagonal()
        half = np.ascontiguousarray(half if order is None else half[order], dtype=dtype)
        return cls(problem, _matrix(problem, order, dtype), half, starts, order)

    @property
    def dtype(self) -> np.dtype[np.floating]:
        """float32 or float64."""
        return self.half.dtype

    def sorted(self, states: NDArray) -> NDArray:
        """``states`` (..., n) with columns in the kernels' order, a new array."""
        return (
            states.copy() if self.order is None else np.ascontiguousarray(states[..., self.order])
        )

    def unsorted(self, states: NDArray) -> NDArray:
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


def search_dtype(problem: QuadraticProblem) -> type[np.floating]:
    """float32 where its range suffices: half the memory traffic; results are polished later."""
    largest = max(
        np.abs(problem.linear).max(initial=0.0),
        np.abs(problem.quadratic.diagonal()).max(initial=0.0),
    )
    return np.float32 if largest < _SINGLE_LIMIT else np.float64


def _matrix(
    problem: QuadraticProblem, order: NDArray[np.int64] | None, dtype: type[np.floating]
) -> Any:
    quadratic = problem.quadratic if order is None else problem.quadratic.restrict(order)
    if isinstance(quadratic, Sparse):
        csr = quadratic.matrix
        csr.sort_indices()
        indptr, indices = csr.indptr.astype(np.int64), csr.indices.astype(np.int64)
        return indptr, indices, csr.data.astype(dtype)
    return np.ascontiguousarray(quadratic.dense(), dtype=dtype)
