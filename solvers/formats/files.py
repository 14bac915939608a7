"""Reading and writing problem files: see `solvers.formats.table` for the formats there are.

docs/formats.md has the contents and sense of each of them, the rule by which a file's format is
found, and the packings.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from solvers.errors import FileWarning, InvalidOptionError, InvalidProblemError, SolverError
from solvers.formats.contents import PACKINGS, read_contents
from solvers.formats.table import FORMATS, Format, format_of, get_format
from solvers.formats.text import LineError, scaled
from solvers.formats.texts import Parsed, Sense
from solvers.host.disk import Disk, kind_of
from solvers.problem.problem import QuadraticProblem


@dataclass(frozen=True, eq=False)
class Reading:
    """A problem, and how its file was read.

    Attributes:
        problem: to be minimised.
        format: the format that the file was read in.
        sense: the sense in which the file's objective is taken; the energy is minus that where it
            is maximised.
        notes: sentences about ambiguities of the file, each with its name.
    """

    problem: QuadraticProblem
    format: Format
    sense: Sense
    notes: tuple[str, ...] = ()


def read_problem(
    path: str | Path,
    count: ArrayLike | None = None,
    maximize: bool | None = None,
    format: str | None = None,
) -> QuadraticProblem:
    r"""The problem in a file of any supported format; notes on it are warnings.

    Args:
        path: the file; see `solvers.formats.table.FORMATS`.
        count: number of variables that are 1 (or one count per group of the file's own groups);
            None leaves the file's counts, which most formats lack.
        maximize: True if the file's objective is to be maximised, so that the problem is minus
            it; None takes the file's own sense, else minimises.
        format: the name of its format; None finds it, see `solvers.formats.table`.

    Raises:
        InvalidProblemError: the file cannot be read, is empty, fits no format or
            two, or is no binary quadratic problem; names the file, and the line
            in text.
        InvalidOptionError: ``format`` is unknown, or ``maximize`` contradicts the file.
        ProblemTooLargeError: it does not fit into memory.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".coo", delete=False) as file:
        ...     _ = file.write("# vartype=SPIN\n0 1 1.5\n")
        >>> read_problem(file.name).energies([[0, 0], [0, 1]]).tolist()
        [1.5, -1.5]
    """
    reading = read_file(path, count, maximize, format)
    for note in reading.notes:
        warnings.warn(note, FileWarning, stacklevel=2)
    return reading.problem


def read_file(
    path: str | Path,
    count: ArrayLike | None = None,
    maximize: bool | None = None,
    format: str | None = None,
) -> Reading:
    """The problem in a file and how it was read; arguments and errors as in `read_problem`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.qs"
        >>> write_problem(QuadraticProblem([1.0, -1.0], np.zeros((2, 2))), path)
        >>> read_file(path).format.name
        'qs'
    """
    path = Path(path)
    chosen = None if format is None else get_format(format)
    try:
        contents = read_contents(path)
        chosen = format_of(contents) if chosen is None else chosen
        reading = _wanted(chosen.read(contents), chosen, maximize)
    except SolverError as error:
        raise (
            type(error)(f"{path}: {error}")
            if not isinstance(error, LineError)
            else InvalidProblemError(f"{path}, {error}")
        ) from None
    except Exception as error:
        # On a broken file, gzip, zip, JSON and dimod's readers raise errors of nearly any type.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        named = f" as {chosen.name}" if chosen is not None else ""
        raise InvalidProblemError(f"cannot read {path}{named}: {reason}") from error
    notes = tuple(f"{path}: {note}" for note in reading.notes)
    problem = reading.problem if count is None else with_counts(reading.problem, count)
    return replace(reading, problem=problem, notes=notes)


def write_problem(problem: QuadraticProblem, path: str | Path, format: str | None = None) -> None:
    """Write ``problem`` in a format, by default that of the file's suffix.

    A further suffix ``.gz``, ``.bz2`` or ``.xz`` compresses it.

    Raises:
        InvalidProblemError: no format has that suffix, or the format cannot hold
            a part of the problem (counts, labels, an offset); the message has the way out.
        InvalidOptionError: ``format`` is no name of a format that can be written.
        StorageError: the file cannot be written; what was there is unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.coo"
        >>> write_problem(QuadraticProblem([1.0, -1.0], [[0.0, 2.0], [2.0, 0.0]]), path)
        >>> read_problem(path).energies([[1, 1]]).tolist()
        [2.0]
    """
    path = Path(path)
    target, data = path.resolve(), problem_bytes(problem, path, format)
    if kind_of(target):
        # A pipe or a device takes no other file's place.
        target.write_bytes(data)
    else:
        Disk().write_whole(target, data)


def problem_bytes(
    problem: QuadraticProblem, name: str | Path = "problem.npz", format: str | None = None
) -> bytes:
    """The bytes of a file of that name with ``problem`` in it, see `write_problem`.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0], [[0.0, 2.0], [2.0, 0.0]])
        >>> problem_bytes(problem, "two.qs").decode().splitlines()[-3:]
        ['1 1 1.0', '2 2 -1.0', '1 2 1.0']
    """
    path = Path(name)
    packing = next((one for one in PACKINGS if one.suffix == path.suffix.lower()), None)
    if packing is not None and packing.pack is None:
        raise InvalidProblemError(f"{path}: {packing.name} is not written; use .gz, .bz2 or .xz")
    inner = path if packing is None else path.with_suffix("")
    writer = _writer(inner, format)
    if writer.write is None:
        known = ", ".join(one.name for one in FORMATS if one.write is not None)
        raise InvalidOptionError(f"format {writer.name} is only read; there are {known}")
    data = writer.write(problem)
    return data if packing is None or packing.pack is None else packing.pack(data)


def with_counts(problem: QuadraticProblem, counts: ArrayLike) -> QuadraticProblem:
    """The problem with other counts: one for all variables, or one per group it already has.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.0], np.zeros((3, 3)))
        >>> with_counts(problem, 2).counts.tolist()
        [2]
    """
    groups = problem.groups if np.size(counts) > 1 else None
    return QuadraticProblem(
        problem.linear, problem.quadratic, problem.offset, groups, counts, problem.labels
    )


def _wanted(parsed: Parsed, chosen: Format, maximize: bool | None) -> Reading:
    """The problem to be minimised, by the sense of the file and the caller's."""
    asked = None if maximize is None else Sense.MAXIMISE if maximize else Sense.MINIMISE
    if parsed.stated is not None:
        if asked not in (None, parsed.stated):
            raise InvalidOptionError(
                f"its objective is one to {parsed.stated.value} ({chosen.name}), not to "
                f"{asked.value}; leave that out"
            )
        return Reading(parsed.problem, chosen, parsed.stated, parsed.notes)
    notes = parsed.notes
    if asked is None and chosen.doubt:
        notes = (*notes, f"{chosen.doubt}; say which with --maximize or --minimize (maximize=)")
    problem = scaled(parsed.problem, -1.0) if maximize else parsed.problem
    return Reading(problem, chosen, asked or Sense.MINIMISE, notes)


def _writer(path: Path, format: str | None) -> Format:
    if format is not None:
        return get_format(format)
    for one in FORMATS:
        if one.write is not None and path.suffix.lower() in one.suffixes:
            return one
    known = ", ".join(dict.fromkeys(s for f in FORMATS if f.write for s in f.suffixes))
    raise InvalidProblemError(f"{path}: no format has this suffix; there are {known}")
