"""A real network of another package as the benchmark takes it: a model, its data, a figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn


class MissingError(Exception):
    """A package, program or file that a network needs is not there."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples; the three sets share none."""

    calibration: int
    validation: int
    test: int


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its data.

    Attributes:
        model: dense, in evaluation mode.
        calibration: for `qprune.prune`.
        measured: what ``figure`` counts.
        figure: (model, "validation" or "test") -> share in %.
    """

    model: nn.Module
    calibration: Any
    measured: str
    figure: Callable[[nn.Module, str], float]


def file_of(package: str, name: str) -> Path:
    """Where the installed ``package`` keeps its file ``name``; the package is not imported.

    Raises:
        MissingError: the package is not installed, or has no such file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        way_out = f"pip install --no-deps {package}"
        raise MissingError(f"package {package} is not installed: {way_out}") from None
    found = next((file for file in files if file.name == name), None)
    if found is None:
        raise MissingError(f"package {package} {metadata.version(package)} has no file {name}")
    return Path(str(found.locate()))
