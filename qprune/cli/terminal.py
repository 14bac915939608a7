"""Terminal output without control characters and markup, whatever names it contains."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from solvers.host.legible import legible

#: Largest number of characters in one cell of a table.
_LONGEST_CELL = 200


class _LegibleConsole(Console):
    """Console that prints text literally: ``[bold]`` and ``:smile:`` can be parts of names."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(legible(text, _LONGEST_CELL), **options)


def terminal(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console on standard output or error for tables and bars; ``quiet`` = no output."""
    return _LegibleConsole(stderr=stderr, quiet=quiet, markup=False, emoji=False)


def say(line: str, *, err: bool = False) -> None:
    """Print one line."""
    typer.echo(legible(line), err=err)


class LegibleFormatter(logging.Formatter):
    """Formatter that escapes control characters of log messages."""

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record))


def take_any_text() -> None:
    """Make standard output and error escape characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        # File names may not be valid text: Python keeps such bytes as lone surrogates.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
