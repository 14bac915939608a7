"""A run's folder while the run goes: fingerprint, journal, checkpoints; and how it goes on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qprune.answers import AnswerStore
from qprune.checkpoint import CHECKPOINTS, Checkpoints, Snapshot
from qprune.errors import RunFolderError
from qprune.fingerprint import Fingerprint
from qprune.folder import append_line, locked, make_folder, sweep, write_whole
from qprune.records import strict_json
from qprune.setting import Setting
from qprune.steps import Step
from qprune.walk import Progress

FINGERPRINT, STEPS, ANSWERS = "fingerprint.json", "steps.jsonl", "answers"

logger = logging.getLogger(__name__)

# Limits that no two runs meet at the same step.
_UNREPEATABLE = ("interrupted", "max_seconds")


class Recording:
    """Keeps up a run's folder, or nothing where there is none.

    Args:
        folder: where; None = nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._checkpoints = None if folder is None else Checkpoints(folder)
        self._began = time.perf_counter(), time.process_time()
        self._before = 0.0, 0.0
        self._last: Snapshot | None = None

    @property
    def answers(self) -> AnswerStore | None:
        """Where answers are kept that cannot be had again."""
        return None if self._folder is None else AnswerStore(self._folder / ANSWERS)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, in all processes."""
        return self._before[0] + time.perf_counter() - self._began[0]

    @property
    def cpu_seconds(self) -> float:
        """The same of process CPU time."""
        return self._before[1] + time.process_time() - self._began[1]

    @property
    def checkpoint_seconds(self) -> float:
        """Wall time that checkpoints have taken in this process."""
        return 0.0 if self._checkpoints is None else self._checkpoints.spent

    def note(self, step: Step) -> None:
        """An observer: append the step to the journal on disk."""
        if self._folder is not None:
            append_line(self._folder / STEPS, strict_json(step.to_json()))

    def begin(self, setting: Setting, present: Fingerprint | None) -> Progress:
        """Where the run stands: at its beginning, or at the last checkpoint.

        Args:
            setting: of the run.
            present: its fingerprint; not needed without a folder.

        Raises:
            RunFolderError: the folder's run had another model, data, settings or code.
        """
        if self._folder is None or self._checkpoints is None or present is None:
            return Progress.beginning(setting)
        hold_fingerprint(self._folder, present)
        sweep(self._folder)
        snapshot = self._checkpoints.load()
        lines = [] if snapshot is None else [strict_json(s.to_json()) for s in snapshot.steps]
        write_whole(self._folder / STEPS, "".join(line + "\n" for line in lines).encode())
        if snapshot is None:
            return Progress.beginning(setting)
        self._before = snapshot.seconds, snapshot.cpu_seconds
        setting.journal.resume(snapshot.steps, snapshot.seconds)
        setting.generator.set_state(snapshot.generator)
        return snapshot.progress

    def keep(self, setting: Setting, progress: Progress) -> None:
        """Hear of the run between two steps, and write a checkpoint now and then.

        Once the run is to end at a moment that cannot be repeated, the last checkpoint is of
        before that moment, so that the run can still go on as if it had not been.
        """
        # Every rank asks, the one with the folder and the others.
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
            )
            self._checkpoints.offer(self._last)


@contextmanager
def recording(output_dir: str | Path | None, resume_from: str | Path | None) -> Iterator[Recording]:
    """The recording of one run; no other process can work in its folder meanwhile.

    Args:
        output_dir: folder of a new run.
        resume_from: folder of a run to go on with.

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
    with locked(folder):
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


def hold_fingerprint(folder: Path, present: Fingerprint) -> None:
    """Write the fingerprint, or refuse where the one there is another.

    Raises:
        RunFolderError: it is another one, or cannot be read or written.
    """
    path = folder / FINGERPRINT
    try:
        found = Fingerprint.from_json(path.read_bytes())
    except FileNotFoundError:
        write_whole(path, strict_json(present.to_json(), indent=1).encode())
        return
    except RunFolderError as error:
        raise RunFolderError(f"{path}: {error}; start the run again") from error
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
