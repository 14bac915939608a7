"""Patterns for tensors of a model: by class, module, parameter, or regular expression."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qprune.errors import ImpossibleRequestError

Pattern = str | type[nn.Module] | nn.Module
"""Class, module, name of either or of a parameter, or ``re:`` and a regular expression."""


def as_patterns(given: Any, what: str) -> tuple[Pattern, ...]:
    """Return one pattern or several as a tuple.

    Args:
        given: patterns, or a single one.
        what: the argument's name, for the message.

    Raises:
        ImpossibleRequestError: one is neither text, nor a module, nor a class of modules.
    """
    alone = isinstance(given, str | nn.Module | type)
    patterns: tuple[Any, ...] = (given,) if alone else tuple(given)
    for pattern in patterns:
        named = isinstance(pattern, str | nn.Module)
        if not named and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
            raise ImpossibleRequestError(
                f"{what} takes names, classes and modules, not {pattern!r} "
                f"({type(pattern).__name__})"
            )
        if isinstance(pattern, str) and pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ImpossibleRequestError(
                    f"{what}: {pattern!r} is no regular expression ({error})"
                ) from error
    return patterns


@dataclass(frozen=True)
class Place:
    """Place of a tensor in a model.

    Attributes:
        parameter_name: its full name.
        owners: the modules around it with their names, innermost first.
    """

    parameter_name: str
    owners: tuple[tuple[str, nn.Module], ...]

    @classmethod
    def of(cls, model: nn.Module, parameter_name: str) -> Place:
        """Return the place of a parameter of ``model``."""
        path = parameter_name.split(".")[:-1]
        names = [".".join(path[:length]) for length in range(len(path), -1, -1)]
        return cls(parameter_name, tuple((name, model.get_submodule(name)) for name in names))


@dataclass(frozen=True)
class Match:
    """Match of a pattern with a tensor.

    Attributes:
        depth: 0 = the tensor itself or the module that holds it, 1 = the module around that, ...
        by_class: True if only a class was named.
    """

    depth: int
    by_class: bool


def match(pattern: Pattern, place: Place) -> Match | None:
    """Return the match of ``pattern`` with the tensor at ``place``; None without a match."""
    if isinstance(pattern, str) and _names(pattern, place.parameter_name):
        return Match(0, False)
    for depth, (name, module) in enumerate(place.owners):
        if pattern is module or (isinstance(pattern, str) and name and _names(pattern, name)):
            return Match(depth, False)
        if is_of_class(module, pattern):
            return Match(depth, True)
    return None


def _names(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return pattern == name


def is_of_class(module: nn.Module, pattern: Pattern) -> bool:
    """Return True if the module is an instance of the class that ``pattern`` is or names."""
    if isinstance(pattern, str):
        # FSDP turns a Linear into an FSDPLinear, which is a subclass too.
        return pattern in {kind.__name__ for kind in type(module).__mro__} - {"Module", "object"}
    return isinstance(pattern, type) and isinstance(module, pattern)


def refuse_unmatched(model: nn.Module, patterns: Sequence[Pattern], what: str) -> None:
    """Refuse a pattern that matches nothing in the model.

    Raises:
        ImpossibleRequestError: names the pattern, and the most similar names.
    """
    for pattern in patterns:
        if any(_occurs(pattern, model)):
            continue
        if not isinstance(pattern, str):
            raise ImpossibleRequestError(
                f"{what} holds {pattern if isinstance(pattern, type) else type(pattern)}, which "
                "is no part of this model"
            )
        raise ImpossibleRequestError(
            f"{what}={pattern!r} matches nothing in the model; {_nearest(pattern, model)}"
        )


def _occurs(pattern: Pattern, model: nn.Module) -> Iterator[bool]:
    for name, module in model.named_modules(remove_duplicate=False):
        yield pattern is module or is_of_class(module, pattern)
        yield bool(name) and isinstance(pattern, str) and _names(pattern, name)
    for name, _ in model.named_parameters(remove_duplicate=False):
        yield isinstance(pattern, str) and _names(pattern, name)


def _nearest(pattern: str, model: nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name]
    names += [name for name, _ in model.named_parameters()]
    names += sorted({type(module).__name__ for module in model.modules()})
    near = difflib.get_close_matches(pattern.removeprefix("re:"), names, 3, 0.4) or names[:3]
    return f"the nearest names are {', '.join(map(repr, near))}"
