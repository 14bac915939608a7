"""Formats of whole models: their readers and writers.

dimod's own files, LP files and bqp-json. A reader takes the `Contents` of a file and answers with a
`Parsed` problem.

QPLIB's format, for problems of binary variables: a strict reader.

F. Furini and others, "QPLIB: a library of quadratic programming instances", Mathematical
Programming Computation 11 (2019), appendix B. ommx reads every class of it, but it brings
pandas and telemetry with it, and of those classes only these can be held here.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import dimod
import numpy as np
from dimod.serialization.fileview import read_header

from solvers.errors import InvalidProblemError
from solvers.formats.contents import Contents, run_apart
from solvers.formats.text import (
    Indices,
    LineError,
    from_spins,
    from_terms,
    labelled,
    number_of,
    scaled,
)
from solvers.formats.texts import Parsed, Sense
from solvers.host.machine import require_memory
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Floats

BQM_MAGIC = b"DIMODBQM"
CQM_MAGIC = b"DIMODCQM"
#: First words of an LP file, in small letters.
LP_SENSES = {
    **dict.fromkeys(("minimize", "minimise", "minimum", "min"), Sense.MINIMISE),
    **dict.fromkeys(("maximize", "maximise", "maximum", "max"), Sense.MAXIMISE),
}
#: Heads of sections of an LP file that dimod's reader ignores or does not support.
_LP_FOREIGN = re.compile(
    r"(sos[12]?|semi-continuous|semis?|lazy constraints|user cuts|pwlobj|general constraints?)",
    re.IGNORECASE,
)


# -- dimod's --------------------------------------------------------------------------------


def read_bqm(contents: Contents) -> Parsed:
    """A BQM as `dimod.BinaryQuadraticModel.to_file` writes it."""
    _require_variables(io.BytesIO(contents.data))
    bqm = dimod.BinaryQuadraticModel.from_file(io.BytesIO(contents.data))
    return Parsed(QuadraticProblem.from_bqm(bqm))


def _require_variables(stream: io.BytesIO) -> None:
    """Refuse a BQM with couplings of variables it lacks: dimod's reader would write to them.

    The layout is that of `dimod.BinaryQuadraticModel.to_file`: the offset, for every variable
    where its couplings start and its bias, then pairs of neighbour and coupling.
    """
    header = read_header(stream, BQM_MAGIC).data
    size, couplings = header["shape"]
    bias = np.dtype(header["dtype"])
    linear = np.dtype([("start", header["ntype"]), ("bias", bias)])
    pair = np.dtype([("neighbour", header["itype"]), ("bias", bias)])
    stream.seek(bias.itemsize, io.SEEK_CUR)
    starts = np.frombuffer(stream.read(size * linear.itemsize), linear)["start"].astype(np.int64)
    bounds = [0, *starts.tolist(), 2 * couplings]
    pairs = np.frombuffer(stream.read(2 * couplings * pair.itemsize), pair)["neighbour"]
    if size and (starts[0] or bounds != sorted(bounds)):
        raise InvalidProblemError("its couplings are in no order: it is damaged")
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < size:
        raise InvalidProblemError(f"it couples variables beyond its {size}: it is damaged")


def read_cqm(contents: Contents) -> Parsed:
    """A CQM as `dimod.ConstrainedQuadraticModel.to_file` writes it; its constraints are counts."""
    # dimod's own reader does not check indices; an invalid one would end this process.
    statement = "dimod.ConstrainedQuadraticModel.from_file(given)"
    run_apart("import dimod", statement, contents.data)
    cqm = dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(contents.data))
    return Parsed(_in_order(QuadraticProblem.from_cqm(cqm)))


def _in_order(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem with its groups numbered by first variable; constraints have no fixed order."""
    if problem.groups is None or problem.counts is None:
        return problem
    old, first = np.unique(problem.groups, return_index=True)
    old = old[np.argsort(first)]
    return QuadraticProblem(
        problem.linear,
        problem.quadratic,
        problem.offset,
        np.argsort(old)[np.searchsorted(np.sort(old), problem.groups)],
        problem.counts[old],
        problem.labels,
    )


def write_bqm(problem: QuadraticProblem) -> bytes:
    """The bytes of dimod's file of a BQM."""
    with _without_counts(problem).to_file() as stream:
        return stream.read()


def write_cqm(problem: QuadraticProblem) -> bytes:
    """The bytes of dimod's file of a CQM."""
    with problem.to_cqm().to_file() as stream:
        return stream.read()


def write_bqm_json(problem: QuadraticProblem) -> bytes:
    """The JSON of a BQM as dimod has it."""
    return json.dumps(_without_counts(problem).to_serializable()).encode()


def _without_counts(problem: QuadraticProblem) -> dimod.BinaryQuadraticModel:
    if problem.counts is not None:
        raise InvalidProblemError(
            "a BQM has no place for counts; write .npz or .cqm, or problem.without_counts()"
        )
    return problem.to_bqm()


# -- JSON -----------------------------------------------------------------------------------


def read_bqm_json(contents: Contents) -> Parsed:
    """A BQM as `dimod.BinaryQuadraticModel.to_serializable` makes it."""
    content = contents.json
    if content is None or content.get("type") != "BinaryQuadraticModel":
        raise InvalidProblemError(
            "this JSON is not a BinaryQuadraticModel serialised by dimod, and not bqp-json"
        )
    return Parsed(QuadraticProblem.from_bqm(dimod.BinaryQuadraticModel.from_serializable(content)))


def read_bqpjson(contents: Contents) -> Parsed:
    """bqp-json: E = scale * (sum of coeff b_i b_j + sum of coeff b_i + offset), spins or bits.

    (C. Coffrin and others, bqpjson, "The bqpjson Format".)
    """
    content = contents.json
    if content is None:
        raise InvalidProblemError("bqp-json is a JSON object")
    ids = _entry(content, "variable_ids", list, "the file")
    if any(type(one) is not int for one in ids) or len(set(ids)) != len(ids):
        raise InvalidProblemError("variable_ids of bqp-json are whole numbers, each once")
    domain = _entry(content, "variable_domain", str, "the file")
    if domain not in ("spin", "boolean"):
        raise InvalidProblemError(f"variable_domain must be spin or boolean, not {domain!r}")
    place = {one: k for k, one in enumerate(ids)}
    linear = _terms(content, "linear_terms", ("id",), place)
    quadratic = _terms(content, "quadratic_terms", ("id_tail", "id_head"), place)
    if any(i == j for i, j in quadratic):
        raise InvalidProblemError("a quadratic term of bqp-json joins a variable to itself")
    pairs = [*((i, i) for (i,) in linear), *quadratic]
    row, col = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    value = np.array([*linear.values(), *quadratic.values()])
    offset = _entry(content, "offset", float, "the file")
    problem = labelled(from_terms(len(ids), row, col, value, offset), ids)
    problem = from_spins(problem) if domain == "spin" else problem
    return Parsed(scaled(problem, _entry(content, "scale", float, "the file")))


def _terms(
    content: Mapping[str, Any], name: str, keys: tuple[str, ...], place: Mapping[int, int]
) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for number, term in enumerate(_entry(content, name, list, "the file")):
        where = f"{name}[{number}]"
        if not isinstance(term, dict):
            raise InvalidProblemError(f"{where} is no JSON object")
        ids = [_entry(term, key, int, where) for key in keys]
        unknown = [one for one in ids if one not in place]
        if unknown:
            raise InvalidProblemError(f"{where}: variable {unknown[0]} is not in variable_ids")
        key = tuple(place[one] for one in ids)
        if key in found:
            raise InvalidProblemError(f"{where} occurs a second time")
        found[key] = _entry(term, "coeff", float, where)
    return found


def _entry(content: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = content.get(key)
    if kind is float and type(value) in (int, float):
        return float(value)  # pyright: ignore[reportArgumentType]
    if type(value) is not kind:
        raise InvalidProblemError(f"{where} has no {key} of type {kind.__name__}")
    return value


# -- LP -------------------------------------------------------------------------------------


def read_lp(contents: Contents) -> Parsed:
    """An LP file, through `dimod.lp`: binary variables; constraints that are exact counts.

    Raises:
        InvalidProblemError: dimod cannot read it, or it holds another kind of problem.
    """
    text = contents.text
    words = lp_words("" if text is None else text.whole)
    sense = LP_SENSES.get(words[0] if words else "")
    if sense is None:
        raise InvalidProblemError("an LP file begins with Minimize or Maximize")
    for line in [] if text is None else text.whole.splitlines():
        if _LP_FOREIGN.fullmatch(line.strip()):
            raise InvalidProblemError(
                f"its section {line.strip()!r} has no place in a binary quadratic problem; leave "
                "it out"
            )
    # dimod's reader does not accept a byte-order mark.
    data = ("" if text is None else text.whole).encode()
    statement = "answer.write(dimod.lp.loads(given.read().decode()).to_file().read())"
    done = run_apart("import dimod, dimod.lp", statement, data)
    if done.returncode or not done.stdout.startswith(CQM_MAGIC):
        raise InvalidProblemError(
            "dimod's LP reader does not take it; products stand in one bracket, '[ 2 x * y ] / 2', "
            "sides of a constraint are sums and a number, and the last line is End"
        )
    cqm = dimod.ConstrainedQuadraticModel.from_file(io.BytesIO(done.stdout))
    for name in cqm.variables:
        kind, low, high = cqm.vartype(name), cqm.lower_bound(name), cqm.upper_bound(name)
        if kind is not dimod.BINARY:
            raise InvalidProblemError(
                f"variable {name!r} is {kind.name.lower()}, not binary; if it is 0 or 1, list it "
                "under Binary"
            )
        if (low, high) != (0, 1):
            raise InvalidProblemError(
                f"variable {name!r} has bounds {low:g} and {high:g}; put its value in instead"
            )
    # dimod has changed the sign of a maximised objective.
    return Parsed(_in_order(QuadraticProblem.from_cqm(cqm)), sense)


def lp_words(text: str) -> list[str]:
    """The words of an LP file without comments, in small letters."""
    return " ".join(line.partition("\\")[0] for line in text.splitlines()).lower().split()


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
