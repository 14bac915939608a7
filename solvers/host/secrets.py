"""Secrets of the environment and of options, kept out of what is written."""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

#: Shown in place of a secret option's value.
HIDDEN = "(hidden)"
_SECRET = re.compile(
    r"(token|secret|password|passwd|passphrase|api_?key|access_?key|private_?key|credentials?)"
    r"(_id)?$",
    re.IGNORECASE,
)
# Shorter values are common words.
_SHORTEST = 8


def is_secret(name: str) -> bool:
    """True if an option, or a variable of the environment, of that name holds a secret.

    Example:
        >>> is_secret("SOME_API_TOKEN"), is_secret("HOME")
        (True, False)
    """
    return bool(_SECRET.search(name))


def redacted(text: str) -> str:
    """``text`` with each value of a secret environment variable replaced by its ``$NAME``.

    Example:
        >>> os.environ["SOME_API_TOKEN"] = "abc-123-xyz"
        >>> redacted("refused: abc-123-xyz is not known")
        'refused: $SOME_API_TOKEN is not known'
        >>> del os.environ["SOME_API_TOKEN"]
    """
    for value, name in _secrets():
        text = text.replace(value, name)
    return text


def without_secrets(value: Any) -> Any:
    """Plain values without secrets, at any depth: text is `redacted`, secret options hidden."""
    return _without(value, _secrets())


def _secrets() -> list[tuple[str, str]]:
    """Pairs of a secret, plain or as JSON or HTML escape it, and its replacement."""
    return [
        (form, f"${name}")
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and is_secret(name)
        for form in (value, json.dumps(value)[1:-1], html.escape(value))
    ]


def _without(value: Any, secrets: list[tuple[str, str]]) -> Any:
    if isinstance(value, str):
        for secret, name in secrets:
            value = value.replace(secret, name)
        return value
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if _hides(name, item) else _without(item, secrets)
            for name, item in cast(Mapping[str, Any], value).items()
        }
    if isinstance(value, list | tuple):
        return [_without(item, secrets) for item in cast(Sequence[Any], value)]
    return value


def _hides(name: Any, value: Any) -> bool:
    return isinstance(value, str) and is_secret(str(name))
