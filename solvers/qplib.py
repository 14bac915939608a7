"""QPLIB's format, for problems of binary variables: a strict reader.

F. Furini and others, "QPLIB: a library of quadratic programming instances", Mathematical
Programming Computation 11 (2019), appendix B. ommx reads every class of it, but it brings
pandas and telemetry with it, and of those classes only these can be held here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import dimod
import numpy as np

from solvers.coefficients import Indices, from_terms, scaled
from solvers.errors import InvalidProblemError
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import Floats
from solvers.text import LineError, number_of
from solvers.text_formats import Parsed, Sense

CLASS = re.compile(r"[LDCQ][CBMIG][NBLDCQ]", re.IGNORECASE)
_SENSES = {"minimize": Sense.MINIMISE, "maximize": Sense.MAXIMISE}


def qplib_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and words of each line that is neither blank nor a comment."""
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        words = line.split()
        if words and words[0][0] not in "!%#":
            yield number, words


def read_qplib(text: str) -> Parsed:
    """The problem 1/2 x.Q.x + b.x + q in a QPLIB file, of which the lower triangle of Q is listed.

    Raises:
        InvalidProblemError: its class, the three letters in its second line, has variables that
            are not binary or constraints that are not linear; or a constraint is no exact count.
        LineError: a line does not follow the format.
    """
    lines = _Lines(text)
    lines.words("the problem's name")
    kind = lines.words("the problem's class")[0].upper()
    objective, variables, constraints = kind if len(kind) == 3 else "???"
    if variables != "B" or constraints not in "NBL":
        raise InvalidProblemError(
            f"QPLIB's class {kind!r} is not one of binary variables (its second letter, B) without "
            "constraints or with linear ones (its third, N, B or L)"
        )
    word = lines.words("minimize or maximize")[0].lower()
    if word not in _SENSES:
        raise lines.error(f"expected minimize or maximize, found {word!r}")
    size = lines.count("the number of variables")
    require_memory(100.0 * size, f"a problem of {size} variables", "split it")
    rows = lines.count("the number of constraints") if constraints == "L" else 0
    require_memory(100.0 * rows, f"a problem of {rows} constraints", "split it")
    none = np.zeros((0, 2), dtype=np.int64), np.zeros(0)
    pairs, value = none if objective == "L" else lines.entries(2, (size, size))
    linear = lines.vector(size)
    offset = lines.value()
    # An entry below the diagonal stands for two; one on it is halved like the whole.
    row, col = pairs.max(axis=1, initial=0), pairs.min(axis=1, initial=size)
    if np.unique(np.stack([row, col], axis=1), axis=0).shape[0] != row.size:
        raise InvalidProblemError("the objective has an entry on both sides of the diagonal")
    problem = from_terms(size, row, col, np.where(row == col, 0.5 * value, value), offset)
    problem = problem.with_linear(problem.linear + linear)
    if word == "maximize":
        problem = scaled(problem, -1.0)
    if rows:
        problem = _counted(problem, lines, rows)
    return Parsed(problem, _SENSES[word])


def _counted(problem: QuadraticProblem, lines: _Lines, rows: int) -> QuadraticProblem:
    """The problem with its constraints as counts."""
    where, weight = lines.entries(2, (rows, problem.num_variables))
    lines.value()  # the file's infinity
    low, high = lines.vector(rows), lines.vector(rows)
    if (low != high).any():
        bad = int(np.flatnonzero(low != high)[0])
        raise InvalidProblemError(
            f"constraint {bad + 1} is an inequality; only exact counts (sum of variables == "
            "integer) can be held"
        )
    members: dict[int, list[tuple[int, float]]] = {}
    for (row, variable), value in zip(where.tolist(), weight.tolist(), strict=True):
        members.setdefault(row, []).append((variable, value))
    if len(members) != rows:
        raise InvalidProblemError("a constraint has no variables")
    cqm = dimod.ConstrainedQuadraticModel()
    cqm.set_objective(problem.to_bqm())
    for row, terms in sorted(members.items()):
        count = float(low[row])
        cqm.add_constraint_from_iterable(terms, "==", rhs=count, label=f"{row + 1}")
    return QuadraticProblem.from_cqm(cqm)


class _Lines:
    """The lines of a file, read one after the other."""

    def __init__(self, text: str) -> None:
        self._lines = list(qplib_lines(text))
        self._next = 0

    def words(self, what: str) -> list[str]:
        if self._next == len(self._lines):
            raise InvalidProblemError(f"the file ends where {what} should be; was it cut short?")
        self._next += 1
        return self._lines[self._next - 1][1]

    def error(self, message: str) -> LineError:
        return LineError(self._lines[self._next - 1][0], message)

    def count(self, what: str) -> int:
        word = self.words(what)[0]
        if not (word.isascii() and word.isdigit()) or len(word) > 15:
            raise self.error(f"expected {what}, found {word!r}")
        return int(word)

    def value(self) -> float:
        word = self.words("a number")[0]
        try:
            return number_of(word)
        except ValueError:
            raise self.error(f"expected a number, found {word!r}") from None

    def vector(self, size: int) -> Floats:
        """A default value, the number of others, and those."""
        vector = np.full(size, self.value())
        index, value = self.entries(1, (size,))
        vector[index[:, 0]] = value
        return vector

    def entries(self, width: int, sizes: tuple[int, ...]) -> tuple[Indices, Floats]:
        """A list of entries: their number, then each as ``width`` indices from 1 and a value."""
        wanted = self.count("the number of entries")
        found, values, seen = [], [], set()
        for _ in range(wanted):
            words = self.words("an entry")
            try:
                index = tuple(int(word) - 1 for word in words[:width])
                values.append(number_of(words[width]))
            except (ValueError, IndexError):
                raise self.error(
                    f"expected {width} whole numbers and a value, found {' '.join(words)!r}"
                ) from None
            if not all(0 <= i < size for i, size in zip(index, sizes, strict=True)):
                raise self.error(f"index {' '.join(words[:width])} is outside 1..{sizes}")
            if index in seen:
                raise self.error(f"entry {' '.join(words[:width])} occurs a second time")
            seen.add(index)
            found.append(index)
        return np.array(found, dtype=np.int64).reshape(-1, width), np.array(values)
