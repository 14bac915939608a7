"""The first line of a docstring says what the thing is; it does not open with a question word."""

import ast
from pathlib import Path

import pytest

PACKAGES = ["solvers", "qprune"]
QUESTION_WORDS = {"What", "How", "Whether", "Who", "Whose", "Which", "Where", "When", "Why"}

_ROOT = Path(__file__).parents[2]
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _questions(source):
    """(line, first line) of each docstring in ``source`` that opens with a question word."""
    for node in ast.walk(ast.parse(source)):
        docstring = (ast.get_docstring(node) if isinstance(node, _DOCUMENTED) else None) or ""
        words = docstring.split()
        if words and words[0].strip(":,;") in QUESTION_WORDS:
            yield getattr(node, "lineno", 1), docstring.splitlines()[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_first_lines(package):
    files = sorted((_ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(_ROOT)}:{line}: {first}"
        for file in files
        for line, first in _questions(file.read_text())
    ]
    assert found == []


def test_question_words_are_found_at_every_level():
    source = (
        '"""What it is."""\n'
        "class A:\n"
        '    """A thing."""\n'
        "    def b(self):\n"
        '        """Whether b."""\n'
        "async def c():\n"
        '    """Whole, and no question."""\n'
    )
    assert list(_questions(source)) == [(1, "What it is."), (4, "Whether b.")]
