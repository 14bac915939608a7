"""User factories of models and data: ``package.module:factory`` on the command line."""

from __future__ import annotations

import importlib
import re
from typing import TypeVar

from qprune.errors import ImpossibleRequestError

T = TypeVar("T")

# Dots, colons, slashes and spaces separate; a relative name has no package to be relative to.
_SPEC = re.compile(r"[^\s.:/\\]+(\.[^\s.:/\\]+)*:[^\s.:/\\]+")

#: Prefixes before a colon that are no modules to import.
_SOURCES = frozenset({"torchvision", "hf", "mnist", "cifar10", "wikitext2", "text"})


def is_factory(spec: str) -> bool:
    """Return True if ``spec`` would import the user's code."""
    return _SPEC.fullmatch(spec) is not None and spec.partition(":")[0] not in _SOURCES


def call_factory(spec: str, kind: type[T]) -> T:
    """Call ``package.module:name`` and return its result, which must be a ``kind``.

    Raises:
        ImpossibleRequestError: no such module or name, importing or calling it raised, or it
            returned something else.
    """
    if not is_factory(spec):
        raise ImpossibleRequestError(
            f"{spec!r} is not of the form package.module:factory, with the module's full name"
        )
    module_name, _, attribute = spec.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, ImportError | AttributeError) else repr(error)
        raise ImpossibleRequestError(
            f"cannot import {attribute!r} from {module_name!r} ({reason}); "
            "give an importable package.module:factory"
        ) from error
    try:
        made = factory()
    except (Exception, SystemExit) as error:
        raise ImpossibleRequestError(
            f"{spec} raised {type(error).__name__}: {error}; it must run without arguments"
        ) from error
    if not isinstance(made, kind):
        raise ImpossibleRequestError(
            f"{spec} returned a {type(made).__name__}; it must return a "
            f"{kind.__module__}.{kind.__qualname__}"
        )
    return made
