"""Coefficients of problems, as files list them: term by term, or as one matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, Floats, Sparse, dense_or_sparse

Indices = NDArray[np.int64]


def from_terms(
    size: int, row: Indices, col: Indices, value: Floats, offset: float = 0.0
) -> QuadraticProblem:
    """The problem E = offset + sum of value x_row x_col; repeats add up, equal indices are linear.

    Raises:
        ProblemTooLargeError: ``size`` alone does not fit into memory.

    Example:
        >>> row, col = np.array([0, 0]), np.array([0, 1])
        >>> from_terms(2, row, col, np.array([2.0, -3.0])).energies([[1, 1]]).tolist()
        [-1.0]
    """
    require_memory(64.0 * size + 100.0 * value.size, f"a problem of {size} variables", "split it")
    own = row == col
    linear = np.bincount(row[own], value[own], size)
    upper = sparse.coo_array((value[~own], (row[~own], col[~own])), shape=(size, size))
    return QuadraticProblem(linear, dense_or_sparse(sparse.csr_array(upper + upper.T)), offset)


def from_matrix(matrix: Any) -> QuadraticProblem:
    """The problem E = x.Q.x of a square matrix, full, sparse, symmetric or of one triangle.

    Raises:
        InvalidProblemError: it is not square, or its entries are no finite real numbers.

    Example:
        >>> from_matrix(np.array([[1.0, 2.0], [0.0, -1.0]])).energies([[1, 1]]).tolist()
        [2.0]
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InvalidProblemError(f"a matrix of a problem is square; this has shape {matrix.shape}")
    if matrix.dtype.kind not in "biuf":
        raise InvalidProblemError(f"the matrix holds {matrix.dtype}, no real numbers")
    if sparse.issparse(matrix):
        entries = sparse.coo_array(matrix.astype(np.float64))
        row, col = (np.asarray(index, dtype=np.int64) for index in entries.coords)
        value = np.asarray(entries.data, dtype=np.float64)
        return from_terms(matrix.shape[0], row, col, value)
    full = matrix.astype(np.float64)
    linear = full.diagonal().copy()
    doubled = full + full.T
    np.fill_diagonal(doubled, 0.0)
    return QuadraticProblem(linear, Dense(doubled))


def from_spins(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem whose coefficients were those of spins s = 2x - 1, over x.

    Example:
        >>> problem = QuadraticProblem([1.0, 0.0], np.zeros((2, 2)))
        >>> from_spins(problem).energies([[0, 0], [1, 0]]).tolist()
        [-1.0, 1.0]
    """
    h, J = problem.linear, problem.quadratic
    pulled = J.product(np.ones(problem.num_variables))
    quadratic = Sparse(4.0 * J.matrix) if isinstance(J, Sparse) else Dense(4.0 * J.dense())
    offset = problem.offset - h.sum() + 0.5 * pulled.sum()
    return QuadraticProblem(2.0 * h - 2.0 * pulled, quadratic, offset, labels=problem.labels)


def scaled(problem: QuadraticProblem, factor: float) -> QuadraticProblem:
    """The problem with energy factor * E, counts and labels as they are.

    Example:
        >>> scaled(QuadraticProblem([1.0], np.zeros((1, 1))), -2.0).linear.tolist()
        [-2.0]
    """
    quadratic = problem.quadratic
    changed = (
        Sparse(factor * quadratic.matrix)
        if isinstance(quadratic, Sparse)
        else Dense(factor * quadratic.dense())
    )
    return QuadraticProblem(
        factor * problem.linear,
        changed,
        factor * problem.offset,
        problem.groups,
        problem.counts,
        problem.labels,
    )


def labelled(problem: QuadraticProblem, labels: Sequence[int]) -> QuadraticProblem:
    """The problem with these labels, if they are other than 0..n-1."""
    if list(labels) == list(range(problem.num_variables)):
        return problem
    return QuadraticProblem(problem.linear, problem.quadratic, problem.offset, labels=labels)


def terms_of(problem: QuadraticProblem) -> Iterator[tuple[int, int, float]]:
    """All (i, i, linear) and the non-zero (i, j, coupling), i < j, as plain numbers.

    Raises:
        InvalidProblemError: the problem has counts.

    Example:
        >>> problem = QuadraticProblem([1.0, 0.0], [[0.0, 3.0], [3.0, 0.0]])
        >>> list(terms_of(problem))
        [(0, 0, 1.0), (1, 1, 0.0), (0, 1, 3.0)]
    """
    if problem.counts is not None:
        raise InvalidProblemError(
            "a text format has no place for counts; write .npz or .cqm, or problem.without_counts()"
        )
    linear = problem.linear + 0.5 * problem.quadratic.diagonal()
    yield from ((i, i, value) for i, value in enumerate(linear.tolist()))
    if isinstance(problem.quadratic, Sparse):
        upper = sparse.coo_array(sparse.triu(problem.quadratic.matrix, k=1))
        yield from zip(upper.row.tolist(), upper.col.tolist(), upper.data.tolist(), strict=True)
    else:
        matrix = problem.quadratic.dense()
        row, col = np.nonzero(np.triu(matrix, k=1))
        yield from zip(row.tolist(), col.tolist(), matrix[row, col].tolist(), strict=True)
