"""The folder of one run: what was asked, every step as it happened, and what came out.

- ``config.yaml``: every setting; `qprune prune --config` repeats the run
- ``fingerprint.json``: digests of the dense model, the data and the code
- ``steps.jsonl``: one line a step, written as it happens
- ``scores.jsonl``: accuracy and loss on test data along the way
- ``checkpoint.0.safetensors``, ``checkpoint.1.safetensors``: what `qprune resume` goes on from
- ``model.safetensors``: every parameter and buffer of the pruned network, exact zeros
- ``mask.safetensors``: one boolean tensor for each targeted weight, True = kept
- ``report.json``: the whole report
- ``report.html``: the same to look at
- ``checksums.sha256``: of the files before, as `sha256sum --check` reads them

A language model's folder is what `save_pretrained` writes, with the mask at one bit a weight
(`qprune.packed`), the card ``pruning.json``, and ``layers.jsonl`` with one line for every matrix
that stage 1 is done with; all else is the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from qprune.checkpoint import CHECKPOINTS, Checkpoints
from qprune.config import Asked, Settings
from qprune.errors import RunFolderError
from qprune.folder import LOCK, append_line, locked, make_folder, sweep, write_whole
from qprune.language.settings import LanguageSettings
from qprune.plain_yaml import read_plain_yaml
from qprune.recording import FINGERPRINT, STEPS
from qprune.records import (
    ScorePoint,
    read_json,
    report_from_json,
    step_from_json,
    strict_json,
)
from qprune.steps import Report, Step
from solvers.redaction import redacted

logger = logging.getLogger(__name__)

CONFIG, SCORES, MODEL, MASK = (
    "config.yaml",
    "scores.jsonl",
    "model.safetensors",
    "mask.safetensors",
)
REPORT_JSON, REPORT_HTML, CHECKSUMS = "report.json", "report.html", "checksums.sha256"
LAYERS = "layers.jsonl"
FILES = (
    *(CONFIG, FINGERPRINT, STEPS, SCORES, MODEL, MASK),
    *(REPORT_JSON, REPORT_HTML, CHECKSUMS),
)
# The page can be written again at any time.
_SUMMED = (CONFIG, FINGERPRINT, STEPS, SCORES, MODEL, MASK, REPORT_JSON)
# What a language model's folder has besides: weights in pieces, what loads them, what came out.
_SUMMED_TOO = ("model-*.safetensors", "*.json", "tokenizer*", LAYERS)
# Settings of a run, of either kind; each knows how to be checked and written.
RunSettings = Settings | LanguageSettings
#: How a run ended that can go on.
RESUMABLE = ("unfinished", "interrupted", "max_seconds")


@dataclass(frozen=True)
class Saved:
    """A run as its folder tells it.

    Attributes:
        settings: what was asked.
        report: what happened; for an unfinished run, the steps so far.
        scores: accuracy and loss on test data along the way.
    """

    settings: RunSettings
    report: Report
    scores: tuple[ScorePoint, ...]


class RunFolder:
    """Writes a run's outcome beside the journal and the checkpoints that `qprune.prune` keeps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note_score(self, point: ScorePoint) -> None:
        """Append a score to those along the way.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        append_line(self.path / SCORES, strict_json(point.to_json()))

    def save(
        self,
        model: nn.Module,
        mask: Mapping[str, Tensor],
        report: Report,
        scores: tuple[ScorePoint, ...],
        html: str,
    ) -> None:
        """Write the outcome, each file whole or not at all.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        # Contiguous copies: safetensors refuses views and tensors that share memory.
        state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
        packed = {name: kept.cpu().contiguous() for name, kept in mask.items()}
        write_whole(self.path / MODEL, save(state))
        write_whole(self.path / MASK, save(packed))
        self.finish(report, scores, html)

    def finish(self, report: Report, scores: tuple[ScorePoint, ...], html: str) -> None:
        """Write what tells of the outcome, once weights and mask are there.

        ``report.json`` comes last: a folder that has it is finished, or can be resumed from it.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        record = report.to_json() | {"scores": [point.to_json() for point in scores]}
        write_whole(self.path / SCORES, _lines(scores))
        self.write_page(html)
        write_whole(self.path / REPORT_JSON, strict_json(record, indent=1).encode())
        write_whole(self.path / CHECKSUMS, checksums(self.path).encode())
        if report.stopped not in RESUMABLE:
            Checkpoints(self.path).remove()

    def write_page(self, html: str) -> None:
        """Write the report's page.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        write_whole(self.path / REPORT_HTML, redacted(html).encode(errors="replace"))


def checksums(folder: Path) -> str:
    """One line ``sha256  name`` for each file that is there, as `sha256sum` writes them."""
    names = [name for name in _SUMMED if (folder / name).is_file()]
    more = {path.name for pattern in _SUMMED_TOO for path in folder.glob(pattern)}
    names += sorted(more - {*names})
    return "".join(f"{_sha256(folder / name)}  {name}\n" for name in names)


@contextmanager
def run_folder(path: Path, settings: Asked) -> Iterator[RunFolder]:
    """A folder made for one run; one that fails before its first step leaves nothing behind.

    Raises:
        RunFolderError: it holds another run, is a file, or cannot be written.
    """
    held = [name for name in FILES if (path / name).exists()]
    if held:
        raise RunFolderError(
            f"{path} holds another run ({held[0]} is there); `qprune resume` goes on with it; "
            "else choose another --output, or remove that folder"
        )
    existed = path.exists()
    try:
        make_folder(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the output folder {path}: {error.strerror}; choose another --output"
        ) from error
    with locked(path):
        write_whole(path / CONFIG, settings.to_yaml().encode())
        try:
            yield RunFolder(path)
        except BaseException:
            if not _began(path):
                for name in (CONFIG, FINGERPRINT, STEPS, SCORES, LAYERS, *CHECKPOINTS, LOCK):
                    (path / name).unlink(missing_ok=True)
                if not existed:
                    path.rmdir()
            raise


@contextmanager
def resumed_folder(path: Path) -> Iterator[RunFolder]:
    """The folder of a run that goes on; its outcome so far no longer counts.

    Raises:
        RunFolderError: another process works in it, or it cannot be written.
    """
    with locked(path):
        sweep(path)
        for name in (CHECKSUMS, REPORT_JSON):
            (path / name).unlink(missing_ok=True)
        # Flushes the folder, too.
        write_whole(path / SCORES, _lines(read_scores(path)))
        yield RunFolder(path)


def read_run(path: Path) -> Saved:
    """The run that a folder holds.

    Raises:
        RunFolderError: no run is there, or a file cannot be read.
    """
    settings = read_settings(path)
    try:
        if (path / REPORT_JSON).exists():
            record = read_json((path / REPORT_JSON).read_bytes())
            scores = tuple(ScorePoint.from_json(point) for point in record.pop("scores"))
            return Saved(settings, report_from_json(record), scores)
        return Saved(settings, _unfinished(settings, read_steps(path)), read_scores(path))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def stopped_by(path: Path) -> str:
    """How the run in ``path`` ended; "unfinished" where it did not.

    Raises:
        RunFolderError: its report cannot be read.
    """
    try:
        return str(read_json((path / REPORT_JSON).read_bytes())["stopped"])
    except FileNotFoundError:
        return "unfinished"
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_settings(path: Path) -> RunSettings:
    """What the run in ``path`` was asked.

    Raises:
        RunFolderError: no run is there, or its settings cannot be read.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(f"{path} holds no run: {CONFIG} is missing; give a prune's --output")
    try:
        values = read_plain_yaml(path / CONFIG)
        # Only language models are pruned by one of several methods.
        return LanguageSettings(**values) if "method" in values else Settings(**values)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_steps(path: Path) -> tuple[Step, ...]:
    """The journal of the run in ``path``, without a last line that a kill cut off.

    Raises:
        OSError: there is none.
        ValueError: a line of it is not a step.
    """
    return tuple(step_from_json(read_json(line)) for line in _whole_lines(path / STEPS))


def read_scores(path: Path) -> tuple[ScorePoint, ...]:
    """The scores along the way, up to the first line that is none; nothing hangs on them."""
    if not (path / SCORES).exists():
        return ()
    points = []
    for number, line in enumerate((path / SCORES).read_bytes().split(b"\n")[:-1], 1):
        try:
            points.append(ScorePoint.from_json(read_json(line)))
        except _UNREADABLE as error:
            logger.warning("%s, line %d is no score (%s)", path / SCORES, number, error)
            break
    return tuple(points)


def _lines(points: Iterable[ScorePoint]) -> bytes:
    return "".join(strict_json(point.to_json()) + "\n" for point in points).encode()


def _whole_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _unreadable(path: Path, error: BaseException) -> RunFolderError:
    reason = " ".join(str(error).split())
    return RunFolderError(f"{path} does not hold a readable run: {reason}")


def _began(path: Path) -> bool:
    """Whether the run in ``path`` has come to its first step."""
    return (path / STEPS).exists() and (path / STEPS).stat().st_size > 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unfinished(settings: RunSettings, steps: tuple[Step, ...]) -> Report:
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
