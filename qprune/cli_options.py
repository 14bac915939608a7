"""Sampler options as a command line has them: ``name=value``, again and again."""

from __future__ import annotations

from collections.abc import Iterable

from qprune.errors import ImpossibleRequestError

#: What a value can be; whether it makes sense is the sampler's to say.
OptionValue = bool | int | float | str

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
