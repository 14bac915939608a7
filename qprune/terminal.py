"""The terminal: whatever names are in what is printed, each line is text that can be read."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from solvers.legible import legible

#: Characters of one cell of a table; a name of thousands would hide the rest of it.
_LONGEST_CELL = 200


class _LegibleConsole(Console):
    """A console to which text is text: ``[bold]`` and ``:smile:`` are parts of names, too."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(legible(text, _LONGEST_CELL), **options)


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Standard output, or standard error, for tables and bars; ``quiet`` prints nothing."""
    return _LegibleConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False)


def say(line: str, *, err: bool = False) -> None:
    """Print one line."""
    typer.echo(legible(line), err=err)


class LegibleFormatter(logging.Formatter):
    """Log messages as lines that can be read."""

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record))


def take_any_text() -> None:
    """From now on standard output and error escape what their encoding has no place for."""
    for stream in (sys.stdout, sys.stderr):
        # A name of a file need not be text: Python keeps its bytes as lone surrogates.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
