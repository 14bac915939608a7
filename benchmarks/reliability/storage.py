"""Storage drill: disks that are full or read-only, and files in which a byte has changed.

    python -m benchmarks.reliability.storage                   # half an hour on a busy core
    python -m benchmarks.reliability.storage --positions 100 --every 10          # some minutes

- A full disk, at every call in turn that writes: opening, writing (half of it gets through),
  flushing and renaming fail with "no space left". The run must end in one line; gone on with once
  there is room, it must give weights and mask, byte for byte, of a run that was never stopped.
- The same on a real disk that is too small (a tmpfs of some sizes; as root on Linux), and with a
  limit to the size of files (RLIMIT_FSIZE).
- The same where rights are taken away in the middle: removing and making folders fail, too.
- A read-only folder: what only reads works, what writes is refused in one line.
- A changed byte, at positions drawn from every file of a stopped run: `resume` must end in one
  line, or in the bytes of a run that was never stopped; from every file of a finished one:
  `verify` must name it, `check` and `report` must end in order.

Exit code 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import errno
import logging
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.reliability.file_steps import CHANGING, WRITING, FileSteps, failing
from benchmarks.reliability.small_run import every_step, small_settings, stop_after
from qprune.errors import QpruneError
from qprune.jobs.audit import check_run, verify_run
from qprune.jobs.job import run_job
from qprune.jobs.page import render_html
from qprune.jobs.settings import read_run
from qprune.record.folder import CONFIG, MASK, MODEL, REPORT_HTML
from solvers.errors import SolverError

#: The files of a run's folder that must be the same to the byte.
OUTCOME = (MODEL, MASK)
_DRAWN = 25
_SIZES = (0, 1, 8, 24, 40, 56, 72, 96, 128)


class Drill:
    """One small run, what it gives when nothing happens, and what has gone wrong so far.

    Args:
        scratch: folder for runs.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.settings = small_settings(scratch, final_rounds=2)
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.whole = scratch / "whole"
        run_job(self.settings, self.whole)
        self.expected = outcome(self.whole)
        # Stopped in the middle, with both checkpoints.
        self.stopped = scratch / "stopped"
        run_job(self.settings, self.stopped, should_stop=stop_after(8))
        for name in ("report.json", "checksums.sha256", REPORT_HTML, *OUTCOME):
            (self.stopped / name).unlink()

    def attempt(self, what: str, call: Callable[[], object]) -> bool:
        """Whether ``call`` ended in order or was refused; notes which, and anything else."""
        try:
            call()
        except (QpruneError, SolverError) as error:
            if not str(error).strip():
                self.wrong.append(f"{what}: an error without a message")
            self.counts["refused"] += 1
            return False
        except Exception as error:
            self.wrong.append(f"{what}: {type(error).__name__}: {error}")
            return False
        self.counts["done"] += 1
        return True

    def page(self, folder: Path) -> object:
        """What `qprune report` shows; drawn only now and then, since that takes longest."""
        self.counts["pages"] += 1
        return report_of(folder) if self.counts["pages"] % _DRAWN == 0 else read_run(folder)

    def same(self, what: str, folder: Path) -> None:
        """Note where the run in ``folder`` did not end in the expected bytes."""
        if outcome(folder) != self.expected:
            self.wrong.append(f"{what}: other weights or another mask")

    def goes_on(self, what: str, folder: Path) -> None:
        """The run in ``folder`` must come to its end, from wherever it is."""
        going = (folder / CONFIG).exists()
        if self.attempt(f"{what}, resumed", lambda: run_job(self.settings, folder, resume=going)):
            self.same(what, folder)
        else:
            self.wrong.append(f"{what}: it cannot be resumed")


def outcome(folder: Path) -> tuple[bytes, ...]:
    """Weights and mask, as they lie on the disk."""
    return tuple((folder / name).read_bytes() for name in OUTCOME if (folder / name).exists())


# -- a full disk ------------------------------------------------------------------------------


def full_disk(drill: Drill, every: int, report: Progress) -> str:
    """Every call that writes fails in turn, as on a disk without room."""
    return _fail_in_turn(drill, every, report, "full", errno.ENOSPC, WRITING)


def without_rights(drill: Drill, every: int, report: Progress) -> str:
    """Every call that changes anything fails in turn, as where rights are taken away."""
    return _fail_in_turn(drill, every, report, "without rights", errno.EACCES, CHANGING)


def _fail_in_turn(
    drill: Drill, every: int, report: Progress, how: str, error: int, kinds: tuple[str, ...]
) -> str:
    counted = FileSteps(drill.scratch / "counted", kinds=kinds)
    with counted():
        run_job(drill.settings, drill.scratch / "counted")
    shutil.rmtree(drill.scratch / "counted")
    places = range(1, len(counted.taken) + 1, every)
    for at in report.track(places, description=how):
        folder = drill.scratch / "failing"
        with FileSteps(folder, failing(at, error), kinds)():
            drill.attempt(
                f"{how} at call {at}", lambda folder=folder: run_job(drill.settings, folder)
            )
        drill.goes_on(f"{how} at call {at}", folder)
        shutil.rmtree(folder)
    return f"{how}: {len(places)} of {len(counted.taken)} calls failed in turn"


def small_files(drill: Drill, report: Progress, sizes: Sequence[int] = _SIZES) -> str:
    """The kernel lets no file grow past a limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in report.track(sizes, description="small files"):
        folder, what = drill.scratch / "small", f"files of {size} KiB"
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size << 10, before[1]))
            drill.attempt(what, lambda folder=folder: run_job(drill.settings, folder))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        drill.goes_on(what, folder) if not finished(folder) else drill.same(what, folder)
        shutil.rmtree(folder)
    signal.signal(signal.SIGXFSZ, handler)
    return f"{len(sizes)} limits to the size of a file"


def finished(folder: Path) -> bool:
    """Whether the run in ``folder`` has come to its end."""
    return (folder / "report.json").exists()


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[bool]:
    """A disk of its own at ``folder``; False where that is not allowed."""
    folder.mkdir()
    options = f"size={max(kib, 4)}k"
    command = ["mount", "-t", "tmpfs", "-o", options, "qprune-drill", str(folder)]
    made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def remounted(folder: Path, options: str) -> None:
    """The disk at ``folder`` with other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def small_disks(drill: Drill, report: Progress, sizes: Sequence[int] = _SIZES) -> str:
    """Real disks that are too small, and one that is read-only."""
    for kib in report.track(sizes, description="small disks"):
        with small_disk(drill.scratch / "disk", kib) as made:
            if not made:
                return "no disk could be mounted here (needs root); left out"
            folder, what = drill.scratch / "disk" / "run", f"a disk of {kib} KiB"
            drill.attempt(what, lambda folder=folder: run_job(drill.settings, folder))
            remounted(drill.scratch / "disk", "size=64m")
            drill.goes_on(what, folder) if not finished(folder) else drill.same(what, folder)
    with small_disk(drill.scratch / "disk", 1 << 16):
        disk = drill.scratch / "disk"
        for kind in (drill.whole, drill.stopped):
            shutil.copytree(kind, disk / kind.name)
        remounted(disk, "ro")
        read_only(drill, disk)
        remounted(disk, "rw")
    return f"{len(sizes)} small disks and a read-only one"


def read_only(drill: Drill, disk: Path) -> None:
    """What only reads must work; what writes must be refused, and change nothing."""
    settings, whole = drill.settings, disk / "whole"
    writes: dict[str, Callable[[], object]] = {
        "prune": lambda: run_job(settings, disk / "new"),
        "resume": lambda: run_job(settings, disk / "stopped", resume=True),
        "report": lambda: report_of(whole, write=True),
    }
    for name, call in writes.items():
        if drill.attempt(f"{name} on a read-only disk", call):
            drill.wrong.append(f"{name} on a read-only disk: it wrote")
    if check_run(whole).contradictions or verify_run(whole).contradictions:
        drill.wrong.append("check or verify on a read-only disk: it finds contradictions")


def report_of(folder: Path, write: bool = False) -> str:
    """What `qprune report` does."""
    from qprune.record.folder import RunFolder

    saved = read_run(folder)
    html = render_html(saved.report, title=saved.settings.title, scores=saved.scores)
    if write:
        RunFolder(folder).write_page(html)
    return html


# -- a changed byte ---------------------------------------------------------------------------


def changed_bytes(drill: Drill, positions: int, rng: random.Random, report: Progress) -> str:
    """Bytes of every file, in turn: half of the positions in a stopped run, half in a finished."""
    files = [
        (folder, path.name)
        for folder in (drill.stopped, drill.whole)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.stat().st_size
    ]
    task = report.add_task("changed bytes", total=positions)
    for number in range(positions):
        folder, name = files[number % len(files)]
        with changed(drill, folder, name, rng) as (copy, what):
            if folder is drill.stopped:
                resumed(drill, copy, what)
            else:
                read_again(drill, copy, what)
        report.advance(task)
    return f"{positions} changed bytes in {len(files)} files"


@contextmanager
def changed(
    drill: Drill, folder: Path, name: str, rng: random.Random
) -> Iterator[tuple[Path, str]]:
    """A copy of ``folder`` in which one byte of a file is another."""
    copy = drill.scratch / "changed"
    shutil.copytree(folder, copy)
    content = bytearray((copy / name).read_bytes())
    at, by = rng.randrange(len(content)), rng.choice([1 << bit for bit in range(8)])
    content[at] ^= by
    (copy / name).write_bytes(content)
    yield copy, f"{folder.name}/{name}, byte {at} ^ {by}"
    shutil.rmtree(copy)


def resumed(drill: Drill, folder: Path, what: str) -> None:
    """`qprune resume`, of a stopped run in which a byte has changed."""
    from qprune.jobs.settings import read_settings, trusted

    def resume() -> None:
        settings = read_settings(folder)
        trusted(settings, None, None)
        run_job(settings, folder, resume=True)

    drill.attempt(f"{what}: report", lambda: drill.page(folder))
    if drill.attempt(f"{what}: resume", resume):
        drill.same(what, folder)


def read_again(drill: Drill, folder: Path, what: str) -> None:
    """`qprune report`, `check` and `verify` of a finished run in which a byte has changed."""
    lies: list[str] = []
    drill.attempt(f"{what}: report", lambda: drill.page(folder))
    drill.attempt(f"{what}: check", lambda: check_run(folder))
    if drill.attempt(f"{what}: verify", lambda: lies.extend(verify_run(folder).contradictions)):
        drill.counts["named by verify"] += bool(lies)
        if not lies:
            drill.wrong.append(f"{what}: verify finds nothing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--positions", type=int, default=1000, help="changed bytes")
    parser.add_argument("--every", type=int, default=1, help="of the calls that write, which fail")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    every_step()  # So that there is much to write and to break.
    console, rng = Console(), random.Random(given.seed)
    with tempfile.TemporaryDirectory() as scratch, Progress(console=console) as report:
        drill = Drill(Path(scratch))
        for told in (
            lambda: full_disk(drill, given.every, report),
            lambda: without_rights(drill, given.every, report),
            lambda: small_files(drill, report),
            lambda: small_disks(drill, report),
            lambda: changed_bytes(drill, given.positions, rng, report),
        ):
            line, known = told(), len(drill.wrong)
            console.print(f"{line}: {dict(drill.counts)}, {known} violations")
            drill.counts.clear()
    for line in drill.wrong:
        console.print(line)
    sys.exit(1 if drill.wrong else 0)


if __name__ == "__main__":
    main()
