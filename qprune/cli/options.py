"""Options of the command line: numbers in their ranges, ``name=value``, files to read."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from qprune.cli.terminal import say
from qprune.errors import DISK, ImpossibleRequestError
from qprune.jobs.settings import OptionValue
from solvers.host.legible import legible
from solvers.host.ranges import checked, quoted

#: Options of every command that reads problem files.
FormatOption = Annotated[
    str | None, typer.Option("--format", help="of the files: a name that `qprune formats` lists")
]
SenseOption = Annotated[
    bool | None,
    typer.Option(
        "--maximize/--minimize",
        help="the files' objectives are maximised (energy is minus them) or minimised",
        show_default="what the file says, else minimise",
    ),
]

_WHOLE = re.compile(r"[-+]?[0-9]+")
_NUMBER = re.compile(
    r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+|inf|infinity|nan)(e[-+]?[0-9]+)?", re.I | re.A
)
_WORDS: dict[str, bool] = {"true": True, "false": False}


def inside(kind: Any) -> Callable[[Any], Any]:
    """Return the callback that checks an option's numbers against a range of `solvers.host.ranges`.

    Args:
        kind: annotated type of the range.
    """

    def check(value: Any) -> Any:
        try:
            if isinstance(value, list | tuple):
                return [checked(kind, one, "it") for one in value]
            return None if value is None else checked(kind, value, "it")
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return check


def not_a_pipe(value: Any) -> Any:
    """Option callback that refuses pipes, since reading one would wait for its writer."""
    for path in value if isinstance(value, list | tuple) else [value]:
        with suppress(OSError, ValueError):
            if path is not None and path.exists() and not (path.is_file() or path.is_dir()):
                raise typer.BadParameter(f"{legible(path, 300)} is no regular file")
    return value


def require_place(path: Path) -> None:
    """Refuse an output file that could not be written, before the work starts.

    Raises:
        ImpossibleRequestError: it is a folder, is in none, or may not be written.
    """
    try:
        if path.is_dir():
            reason = "it is a folder"
        elif not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        elif not os.access(path if path.exists() else path.parent, os.W_OK):
            reason = "no right to write there"
        else:
            return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise ImpossibleRequestError(
        f"cannot write the file {legible(path, 300)}: {reason}; choose another --output"
    )


def write_file(path: Path, text: str) -> None:
    """Write a file atomically; a pipe or another special file directly.

    Raises:
        RunFolderError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        DISK.write_whole(path.resolve(), text.encode())


def parse_options(items: Iterable[str]) -> dict[str, OptionValue]:
    """Parse ``["num_sweeps=200", "beta=0.5"]`` into ``{"num_sweeps": 200, "beta": 0.5}``.

    Raises:
        ImpossibleRequestError: an item without ``=`` or without a name, a name twice, or a
            number that does not fit 64 bits.
    """
    options: dict[str, OptionValue] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ImpossibleRequestError(f"--sampler-option takes name=value, not {item!r}")
        if name in options:
            raise ImpossibleRequestError(f"--sampler-option {name} is given twice; give it once")
        try:
            options[name] = parse_value(value.strip())
        except ValueError as error:
            raise ImpossibleRequestError(f"the sampler option {name}: {error}") from error
    return options


def parse_value(text: str) -> OptionValue:
    """Return a bool, an int, a float, or else the text itself.

    Raises:
        ValueError: a number is not finite, or does not fit 64 bits.

    Example:
        >>> parse_value("true"), parse_value("3"), parse_value("0.5"), parse_value("a")
        (True, 3, 0.5, 'a')
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _WHOLE.fullmatch(text):
        if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
            raise ValueError(f"{quoted(text)} does not fit 64 bits")
        return int(text)
    if not _NUMBER.fullmatch(text):
        return text
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{quoted(text)} is no finite number")
    return number


@contextmanager
def notes_on_files() -> Generator[None]:
    """Print the notes on files read inside the context, one line each, if nothing was refused."""
    from solvers.errors import FileWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FileWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, FileWarning):
            show_note(str(warning.message))
        else:
            warnings.showwarning(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def show_note(note: str) -> None:
    """Print a note on standard error, in one line."""
    say("qprune: note: " + " ".join(note.split()), err=True)
