"""Death drill: a run killed before every step that it takes on the file system, one after another.

    python -m benchmarks.reliability.deaths                 # every point: about half an hour
    python -m benchmarks.reliability.deaths --every 25      # some of them, and all of the end

A small run is killed with SIGKILL at each point in turn (`benchmarks.reliability.file_steps`): as
it starts, at every line, checkpoint and answer, and while it finishes; and so are runs that were
stopped by hand, go on, or only have their page written again. After each death `qprune resume`
(where not even the settings were there yet, `qprune prune`) must end with the bytes of a run that
was never killed, with all checksums and no file too many, and `verify` must pass. With ``--twice``
each resume is killed, too, at a point drawn at random, and resumed. Needs fork (Linux, macOS);
exit code 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.reliability.file_steps import FileSteps, killed
from benchmarks.reliability.small_run import every_step, small_settings, stop_after
from qprune.cli.folders import resume
from qprune.cli.main import report as report_again
from qprune.errors import QpruneError
from qprune.jobs.audit import verify_run
from qprune.jobs.job import run_job
from qprune.record.folder import (
    CONFIG,
    FILES,
    FINGERPRINT,
    MASK,
    MODEL,
    REPORT_JSON,
    STEPS,
    read_checksums,
)
from solvers.host.disk import LOCK

#: The files of a run's folder that must be the same to the byte; all else tells of times.
SAME = (CONFIG, FINGERPRINT, MODEL, MASK)
#: Exit code of a child in which something other than a death happened.
_WRONG = 3


@dataclass(frozen=True)
class Story:
    """A way in which a run comes to its end.

    Attributes:
        name: in a few words.
        before: makes the folder as it is when the story begins.
        told: what is killed.
        first: the first point of interest, counted from the end where negative.
    """

    name: str
    before: Callable[[Path], object]
    told: Callable[[Path], object]
    first: int = 1


def stories(scratch: Path) -> Sequence[Story]:
    """The stories of a small run on scikit-learn's digits."""
    settings = small_settings(scratch, final_rounds=1)

    def start(folder: Path) -> None:
        run_job(settings, folder)

    def stop(folder: Path) -> None:
        run_job(settings, folder, should_stop=stop_after(6))

    def nothing(folder: Path) -> None:
        pass

    return (
        Story("a run", nothing, start),
        Story("a run stopped by hand", nothing, stop, first=-40),
        Story("a stopped run that goes on", stop, go_on),
        Story("the page written again", start, report_again),
        Story("a finished run resumed", _with_leftovers(start), go_on),
    )


def _with_leftovers(start: Callable[[Path], None]) -> Callable[[Path], None]:
    def before(folder: Path) -> None:
        start(folder)
        for name in ("checkpoint.0.safetensors", "checkpoint.1.safetensors", ".report.json.1.tmp"):
            (folder / name).write_bytes(b"left")
        aside = folder.with_name(f".{folder.name}.1.aside")
        aside.mkdir()
        (aside / MODEL).write_bytes(b"left")

    return before


def go_on(folder: Path) -> None:
    """What `qprune resume` does."""
    resume(folder, None, None, None, None, None, False)


def in_a_child(call: Callable[[], object], steps: FileSteps, note: Path) -> bool:
    """Whether ``call`` came to its end in a process of its own; its steps go to ``note``.

    Raises:
        RuntimeError: it ended in an error.
    """
    process = os.fork()
    if process == 0:
        code = _WRONG
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            with steps():
                call()
            note.write_text(json.dumps(steps.taken))
            code = 0
        except SystemExit:
            code = 0
        except QpruneError as error:
            note.write_text(f"refused: {error}")
        except BaseException:
            note.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise RuntimeError(note.read_text())
    return True


class Drill:
    """The stories told again and again, each time with a death at another point.

    Args:
        scratch: folder for runs.
        rng: draws second deaths; None = there are none.
    """

    def __init__(self, scratch: Path, rng: random.Random | None = None) -> None:
        self.scratch, self._rng = scratch, rng
        self.stories = stories(scratch)
        self.wrong: list[str] = []
        self.points = self.deaths = 0
        self._note = scratch / "note"
        self._whole = scratch / "whole"
        self.stories[0].told(self._whole)
        self._kinds = kinds(self._whole)

    def points_of(self, story: Story) -> list[str]:
        """The steps of a story that nobody kills."""
        folder = self._beginning(story)
        in_a_child(lambda: story.told(folder), FileSteps(folder.parent), self._note)
        return json.loads(self._note.read_text())

    def die(self, story: Story, at: int, step: str) -> None:
        """Kill the story before its ``at``-th step, resume it, and look at what there is."""
        folder = self._beginning(story)
        self.points += 1
        what = f"{story.name}, killed at step {at} ({step.replace(str(self.scratch), '')})"
        try:
            steps = FileSteps(folder.parent, killed(at))
            if in_a_child(lambda: story.told(folder), steps, self._note):
                self.wrong.append(f"{what}: it came to its end before")
            self.deaths += 1
            self._resumed(folder)
            self.wrong += [f"{what}: {lie}" for lie in self.lies(folder)]
        except RuntimeError as error:
            self.wrong.append(f"{what}: {error}")

    def _beginning(self, story: Story) -> Path:
        """A folder as it is when the story begins, alone in its own."""
        kept, place = self.scratch / "before" / story.name, self.scratch / "place"
        if not kept.exists():
            kept.mkdir(parents=True)
            story.before(kept / "run")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(kept, place)
        return place / "run"

    def _resumed(self, folder: Path) -> None:
        """Bring the run to its end, however often that dies."""

        def call() -> None:
            (go_on if (folder / CONFIG).exists() else self.stories[0].told)(folder)

        if self._rng is not None:
            steps = FileSteps(folder.parent, killed(self._rng.randint(1, 100)))
            self.deaths += not in_a_child(call, steps, self._note)
        in_a_child(call, FileSteps(folder.parent), self._note)

    def lies(self, folder: Path) -> list[str]:
        """What is not as in a folder whose run was never killed."""
        lies = [
            f"{name} has other bytes"
            for name in SAME
            if not (folder / name).is_file()
            or (folder / name).read_bytes() != (self._whole / name).read_bytes()
        ]
        found = {path.name for path in folder.iterdir()}
        lies += [f"{name} is too many, or missing" for name in sorted(found ^ {*FILES, LOCK})]
        beside = {path.name for path in folder.parent.iterdir()} - {folder.name}
        lies += [f"{name} is left beside the folder" for name in sorted(beside)]
        if lies:
            return lies
        if kinds(folder) != self._kinds:
            lies.append("it took other steps")
        if json.loads((folder / REPORT_JSON).read_text())["stopped"] != "done":
            lies.append("it has not ended")
        if {*read_checksums(folder)} != {*FILES} - {"checksums.sha256"}:
            lies.append("checksums are missing")
        return [*lies, *verify_run(folder).contradictions]


def kinds(folder: Path) -> list[str]:
    """The kinds of a run's steps."""
    return [json.loads(line)["kind"] for line in (folder / STEPS).read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="of the points, but for the last 40")
    parser.add_argument("--last", type=int, default=40, help="points at the end, all of them tried")
    parser.add_argument("--twice", action="store_true", help="kill each resume, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of stories, from 0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    every_step()
    console = Console()
    rng = random.Random(given.seed) if given.twice else None
    with tempfile.TemporaryDirectory() as scratch, Progress(console=console) as report:
        drill = Drill(Path(scratch).resolve(), rng)
        for number, story in enumerate(drill.stories):
            if given.only and number not in given.only:
                continue
            steps, before = drill.points_of(story), len(drill.wrong)
            first = story.first if story.first > 0 else max(1, len(steps) + story.first)
            chosen = [
                at
                for at in range(first, len(steps) + 1)
                if at > len(steps) - given.last or at % given.every == 0
            ]
            for at in report.track(chosen, description=story.name):
                drill.die(story, at, steps[at - 1])
            console.print(
                f"{story.name}: {len(chosen)} of {len(steps)} points of death, "
                f"{len(drill.wrong) - before} violations"
            )
        console.print(f"{drill.points} points, {drill.deaths} deaths")
    for line in drill.wrong:
        console.print(line)
    sys.exit(1 if drill.wrong else 0)


if __name__ == "__main__":
    main()
