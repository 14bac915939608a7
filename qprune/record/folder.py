"""Folder of a run: every file of it, and the only code that writes them.

- ``config.yaml``: every setting; `qprune prune --config` repeats the run
- ``fingerprint.json``: digests of the dense model, the data and the code
- ``steps.jsonl``: one line per step, written at once
- ``scores.jsonl``: accuracy and loss on test data along the way
- ``checkpoint.0.safetensors``, ``checkpoint.1.safetensors``: the state for `qprune resume`
- ``answers``: folder of answers of samplers that cannot be repeated
- ``model.safetensors``: every parameter and buffer of the pruned network, exact zeros
- ``mask.safetensors``: one bit for each targeted weight (`qprune.network.mask_file`)
- ``report.json``: the whole report
- ``report.html``: the report as a page
- ``checksums.sha256``: of the files above, as `sha256sum --check` reads them

Settings, fingerprint, checkpoints and report carry the number of their format; what earlier
versions wrote is read, but their runs are not resumed.

A run is finished once ``report.json`` exists; it is renamed into place after all other files. A
process killed before leaves a run to be resumed; one killed after it leaves checkpoints that the
next `qprune resume` removes. Only regular files are read; links are followed.

A checkpoint's folder has the files of `save_pretrained` and the card ``pruning.json``; all else is
the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor, nn

from qprune.distributed.ranks import ALONE, Ranks
from qprune.errors import DISK, RunFolderError
from qprune.network.mask_file import MASK_FILE, packed_bytes
from qprune.record.checkpoint import CHECKPOINTS, Begun, Checkpoints, Snapshot, held_by_model
from qprune.record.fingerprint import FORMAT, Fingerprint
from qprune.record.plain_yaml import read_plain_yaml
from qprune.results import Report, ScorePoint, Step, report_from_json, step_from_json
from qprune.walk.run import Run
from qprune.walk.state import Progress
from solvers import AnswerStore
from solvers.host.disk import (
    LOCK,
    asides,
    flush_folder,
    half_written,
    make_folder,
    read_json,
    strict_json,
)
from solvers.host.secrets import redacted

logger = logging.getLogger(__name__)

CONFIG, FINGERPRINT, STEPS, SCORES = (
    "config.yaml",
    "fingerprint.json",
    "steps.jsonl",
    "scores.jsonl",
)
MODEL, MASK, ANSWERS = "model.safetensors", MASK_FILE, "answers"
REPORT_JSON, REPORT_HTML, CHECKSUMS = "report.json", "report.html", "checksums.sha256"
FILES = (
    *(CONFIG, FINGERPRINT, STEPS, SCORES, MODEL, MASK),
    *(REPORT_JSON, REPORT_HTML, CHECKSUMS),
)
# Written by earlier versions: one line per matrix that was pruned layer by layer.
_LAYERS = "layers.jsonl"
#: All file names that a run may write, except those of `save_pretrained`.
OURS = (*FILES, _LAYERS, *CHECKPOINTS)
# Further files of a checkpoint's folder: weights in shards, their config, the outcome.
_LOADED = ("model*.safetensors", "*.json", "tokenizer*", _LAYERS)
#: Reasons to stop after which a run can be resumed.
RESUMABLE = ("unfinished", "interrupted", "max_seconds")
# Reasons to stop that depend on time, at another step in every run.
_UNREPEATABLE = ("interrupted", "max_seconds")


class RunFolder(os.PathLike[str]):
    """Folder of one run, open for writing; see `opened`.

    Args:
        path: of the folder; None = nothing is kept.
        resumed: True if it holds a run to go on with.
    """

    def __init__(self, path: Path | None, resumed: bool = False) -> None:
        self.resumed = resumed
        self._path = path
        self._checkpoints = None if path is None else Checkpoints(path)
        self._began = time.perf_counter(), time.process_time()
        self._before = 0.0, 0.0
        self._last: Snapshot | None = None
        self._run = ""

    @property
    def path(self) -> Path:
        """Path of the folder.

        Raises:
            RunFolderError: nothing is kept.
        """
        if self._path is None:
            raise RunFolderError("this run has no folder; pass output_dir")
        return self._path

    def __fspath__(self) -> str:
        return str(self.path)

    def __bool__(self) -> bool:
        """Return False if nothing is kept."""
        return self._path is not None

    @property
    def answers(self) -> AnswerStore | None:
        """Store of answers that cannot be repeated; None without a folder."""
        return AnswerStore(self.path / ANSWERS, DISK) if self else None

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes."""
        return self._before[0] + time.perf_counter() - self._began[0]

    @property
    def cpu_seconds(self) -> float:
        """Process CPU time of the run so far, over all its processes."""
        return self._before[1] + time.process_time() - self._began[1]

    def write_settings(self, yaml: str) -> None:
        """Write ``config.yaml``.

        Raises:
            RunFolderError: it cannot be written.
        """
        DISK.write_whole(self.path / CONFIG, yaml.encode())

    def begin(self, run: Run, present: Fingerprint | None) -> Begun:
        """Return where to start: at the beginning, or at the last checkpoint.

        Args:
            run: its journal and generator go on from the checkpoint's.
            present: fingerprint of the run; not used without a folder.

        Raises:
            RunFolderError: the folder's run had another model, data, settings or code, its
                checkpoints are of another run, or its fingerprint is missing.
        """
        if self._checkpoints is None or present is None:
            return Begun.anew(run)
        self._run = _hold_fingerprint(self.path, present).digest
        snapshot = self._checkpoints.load(self._run)
        # The report first: it marks a finished run, and this one goes on.
        DISK.remove([self.path / REPORT_JSON])
        flush_folder(self.path)
        DISK.remove([self.path / CHECKSUMS])
        DISK.remove(half_written(self.path, (FINGERPRINT, STEPS, *CHECKPOINTS)))
        AnswerStore(self.path / ANSWERS, DISK).sweep()
        DISK.write_whole(self.path / STEPS, _lines(() if snapshot is None else snapshot.steps))
        if snapshot is None:
            return Begun.anew(run)
        self._before = snapshot.seconds, snapshot.cpu_seconds
        run.journal.resume(snapshot.steps, snapshot.seconds)
        run.generator.set_state(snapshot.generator)
        return Begun(snapshot.progress, snapshot.held)

    def note(self, step: Step) -> None:
        """Step callback: append the step to the journal on disk.

        Raises:
            RunFolderError: it cannot be written, or the folder is no longer locked.
        """
        if self:
            DISK.require_locked(self.path)
            DISK.append_line(self.path / STEPS, strict_json(step.to_json()))

    def keep(self, run: Run, progress: Progress) -> None:
        """Callback between two actions: write a checkpoint if enough time has passed.

        If the run stops for a reason that depends on time, the last checkpoint is from before
        that moment, so that a resumed run gives the same result as an uninterrupted one.
        """
        # Every rank must take part, with or without the folder.
        stopped = run.journal.stopped
        if self._checkpoints is None:
            return
        if stopped in _UNREPEATABLE:
            if self._last is not None:
                self._checkpoints.write(self._last)
                self._last = None
            return
        self._last = Snapshot(
            progress,
            run.generator.get_state(),
            tuple(run.journal.steps),
            self.seconds,
            self.cpu_seconds,
            self._run,
            held_by_model(run, progress.state),
        )
        self._checkpoints.offer(self._last)

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
        scores: tuple[ScorePoint, ...] = (),
        html: str | None = None,
    ) -> None:
        """Write the outcome, each file atomically.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        self.write_weights(model, mask)
        self.finish(report, scores, html)

    def write_weights(self, model: nn.Module, mask: Mapping[str, Tensor]) -> None:
        """Write weights and mask.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        # Contiguous copies: safetensors refuses views and tensors that share memory.
        state = {n: t.detach().cpu().contiguous().clone() for n, t in model.state_dict().items()}
        DISK.write_whole(self.path / MODEL, save(state))
        DISK.write_whole(self.path / MASK, packed_bytes(mask))

    def finish(
        self,
        report: Report,
        scores: tuple[ScorePoint, ...] = (),
        html: str | None = None,
        beside: Iterable[str] = (),
    ) -> None:
        """Write reports and checksums, after weights and mask.

        ``report.json`` is renamed into place last, when all checksums are on the disk: a folder
        that has both is finished, any other one can be resumed.

        Args:
            report: report of the run.
            scores: accuracy and loss on test data along the way.
            html: page of the report; None = no page.
            beside: names of further files of the outcome.

        Raises:
            RunFolderError: the folder cannot be written; the run can be resumed.
        """
        record = {"format": FORMAT} | report.to_json()
        record["scores"] = [point.to_json() for point in scores]
        told = strict_json(record, indent=1).encode()
        DISK.write_whole(self.path / SCORES, _lines(scores))
        if html is not None:
            DISK.write_whole(self.path / REPORT_HTML, _page(html))
        sums = {REPORT_JSON: hashlib.sha256(told).hexdigest()}
        for name in dict.fromkeys((*FILES, *beside)):
            if name not in (REPORT_JSON, CHECKSUMS) and (self.path / name).is_file():
                if name == STEPS:
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
def opened(
    output_dir: str | os.PathLike[str] | None = None,
    resume_from: str | os.PathLike[str] | None = None,
    ranks: Ranks = ALONE,
) -> Generator[RunFolder]:
    """Open the folder of one run, locked within the context; the first of ``ranks`` writes it.

    A new run that fails before its first step leaves nothing behind. A `RunFolder` that is open
    already is used as it is.

    Args:
        output_dir: folder of a new run.
        resume_from: folder of a run to resume; its old outcome stays until the fingerprint is
            checked.
        ranks: processes of the run.

    Raises:
        RunFolderError: the folder is in use, missing, cannot be written, or holds another run.
    """
    with ExitStack() as stack:
        folder = [RunFolder(None)]
        ranks.once(lambda: folder.append(stack.enter_context(_opened(output_dir, resume_from))))
        yield folder[-1]


@contextmanager
def _opened(
    output_dir: str | os.PathLike[str] | None, resume_from: str | os.PathLike[str] | None
) -> Generator[RunFolder]:
    if output_dir is not None and resume_from is not None:
        raise RunFolderError(
            f"output_dir={output_dir} starts a run, resume_from={resume_from} goes on with one; "
            "pass one of them"
        )
    given = output_dir if resume_from is None else resume_from
    if given is None or isinstance(given, RunFolder):
        yield RunFolder(None) if given is None else given
        return
    with (_new if resume_from is None else _resumed)(Path(given)) as folder:
        yield folder


@contextmanager
def _new(path: Path) -> Generator[RunFolder]:
    existed = _refuse_another(path)
    try:
        make_folder(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the output folder {path}: {error.strerror}; choose another --output"
        ) from error
    with DISK.locked(path):
        _refuse_another(path)
        DISK.sweep(path, OURS)
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
def saving(path: Path, steps: Iterable[Step]) -> Generator[RunFolder]:
    """Open a folder for an outcome alone: a new one, or that of the run whose outcome it is.

    Args:
        path: of the folder.
        steps: journal of the run, written where the folder has none.

    Raises:
        RunFolderError: it holds an outcome already, or the journal of another run.
    """
    if (path / MODEL).exists() or (path / REPORT_JSON).exists():
        raise RunFolderError(f"{path} holds an outcome already; choose another folder")
    try:
        make_folder(path)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror}; choose another") from error
    with DISK.locked(path):
        journal = _lines(steps)
        if not (path / STEPS).exists():
            DISK.write_whole(path / STEPS, journal)
        elif DISK.read_regular(path / STEPS) != journal:
            raise RunFolderError(f"{path} holds another run ({STEPS} is there); choose another")
        yield RunFolder(path)


@contextmanager
def _resumed(path: Path) -> Generator[RunFolder]:
    if not path.is_dir():
        raise RunFolderError(f"{path} is no folder; resume_from takes a run's output_dir")
    DISK.refuse_irregular(path / name for name in OURS)
    with DISK.locked(path):
        _refuse_other_format(path)
        DISK.sweep(path, OURS)
        whole = _lines(read_scores(path))
        if (path / SCORES).is_file() and DISK.read_regular(path / SCORES) != whole:
            # Without a last line that was cut off.
            DISK.write_whole(path / SCORES, whole)
        yield RunFolder(path, resumed=True)


def _refuse_another(path: Path) -> bool:
    """Return True if the folder exists, and holds no run.

    Raises:
        RunFolderError: it holds one, or cannot be read.
    """
    try:
        held = [name for name in (*FILES, *CHECKPOINTS) if (path / name).exists()]
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
    return existed


def require_empty(path: Path) -> None:
    """Refuse a folder with more in it than a run left that was killed before it had begun.

    Raises:
        RunFolderError: something is there, or it cannot be read.
    """
    try:
        free = {*path.iterdir()} <= {path / LOCK, *half_written(path, OURS)}
    except FileNotFoundError:
        free = True
    except NotADirectoryError:
        free = False
    except OSError as error:
        raise RunFolderError(
            f"cannot use {path}: {error.strerror}; choose another --output"
        ) from error
    if not free:
        raise RunFolderError(
            f"{path} is not empty; choose another --output (`qprune resume` goes on with a run)"
        )


def _refuse_other_format(path: Path) -> None:
    """Refuse to go on with a run whose files this version does not write.

    Raises:
        RunFolderError: names the format.
    """
    try:
        record = read_json(DISK.read_regular(path / FINGERPRINT))
        found = record.get("format", 1)
    except (FileNotFoundError, ValueError, AttributeError):
        return  # Refused by `RunFolder.begin`, which says what is wrong with it.
    if found != FORMAT:
        raise RunFolderError(
            f"{path} cannot be resumed: another version of qprune began the run (format {found} of "
            f"its files, not {FORMAT}); go on with that version, or start the run again in a new "
            "folder"
        )


def _hold_fingerprint(folder: Path, present: Fingerprint) -> Fingerprint:
    """Return the fingerprint that the run was started with; write that of a new run.

    Raises:
        RunFolderError: it differs, is missing from a run that has begun, or cannot be read or
            written.
    """
    path = folder / FINGERPRINT
    DISK.refuse_irregular([path])
    try:
        found = Fingerprint.from_json(DISK.read_regular(path))
    except FileNotFoundError:
        # The fingerprint is the first file of a run.
        begun = next((name for name in (STEPS, *CHECKPOINTS) if (folder / name).exists()), None)
        if begun is not None:
            raise RunFolderError(
                f"{path} is missing, so that the run of {begun} beside it is unknown; put it "
                "back, or start the run again in a new folder"
            ) from None
        DISK.write_whole(
            path, strict_json({"format": FORMAT} | present.to_json(), indent=1).encode()
        )
        return present
    except RunFolderError as error:
        raise RunFolderError(f"{path}: {error}; start the run again") from error
    except OSError as error:
        raise RunFolderError(
            f"cannot read {path}: {error.strerror or error}; grant access, then resume"
        ) from error
    changed = found.differences(present)
    if changed:
        raise RunFolderError(
            f"{folder} cannot be resumed: {'; '.join(changed)}; resume with what the run was "
            "started with, or start it again"
        )
    if found.outputs != present.outputs:
        logger.warning(
            "%s: this machine computes other last digits than the one the run was started on "
            "(another processor or library); it goes on, but not to the same bytes",
            folder,
        )
    return found


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


def read_report(path: Path) -> tuple[Report, tuple[ScorePoint, ...]] | None:
    """Read the report of the run in ``path``, and its scores along the way; None before its end.

    Raises:
        RunFolderError: it cannot be read, or a later version wrote it.
    """
    if not (path / REPORT_JSON).exists():
        return None
    try:
        record = read_json(DISK.read_regular(path / REPORT_JSON))
        require_known(path / REPORT_JSON, record.pop("format", 1))
        scores = tuple(ScorePoint.from_json(point) for point in record.pop("scores"))
        return report_from_json(record), scores
    except UNREADABLE as error:
        raise unreadable(path, error) from error


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
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings of the run in ``path`` as plain values, unchecked.

    Raises:
        RunFolderError: the folder holds no run, or its settings cannot be read.
    """
    DISK.refuse_irregular(path / name for name in OURS)
    if not (path / CONFIG).exists():
        raise RunFolderError(f"{path} holds no run: {CONFIG} is missing; give a prune's --output")
    try:
        values = dict(read_plain_yaml(path / CONFIG))
        require_known(path / CONFIG, values.pop("format", 1))
        return values
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def require_known(path: Path, found: Any) -> None:
    """Refuse a file of a format that later versions write.

    Args:
        path: the file.
        found: number of its format.

    Raises:
        RunFolderError: names both numbers.
    """
    if found not in range(1, FORMAT + 1):
        raise RunFolderError(
            f"{path.name} has format {found!r:.20}, and this version of qprune reads up to "
            f"{FORMAT}; use a later one"
        )


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
    points: list[ScorePoint] = []
    for number, line in enumerate(lines, 1):
        try:
            points.append(ScorePoint.from_json(read_json(line)))
        except UNREADABLE as error:
            logger.warning("%s, line %d is no score (%s)", path / SCORES, number, error)
            break
    return tuple(points)


def _lines(records: Iterable[ScorePoint | Step]) -> bytes:
    return "".join(strict_json(record.to_json()) + "\n" for record in records).encode()


def _whole_lines(path: Path) -> list[str]:
    return DISK.read_regular(path).decode().split("\n")[:-1]


#: Errors of reading a file that is missing, no regular one, or of another form.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def unreadable(path: Path, error: BaseException) -> RunFolderError:
    """Return the refusal of a folder whose files cannot be read."""
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
