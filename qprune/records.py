"""Strict JSON of steps and reports; NaN and infinities become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from qprune.steps import BlockRecord, Fault, LayerRecord, Report, Score, Step
from solvers.redaction import without_secrets

T = TypeVar("T")

_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class ScorePoint:
    """Score of the network on test data after a step."""

    step: int
    score: Score

    def to_json(self) -> dict[str, Any]:
        """Return a dict that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ScorePoint:
        """Return the score in ``record``: the inverse of `to_json`.

        Raises:
            ValueError: the record has another form.
        """
        values = _named(cls, record)
        score = _with_nan(_named(Score, values["score"]), ("loss",))
        return _valid(_POINT, values | {"score": score})


def strict_json(value: Any, indent: int | None = None, sort_keys: bool = False) -> str:
    """Return ``value`` as standard JSON.

    NaN and infinities become null, integers beyond 64 bits text; secrets are left out (see
    `solvers.redaction`).

    Example:
        >>> strict_json({"loss": float("nan")})
        '{"loss": null}'
    """
    plain = without_secrets(_finite(value))
    return json.dumps(plain, allow_nan=False, indent=indent, sort_keys=sort_keys)


def read_json(text: str | bytes) -> Any:
    """Parse strict JSON: no NaN, and no integer beyond 64 bits.

    Raises:
        ValueError: the text is not such JSON.
    """
    try:
        return json.loads(
            text, parse_int=_whole_number, parse_float=_number, parse_constant=_number
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def step_from_json(record: Mapping[str, Any]) -> Step:
    """Return the step in a record from `Step.to_json` and `strict_json`.

    Raises:
        ValueError: the record has another form; names the field.
    """
    return _valid(_STEP, _plain_step(record))


def report_from_json(record: Mapping[str, Any]) -> Report:
    """Return the report in a record from `Report.to_json` and `strict_json`.

    Raises:
        ValueError: the record has another form; names the field.
    """
    given = _fields(record)
    given.pop("num_accepted", None)
    given.setdefault("loss", "")  # Missing in older runs.
    values = _named(Report, given)
    for name in ("dense", "start", "final"):
        if values.get(name) is not None:
            values[name] = _with_nan(_named(Score, values[name]), ("loss",))
    values["layers"] = [_named(LayerRecord, layer) for layer in _items(values["layers"])]
    values["steps"] = [_plain_step(step) for step in _items(values["steps"])]
    report = _valid(_REPORT, values)
    for layer in report.layers:
        size = math.prod(layer.shape)
        if len(layer.shape) < 2 or min(layer.shape) < 1 or layer.num_weights != size:
            raise ValueError(f"layer {layer.name!r}: {layer.num_weights} weights in {layer.shape}")
        if not 0 <= layer.num_pruned <= size:
            raise ValueError(f"layer {layer.name!r}: {layer.num_pruned} weights are pruned")
    return report


def _plain_step(record: Any) -> dict[str, Any]:
    values = _named(Step, record)
    values["blocks"] = [_plain_block(block) for block in _items(values.get("blocks", ()))]
    values["faults"] = [_named(Fault, fault) for fault in _items(values.get("faults", ()))]
    return _with_nan(values, ("real", "loss", "fit_loss", "price"))


def _plain_block(record: Any) -> dict[str, Any]:
    values = _named(BlockRecord, record)
    return values | ({"lower_bound": -math.inf} if values["lower_bound"] is None else {})


def _with_nan(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    nulls = {name: math.nan for name in names if values.get(name, 0) is None}
    return {**values, **nulls}


def _named(kind: type, record: Any) -> dict[str, Any]:
    """Return the record's values, which must match the fields of ``kind`` exactly."""
    values, known = _fields(record), {field.name: field for field in fields(kind)}
    # Fields of later versions have defaults, since older files lack them.
    needed = {
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING
    }
    wrong = sorted((set(values) - set(known)) | (needed - set(values)))
    if wrong:
        what = "is missing" if wrong[0] in known else "is unknown"
        raise ValueError(f"{wrong[0]!r:.60} {what} in a {kind.__name__}")
    return values


def _fields(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"a record was expected, not {record!r:.60}")
    return dict(record)


def _items(records: Any) -> list[Any]:
    if not isinstance(records, list | tuple):
        raise ValueError(f"a list of records was expected, not {records!r:.60}")
    return list(records)


def _valid(kind: TypeAdapter[T], values: Mapping[str, Any]) -> T:
    try:
        return kind.validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Input ")
        raise ValueError(f"{where} {message}, not {first['input']!r:.60}") from error


def _whole_number(text: str) -> int:
    number = int(text)
    if not _INT64[0] <= number <= _INT64[1]:
        raise ValueError(f"{text[:20]} does not fit 64 bits")
    return number


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no number in JSON")
    return number


def _finite(value: Any) -> Any:
    """Return plain JSON values for numpy scalars and non-finite numbers."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not _INT64[0] <= value <= _INT64[1]:
        return str(value)
    return value if value is None or isinstance(value, int | str) else str(value)


_STEP, _REPORT, _POINT = TypeAdapter(Step), TypeAdapter(Report), TypeAdapter(ScorePoint)
