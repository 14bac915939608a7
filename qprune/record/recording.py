"""Recording of a run in its folder: fingerprint, journal, checkpoints, resume."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qprune.errors import DISK, RunFolderError
from qprune.record.checkpoint import CHECKPOINTS, Checkpoints, Snapshot
from qprune.record.fingerprint import Fingerprint
from qprune.results import Step
from qprune.walk.schedule import Progress
from qprune.walk.setting import Setting
from solvers import AnswerStore
from solvers.host.disk import flush_folder, half_written, make_folder, strict_json

FINGERPRINT, STEPS, ANSWERS = "fingerprint.json", "steps.jsonl", "answers"
#: Further files of a finished run; `qprune.record.folder` writes them, the report last.
REPORT_JSON, CHECKSUMS = "report.json", "checksums.sha256"

logger = logging.getLogger(__name__)

# Reasons to stop that depend on time, at another step in every run.
_UNREPEATABLE = ("interrupted", "max_seconds")


class Recording:
    """Writer of a run's folder: journal, checkpoints, answers.

    Args:
        folder: folder of the run; None = nothing is written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._checkpoints = None if folder is None else Checkpoints(folder)
        self._began = time.perf_counter(), time.process_time()
        self._before = 0.0, 0.0
        self._last: Snapshot | None = None
        self._run = ""

    @property
    def answers(self) -> AnswerStore | None:
        """Store of answers that cannot be repeated; None without a folder."""
        return None if self._folder is None else AnswerStore(self._folder / ANSWERS, DISK)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, over all its processes."""
        return self._before[0] + time.perf_counter() - self._began[0]

    @property
    def cpu_seconds(self) -> float:
        """Process CPU time of the run so far, over all its processes."""
        return self._before[1] + time.process_time() - self._began[1]

    @property
    def checkpoint_seconds(self) -> float:
        """Wall time of checkpoints in this process."""
        return 0.0 if self._checkpoints is None else self._checkpoints.spent

    def note(self, step: Step) -> None:
        """Step callback: append the step to the journal on disk.

        Raises:
            RunFolderError: it cannot be written, or the folder is no longer locked.
        """
        if self._folder is not None:
            DISK.require_locked(self._folder)
            DISK.append_line(self._folder / STEPS, strict_json(step.to_json()))

    def begin(self, setting: Setting, present: Fingerprint | None) -> Progress:
        """Return the state to start from: the beginning, or the last checkpoint.

        Args:
            setting: setting of the run.
            present: its fingerprint; not used without a folder.

        Raises:
            RunFolderError: the folder's run had another model, data, settings or code, its
                checkpoints are of another run, or its fingerprint is missing.
        """
        if self._folder is None or self._checkpoints is None or present is None:
            return Progress.beginning(setting)
        self._run = hold_fingerprint(self._folder, present).digest
        snapshot = self._checkpoints.load(self._run)
        drop_outcome(self._folder)
        DISK.remove(half_written(self._folder, (FINGERPRINT, STEPS, *CHECKPOINTS)))
        if self.answers is not None:
            self.answers.sweep()
        lines = [] if snapshot is None else [strict_json(s.to_json()) for s in snapshot.steps]
        DISK.write_whole(self._folder / STEPS, "".join(line + "\n" for line in lines).encode())
        if snapshot is None:
            return Progress.beginning(setting)
        self._before = snapshot.seconds, snapshot.cpu_seconds
        setting.journal.resume(snapshot.steps, snapshot.seconds)
        setting.generator.set_state(snapshot.generator)
        return snapshot.progress

    def keep(self, setting: Setting, progress: Progress) -> None:
        """Callback between two steps: write a checkpoint if enough time has passed.

        If the run stops for a reason that depends on time, the last checkpoint is from before
        that moment, so that a resumed run gives the same result as an uninterrupted one.
        """
        # Every rank must take part, with or without the folder.
        stopped = setting.journal.stopped
        if self._checkpoints is None:
            return
        if stopped in _UNREPEATABLE:
            if self._last is not None:
                self._checkpoints.write(self._last)
                self._last = None
        elif progress.position is not None:
            self._last = Snapshot(
                progress,
                setting.generator.get_state(),
                tuple(setting.journal.steps),
                self.seconds,
                self.cpu_seconds,
                self._run,
            )
            self._checkpoints.offer(self._last)


@contextmanager
def recording(output_dir: str | Path | None, resume_from: str | Path | None) -> Iterator[Recording]:
    """Yield the recording of one run, whose folder is locked within the context.

    Args:
        output_dir: folder of a new run.
        resume_from: folder of a run to resume.

    Raises:
        RunFolderError: the folder is in use, missing, cannot be written, or holds another run.
    """
    if output_dir is not None and resume_from is not None:
        raise RunFolderError(
            f"output_dir={output_dir} starts a run, resume_from={resume_from} goes on with one; "
            "pass one of them"
        )
    given = output_dir if resume_from is None else resume_from
    if given is None:
        yield Recording(None)
        return
    folder = Path(given)
    if resume_from is None:
        _create(folder)
    elif not folder.is_dir():
        raise RunFolderError(f"{folder} is no folder; resume_from takes a run's output_dir")
    with DISK.locked(folder):
        if resume_from is None:
            _refuse_another(folder)
        yield Recording(folder)


def _create(folder: Path) -> None:
    try:
        make_folder(folder)
    except OSError as error:
        raise RunFolderError(
            f"cannot write the output folder {folder}: {error.strerror}; choose another"
        ) from error


def _refuse_another(folder: Path) -> None:
    held = [name for name in (FINGERPRINT, STEPS, *CHECKPOINTS) if (folder / name).exists()]
    if held:
        raise RunFolderError(
            f"{folder} holds another run ({held[0]} is there); resume that one, choose another "
            "folder, or remove it"
        )


def drop_outcome(folder: Path) -> None:
    """Remove the files that mark the run in ``folder`` as ended, since it goes on.

    Raises:
        RunFolderError: one cannot be removed.
    """
    # The report first: it marks a finished run; see `qprune.record.folder.RunFolder.finish`.
    DISK.remove([folder / REPORT_JSON])
    flush_folder(folder)
    DISK.remove([folder / CHECKSUMS])


def hold_fingerprint(folder: Path, present: Fingerprint) -> Fingerprint:
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
        DISK.write_whole(path, strict_json(present.to_json(), indent=1).encode())
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
