"""Names from files and models, made safe to show on terminals, in figures and on pages."""

from __future__ import annotations

#: Characters of a name in a figure; a longer one leaves no room for the curves.
_IN_FIGURES = 48


def legible(text: object, longest: int | None = None) -> str:
    r"""``str(text)`` on one line, with an escape for each invisible character.

    Escaped are control characters (an escape sequence changes a terminal, and is not allowed in
    an SVG), lone surrogates (no encoding has them), marks that turn the direction of writing, and
    whatever else Python's ``repr`` escapes in a string.

    Args:
        text: anything; text stays as it is where it can be read.
        longest: characters, at least 8; more are cut out of the middle. None = all are shown.

    Example:
        >>> print(legible("fc\x1b[31m1"), legible("na\u00efve"), legible("0123456789", longest=8))
        fc\x1b[31m1 naïve 0123…789
    """
    shown = "".join(c if c.isprintable() else _escape(c) for c in _cut(str(text), longest))
    return _cut(shown, longest)


def has_lone_surrogate(text: str) -> bool:
    r"""True for text that no encoding can hold, as from a file name of other bytes than UTF-8.

    Example:
        >>> has_lone_surrogate("\udc80"), has_lone_surrogate("na\u00efve")
        (True, False)
    """
    return any("\ud800" <= character <= "\udfff" for character in text)


def in_figure(text: object, longest: int = _IN_FIGURES) -> str:
    r"""`legible` text that Matplotlib shows as it is: no dollar begins a formula.

    Example:
        >>> print(in_figure(r"$\frac"))
        \$\frac
    """
    shown = legible(text, longest).replace("$", r"\$")
    # Matplotlib's legends omit labels that begin with an underscore.
    return f" {shown}" if shown.startswith("_") else shown


def shown_on_page(value: object) -> object:
    """Jinja's ``finalize``: `legible` text for a page, before HTML is escaped."""
    return legible(value) if type(value) is str else value


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int | None) -> str:
    if longest is None or len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}…{text[len(text) - (longest - head - 1) :]}"
