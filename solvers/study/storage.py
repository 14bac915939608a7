"""A study's folder: the record of the study, and every row as soon as it is done.

- ``study.json``: problems, samplers, budgets, repeats, seed; and, for every time that the study
  was started or went on: versions, commit, machine, threads
- ``rows.jsonl``: one line a run, appended and synced to disk when the run ends
- ``.lock``: held by the process that works on the study, free again however that ends

Checks of the record and rows in a study's folder, as `solvers.study.compare` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from solvers.errors import StorageError, StudyFolderError
from solvers.host.disk import LOCK, Disk, read_json, strict_json

STUDY, ROWS = "study.json", "rows.jsonl"
_DISK = Disk()
#: Fields of the record that may differ between sessions of one study.
_SESSIONS = "sessions"


class StudyFolder:
    """The folder of one study.

    Args:
        path: made if it is not there.
        rows: name of the file of rows.
    """

    def __init__(self, path: Path, rows: str = ROWS) -> None:
        self.path, self._rows = path, path / rows
        # Held as long as this object lives; reentrant within this process.
        self._lock: FileLock | None = None

    def begin(self, record: Mapping[str, Any], session: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Begin or continue the study; return the rows so far.

        Raises:
            StudyFolderError: the folder holds another study (the message names the first
                difference) or other files, another process uses it, or it cannot be written.
        """
        plain = read_json(strict_json(record))
        with _told(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            sessions = self._sessions(plain)
            self._lock = _DISK.lock_of(self.path)
            now = {**plain, _SESSIONS: [*sessions, dict(session)]}
            _DISK.write_whole(self.path / STUDY, (strict_json(now, indent=1) + "\n").encode())
            return self._mended()

    def _sessions(self, plain: Mapping[str, Any]) -> list[Any]:
        """The sessions of the study so far; refuse another study."""
        if (self.path / STUDY).exists():
            held = read_record(self.path)
            sessions = held.pop(_SESSIONS, [])
            difference = first_difference(held, plain)
            if difference:
                raise StudyFolderError(
                    f"{self.path} holds another study: {difference}; choose another folder"
                )
            return sessions
        if any(file.name != LOCK for file in self.path.iterdir()):
            raise StudyFolderError(
                f"{self.path} is not empty and holds no study; choose another folder"
            )
        return []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row; it is on the disk when this returns.

        Raises:
            StudyFolderError: it cannot be written.
        """
        with _told(self.path):
            _DISK.append_line(self._rows, strict_json(row), flush=True)

    def _mended(self) -> list[dict[str, Any]]:
        """The rows; a last line that is incomplete is cut off."""
        if not self._rows.exists():
            return []
        rows, whole = whole_lines(self._rows.read_bytes(), str(self._rows))
        if whole < self._rows.stat().st_size:
            with self._rows.open("r+b") as file:
                file.truncate(whole)
        return rows


def read_record(path: Path) -> dict[str, Any]:
    """The record in ``study.json``.

    Raises:
        StudyFolderError: there is none, or it cannot be read.
    """
    try:
        return _object(read_json((path / STUDY).read_bytes()))
    except FileNotFoundError:
        raise StudyFolderError(f"{path} holds no study: {STUDY} is missing") from None
    except (OSError, ValueError) as error:
        raise StudyFolderError(f"cannot read {path / STUDY}: {error}") from error


def read_rows(path: Path, rows: str = ROWS) -> list[dict[str, Any]]:
    """The rows so far, also of a study that still runs; an incomplete last line is left out.

    Raises:
        StudyFolderError: the file cannot be read.
    """
    file = path / rows
    with _told(path):
        return whole_lines(file.read_bytes(), str(file))[0] if file.exists() else []


def whole_lines(data: bytes, name: str) -> tuple[list[dict[str, Any]], int]:
    """The rows of the whole lines, and how many bytes those are.

    Raises:
        StudyFolderError: a line that is not the last is no row.
    """
    end = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start=1):
        try:
            rows.append(_object(read_json(line)))
        except ValueError as error:
            raise StudyFolderError(f"{name}, line {number} is damaged: {error}") from error
    return rows, end


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no record")
    return value


def first_difference(held: Any, asked: Any, where: str = "") -> str:
    """The first difference of two records, in words; "" if there is none.

    Example:
        >>> first_difference({"seed": 0}, {"seed": 1})
        'its seed is 0, not 1'
    """
    if isinstance(held, dict) and isinstance(asked, dict):
        for name in dict.fromkeys([*held, *asked]):
            found = first_difference(held.get(name), asked.get(name), f"{where} {name}".strip())
            if found:
                return found
        return ""
    if isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        for one, other in zip(held, asked, strict=True):
            found = first_difference(one, other, f"{where} {_called(one)}".strip())
            if found:
                return found
        return ""
    if held == asked:
        return ""
    return f"its {where} is {_short(held)}, not {_short(asked)}"


def _called(item: Any) -> str:
    names = ("problem", "label", "kind")
    return next((str(item[n]) for n in names if n in item), "") if isinstance(item, dict) else ""


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)}: " + ", ".join(_called(item) or str(item) for item in value[:8])
    return repr(value)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except StudyFolderError:
        raise
    except OSError as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, Timeout):
            raise StudyFolderError(
                f"another process works on the study in {path}; wait for it, or choose another "
                "folder"
            ) from error
        reason = (isinstance(cause, OSError) and cause.strerror) or cause or error
        raise StudyFolderError(f"cannot use the folder {path}: {reason}; choose another") from error


_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
_RECORD = {"problems": list, "samplers": list, "budgets": list, "repeats": int, "seed": int}
_RECORD |= {"time_limit": _NUMBER, "threads": int, "runs": int}
_PROBLEM = {"problem": str, "n": int, "kind": str, "known": _MAYBE, "proved": bool}
_PROBLEM |= {"bound": _MAYBE}
_SAMPLER = {"label": str, "name": str, "options": dict}
_BUDGET = {"kind": str, "amount": _NUMBER}
_ROW = {"problem": str, "n": int, "sampler": str, "budget_kind": str, "budget": _NUMBER}
_ROW |= {"repeat": int, "status": str, "reason": str, "energy": _MAYBE}
_ROW |= {"seconds": _MAYBE, "cpu_seconds": _MAYBE, "beaten": bool}
_ROW |= {"lower_bound": _MAYBE, "energy_raw_best": _MAYBE}


def checked_record(record: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """``record``, if it is what `compare` wrote.

    Raises:
        StudyFolderError: names the first invalid field.
    """
    parts = {"problems": _PROBLEM, "samplers": _SAMPLER, "budgets": _BUDGET}
    wrong = _first_wrong(record, _RECORD) or next(
        (
            f"{name}: {found}"
            for name, kinds in parts.items()
            for one in record[name]
            if (found := _first_wrong(one, kinds))
        ),
        "",
    )
    if wrong:
        raise StudyFolderError(f"{path / STUDY} is damaged: {wrong}")
    return record


def checked_rows(rows: Sequence[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """``rows``, if each is what `compare` wrote.

    Raises:
        StudyFolderError: names the row and its invalid field.
    """
    for number, row in enumerate(rows, start=1):
        wrong = _first_wrong(row, _ROW)
        if not wrong and row["status"] == "ok":
            wrong = _first_wrong(row, dict.fromkeys(("energy", "seconds"), _NUMBER))
        if wrong:
            raise StudyFolderError(f"{path / ROWS}, row {number} is damaged: {wrong}")
    return list(rows)


def _first_wrong(record: Any, kinds: Mapping[str, Any]) -> str:
    if not isinstance(record, dict):
        return f"{record!r:.40} is no record"
    for name, kind in kinds.items():
        value = record.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return f"{name} is {value!r:.40}"
        if isinstance(value, int | float) and not abs(value) < 2**63:
            return f"{name} is {value!r:.40}"
    return ""
