"""Options that commands share: ``name=value`` for samplers, and how problem files are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from qprune.errors import ImpossibleRequestError

#: What a value can be; whether it makes sense is the sampler's to say.
OptionValue = bool | int | float | str

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

_WORDS: dict[str, bool] = {"true": True, "false": False}


def parse_options(items: Iterable[str]) -> dict[str, OptionValue]:
    """``["num_sweeps=200", "beta=0.5"]`` as ``{"num_sweeps": 200, "beta": 0.5}``.

    Raises:
        ImpossibleRequestError: an item without ``=`` or without a name, or a name twice.
    """
    options: dict[str, OptionValue] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ImpossibleRequestError(f"--sampler-option takes name=value, not {item!r}")
        if name in options:
            raise ImpossibleRequestError(f"--sampler-option {name} is given twice; give it once")
        options[name] = parse_value(value.strip())
    return options


def parse_value(text: str) -> OptionValue:
    """A truth value, a whole number, a number, or else the text itself."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@contextmanager
def notes_on_files() -> Iterator[None]:
    """Print notes on the files that are read inside, a line for each, once nothing was refused."""
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
    typer.echo("qprune: note: " + " ".join(note.split()), err=True)
