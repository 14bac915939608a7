"""Steps and reports as JSON and back, strictly: what has no number in JSON becomes null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qprune.steps import BlockRecord, Fault, LayerRecord, Report, Score, Step


@dataclass(frozen=True)
class ScorePoint:
    """The network's score on test data after a step."""

    step: int
    score: Score

    def to_json(self) -> dict[str, Any]:
        """A dict that `json.dumps` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ScorePoint:
        """The inverse of `to_json`."""
        return cls(step=record["step"], score=Score(**record["score"]))


def strict_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON that any parser reads: NaN and infinities become null."""
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def step_from_json(record: Mapping[str, Any]) -> Step:
    """A step from what `Step.to_json` and `strict_json` made of it."""
    values = dict(record)
    blocks = tuple(_block_from_json(block) for block in values.pop("blocks"))
    faults = tuple(Fault(**fault) for fault in values.pop("faults", ()))
    numbers = _with_nan(values, ("real", "loss", "fit_loss", "price"))
    return Step(**numbers, blocks=blocks, faults=faults)


def report_from_json(record: Mapping[str, Any]) -> Report:
    """A report from what `Report.to_json` and `strict_json` made of it."""
    values = {name: value for name, value in record.items() if name != "num_accepted"}
    for name in ("dense", "start", "final"):
        if values[name] is not None:
            values[name] = Score(**_with_nan(values[name], ("loss",)))
    values["steps"] = tuple(step_from_json(step) for step in values["steps"])
    values["layers"] = tuple(
        LayerRecord(**{**layer, "shape": tuple(layer["shape"])}) for layer in values["layers"]
    )
    return Report(**values)


def _block_from_json(record: Mapping[str, Any]) -> BlockRecord:
    bound = record["lower_bound"]
    return BlockRecord(**{**record, "lower_bound": -math.inf if bound is None else bound})


def _with_nan(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    nulls = {name: math.nan for name in names if values[name] is None}
    return {**values, **nulls}


def _finite(value: Any) -> Any:
    """Plain JSON values, whatever numpy scalars and non-finite numbers are inside."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)
