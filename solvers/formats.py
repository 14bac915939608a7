"""Text formats of binary quadratic problems: how their lines become coefficients, and back.

Every reader takes the lines of a file and answers with a problem; line numbers in errors count
from 1. `solvers.files` decides which reader a file gets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, Floats, Sparse, dense_or_sparse

Indices = NDArray[np.int64]


class LineError(InvalidProblemError):
    """A line that cannot be understood; `solvers.files` puts the file's name before it."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


def read_coo(lines: Sequence[str]) -> QuadraticProblem:
    """Lines ``i j value``: E = sum of value x_i x_j, i = j for the linear part, repeats add up.

    Two dialects: dimod's COO (comments ``#``, with ``# vartype=SPIN`` for spins; the variables
    are those that occur) and qbsolv's ``.qubo`` (comments ``c``, a line ``p qubo 0 nodes ...``;
    the variables are 0..nodes-1). ``offset=value`` in a comment is the offset.
    """
    numbers = [k for k, line in enumerate(lines) if line[:1] not in ("#", "c", "p", "")]
    comments = " ".join(line for line in lines if line[:1] in ("#", "c"))
    row, col, value = triples(lines, numbers)
    declared = _declared_nodes(lines)
    seen = np.arange(declared) if declared is not None else np.unique(np.concatenate([row, col]))
    where = np.searchsorted(seen, np.concatenate([row, col]))
    if declared is not None:
        _check_range(row, col, 0, declared - 1, numbers)
    problem = from_terms(seen.size, where[: row.size], where[row.size :], value)
    problem = problem if _is_range(seen) else _labelled(problem, seen.tolist())
    offset = re.search(r"offset=(\S+)", comments)
    problem = problem.with_linear(problem.linear, float(offset[1]) if offset else 0.0)
    return _from_spins(problem) if "vartype=SPIN" in comments else problem


def read_orlib(lines: Sequence[str]) -> QuadraticProblem:
    """OR-Library: ``n m``, then m lines ``i j q``, 1-based, of a symmetric matrix.

    E = x.q.x, so an off-diagonal entry counts twice. (J. E. Beasley, OR-Library, ``bqp``.)
    """
    size, row, col, value = _counted_triples(lines)
    return from_terms(size, row, col, np.where(row == col, value, 2.0 * value))


def read_gset(lines: Sequence[str]) -> QuadraticProblem:
    """G-set: ``n m``, then m edges ``i j w`` (or ``i j``, weight 1), 1-based.

    E = -cut(x) = -sum of w (x_i + x_j - 2 x_i x_j).
    """
    size, row, col, value = _counted_triples(lines)
    linear = -np.bincount(row, value, size) - np.bincount(col, value, size)
    problem = from_terms(size, row, col, 2.0 * value)
    return problem.with_linear(problem.linear + linear)


def write_coo(problem: QuadraticProblem) -> Iterator[str]:
    """COO as dimod writes it; every variable has a diagonal line, so that none is lost."""
    yield "# vartype=BINARY"
    yield from _offset_line("#", problem)
    for i, j, value in _terms(problem):
        yield f"{i} {j} {value!r}"


def write_qubo(problem: QuadraticProblem) -> Iterator[str]:
    """The ``.qubo`` of qbsolv."""
    terms = list(_terms(problem))
    couplers = sum(i != j for i, j, _ in terms)
    yield from _offset_line("c", problem)
    yield f"p qubo 0 {problem.num_variables} {problem.num_variables} {couplers}"
    for i, j, value in terms:
        yield f"{i} {j} {value!r}"


def write_orlib(problem: QuadraticProblem) -> Iterator[str]:
    """OR-Library's format; the offset must be 0."""
    if problem.offset:
        raise InvalidProblemError("an OR-Library file has no place for an offset; write .coo")
    terms = [(i, j, value) for i, j, value in _terms(problem) if value]
    yield f"{problem.num_variables} {len(terms)}"
    for i, j, value in terms:
        yield f"{i + 1} {j + 1} {value if i == j else 0.5 * value!r}"


def write_gset(problem: QuadraticProblem) -> Iterator[str]:
    """G-set's format, for problems that are a MaxCut."""
    terms = list(_terms(problem))
    edges = [(i, j, 0.5 * value) for i, j, value in terms if i != j and value]
    degree = np.zeros(problem.num_variables)
    for i, j, weight in edges:
        degree[i] += weight
        degree[j] += weight
    own = np.array([value for i, j, value in terms if i == j])
    scale = max(1.0, float(np.abs(degree).max(initial=0.0)))
    if problem.offset or not np.allclose(own, -degree, rtol=0.0, atol=1e-9 * scale):
        raise InvalidProblemError("the problem is not a MaxCut; write .coo or .npz")
    yield f"{problem.num_variables} {len(edges)}"
    for i, j, weight in edges:
        yield f"{i + 1} {j + 1} {int(weight) if weight == int(weight) else repr(weight)}"


def triples(
    lines: Sequence[str], numbers: Sequence[int], *, weight: float | None = None
) -> tuple[Indices, Indices, Floats]:
    """The lines ``numbers`` (from 0) as i, j, value; a missing value is ``weight``, if given.

    Raises:
        LineError: a line is not two whole numbers and a finite one.
    """
    rows = [lines[k].split() for k in numbers]
    if weight is not None:
        rows = [[*fields, str(weight)] if len(fields) == 2 else fields for fields in rows]
    for number, fields in zip(numbers, rows, strict=True):
        if not _is_triple(fields):
            raise LineError(number + 1, f"expected 'i j value', found {lines[number]!r}")
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 3)
    indices = table[:, :2].astype(np.int64)
    return indices[:, 0], indices[:, 1], np.ascontiguousarray(table[:, 2])


def from_terms(size: int, row: Indices, col: Indices, value: Floats) -> QuadraticProblem:
    """The problem E = sum of value x_row x_col; repeats add up, equal indices are linear.

    Raises:
        ProblemTooLargeError: ``size`` alone does not fit into memory.
    """
    require_memory(64.0 * size + 100.0 * value.size, f"a problem of {size} variables", "split it")
    own = row == col
    linear = np.bincount(row[own], value[own], size)
    upper = sparse.coo_array((value[~own], (row[~own], col[~own])), shape=(size, size))
    return QuadraticProblem(linear, dense_or_sparse(sparse.csr_array(upper + upper.T)))


def _is_triple(fields: Sequence[str]) -> bool:
    try:
        i, j, value = fields
        return int(i) >= 0 and int(j) >= 0 and math.isfinite(float(value))
    except ValueError:
        return False


def _counted_triples(lines: Sequence[str]) -> tuple[int, Indices, Indices, Floats]:
    """Size n and the 0-based triples of a file that starts with ``n m``."""
    numbers = [k for k, line in enumerate(lines) if line]
    size, wanted = header(lines)
    row, col, value = triples(lines, numbers[1:], weight=1.0)
    if row.size != wanted:
        raise LineError(numbers[0] + 1, f"promises {wanted} entries, the file has {row.size}")
    _check_range(row, col, 1, size, numbers[1:])
    pairs = np.minimum(row, col) * (size + 1) + np.maximum(row, col)
    first = np.unique(pairs, return_index=True)[1]
    if first.size != pairs.size:
        twice = int(np.setdiff1d(np.arange(pairs.size), first)[0])
        raise LineError(
            numbers[1 + twice] + 1, f"entry {row[twice]} {col[twice]} occurs a second time"
        )
    return size, row - 1, col - 1, value


def header(lines: Sequence[str]) -> tuple[int, int]:
    """The first line ``n m`` that is not blank.

    Raises:
        LineError: it is something else.
    """
    number, line = next((k, line) for k, line in enumerate(lines) if line)
    fields = line.split()
    if len(fields) == 1:
        raise LineError(
            number + 1,
            f"one number {line!r}: a collection of instances? keep one, from its line 'n m' on",
        )
    if len(fields) != 2 or not all(field.isdigit() for field in fields):
        raise LineError(number + 1, f"expected 'n m', found {line!r}")
    return int(fields[0]), int(fields[1])


def _check_range(row: Indices, col: Indices, low: int, high: int, numbers: Sequence[int]) -> None:
    outside = (np.minimum(row, col) < low) | (np.maximum(row, col) > high)
    if outside.any():
        bad = int(np.flatnonzero(outside)[0])
        raise LineError(
            numbers[bad] + 1, f"index {row[bad]} or {col[bad]} is outside {low}..{high}"
        )


def _declared_nodes(lines: Sequence[str]) -> int | None:
    for number, line in enumerate(lines):
        if line.startswith("p"):
            fields = line.split()
            if len(fields) < 4 or fields[1] != "qubo" or not fields[3].isdigit():
                raise LineError(number + 1, f"expected 'p qubo 0 nodes ...', found {line!r}")
            return int(fields[3])
    return None


def _is_range(seen: Indices) -> bool:
    return bool((seen == np.arange(seen.size)).all())


def _labelled(problem: QuadraticProblem, labels: Sequence[int]) -> QuadraticProblem:
    return QuadraticProblem(problem.linear, problem.quadratic, problem.offset, labels=labels)


def _from_spins(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem whose coefficients were those of spins s = 2x - 1, over x."""
    h, J = problem.linear, problem.quadratic
    pulled = J.product(np.ones(problem.num_variables))
    quadratic = Sparse(4.0 * J.matrix) if isinstance(J, Sparse) else Dense(4.0 * J.dense())
    offset = problem.offset - h.sum() + 0.5 * pulled.sum()
    return QuadraticProblem(2.0 * h - 2.0 * pulled, quadratic, offset, labels=problem.labels)


def _offset_line(comment: str, problem: QuadraticProblem) -> Iterator[str]:
    if problem.offset:
        yield f"{comment} offset={problem.offset!r}"


def _terms(problem: QuadraticProblem) -> Iterator[tuple[int, int, float]]:
    """All (i, i, linear) and the non-zero (i, j, coupling), i < j, as plain numbers."""
    if problem.labels is not None and any(type(label) is not int for label in problem.labels):
        raise InvalidProblemError("a text format has whole numbers as labels; write .bqm instead")
    if problem.counts is not None:
        raise InvalidProblemError(
            "a text format has no place for counts; write .npz or .cqm, or problem.without_counts()"
        )
    names = [int(label) for label in problem.variables]  # pyright: ignore[reportArgumentType]
    linear = problem.linear + 0.5 * problem.quadratic.diagonal()
    yield from zip(names, names, linear.tolist(), strict=True)
    if isinstance(problem.quadratic, Sparse):
        upper = sparse.coo_array(sparse.triu(problem.quadratic.matrix, k=1))
        entries = zip(upper.row.tolist(), upper.col.tolist(), upper.data.tolist(), strict=True)
    else:
        matrix = problem.quadratic.dense()
        row, col = np.nonzero(np.triu(matrix, k=1))
        entries = zip(row.tolist(), col.tolist(), matrix[row, col].tolist(), strict=True)
    for i, j, value in entries:
        yield names[i], names[j], value
