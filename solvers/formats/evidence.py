"""Evidence in a file for each format; `solvers.formats.table` weighs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import IntEnum

from solvers.formats.contents import Contents
from solvers.formats.models import CLASS, LP_SENSES, lp_words, qplib_lines
from solvers.formats.text import Text, is_number


class Evidence(IntEnum):
    """The strength of the evidence for a format."""

    NONE = 0
    SHAPE = 1
    SIGNATURE = 2


def begins_with(magic: bytes) -> Callable[[Contents], Evidence]:
    """The evidence for a format whose files begin with these bytes."""
    return lambda contents: Evidence.SIGNATURE if contents.data.startswith(magic) else Evidence.NONE


def has_shape(fits: Callable[[Text], bool]) -> Callable[[Contents], Evidence]:
    """The evidence for a format without a signature, by what its text is like."""

    def evidence(contents: Contents) -> Evidence:
        text = contents.text
        there = text is not None and text.rows and fits(text)
        return Evidence.SHAPE if there else Evidence.NONE

    return evidence


def _numbers(text: Text, *lengths: int) -> bool:
    """True where the first data line is so many numbers."""
    return len(text.fields[0]) in lengths and all(is_number(word) for word in text.fields[0])


def _has_diagonal(text: Text, start: int) -> bool:
    return any(len(row) > 1 and row[0] == row[1] for row in text.fields[start:])


def has_long_header(text: Text) -> bool:
    """True where the first of lines of three numbers could be a header ``n m kind``."""
    rows = text.fields
    if not rows or not _numbers(text, 3) or not all(word.isdigit() for word in rows[0]):
        return False
    if int(rows[0][1]) != len(rows) - 1:
        return False
    words = [word for row in rows[1:] for word in row[:2]]
    return all(word.isdigit() and int(word) <= int(rows[0][0]) for word in words)


def _is_offset_of_qs(text: Text) -> bool:
    return any(
        re.match(r"objectiveoffset\b|vars\s+non-zeros", words, re.IGNORECASE)
        for _, words in text.comments
    )


def of_coo(contents: Contents) -> Evidence:
    """Evidence for dimod's COO: a comment ``vartype``, or lines of three numbers."""
    text = contents.text
    if text is None or not text.rows or not _numbers(text, 3):
        return Evidence.NONE
    if text.facts.spins is not None:
        return Evidence.SIGNATURE
    return Evidence.NONE if has_long_header(text) else Evidence.SHAPE


def of_qubo(contents: Contents) -> Evidence:
    """Evidence for qbsolv's format: a line ``p qubo``."""
    text = contents.text
    if text is None or not text.rows or text.fields[0][0].lower() != "p":
        return Evidence.NONE
    words = text.fields[0][1:2]
    return Evidence.SIGNATURE if words == ["qubo"] else Evidence(len(words))


def is_orlib(text: Text) -> bool:
    """True where a text is like OR-Library's: ``n m``, and not edges without weights."""
    bare = len(text.fields) > 1 and all(len(row) == 2 for row in text.fields)
    return _numbers(text, 1, 2) and not bare and not _is_offset_of_qs(text)


def of_rudy(contents: Contents) -> Evidence:
    """Evidence for rudy's format: ``n m``, indices from 1, no diagonal."""
    text = contents.text
    if text is None or not text.rows or not _numbers(text, 2) or _is_offset_of_qs(text):
        return Evidence.NONE
    rows = text.fields[1:]
    matrix = _has_diagonal(text, 1) or any("0" in row[:2] for row in rows)
    # Without entries it is the same problem as OR-Library's, the likelier format of a .txt.
    matrix |= not rows and contents.suffix == ".txt"
    return Evidence.NONE if matrix else Evidence.SHAPE


def is_edges(text: Text) -> bool:
    """True where a text is like a list of edges: lines of three numbers."""
    # Loops count as evidence: the reader refuses them, and no other format is meant.
    return _numbers(text, 3) and not has_long_header(text)


def of_qs(contents: Contents) -> Evidence:
    """Evidence for QOBLIB's format: ``n m`` and a comment ``ObjectiveOffset``."""
    text = contents.text
    if text is None or not text.rows or not _numbers(text, 2):
        return Evidence.NONE
    if _is_offset_of_qs(text):
        return Evidence.SIGNATURE
    return Evidence.SHAPE if contents.suffix == ".qs" else Evidence.NONE


def of_qubist(contents: Contents) -> Evidence:
    """Evidence for Qubist's format: ``n m`` and the suffix; otherwise it looks like a matrix."""
    fits = has_shape(lambda text: _numbers(text, 2))
    return fits(contents) if contents.suffix in (".qh", ".qubist") else Evidence.NONE


def of_bqm_json(contents: Contents) -> Evidence:
    """Evidence for dimod's JSON, and for JSON of no known format."""
    content = contents.json
    if content is None:
        return Evidence.NONE
    ours = content.get("type") == "BinaryQuadraticModel"
    return Evidence.SIGNATURE if ours else Evidence.SHAPE


def of_bqpjson(contents: Contents) -> Evidence:
    """Evidence for bqp-json: its key ``variable_domain``."""
    content = contents.json
    ours = content is not None and "variable_domain" in content
    return Evidence.SIGNATURE if ours else Evidence.NONE


def of_lp(contents: Contents) -> Evidence:
    """Evidence for LP: Minimize or Maximize in front."""
    if contents.text is None:
        return Evidence.NONE
    words = lp_words(contents.text.whole[:10_000])
    begins = bool(words) and words[0] in LP_SENSES
    # Quantagonia's .qubo, another format, begins in the same way.
    return Evidence.SIGNATURE if begins and contents.suffix != ".qubo" else Evidence.NONE


def of_qplib(contents: Contents) -> Evidence:
    """Evidence for QPLIB: name, class and sense in the first three lines."""
    if contents.text is None:
        return Evidence.NONE
    words = [words[0] for _, words in qplib_lines(contents.text.whole[:10_000])][:3]
    ours = len(words) == 3 and CLASS.fullmatch(words[1]) and words[2].lower() in LP_SENSES
    return Evidence.SIGNATURE if ours else Evidence.NONE


def of_mtx(contents: Contents) -> Evidence:
    """Evidence for Matrix Market's format: its banner."""
    ours = contents.data[:14].lower() == b"%%matrixmarket"
    return Evidence.SIGNATURE if ours else Evidence.NONE
