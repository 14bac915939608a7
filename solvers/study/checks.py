"""Checks of the record and rows in a study's folder, as `solvers.study.compare` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from solvers.errors import StudyFolderError
from solvers.study.storage import ROWS, STUDY

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
