"""Folder of a run: settings, journal of steps, and outcome.

- ``config.yaml``: every setting; `qprune prune --config` repeats the run
- ``fingerprint.json``: digests of the dense model, the data and the code
- ``steps.jsonl``: one line per step, written at once
- ``scores.jsonl``: accuracy and loss on test data along the way
- ``checkpoint.0.safetensors``, ``checkpoint.1.safetensors``: the state for `qprune resume`
- ``model.safetensors``: every parameter and buffer of the pruned network, exact zeros
- ``mask.safetensors``: one boolean tensor for each targeted weight, True = kept
- ``report.json``: the whole report
- ``report.html``: the report as a page
- ``checksums.sha256``: of the files above, as `sha256sum --check` reads them

A run is finished once ``report.json`` exists; it is renamed into place after all other files. A
process killed before leaves a run to be resumed; one killed after it leaves checkpoints that the
next `qprune resume` removes. Only regular files are read; links are followed.

A language model's folder has the files of `save_pretrained`, the packed mask
(`qprune.network.mask_file`), the card ``pruning.json``, and ``layers.jsonl`` with one line per
matrix that stage 1 has finished; all else is the same.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from qprune.errors import DISK, RunFolderError
from qprune.jobs.language.settings import LanguageSettings
from qprune.jobs.settings import Asked, Settings
from qprune.record.checkpoint import CHECKPOINTS, Checkpoints
from qprune.record.plain_yaml import read_plain_yaml
from qprune.record.recording import ANSWERS, CHECKSUMS, FINGERPRINT, REPORT_JSON, STEPS
from qprune.results import Report, ScorePoint, Step, report_from_json, step_from_json
from solvers import AnswerStore
from solvers.host.disk import LOCK, asides, half_written, make_folder, read_json, strict_json
from solvers.host.secrets import redacted

logger = logging.getLogger(__name__)

CONFIG, SCORES, MODEL, MASK = (
    "config.yaml",
    "scores.jsonl",
    "model.safetensors",
    "mask.safetensors",
)
REPORT_HTML, LAYERS = "report.html", "layers.jsonl"
FILES = (
    *(CONFIG, FINGERPRINT, STEPS, SCORES, MODEL, MASK),
    *(REPORT_JSON, REPORT_HTML, CHECKSUMS),
)
#: All file names that a run may write, except those of `save_pretrained`.
OURS = (*FILES, LAYERS, *CHECKPOINTS)
# Further files of a language model's folder: weights in shards, their config, the outcome.
_LOADED = ("model*.safetensors", "*.json", "tokenizer*", LAYERS)
# Settings of a run, of either kind.
RunSettings = Settings | LanguageSettings
#: Reasons to stop after which a run can be resumed.
RESUMABLE = ("unfinished", "interrupted", "max_seconds")


@dataclass(frozen=True)
class Saved:
    """Run read from its folder.

    Attributes:
        settings: settings of the run.
        report: its report; for an unfinished run, the steps so far.
        scores: accuracy and loss on test data along the way.
    """

    settings: RunSettings
    report: Report
    scores: tuple[ScorePoint, ...]


class RunFolder:
    """Writer of a run's outcome, beside the journal and the checkpoints of `qprune.prune`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def note_score(self, point: ScorePoint) -> None:
        """Append a score to ``scores.jsonl``.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        DISK.append_line(self.path / SCORES, strict_json(point.to_json()))

    def save(
        self,
        model: nn.Module,
        mask: Mapping[str, Tensor],
        report: Report,
        scores: tuple[ScorePoint, ...],
        html: str,
    ) -> None:
        """Write the outcome, each file atomically.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        # Contiguous copies: safetensors refuses views and tensors that share memory.
        state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
        packed = {name: kept.cpu().contiguous() for name, kept in mask.items()}
        DISK.write_whole(self.path / MODEL, save(state))
        DISK.write_whole(self.path / MASK, save(packed))
        self.finish(report, scores, html)

    def finish(
        self,
        report: Report,
        scores: tuple[ScorePoint, ...],
        html: str,
        beside: Iterable[str] = (),
    ) -> None:
        """Write reports and checksums, after weights and mask.

        ``report.json`` is renamed into place last, when all checksums are on the disk: a folder
        that has both is finished, any other one can be resumed.

        Args:
            report: report of the run.
            scores: accuracy and loss on test data along the way.
            html: page of the report.
            beside: names of further files of the outcome.

        Raises:
            RunFolderError: the folder cannot be written; the run can be resumed.
        """
        record = report.to_json() | {"scores": [point.to_json() for point in scores]}
        told = strict_json(record, indent=1).encode()
        DISK.write_whole(self.path / SCORES, _lines(scores))
        DISK.write_whole(self.path / REPORT_HTML, _page(html))
        sums = {REPORT_JSON: hashlib.sha256(told).hexdigest()}
        for name in dict.fromkeys((*FILES, LAYERS, *beside)):
            if name not in (REPORT_JSON, CHECKSUMS) and (self.path / name).is_file():
                if name in (STEPS, LAYERS):
                    DISK.flush_file(self.path / name)
                sums[name] = sha256(self.path / name)
        DISK.write_whole(self.path / CHECKSUMS, _told(sums))
        DISK.write_whole(self.path / REPORT_JSON, told)
        if report.stopped not in RESUMABLE:
            Checkpoints(self.path).remove()

    def write_page(self, html: str) -> None:
        """Write the report's page again, and its checksum where the run has ended.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        page = _page(html)
        if not ended(self.path):
            # Another process may hold the lock and be running.
            DISK.write_whole(self.path / REPORT_HTML, page)
            return
        with DISK.locked(self.path):
            sums = read_checksums(self.path)
            digest = hashlib.sha256(page).hexdigest()
            if sums.pop(REPORT_HTML, None) != digest:
                # Until then the page has no checksum, rather than a wrong one.
                DISK.write_whole(self.path / CHECKSUMS, _told(sums))
            DISK.write_whole(self.path / REPORT_HTML, page)
            DISK.write_whole(self.path / CHECKSUMS, _told(sums | {REPORT_HTML: digest}))


def ended(folder: Path) -> bool:
    """Return True if the run in ``folder`` has ended, with report and checksums on the disk."""
    return all((folder / name).is_file() for name in (REPORT_JSON, CHECKSUMS))


def summed(folder: Path, *, loaded: bool) -> set[str]:
    """Return the names that must have a checksum.

    Args:
        folder: folder of a run that has ended.
        loaded: True for a transformers folder, any file of which may be read with the model.
    """
    names = {*FILES} - {CHECKSUMS}
    if not loaded:
        return names
    # Its weights may lie in several files.
    found = {path.name for pattern in _LOADED for path in folder.glob(pattern)}
    return names - {MODEL} | found


def read_checksums(folder: Path) -> dict[str, str]:
    """Read ``checksums.sha256``: sha256 by file name.

    Raises:
        RunFolderError: it is missing or malformed.
    """
    path = folder / CHECKSUMS
    try:
        lines = DISK.read_regular(path).decode().splitlines()
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    parts = [line.partition("  ") for line in lines]
    odd = [name for digest, _, name in parts if not digest or Path(name).name != name or not name]
    if odd:
        raise RunFolderError(f"{path} holds a line that is no checksum of a file in the folder")
    return {name: digest for digest, _, name in parts}


def _told(sums: Mapping[str, str]) -> bytes:
    """Return the lines of `sha256sum`, sorted by name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def _page(html: str) -> bytes:
    return redacted(html).encode(errors="replace")


@contextmanager
def run_folder(path: Path, settings: Asked) -> Iterator[RunFolder]:
    """Make the folder of one run; a run that fails before its first step leaves nothing behind.

    Raises:
        RunFolderError: it holds another run, is a file, or cannot be written.
    """
    try:
        held = [name for name in FILES if (path / name).exists()]
        existed = path.exists()
    except OSError as error:
        raise RunFolderError(
            f"cannot use the output folder {path}: {error.strerror}; choose another --output"
        ) from error
    if held:
        raise RunFolderError(
            f"{path} holds another run ({held[0]} is there); `qprune resume` goes on with it; "
            "else choose another --output, or remove that folder"
        )
    try:
        make_folder(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the output folder {path}: {error.strerror}; choose another --output"
        ) from error
    with DISK.locked(path):
        DISK.sweep(path, OURS)
        DISK.write_whole(path / CONFIG, settings.to_yaml().encode())
        try:
            yield RunFolder(path)
        except BaseException:
            if not _began(path):
                # An error here must not replace the run's own error.
                with suppress(OSError):
                    DISK.sweep(path, OURS)
                    DISK.remove(path / name for name in (*OURS, LOCK))
                    if not existed:
                        path.rmdir()
            raise


@contextmanager
def resumed_folder(path: Path) -> Iterator[RunFolder]:
    """Open the folder of a resumed run; its old outcome stays until the fingerprint is checked.

    Raises:
        RunFolderError: another process works in it, it cannot be written, or something that is no
            file is in a file's place.
    """
    DISK.refuse_irregular(path / name for name in OURS)
    with DISK.locked(path):
        DISK.sweep(path, OURS)
        whole = _lines(read_scores(path))
        if (path / SCORES).is_file() and DISK.read_regular(path / SCORES) != whole:
            # Without a last line that was cut off.
            DISK.write_whole(path / SCORES, whole)
        yield RunFolder(path)


def tidy(path: Path) -> None:
    """Remove the files that a process killed at the end of a run left in its folder.

    Raises:
        RunFolderError: one cannot be removed, or a file of the run is missing.
    """
    DISK.refuse_irregular(path / name for name in OURS)
    # The page can be rewritten from the report.
    needed = {*read_checksums(path)} - {REPORT_HTML}
    missing = sorted(name for name in needed if not (path / name).is_file())
    if missing:
        raise RunFolderError(
            f"{path} is finished, but its {missing[0]} is missing; put it back, or start the run "
            "again in a new folder"
        )
    over = () if stopped_by(path) in RESUMABLE else CHECKPOINTS
    left = [path / name for name in over if (path / name).exists()]
    answers = AnswerStore(path / ANSWERS, DISK)
    if left or half_written(path, OURS) or asides(path) or answers.half_written:
        with DISK.locked(path):
            DISK.remove(left)
            DISK.sweep(path, OURS)
            answers.sweep()


def read_run(path: Path) -> Saved:
    """Read the run in a folder.

    Raises:
        RunFolderError: the folder holds no run, or a file cannot be read.
    """
    settings = read_settings(path)
    try:
        if (path / REPORT_JSON).exists():
            record = read_json(DISK.read_regular(path / REPORT_JSON))
            scores = tuple(ScorePoint.from_json(point) for point in record.pop("scores"))
            return Saved(settings, report_from_json(record), scores)
        return Saved(settings, _unfinished(settings, read_steps(path)), read_scores(path))
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def stopped_by(path: Path) -> str:
    """Return the run's reason to stop; "unfinished" if it has not ended.

    Raises:
        RunFolderError: its report cannot be read.
    """
    DISK.refuse_irregular([path / REPORT_JSON, path / CHECKSUMS])
    if not ended(path):
        return "unfinished"
    try:
        return str(read_json(DISK.read_regular(path / REPORT_JSON))["stopped"])
    except FileNotFoundError:
        return "unfinished"
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_settings(path: Path) -> RunSettings:
    """Read the settings of the run in ``path``.

    Raises:
        RunFolderError: the folder holds no run, or its settings cannot be read.
    """
    DISK.refuse_irregular(path / name for name in OURS)
    if not (path / CONFIG).exists():
        raise RunFolderError(f"{path} holds no run: {CONFIG} is missing; give a prune's --output")
    try:
        values = read_plain_yaml(path / CONFIG)
        # Only settings of language models have a method.
        return LanguageSettings(**values) if "method" in values else Settings(**values)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_steps(path: Path) -> tuple[Step, ...]:
    """Read the journal of the run in ``path``, without a last line that was cut off.

    Raises:
        OSError: there is no journal.
        ValueError: a line is not a step.
    """
    return tuple(step_from_json(read_json(line)) for line in _whole_lines(path / STEPS))


def read_scores(path: Path) -> tuple[ScorePoint, ...]:
    """Read the scores along the way, up to the first invalid line.

    Raises:
        RunFolderError: they cannot be read, or are no file.
    """
    try:
        lines = DISK.read_regular(path / SCORES).split(b"\n")[:-1]
    except FileNotFoundError:
        return ()
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"cannot read {path / SCORES}: {error.strerror or error}") from error
    points = []
    for number, line in enumerate(lines, 1):
        try:
            points.append(ScorePoint.from_json(read_json(line)))
        except _UNREADABLE as error:
            logger.warning("%s, line %d is no score (%s)", path / SCORES, number, error)
            break
    return tuple(points)


def _lines(points: Iterable[ScorePoint]) -> bytes:
    return "".join(strict_json(point.to_json()) + "\n" for point in points).encode()


def _whole_lines(path: Path) -> list[str]:
    return DISK.read_regular(path).decode().split("\n")[:-1]


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _unreadable(path: Path, error: BaseException) -> RunFolderError:
    reason = " ".join(str(error).split())
    return RunFolderError(f"{path} does not hold a readable run: {reason}")


def _began(path: Path) -> bool:
    """Return True if the run in ``path`` has reached its first step."""
    return (path / STEPS).exists() and (path / STEPS).stat().st_size > 0


def sha256(path: Path) -> str:
    """Return the sha256 of a regular file.

    Raises:
        RunFolderError: it cannot be read, or is no regular file.
    """
    try:
        with DISK.regular(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"cannot read {path}: {error.strerror or error}") from error


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
