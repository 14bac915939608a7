"""One `qprune prune`: from settings to a pruned network and a folder that tells what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from qprune.data.augment import Augmentation
from qprune.distributed.executors import executor_named
from qprune.distributed.ranks import ALONE, Ranks
from qprune.distributed.workers import limited_threads
from qprune.jobs.page import render_html
from qprune.jobs.settings import Settings
from qprune.models.datasets import DataSet, load_data
from qprune.models.zoo import load_model
from qprune.prune import Pruned, prune
from qprune.record.folder import RunFolder, read_scores, resumed_folder, run_folder
from qprune.results import Observer, Report, Score, ScorePoint, Step
from qprune.steps.solve import BlockObserver
from solvers.registry import get_sampler

#: Settings that `qprune.prune` takes as they are.
_PASSED_ON = (
    "sparsity",
    "density",
    "start",
    "curvature",
    "loss",
    "budget",
    "mask_structure",
    "targets",
    "ignore",
    "sampler",
    "sampler_options",
    "block_size",
    "num_blocks",
    "stages",
    "rounds",
    "final_rounds",
    "samples_per_step",
    "compensate",
    "seed",
    "max_seconds",
    "max_steps",
)


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
        self.points = [] if folder is None else list(read_scores(folder.path))
        self._evaluate, self._share, self._folder = evaluate, share, folder
        self._began, self._spent = time.perf_counter(), 0.0

    def __call__(self, step: Step) -> None:
        # A resumed run takes some steps again.
        self.points = [point for point in self.points if point.step < step.index]
        before = time.perf_counter()
        if not step.accepted or self._spent > self._share * (before - self._began):
            return
        self.points.append(ScorePoint(step.index, self._evaluate()))
        if self._folder is not None:
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
    others: Mapping[str, Score] | None = None,
    augment: Augmentation | None = None,
    ranks: Ranks = ALONE,
) -> Pruned:
    """Load, prune, score and, with ``output``, save.

    Args:
        settings: what to do.
        output: folder for weights, mask, settings, steps and report; it must hold no run yet.
        resume: go on with the run that ``output`` holds.
        should_stop: asked before every step; True ends the run with the best mask so far.
        observe: called with every step.
        observe_blocks: called with every problem that the sampler has answered.
        others: scores of other methods, for the report.
        augment: instead of what suits the data by itself.
        ranks: processes that do this together; only the first one writes.

    Raises:
        QpruneError: the request is impossible, or failed; nothing is left behind.
        SolverError: there is no such sampler or option.
    """
    if ranks.rank:
        output = None
    get_sampler(settings.sampler)  # Refused here, not after training a network.
    saving = nullcontext()
    if output is not None:
        saving = resumed_folder(output) if resume else run_folder(output, settings)
    # The first rank's workers solve for all.
    solving = executor_named(None if ranks.rank else settings.executor)
    # A network that is trained first is the same for any number, too.
    with limited_threads(1), solving as executor, saving as folder:
        model = load_model(settings.model, settings.weights)
        data = load_data(settings.data, settings.normalization)
        calibration = data.calibration(settings.num_calibration_samples, settings.seed)
        score = partial(data.score, loss=settings.loss)
        trace = ScoreTrace(partial(score, model), folder=folder)
        pruned = prune(
            model,
            calibration,
            evaluate=score,
            observe=[*observe, *([trace] if folder else [])],
            observe_blocks=observe_blocks,
            should_stop=should_stop,
            ranks=ranks,
            executor=executor,
            threads=settings.threads,
            max_memory=settings.max_memory and 1e9 * settings.max_memory,
            **{"resume_from" if resume else "output_dir": output},
            **arguments(settings, data, augment),
        )
        if folder is not None:
            _save(folder, pruned, settings, trace.ending_with(pruned.report), others or {})
    return pruned


def summary(pruned: Pruned) -> dict[str, Any]:
    """What ``--json`` prints: sparsity, coverage, loss, scores, time and memory, steps, seed."""
    report = pruned.report.to_json()
    steps = {"steps": len(pruned.report.steps), "accepted": pruned.report.num_accepted}
    names = ("asked_sparsity", "achieved_sparsity", "coverage", "loss", "dense", "start", "final")
    times = ("seconds", "cpu_seconds", "peak_memory", "stopped", "seed")
    needs = pruned.report.estimate
    foreseen = {"estimate": needs and needs.to_json()}
    return {n: report[n] for n in names} | steps | {n: report[n] for n in times} | foreseen


def arguments(
    settings: Settings, data: DataSet, augment: Augmentation | None = None
) -> dict[str, Any]:
    """Settings for `prune`; one that is None leaves it to `prune`'s own default.

    Args:
        settings: of the run.
        data: that it is on.
        augment: instead of what suits the data by itself.
    """
    values = {name: getattr(settings, name) for name in _PASSED_ON}
    values = {name: value for name, value in values.items() if value is not None}
    chosen = (augment or data.augment) if settings.augment else None
    return values | {"augment": chosen}


def _save(
    folder: RunFolder,
    pruned: Pruned,
    settings: Settings,
    points: tuple[ScorePoint, ...],
    others: Mapping[str, Score],
) -> None:
    html = render_html(pruned.report, title=settings.title, scores=points, others=others)
    folder.save(pruned.model, pruned.mask, pruned.report, points, html)
