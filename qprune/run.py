"""The folder of one run: what was asked, every step as it happened, and what came out.

- ``config.yaml``: every setting; `qprune prune --config` repeats the run
- ``steps.jsonl``: one line a step, written as it happens
- ``model.safetensors``: every parameter and buffer of the pruned network, exact zeros
- ``mask.safetensors``: one boolean tensor for each targeted weight, True = kept
- ``report.json``: the whole report
- ``report.html``: the same to look at
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import Tensor, nn

from qprune.config import Settings
from qprune.errors import RunFolderError
from qprune.records import ScorePoint, report_from_json, step_from_json, strict_json
from qprune.steps import Report, Step

CONFIG, STEPS, MODEL, MASK = "config.yaml", "steps.jsonl", "model.safetensors", "mask.safetensors"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
FILES = (CONFIG, STEPS, MODEL, MASK, REPORT_JSON, REPORT_HTML)


@dataclass(frozen=True)
class Saved:
    """A run as its folder tells it.

    Attributes:
        settings: what was asked.
        report: what happened; for an unfinished run, the steps so far.
        scores: accuracy and loss on test data along the way.
    """

    settings: Settings
    report: Report
    scores: tuple[ScorePoint, ...]


class RunFolder:
    """Writes a run's files; also the journal among the observers of `qprune.prune`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, step: Step) -> None:
        """Append the step to the journal."""
        with (self.path / STEPS).open("a", encoding="utf-8") as journal:
            journal.write(strict_json(step.to_json()) + "\n")

    def save(
        self,
        model: nn.Module,
        mask: Mapping[str, Tensor],
        report: Report,
        scores: tuple[ScorePoint, ...],
        html: str,
    ) -> None:
        """Write the outcome, each file whole or not at all; ``report.json`` comes last.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        # Contiguous copies: safetensors refuses views and tensors that share memory.
        state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
        packed = {name: kept.cpu().contiguous() for name, kept in mask.items()}
        record = report.to_json() | {"scores": [point.to_json() for point in scores]}
        self._write(MODEL, lambda target: target.write_bytes(save(state)))
        self._write(MASK, lambda target: target.write_bytes(save(packed)))
        self.write_page(html)
        self._write(REPORT_JSON, lambda target: target.write_text(strict_json(record, indent=1)))

    def write_page(self, html: str) -> None:
        """Write the report's page.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        self._write(REPORT_HTML, lambda target: target.write_text(html, encoding="utf-8"))

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        try:
            atomically(self.path / name, write)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / name}: {error.strerror}") from error


@contextmanager
def run_folder(path: Path, settings: Settings) -> Iterator[RunFolder]:
    """A folder made for one run; one that fails before its first step leaves nothing behind.

    Raises:
        RunFolderError: it holds another run, is a file, or cannot be written.
    """
    held = [name for name in FILES if (path / name).exists()]
    if held:
        raise RunFolderError(
            f"{path} holds another run ({held[0]} is there); choose another --output, "
            "or remove that folder"
        )
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        atomically(path / CONFIG, lambda target: target.write_text(settings.to_yaml()))
    except OSError as error:
        raise RunFolderError(
            f"cannot write the output folder {path}: {error.strerror}; choose another --output"
        ) from error
    try:
        yield RunFolder(path)
    except BaseException:
        if not (path / STEPS).exists():
            (path / CONFIG).unlink()
            if not existed:
                path.rmdir()
        raise


def read_run(path: Path) -> Saved:
    """The run that a folder holds.

    Raises:
        RunFolderError: no run is there, or a file cannot be read.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(f"{path} holds no run: {CONFIG} is missing; give a prune's --output")
    try:
        settings = Settings(**yaml.safe_load((path / CONFIG).read_text(encoding="utf-8")))
        if (path / REPORT_JSON).exists():
            record = json.loads((path / REPORT_JSON).read_text(encoding="utf-8"))
            scores = tuple(ScorePoint.from_json(point) for point in record.pop("scores"))
            return Saved(settings, report_from_json(record), scores)
        return Saved(settings, _unfinished(settings, read_steps(path)), ())
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"{path} does not hold a readable run: {reason}") from error


def read_steps(path: Path) -> tuple[Step, ...]:
    """The journal of the run in ``path``.

    Raises:
        OSError: there is none.
        ValueError: a line of it is not a step.
    """
    lines = (path / STEPS).read_text(encoding="utf-8").splitlines()
    return tuple(step_from_json(json.loads(line)) for line in lines)


def atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write`` on a temporary neighbour of ``path`` that then takes its place at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _unfinished(settings: Settings, steps: tuple[Step, ...]) -> Report:
    return Report(
        asked_sparsity=settings.asked_sparsity,
        achieved_sparsity=steps[-1].sparsity if steps else 0.0,
        layers=(),
        steps=steps,
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        seconds=sum(sum(step.seconds.values()) for step in steps),
        cpu_seconds=sum(step.cpu_seconds for step in steps),
        stopped="unfinished",
    )
