"""A study's folder: the record of the study, and every row as soon as it is done.

- ``study.json``: problems, samplers, budgets, repeats, seed; and, for every time that the study
  was started or went on: versions, commit, machine, threads
- ``rows.jsonl``: one line a run, appended and synced to disk when the run ends
- ``.lock``: held by the process that works on the study, free again however that ends

What is read back is checked by the models here; a study of another kind extends them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from solvers.errors import StorageError, StudyFolderError
from solvers.host.disk import LOCK, Disk, read_json, strict_json

STUDY, ROWS = "study.json", "rows.jsonl"
_DISK = Disk()
#: Fields of the record that may differ between sessions of one study.
_SESSIONS = "sessions"

# Numbers that tables of 64 bits hold; pydantic's strict types take no truth value for one.
Whole = Annotated[int, Field(gt=-(2**63), lt=2**63)]
Number = Annotated[float, Field(gt=-(2**63), lt=2**63, allow_inf_nan=False)]
Maybe = Number | None


class Stored(BaseModel):
    """Base of what is read back: types are strict, further fields stay."""

    model_config = ConfigDict(strict=True, extra="allow")


class StoredRow(Stored):
    """Fields of any study's row; those with a default are empty in a row without an answer."""

    problem: str
    sampler: str
    budget_kind: str
    budget: Number
    repeat: Whole
    status: str
    reason: str

    @classmethod
    def unanswered(cls) -> dict[str, Any]:
        """The fields with a default, and the defaults."""
        fields = cls.model_fields.items()
        return {name: field.default for name, field in fields if not field.is_required()}

    @classmethod
    def numbers(cls) -> list[str]:
        """Names of the fields that are a number or empty."""
        return [name for name, field in cls.model_fields.items() if field.annotation == Maybe]


class ProblemRow(StoredRow):
    """A row of a study of samplers on problems; see `solvers.study.compare.compare`."""

    n: Whole
    energy: Maybe = None
    energy_raw_best: Maybe = None
    num_reads: Any = None
    num_best: Any = None
    feasible_share: Any = None
    energies: Any = None
    seconds: Maybe = None
    cpu_seconds: Maybe = None
    build_seconds: Any = None
    warmup_seconds: Any = None
    lower_bound: Maybe = None
    trace: Any = None
    settings: Any = None
    beaten: bool = False
    state: Any = None

    @model_validator(mode="after")
    def _answered(self) -> Self:
        for name in ("energy", "seconds") if self.status == "ok" else ():
            if getattr(self, name) is None:
                raise ValueError(f"{name} is None")
        return self


class _Sampler(Stored):
    label: str
    name: str
    options: dict[str, Any]


class _Budget(Stored):
    kind: str
    amount: Number


class _Problem(Stored):
    problem: str
    n: Whole
    kind: str
    known: Maybe
    proved: bool
    bound: Maybe


class StoredRecord(Stored):
    """Fields of any study's record; ``problems`` are those of its kind."""

    problems: Any
    samplers: list[_Sampler]
    budgets: list[_Budget]
    repeats: Whole
    seed: Whole
    time_limit: Number
    threads: Whole
    runs: Whole


class ProblemRecord(StoredRecord):
    """The record of a study of samplers on problems."""

    problems: list[_Problem]


class StudyFolder:
    """The folder of one study, made when the study begins."""

    def __init__(self, path: Path) -> None:
        self.path, self._rows = path, path / ROWS
        # Held as long as this object lives; reentrant within this process.
        self._lock: FileLock | None = None

    @property
    def begun(self) -> bool:
        """True if a study is there."""
        return (self.path / STUDY).exists()

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
        if self.begun:
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
        rows, whole = _whole_lines(self._rows)
        if whole < self._rows.stat().st_size:
            with self._rows.open("r+b") as file:
                file.truncate(whole)
        return rows


def read_record(path: Path, kind: type[StoredRecord] | None = None) -> dict[str, Any]:
    """The record in ``study.json``; with ``kind``, one that this model takes.

    Raises:
        StudyFolderError: there is none, or it cannot be read.
    """
    file = path / STUDY
    try:
        record = _object(read_json(file.read_bytes()))
    except FileNotFoundError:
        raise StudyFolderError(f"{path} holds no study: {STUDY} is missing") from None
    except (OSError, ValueError) as error:
        raise StudyFolderError(f"cannot read {file}: {error}") from error
    if kind is not None:
        try:
            kind.model_validate(record)
        except ValidationError as error:
            raise StudyFolderError(f"{file} is damaged: {_first_wrong(error)}") from error
    return record


def read_rows(path: Path, kind: type[StoredRow]) -> list[dict[str, Any]]:
    """The rows so far, also of a study that still runs; an incomplete last line is left out.

    Raises:
        StudyFolderError: the file cannot be read, or a row is damaged.
    """
    file = path / ROWS
    with _told(path):
        return checked_rows(_whole_lines(file)[0] if file.exists() else [], kind, path)


def checked_rows(
    rows: list[dict[str, Any]], kind: type[StoredRow], path: Path
) -> list[dict[str, Any]]:
    """``rows``, if the model takes each.

    Raises:
        StudyFolderError: names the row and its invalid field.
    """
    for number, row in enumerate(rows, start=1):
        try:
            kind.model_validate(row)
        except ValidationError as error:
            at = f"{path / ROWS}, row {number}"
            raise StudyFolderError(f"{at} is damaged: {_first_wrong(error)}") from error
    return rows


def _first_wrong(error: ValidationError) -> str:
    """The first invalid value, named."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["msg"].removeprefix("Value error, ")
    named = " ".join(part for part in first["loc"] if isinstance(part, str))
    value = None if first["type"] == "missing" else first["input"]
    return f"{named} is {value!r:.40}"


def _whole_lines(file: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of the whole lines, and how many bytes those are.

    Raises:
        StudyFolderError: a line that is not the last is no row.
    """
    data = file.read_bytes()
    end = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start=1):
        try:
            rows.append(_object(read_json(line)))
        except ValueError as error:
            raise StudyFolderError(f"{file}, line {number} is damaged: {error}") from error
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
    pairs: Iterator[tuple[str, Any, Any]] | None = None
    if isinstance(held, dict) and isinstance(asked, dict):
        names = dict.fromkeys([*held, *asked])
        pairs = ((name, held.get(name), asked.get(name)) for name in names)
    elif isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked):
        pairs = ((_called(one), one, other) for one, other in zip(held, asked, strict=True))
    if pairs is not None:
        found = (first_difference(one, other, f"{where} {n}".strip()) for n, one, other in pairs)
        return next(filter(None, found), "")
    return "" if held == asked else f"its {where} is {_short(held)}, not {_short(asked)}"


def _called(item: Any) -> str:
    names = ("problem", "label", "kind")
    return next((str(item[n]) for n in names if n in item), "") if isinstance(item, dict) else ""


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{len(value)}: " + ", ".join(_called(item) or str(item) for item in value[:8])
    return repr(value)


@contextmanager
def _told(path: Path) -> Generator[None]:
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
