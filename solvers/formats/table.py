"""The formats of problem files, by name, and the rule by which a file's is found.

`FORMATS` lists them; docs/formats.md explains them. A file's format is found in three steps. One
that leaves a signature (magic bytes, a line ``p qubo``, keys of JSON) is known by it. Lists of
numbers look alike, so among the formats whose shape fits, the file's name decides: first by how a
public family is called (``G1.txt``), then by its suffix. Where that leaves two, or contradicts the
shape, the file is refused with the names of both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from solvers.errors import InvalidOptionError, InvalidProblemError
from solvers.formats import arrays, evidence, models, texts
from solvers.formats.contents import Contents
from solvers.formats.evidence import Evidence
from solvers.formats.models import read_qplib
from solvers.formats.text import Text
from solvers.formats.texts import Parsed
from solvers.problem.problem import QuadraticProblem


@dataclass(frozen=True)
class Format:
    """A format of problem files.

    Attributes:
        name: what ``--format`` and ``format=`` take.
        suffixes: of files that usually hold it.
        contents: one line about what is in it.
        sense: what its publishers do with the objective, minimise or maximise.
        evidence: function from a file's contents to its `Evidence`.
        read: function from a file's contents to its problem.
        write: function from a problem to the bytes of a file; None if the format is only read.
        counts: True if it holds exact counts.
        names: pattern of the names of public files in it, without a folder, in small letters.
        doubt: note for callers who give neither ``maximize`` nor ``minimize``.
    """

    name: str
    suffixes: tuple[str, ...]
    contents: str
    sense: str
    evidence: Callable[[Contents], Evidence]
    read: Callable[[Contents], Parsed]
    write: Callable[[QuadraticProblem], bytes] | None = None
    counts: bool = False
    names: str = "(?!)"
    doubt: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record that `qprune formats --json` prints of it."""
        return {
            "name": self.name,
            "suffixes": list(self.suffixes),
            "contents": self.contents,
            "sense": self.sense,
            "counts": self.counts,
            "written": self.write is not None,
        }


def get_format(name: str) -> Format:
    """The format of that name.

    Raises:
        InvalidOptionError: the name is unknown; the message lists the names.

    Example:
        >>> get_format("qs").suffixes
        ('.qs',)
    """
    for one in FORMATS:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in FORMATS)
    raise InvalidOptionError(f"no format is called {name!r}; there are {known}")


def format_of(contents: Contents) -> Format:
    """The format of a file, by the rule above.

    Raises:
        InvalidProblemError: no format fits, or more than one.
    """
    found = {one.name: one.evidence(contents) for one in FORMATS}
    signed = [one for one in FORMATS if found[one.name] is Evidence.SIGNATURE]
    shaped = signed or [one for one in FORMATS if found[one.name]]
    named = [one for one in FORMATS if re.match(one.names, contents.name)]
    named = named or [one for one in FORMATS if contents.suffix in one.suffixes]
    both = [one for one in shaped if one in named]
    if len(both) == 1 or (len(shaped) == 1 and (signed or not named)):
        return (both or shaped)[0]
    if not shaped and len(named) == 1:
        return named[0]  # its reader raises with the reason
    if shaped:
        raise InvalidProblemError(_doubt(contents, both or shaped, named))
    raise InvalidProblemError(_unknown(contents))


def _doubt(contents: Contents, shaped: list[Format], named: list[Format]) -> str:
    said = " or ".join(one.name for one in shaped)
    generic = contents.suffix == ".txt" and len(named) > 1
    if named and not generic and not any(one in named for one in shaped):
        said += f" by its lines and {' or '.join(one.name for one in named)} by its name"
    first = shaped[0].name
    hint = _header_hint(contents)
    return f"it could be {said}; say which, as in --format {first} (format={first!r}){hint}"


def _unknown(contents: Contents) -> str:
    known = ", ".join(one.name for one in FORMATS)
    if contents.text is None:
        return f"neither text nor any known binary format; there are {known}"
    rows = contents.text.fields
    first = f"; its first line is {contents.text.shown(0)}" if rows else "; it has comments only"
    if len(rows) > 1 and all(len(row) == len(rows) for row in rows):
        first += ", and it is square: a matrix? save it as .npy"
    return f"in no known format{first}{_header_hint(contents)}; there are {known}"


def _header_hint(contents: Contents) -> str:
    if contents.text is not None and evidence.has_long_header(contents.text):
        return "; its first line looks like a header of three numbers: keep the first two, 'n m'"
    return ""


# -- the registry ---------------------------------------------------------------------------


def _from_text(read: Callable[[Text], Parsed]) -> Callable[[Contents], Parsed]:
    return lambda contents: read(_text(contents))


def _text(contents: Contents) -> Text:
    if contents.text is None:
        raise InvalidProblemError("it is no text")
    if not contents.text.rows:
        raise InvalidProblemError("it has no lines but comments")
    return contents.text


def _to_text(
    lines: Callable[[QuadraticProblem], Iterator[str]],
) -> Callable[[QuadraticProblem], bytes]:
    return lambda problem: "".join(f"{line}\n" for line in lines(problem)).encode()


_MINIMISED = "minimised"
_IN_FILE = "as the file says"
_CUT = "maximised: E = -cut"

FORMATS: tuple[Format, ...] = (
    Format(
        name="coo",
        suffixes=(".coo",),
        contents="dimod's COO: lines 'i j value' from 0, each counted once; spins by a comment",
        sense=_MINIMISED,
        evidence=evidence.of_coo,
        read=_from_text(texts.read_coo),
        write=_to_text(texts.write_coo),
    ),
    Format(
        name="qubo",
        suffixes=(".qubo",),
        contents="qbsolv's: 'p qubo 0 maxNodes nNodes nCouplers', lines 'i j value' from 0",
        sense=_MINIMISED,
        evidence=evidence.of_qubo,
        read=_from_text(texts.read_qubo),
        write=_to_text(texts.write_qubo),
    ),
    Format(
        name="orlib",
        suffixes=(".txt", ".qubo", ".sparse"),
        contents="OR-Library, gka, MQLib: 'n m', lines 'i j q' from 1; off the diagonal twice",
        sense="maximised by OR-Library and MQLib, minimised by Biq Mac; minimised unless asked",
        evidence=evidence.has_shape(evidence.is_orlib),
        read=_from_text(texts.read_orlib),
        write=_to_text(texts.write_orlib),
        names=r"bqp|gka|be\d|p\d{4}[._]",
        doubt="read as OR-Library's format, of variables 0 and 1 (spins: --format qubist), which "
        "does not say its sense: OR-Library and MQLib maximise x.q.x, Biq Mac minimises it; it is "
        "minimised here",
    ),
    Format(
        name="rudy",
        suffixes=(".gset", ".rud", ".rudy", ".mc", ".txt"),
        contents="MaxCut of G-set, Biq Mac, MQLib: 'n m', edges 'i j w' (or 'i j') from 1",
        sense=_CUT,
        evidence=evidence.of_rudy,
        read=_from_text(texts.read_rudy),
        write=_to_text(texts.write_rudy),
        names=r"g\d|pm1[sd]_|p?w\d+_|t[23]g|torus",
    ),
    Format(
        name="edges",
        suffixes=(".gset", ".rud", ".rudy", ".mc", ".edges"),
        contents="MaxCut of edges 'i j w' without a header; the nodes are those that occur",
        sense=_CUT,
        evidence=evidence.has_shape(evidence.is_edges),
        read=_from_text(texts.read_edges),
    ),
    Format(
        name="qs",
        suffixes=(".qs",),
        contents="QOBLIB's: '# ObjectiveOffset c', 'n m', lines as OR-Library's",
        sense=_MINIMISED,
        evidence=evidence.of_qs,
        read=_from_text(texts.read_qs),
        write=_to_text(texts.write_qs),
    ),
    Format(
        name="qubist",
        suffixes=(".qh", ".qubist"),
        contents="Qubist's: 'sites lines', lines 'i j value' of spins -1 and 1, from 0",
        sense=_MINIMISED,
        evidence=evidence.of_qubist,
        read=_from_text(texts.read_qubist),
    ),
    Format(
        name="npz",
        suffixes=(".npz",),
        contents="E = d.x + 1/2 |U x|^2 (Fisher blocks), or Q for U; Q alone: E = x.Q.x",
        sense=_MINIMISED,
        evidence=evidence.begins_with(b"PK"),
        read=arrays.read_npz,
        write=arrays.write_npz,
        counts=True,
    ),
    Format(
        name="npy",
        suffixes=(".npy",),
        contents="a square matrix Q, one triangle or both: E = x.Q.x",
        sense=_MINIMISED,
        evidence=evidence.begins_with(arrays.NPY_MAGIC),
        read=arrays.read_npy,
    ),
    Format(
        name="mtx",
        suffixes=(".mtx",),
        contents="Matrix Market: a square matrix Q, real or integer: E = x.Q.x",
        sense=_MINIMISED,
        evidence=evidence.of_mtx,
        read=arrays.read_mtx,
    ),
    Format(
        name="bqm",
        suffixes=(".bqm",),
        contents="dimod's binary quadratic model",
        sense=_MINIMISED,
        evidence=evidence.begins_with(models.BQM_MAGIC),
        read=models.read_bqm,
        write=models.write_bqm,
    ),
    Format(
        name="cqm",
        suffixes=(".cqm",),
        contents="dimod's constrained quadratic model; constraints are exact counts",
        sense=_MINIMISED,
        evidence=evidence.begins_with(models.CQM_MAGIC),
        read=models.read_cqm,
        write=models.write_cqm,
        counts=True,
    ),
    Format(
        name="bqm-json",
        suffixes=(".json",),
        contents="dimod's binary quadratic model as JSON",
        sense=_MINIMISED,
        evidence=evidence.of_bqm_json,
        read=models.read_bqm_json,
        write=models.write_bqm_json,
    ),
    Format(
        name="bqpjson",
        suffixes=(".json", ".bqpjson"),
        contents="bqp-json: scale, offset, linear_terms, quadratic_terms; spin or boolean",
        sense=_MINIMISED,
        evidence=evidence.of_bqpjson,
        read=models.read_bqpjson,
    ),
    Format(
        name="lp",
        suffixes=(".lp",),
        contents="LP: binary variables, '[ ... ] / 2', constraints that are exact counts",
        sense=_IN_FILE,
        evidence=evidence.of_lp,
        read=models.read_lp,
        counts=True,
    ),
    Format(
        name="qplib",
        suffixes=(".qplib",),
        contents="QPLIB: classes ?BN, ?BB, and ?BL with exact counts; 1/2 x.Q.x + b.x + q",
        sense=_IN_FILE,
        evidence=evidence.of_qplib,
        read=lambda contents: read_qplib(_text(contents).whole),
        counts=True,
    ),
)
