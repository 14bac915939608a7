"""One run as the command line has it: load, prune, score, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qprune.data.augment import Augmentation
from qprune.distributed.executors import executor_named
from qprune.distributed.ranks import ALONE, Ranks
from qprune.distributed.workers import limited_threads
from qprune.errors import ImpossibleRequestError
from qprune.jobs.kinds import Kind, Tell, kind_of, text_limit, untold
from qprune.jobs.page import render_html
from qprune.jobs.settings import Settings
from qprune.prune import Pruned, prune
from qprune.record.folder import RunFolder, opened, read_scores, require_empty
from qprune.results import Observer, Report, Score, ScorePoint, Step
from qprune.steps.solve import BlockObserver
from qprune.walk.journal import Limits


@dataclass(frozen=True, eq=False)
class Outcome(Pruned):
    """Result of `run_job`: a pruned model, its mask and report, and what the run was.

    Attributes:
        settings: completed.
        method: name of the method that was carried out.
        figure: words for the loss in the scores.
        folder: where all is saved; None = nowhere.
    """

    settings: Settings
    method: str
    figure: str
    folder: Path | None

    def summary(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints; steps and layers are in ``report.json``."""
        report, told = self.report, self.report.to_json()
        asked = ("asked_sparsity", "achieved_sparsity", "coverage", "loss", "figure", "dense")
        found = ("start", "final", "steps", "accepted", "stopped", "seconds", "cpu_seconds")
        told |= {
            "model": self.settings.model,
            "architecture": type(self.model).__name__,
            "data": self.settings.data,
            "method": self.method,
            "mask_structure": self.settings.mask_structure,
            "figure": self.figure,
            "steps": len(report.steps),
            "accepted": report.num_accepted,
            "folder": None if self.folder is None else str(self.folder),
        }
        names = ("model", "architecture", "data", "method", "mask_structure", *asked, *found)
        return {name: told[name] for name in (*names, "peak_memory", "estimate", "seed", "folder")}


class ScoreTrace:
    """Observer that scores the network on test data now and then, for the curve of accuracy.

    Scoring takes at most ``share`` of the time that has passed; it decides nothing in the run.
    With a ``folder`` the points so far are taken from it, and new ones noted there.
    """

    def __init__(
        self,
        evaluate: Callable[[], Score],
        share: float = 0.05,
        folder: RunFolder | None = None,
    ) -> None:
        self.points = list(read_scores(folder.path)) if folder else []
        self._evaluate, self._share, self._folder = evaluate, share, folder
        self._began, self._spent = time.perf_counter(), 0.0

    def __call__(self, step: Step) -> None:
        # A resumed run takes some steps again.
        self.points = [point for point in self.points if point.step < step.index]
        before = time.perf_counter()
        if not step.accepted or self._spent > self._share * (before - self._began):
            return
        self.points.append(ScorePoint(step.index, self._evaluate()))
        if self._folder:
            self._folder.note_score(self.points[-1])
        self._spent += time.perf_counter() - before

    def ending_with(self, report: Report) -> tuple[ScorePoint, ...]:
        """The points, with the final score at the last step."""
        if report.final is None or not report.steps:
            return tuple(self.points)
        last = ScorePoint(report.steps[-1].index, report.final)
        return (*(point for point in self.points if point.step < last.step), last)


def run_job(
    settings: Settings,
    output: Path | None = None,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] | None = None,
    observe: Sequence[Observer] = (),
    observe_blocks: Sequence[BlockObserver] = (),
    tell: Tell = untold,
    others: Mapping[str, Score] | None = None,
    augment: Augmentation | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Load, prune, score and, with ``output``, save.

    Args:
        settings: what to do.
        output: folder for weights, mask, settings, steps and report; it must hold no run yet.
        resume: go on with the run that ``output`` holds.
        should_stop: asked before every step; True ends the run with the best mask so far.
        observe: called with every step.
        observe_blocks: called with every problem that the sampler has answered.
        tell: called with the progress of all else: text written, moves, scores.
        others: scores of other methods, for the report.
        augment: instead of what suits the data by itself.
        ranks: processes that do this together; only the first one writes.

    Raises:
        QpruneError, SolverError: the request is impossible, or failed; a run that has not begun
            leaves nothing behind, any other a folder that can be resumed.
    """
    began, kind = time.perf_counter(), kind_of(settings)
    _refuse_ranks(kind, ranks)
    # What is wrong is found here, not after training a network.
    settings = kind.completed(settings)
    output = None if ranks.rank else output
    with ExitStack() as stack:
        # A network that is trained first is the same for any number, too.
        stack.enter_context(limited_threads(1))
        executor = stack.enter_context(executor_named(None if ranks.rank else settings.executor))
        if kind.loaded and output is not None and not resume:
            require_empty(output)
        folder = stack.enter_context(opened(*((None, output) if resume else (output, None))))
        if folder and not resume:
            folder.write_settings(settings.to_yaml(kind.foreign))
        job = kind.load(settings)
        score = partial(job.score, track=partial(_tracked, tell))
        trace = ScoreTrace(partial(score, job.model), folder=folder)
        limits = _limits(settings, should_stop, time.perf_counter() - began)
        arguments = job.arguments(tell, text_limit(limits.max_seconds, should_stop))
        if augment is not None and settings.augment:
            arguments["augment"] = augment
        pruned = prune(
            job.model,
            job.calibration,
            evaluate=score if settings.evaluate else None,
            observe=[*observe, *([trace] if folder and kind.scored_along else [])],
            observe_blocks=observe_blocks,
            limits=limits,
            ranks=ranks,
            executor=executor,
            **{"resume_from" if resume else "output_dir": folder or None},
            **arguments,
        )
        report = pruned.report
        if folder:
            report, beside = job.write(pruned, folder)
            points = trace.ending_with(report)
            html = render_html(report, title=settings.title, scores=points, others=others or {})
            folder.finish(report, points, html, beside)
    return Outcome(pruned.model, pruned.mask, report, settings, job.carried, job.figure, output)


def _refuse_ranks(kind: type[Kind], ranks: Ranks) -> None:
    if kind.alone and ranks.size > 1:
        raise ImpossibleRequestError(
            "checkpoints are pruned by one process from the command line; start without "
            "torchrun, or call qprune.prune(..., ranks=qprune.DataParallel())"
        )


def _limits(settings: Settings, should_stop: Callable[[], bool] | None, spent: float) -> Limits:
    """Return the limits of the walk; ``spent`` seconds went by before it."""
    seconds = settings.max_seconds and max(0.0, settings.max_seconds - spent)
    memory = settings.max_memory and 1e9 * settings.max_memory
    return Limits(seconds, settings.max_steps, memory, should_stop)


def _tracked(tell: Tell, items: Sequence[Any], description: str) -> Iterable[Any]:
    """Yield the items, telling how many are done: a `Track`."""
    for number, item in enumerate(items):
        tell(description, number, len(items))
        yield item
