"""Text of problem files: lines of numbers, and the comments that say what they mean.

Coefficients of problems, as files list them: term by term, or as one matrix.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.host.machine import require_memory
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, Sparse, dense_or_sparse

Indices = NDArray[np.int64]

#: The longer mark comes first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_BINARY = re.compile(r"[\x00-\x08\x0e-\x1f]")
_COMMENT = re.compile(r"(?:[#%;!]|//|c(?![a-z0-9_]))+\s*", re.IGNORECASE)
_BEHIND = re.compile(r"[#%;!]|//")
_NUMERIC = re.compile(r"[0-9eEdD+\-. ]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eEdD][+-]?\d+)?")
_FACT = re.compile(
    r"(?:objective[ _-]*)?(?P<key>offset|constant(?:[ _-]?term)?|const|scale)"
    r"\s*(?P<sign>[:=]?)\s*(?P<value>\S+)",
    re.IGNORECASE,
)
_INSIDE = re.compile(r"(?:^|[\s,;(])(?P<key>offset|scale)=(?P<value>[^\s,;)]+)", re.IGNORECASE)
_VARTYPE = re.compile(
    r"\bvartype[\"']?\s*(?:[:=]\s*[\"']?(?:\w+\.)*(?P<value>\w*)|(?P<word>SPIN|BINARY)\b)",
    re.IGNORECASE,
)
_CONSTANT = re.compile(r"\b(offset|constant)\b.*\d", re.IGNORECASE)


class LineError(InvalidProblemError):
    """A line that cannot be parsed; `solvers.formats.files` adds the file's name."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")


def decoded(data: bytes) -> str | None:
    """Text in UTF-8, Latin-1, or whatever its byte-order mark says; None for other bytes."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, errors="replace")
            return text if re.search("[ -~]", text) and not _BINARY.search(text) else None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # The two encodings differ only in comments.
        text = data.decode("latin-1")
    return None if _BINARY.search(text) else text


@dataclass(frozen=True)
class Facts:
    """Facts that the comments of a file state: E = scale * (its terms + offset).

    Attributes:
        spins: True if the variables are -1 and 1, False if 0 and 1; None if it is not stated.
        notes: sentences about comments that may matter but were not understood.
    """

    offset: float = 0.0
    scale: float = 1.0
    spins: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Text:
    """A text, split into data lines and comments.

    A line is a comment if it begins with ``#``, ``%``, ``;``, ``!``, ``//`` or the word ``c``; what
    follows one of these but the last on a line is a comment too. Commas count as blanks.
    """

    whole: str = field(repr=False)

    @cached_property
    def _split(self) -> tuple[list[tuple[int, str]], list[int], list[str]]:
        comments, numbers, rows = [], [], []
        for number, raw in enumerate(re.split("\r\n|\r|\n", self.whole), start=1):
            line = raw.strip()
            if mark := _COMMENT.match(line):
                comments.append((number, line[mark.end() :]))
            elif line:
                data, *behind = _BEHIND.split(line, maxsplit=1)
                comments += [(number, words.strip()) for words in behind]
                if data := data.replace(",", " ").strip():
                    numbers.append(number)
                    rows.append(data)
        return comments, numbers, rows

    @property
    def comments(self) -> list[tuple[int, str]]:
        """Line number and words of each comment."""
        return self._split[0]

    @property
    def numbers(self) -> list[int]:
        """The line number of each data line, from 1."""
        return self._split[1]

    @property
    def rows(self) -> list[str]:
        """Each data line without comments."""
        return self._split[2]

    def shown(self, index: int) -> str:
        """Data line ``index`` as messages have it, cut where it is long."""
        row = self.rows[index]
        return repr(row if len(row) <= 60 else row[:57] + "...")

    @cached_property
    def fields(self) -> list[list[str]]:
        """The words of each data line."""
        return [row.split() for row in self.rows]

    @cached_property
    def facts(self) -> Facts:
        """The facts that the comments state.

        Raises:
            LineError: a constant or scale is no number or is given twice with two values, or
                ``vartype`` is neither SPIN nor BINARY.
        """
        values: dict[str, float] = {}
        spins: bool | None = None
        notes = []
        for number, words in self.comments:
            found = list(_facts_in(number, words))
            for key, value in found:
                if values.setdefault(key, value) != value:
                    raise LineError(number, f"a second {key}, {value}; keep one")
            if (vartype := _VARTYPE.search(words)) is not None:
                spins = _is_spin(number, vartype["value"] or vartype["word"] or "")
            if not found and _CONSTANT.search(words):
                notes.append(
                    f"line {number}: the comment {words[:60]!r} is not understood; if it is a "
                    "constant of the objective, write it as 'offset: value'"
                )
        return Facts(values.get("offset", 0.0), values.get("scale", 1.0), spins, tuple(notes))


def _facts_in(number: int, words: str) -> Iterator[tuple[str, float]]:
    match = _FACT.fullmatch(words)
    if match is None:
        for inside in _INSIDE.finditer(words):
            yield inside["key"].lower(), _fact(number, inside["key"], inside["value"])
        return
    key = "scale" if match["key"].lower() == "scale" else "offset"
    if match["sign"] or (key == "offset" and _NUMBER.fullmatch(match["value"])):
        yield key, _fact(number, key, match["value"])


def _fact(number: int, key: str, value: str) -> float:
    if not _NUMBER.fullmatch(value) or not math.isfinite(found := number_of(value)):
        raise LineError(number, f"the {key} {value[:60]!r} is no finite number")
    return found


def _is_spin(number: int, value: str) -> bool:
    if value.upper() not in ("SPIN", "BINARY"):
        raise LineError(number, f"vartype must be SPIN or BINARY, not {value[:60]!r}")
    return value.upper() == "SPIN"


def number_of(word: str) -> float:
    """A number, with the exponents that Fortran writes: ``5.0D+00``.

    Raises:
        ValueError: it is no number.

    Example:
        >>> number_of("5.0D+00")
        5.0
    """
    if not _NUMBER.fullmatch(word):
        raise ValueError(word)
    return float(word.replace("D", "e").replace("d", "e"))


def is_number(word: str) -> bool:
    """True where `number_of` takes the word."""
    return _NUMBER.fullmatch(word) is not None


def triples(
    text: Text, start: int = 0, *, weight: float | None = None
) -> tuple[Indices, Indices, Floats]:
    """The data lines from ``start`` on as i, j, value; a missing value is ``weight``, if given.

    Raises:
        LineError: a line is not two whole numbers from 0 on and a finite one.
    """
    rows = text.fields[start:]
    if weight is not None:
        rows = [[*row, str(weight)] if len(row) == 2 else row for row in rows]
    try:
        if any(len(row) != 3 for row in rows):
            raise ValueError
        row, col = _indices([row[0] for row in rows]), _indices([row[1] for row in rows])
        value = _floats([row[2] for row in rows])
    except (ValueError, OverflowError):
        bad = next(k for k, row in enumerate(rows) if not _is_triple(row))
        raise LineError(
            text.numbers[start + bad], f"expected 'i j value', found {text.shown(start + bad)}"
        ) from None
    return row, col, value


def _floats(words: Sequence[str]) -> Floats:
    joined = " ".join(words)
    if not _NUMERIC.fullmatch(joined):
        raise ValueError
    words = joined.replace("D", "e").replace("d", "e").split()
    values = np.fromiter(map(float, words), np.float64, len(words))
    if not np.isfinite(values).all():
        raise ValueError
    return values


def _indices(words: Sequence[str]) -> Indices:
    """Whole numbers; also as Matlab and Fortran write them, ``1.0000000e+00``."""
    values = _floats(words)
    if (values < 0).any() or (values > 2**53).any() or (values != np.floor(values)).any():
        raise ValueError
    return values.astype(np.int64)


def _is_triple(row: Sequence[str]) -> bool:
    try:
        _indices(row[:2])
        _floats(row[2:])
    except (ValueError, OverflowError):
        return False
    return len(row) == 3


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
