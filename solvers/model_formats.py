"""Formats of whole models: their readers and writers.

dimod's own files, LP files and bqp-json. A reader takes the `Contents` of a file and answers with a
`Parsed` problem.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from typing import Any

import dimod
import numpy as np
from dimod.serialization.fileview import read_header

from solvers.coefficients import from_spins, from_terms, labelled, scaled
from solvers.contents import Contents
from solvers.errors import InvalidProblemError
from solvers.guarded import run_apart
from solvers.problem import QuadraticProblem
from solvers.text_formats import Parsed, Sense

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
