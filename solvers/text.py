"""Text of problem files: lines of numbers, and the comments that say what they mean."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from solvers.errors import InvalidProblemError
from solvers.quadratic import Floats

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
    """A line that cannot be parsed; `solvers.files` adds the file's name."""

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
