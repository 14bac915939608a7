"""Settings files in YAML restricted to plain values; anything else is refused with its line.

Refused are anchors and merged mappings (a few lines can expand to gigabytes), tags (Python
objects), dates, and numbers in misleading forms (``017`` is 15, ``1:30`` is 90).
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from qprune.errors import ImpossibleRequestError
from solvers.host.legible import legible

#: Largest size of a file in bytes, and largest nesting of lists and mappings.
LARGEST, DEEPEST = 2**18, 16
# Largest number of digits; each setting checks its own range.
_LONGEST_NUMBER = 300

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_BROKEN = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TAG = "tag:yaml.org,2002:"


def read_plain_yaml(path: Path) -> Any:
    """Read a file of plain values: text, numbers, booleans, null, lists, mappings.

    Raises:
        ImpossibleRequestError: the file cannot be read, or holds other values; names the file
            and the line.
    """
    try:
        return _load(_read(path))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ImpossibleRequestError(
            f"cannot read the configuration {legible(path, 300)}: {_reason(error)}"
        ) from error


def _read(path: Path) -> str:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        # Reading a pipe would wait for its writer.
        raise ValueError("it is a folder" if stat.S_ISDIR(mode) else "it is no regular file")
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes; settings have fewer")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: it is no text in UTF-8") from error


def _load(text: str) -> Any:
    try:
        loader = _PlainLoader(text)
        return loader.get_single_data()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"line {line}: the character {error.character:#x} is not allowed"
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not isinstance(error, yaml.MarkedYAMLError):
        return legible(error, 300)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}: " if mark else ""
    return where + legible(", ".join(filter(None, (error.context, error.problem))), 300)


def _refuse(node: Node, problem: str) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, restricted to plain values."""

    _depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        # Checked before anything is expanded.
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not taken; write the value out",
                problem_mark=event.start_mark,
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem=f"the tag {event.tag} is not taken; values are plain",
                problem_mark=event.start_mark,
            )
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"it is nested more than {DEEPEST} levels deep",
                problem_mark=event.start_mark,
            )
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == _TAG + "merge":
                _refuse(key, "<< is not taken; write the values out")
            if not isinstance(key, ScalarNode) or key.tag != _TAG + "str":
                shown = key.value if isinstance(key, ScalarNode) else "a list or mapping"
                _refuse(key, f"'name: value' lines are expected; {shown} is no name")
            if key.value in seen:
                _refuse(key, f"{key.value} is there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: ScalarNode) -> int:
        """Parse a number in decimal digits."""
        if not _WHOLE.fullmatch(node.value) or len(node.value) > _LONGEST_NUMBER:
            _refuse(node, f"{legible(node.value, 40)} is no whole number in plain decimal digits")
        return int(node.value)

    def number(self, node: ScalarNode) -> float:
        """Parse a number with a point, an exponent, or neither."""
        if not _BROKEN.fullmatch(node.value) or len(node.value) > _LONGEST_NUMBER:
            _refuse(node, f"{legible(node.value, 40)} is no finite number in decimal digits")
        return float(node.value)

    def something_else(self, node: ScalarNode) -> NoReturn:
        """Refuse a date, since no setting is one."""
        kind = node.tag.removeprefix(_TAG)
        shown = legible(node.value, 40)
        _refuse(node, f"{shown} is a {kind}, which no setting is; text stands in quotes")


_PlainLoader.yaml_constructors = {
    **{
        _TAG + name: yaml.SafeLoader.yaml_constructors[_TAG + name]
        for name in ("null", "bool", "str", "seq", "map")
    },
    _TAG + "int": _PlainLoader.whole_number,
    _TAG + "float": _PlainLoader.number,
    None: _PlainLoader.something_else,
}
