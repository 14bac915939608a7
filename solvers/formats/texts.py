"""Formats that list terms or edges line by line: their readers and writers.

A reader takes the text of a file and answers with a `Parsed` problem. Line numbers in errors count
from 1. Each reader cites the documentation of its format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from solvers.errors import InvalidProblemError
from solvers.formats.text import (
    Facts,
    Indices,
    LineError,
    Text,
    from_spins,
    from_terms,
    labelled,
    scaled,
    terms_of,
    triples,
)
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Floats


class Sense(Enum):
    """The sense of the objective in a file: minimise or maximise."""

    MINIMISE = "minimise"
    MAXIMISE = "maximise"


@dataclass(frozen=True)
class Parsed:
    """A problem as its file has it.

    Attributes:
        problem: to be minimised if ``stated``, else with the objective of the file.
        stated: the sense by the file or the kind of problem; None if it is not known.
        notes: sentences about ambiguities of the file.
    """

    problem: QuadraticProblem
    stated: Sense | None = None
    notes: tuple[str, ...] = ()


def read_coo(text: Text) -> Parsed:
    """COO of dimod: lines ``i j value``; E = sum of value x_i x_j, repeats add up.

    A comment ``# vartype=SPIN`` (or with a colon) makes the variables spins; the variables are
    those that occur. (`dimod.serialization.coo`.)
    """
    row, col, value = triples(text)
    seen, where = np.unique(np.concatenate([row, col]), return_inverse=True)
    problem = from_terms(seen.size, where[: row.size], where[row.size :], value)
    parsed = _settled(labelled(problem, seen.tolist()), text.facts)
    if text.facts.spins is not None:
        return parsed
    note = "no comment '# vartype=...' says what the variables are; they are taken as 0 and 1"
    return replace(parsed, notes=(*parsed.notes, note))


def read_qubo(text: Text) -> Parsed:
    """The ``.qubo`` of qbsolv: ``p qubo 0 maxNodes nNodes nCouplers``, then lines ``i j value``.

    Indices count from 0; E = sum of value x_i x_j over x_0..x_(maxNodes-1). A comment
    ``c offset : value`` or ``c scale : value``, as bqpjson and QUBOTools write them, is obeyed.
    (qbsolv, "qbsolv Input File Format".)
    """
    _require_bits(text.facts, "a qbsolv file")
    words, number = text.fields[0], text.numbers[0]
    declared = words[3:6]
    if [word.lower() for word in words[:2]] != ["p", "qubo"] or not (
        len(words) == 6 and all(_is_whole(word) for word in declared)
    ):
        raise LineError(
            number,
            f"expected 'p qubo 0 maxNodes nNodes nCouplers', found {text.shown(0)}",
        )
    size, nodes, couplers = map(int, declared)
    row, col, value = triples(text, 1)
    _check_range(text, row, col, 0, size - 1)
    _check_repeats(text, row, col, size)
    own = int((row == col).sum())
    if (own, row.size - own) != (nodes, couplers):
        raise LineError(
            number,
            f"promises {nodes} nodes and {couplers} couplers, the file has {own} and "
            f"{row.size - own}; it may have been cut short",
        )
    return _settled(from_terms(size, row, col, value), text.facts)


def read_orlib(text: Text) -> Parsed:
    """OR-Library's and MQLib's: ``n m``, then m lines ``i j q``, 1-based, of a symmetric matrix.

    E = x.q.x, so an off-diagonal entry counts twice. OR-Library and MQLib maximise it, Biq Mac
    minimises it, and the file does not say. (J. E. Beasley, OR-Library, ``bqp``; MQLib,
    bin/README.)
    """
    _require_bits(text.facts, "an OR-Library file")
    return _settled(_matrix(text), text.facts)


def read_qs(text: Text) -> Parsed:
    """QOBLIB's .qs: ``# ObjectiveOffset c``, then as OR-Library's; E = c + x.q.x is minimised."""
    _require_bits(text.facts, "a .qs file")
    return Parsed(_settled(_matrix(text), text.facts).problem, Sense.MINIMISE, text.facts.notes)


def read_qubist(text: Text) -> Parsed:
    """Qubist's: ``sites lines``, then lines ``i j value`` of spins -1 and 1.

    E = sum of value s_i s_j, and value s_i where i = j; it is minimised. Indices count from 0,
    and from 1 where the last one is as large as the number of sites. (bqpjson,
    ``bqpjson_to_qubist``.)
    """
    size, row, col, value = _counted_triples(text, base=None)
    problem = from_terms(size, row, col, value, text.facts.offset)
    return Parsed(scaled(from_spins(problem), text.facts.scale), None, text.facts.notes)


def read_rudy(text: Text) -> Parsed:
    """G-set's and rudy's: ``n m``, then m edges ``i j w`` (or ``i j``, weight 1), 1-based.

    E = -cut(x) = -sum of w (x_i + x_j - 2 x_i x_j). (S. Benson, Y. Ye, X. Zhang, the G set.)
    """
    size, row, col, value = _counted_triples(text, weight=1.0)
    return _cut(text, size, row, col, value, 1)


def read_edges(text: Text) -> Parsed:
    """A list of edges ``i j w`` without a header; the nodes are those that occur. E = -cut(x)."""
    row, col, value = triples(text)
    seen, where = np.unique(np.concatenate([row, col]), return_inverse=True)
    row, col = where[: row.size], where[row.size :]
    _check_repeats(text, row, col, seen.size, 0)
    parsed = _cut(text, seen.size, row, col, value, 0)
    return Parsed(labelled(parsed.problem, seen.tolist()), parsed.stated, parsed.notes)


# -- writing --------------------------------------------------------------------------------


def write_coo(problem: QuadraticProblem) -> Iterator[str]:
    """COO as dimod writes it; every variable has a diagonal line, so that none is lost."""
    names = _names(problem)
    yield "# vartype=BINARY"
    if problem.offset:
        yield f"# offset={problem.offset!r}"
    for i, j, value in terms_of(problem):
        yield f"{names[i]} {names[j]} {value!r}"


def write_qubo(problem: QuadraticProblem) -> Iterator[str]:
    """The ``.qubo`` of qbsolv."""
    _require_plain_names(problem)
    terms = list(terms_of(problem))
    couplers = sum(i != j for i, j, _ in terms)
    if problem.offset:
        yield f"c offset={problem.offset!r}"
    yield f"p qubo 0 {problem.num_variables} {problem.num_variables} {couplers}"
    for i, j, value in terms:
        yield f"{i} {j} {value!r}"


def write_orlib(problem: QuadraticProblem) -> Iterator[str]:
    """OR-Library's format; the offset must be 0.

    A first diagonal entry is written where there is none, since a file without is a graph's too.
    """
    if problem.offset:
        raise InvalidProblemError("an OR-Library file has no place for an offset; write .qs")
    return _matrix_lines(problem)


def write_qs(problem: QuadraticProblem) -> Iterator[str]:
    """QOBLIB's .qs."""
    yield f"# ObjectiveOffset {problem.offset!r}"
    yield from _matrix_lines(problem)


def write_rudy(problem: QuadraticProblem) -> Iterator[str]:
    """G-set's format, for problems that are a MaxCut."""
    _require_plain_names(problem)
    terms = list(terms_of(problem))
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


# -- parts ----------------------------------------------------------------------------------


def header(text: Text) -> tuple[int, int]:
    """The first data line ``n m``.

    Raises:
        LineError: it is another line.
    """
    number, words = text.numbers[0], text.fields[0]
    if len(words) == 1:
        raise LineError(
            number,
            f"one number {text.shown(0)}: a collection of instances? keep one, from its line "
            "'n m' on",
        )
    if len(words) != 2 or not all(_is_whole(word) for word in words):
        hint = ": a header of three numbers? keep 'n m'" if len(words) == 3 else ""
        raise LineError(number, f"expected 'n m', found {text.shown(0)}{hint}")
    return int(words[0]), int(words[1])


def _settled(problem: QuadraticProblem, facts: Facts) -> Parsed:
    """The problem with what the comments say of spins, offset and scale."""
    problem = problem.with_linear(problem.linear, problem.offset + facts.offset)
    if facts.spins:
        problem = from_spins(problem)
    return Parsed(
        problem if facts.scale == 1.0 else scaled(problem, facts.scale), None, facts.notes
    )


def _matrix(text: Text) -> QuadraticProblem:
    size, row, col, value = _counted_triples(text)
    return from_terms(size, row, col, np.where(row == col, value, 2.0 * value))


def _matrix_lines(problem: QuadraticProblem) -> Iterator[str]:
    _require_plain_names(problem)
    terms = [(i, j, value) for i, j, value in terms_of(problem) if value]
    if terms and all(i != j for i, j, _ in terms):
        terms.insert(0, (0, 0, 0.0))
    yield f"{problem.num_variables} {len(terms)}"
    for i, j, value in terms:
        yield f"{i + 1} {j + 1} {value if i == j else 0.5 * value!r}"


def _cut(text: Text, size: int, row: Indices, col: Indices, value: Floats, start: int) -> Parsed:
    """MaxCut of the edges, whose lines begin at data line ``start``."""
    facts = text.facts
    if facts.offset or facts.scale != 1.0:
        raise InvalidProblemError("a comment has an offset or scale; a MaxCut has no place for it")
    if (row == col).any():
        loop = int(np.flatnonzero(row == col)[0])
        raise LineError(
            text.numbers[start + loop],
            f"{text.shown(start + loop)} joins a node to itself: a matrix? try --format orlib",
        )
    linear = -np.bincount(row, value, size) - np.bincount(col, value, size)
    problem = from_terms(size, row, col, 2.0 * value)
    return Parsed(problem.with_linear(problem.linear + linear), Sense.MAXIMISE, facts.notes)


def _counted_triples(
    text: Text, *, base: int | None = 1, weight: float | None = None
) -> tuple[int, Indices, Indices, Floats]:
    """Size n and the triples, counted from 0, of a file that starts with ``n m``.

    Indices in the file count from ``base``; None is 1 if n itself occurs, else 0.
    """
    size, wanted = header(text)
    row, col, value = triples(text, 1, weight=weight)
    if row.size != wanted:
        raise LineError(text.numbers[0], f"promises {wanted} entries, the file has {row.size}")
    if base is None:
        base = int(max(row.max(initial=0), col.max(initial=0)) == size)
    _check_range(text, row, col, base, size - 1 + base)
    _check_repeats(text, row, col, size)
    return size, row - base, col - base, value


def _check_range(text: Text, row: Indices, col: Indices, low: int, high: int) -> None:
    outside = (np.minimum(row, col) < low) | (np.maximum(row, col) > high)
    if outside.any():
        bad = int(np.flatnonzero(outside)[0])
        hint = (
            ""
            if low == 0 or min(row[bad], col[bad])
            else ("; a file that counts from 0 may be Qubist's, of spins: --format qubist")
        )
        raise LineError(
            text.numbers[1 + bad],
            f"index {row[bad]} or {col[bad]} is outside {low}..{high}{hint}",
        )


def _check_repeats(text: Text, row: Indices, col: Indices, size: int, start: int = 1) -> None:
    pairs = np.minimum(row, col) * (size + 1) + np.maximum(row, col)
    first = np.unique(pairs, return_index=True)[1]
    if first.size != pairs.size:
        twice = int(np.setdiff1d(np.arange(pairs.size), first)[0])
        words = text.fields[start + twice]
        raise LineError(
            text.numbers[start + twice], f"entry {words[0]} {words[1]} occurs a second time"
        )


def _require_bits(facts: Facts, what: str) -> None:
    if facts.spins:
        raise InvalidProblemError(
            f"a comment says vartype SPIN, but {what} has variables 0 and 1; write .coo"
        )


def _names(problem: QuadraticProblem) -> Sequence[int]:
    names = [label for label in problem.variables if type(label) is int and label >= 0]
    if len(names) != problem.num_variables:
        raise InvalidProblemError("a text format has whole numbers as labels; write .bqm instead")
    return names


def _require_plain_names(problem: QuadraticProblem) -> None:
    if list(_names(problem)) != list(range(problem.num_variables)):
        raise InvalidProblemError(
            "this format numbers its variables without gaps, so that other labels have no place; "
            "write .coo"
        )


def _is_whole(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 19
