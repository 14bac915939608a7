"""Pruning runs of a study, made in a worker process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qprune.distributed.workers import limited_threads
from qprune.prune import Pruned
from qprune.results import Score, Step
from qprune.steps.solve import SolvedBlock
from qprune.study.trial import Loaded, Trial
from solvers import Ask
from solvers.study.bench import Budgeted, SamplerSetting
from solvers.study.budgets import Budget
from solvers.study.storage import Maybe, StoredRow, Whole

#: Reference sampler, untimed: gives the best energy known of every block, and a bound.
REFERENCE = "relax"


@dataclass(eq=False)
class Yardstick:
    """Observer that compares every answer with a reference's answer to the same problem.

    Runs diverge with their first answers, so that no two samplers get the same blocks; each is
    compared with the reference on its own blocks. Leaving a block unchanged has energy 0.

    Attributes:
        missed: 1 - E / E_best for every block, E_best the lower of the answer's energy and the
            reference's: the share of the possible decrease of energy that was not found.
        uncertain: the same against the reference's certified lower bound, so never too small.
        sampler_seconds, sampler_cpu_seconds, preparation_seconds: sums over the sampler's calls.
        spent: process CPU seconds of the reference, not counted for the run.
    """

    missed: list[float] = field(default_factory=list)
    uncertain: list[float] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    sampler_seconds: float = 0.0
    sampler_cpu_seconds: float = 0.0
    preparation_seconds: float = 0.0
    spent: float = 0.0
    _ask: Ask = field(default_factory=lambda: Ask.to(REFERENCE))

    def __call__(self, block: SolvedBlock) -> None:
        """Compare one answer."""
        began = time.process_time()
        answer, info = block.answer, block.answer.info
        self.sampler_seconds += float(info.get("sampler_seconds", answer.seconds))
        self.sampler_cpu_seconds += float(info.get("sampler_cpu_seconds", 0.0))
        self.preparation_seconds += float(info.get("preparation_seconds", 0.0))
        reference = self._ask(block.problem, block.present, block.seed)
        self.energies.append(answer.energy)
        best = min(answer.energy, reference.energy)
        # Nothing can be gained, so nothing is missed.
        if best < 0:
            self.missed.append(1 - answer.energy / best)
        bound = max(answer.lower_bound, reference.lower_bound)
        if np.isfinite(bound) and bound < 0:
            self.uncertain.append(1 - answer.energy / bound)
        self.spent += time.process_time() - began


class PruningRow(StoredRow):
    """A row of a pruning study; see `qprune.study.compare_pruning`."""

    seed: Whole
    sparsity: Maybe = None
    dense_accuracy: Maybe = None
    dense_loss: Maybe = None
    start_accuracy: Maybe = None
    start_loss: Maybe = None
    final_accuracy: Maybe = None
    final_loss: Maybe = None
    accept_loss: Maybe = None
    steps: Maybe = None
    accepted: Maybe = None
    accepted_share: Maybe = None
    predicted: Maybe = None
    real: Maybe = None
    flips: Maybe = None
    blocks: Maybe = None
    energy_mean: Maybe = None
    missed_mean: Maybe = None
    missed_median: Maybe = None
    uncertain_median: Maybe = None
    sampler_seconds: Maybe = None
    sampler_cpu_seconds: Maybe = None
    preparation_seconds: Maybe = None
    cpu_seconds: Maybe = None
    seconds: Maybe = None
    trace: Any = None


class PruningBench:
    """Maker of pruning runs, one at a time, in a process of its own.

    Args:
        threads: threads of the arithmetic and of the samplers.
        clock: a name in `solvers.study.budgets.CLOCKS`, for budgets of seconds.
    """

    def __init__(self, threads: int = 1, clock: str = "wall") -> None:
        self._threads, self._clock = threads, clock
        self._loaded: dict[str, Loaded] = {}
        self._settings: dict[str, SamplerSetting] = {}
        self._next: tuple[str, str] | None = None

    def define(self, setting: SamplerSetting) -> None:
        """Keep a sampler's setting under its label."""
        self._settings[setting.label] = setting

    def recall(self, rows: Sequence[Any]) -> None:
        """Take over nothing: every block is prepared for anew."""

    def hold(self, trial: Trial) -> None:
        """Load model and data.

        Raises:
            QpruneError: they cannot be loaded.
        """
        with limited_threads(self._threads):
            self._loaded[trial.title] = trial.load()

    def prepare(self, trial: str, label: str, budget: Budget) -> dict[str, float]:
        """Choose the next run; the sampler is made ready for each block, within the run."""
        self._next = (trial, label)
        return {}

    def sample(self, budget: Budget, seed: int) -> dict[str, Any]:
        """Make the run and return its fields of a row.

        Raises:
            QpruneError, SolverError: it failed.
        """
        assert self._next is not None, "prepare comes first"
        trial, label = self._next
        yardstick = Yardstick()
        sampler = Budgeted(self._settings[label], budget, self._clock, self._threads)
        with limited_threads(self._threads):
            pruned = self._loaded[trial].prune(sampler, seed, [yardstick])
        return outcome(pruned, yardstick)


def outcome(pruned: Pruned, yardstick: Yardstick) -> dict[str, Any]:
    """Return the fields of a row that come from a run; see `qprune.study.compare_pruning`."""
    report = pruned.report
    asked = [step for step in report.steps if step.kind == "blocks"]
    taken = [step for step in asked if step.accepted]
    return {
        "sparsity": report.achieved_sparsity,
        **_scores("dense", report.dense),
        **_scores("start", report.start),
        **_scores("final", report.final),
        "accept_loss": report.steps[-1].loss if report.steps else None,
        "steps": len(asked),
        "accepted": len(taken),
        "accepted_share": len(taken) / len(asked) if asked else None,
        "predicted": _total(taken, lambda step: step.predicted or 0.0),
        "real": _total(taken, _at_once),
        "flips": int(sum(step.flips for step in taken)),
        "blocks": len(yardstick.energies),
        "energy_mean": _mean(yardstick.energies),
        "missed_mean": _mean(yardstick.missed),
        "missed_median": _median(yardstick.missed),
        "uncertain_median": _median(yardstick.uncertain),
        "sampler_seconds": yardstick.sampler_seconds,
        "sampler_cpu_seconds": yardstick.sampler_cpu_seconds,
        "preparation_seconds": yardstick.preparation_seconds,
        "cpu_seconds": report.cpu_seconds - yardstick.spent,
        "seconds": report.seconds,
        "trace": [
            [step.stage, step.round, int(step.accepted), step.predicted, _at_once(step), step.loss]
            for step in asked
        ],
    }


def _scores(name: str, score: Score | None) -> dict[str, float | None]:
    found = None if score is None else score.accuracy
    return {f"{name}_accuracy": found, f"{name}_loss": None if score is None else score.loss}


def _at_once(step: Step) -> float:
    """The change that was predicted: before kept weights moved."""
    return step.real if step.at_once is None else step.at_once


def _total(steps: Sequence[Step], of: Callable[[Step], float]) -> float:
    return float(sum(of(step) for step in steps))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _median(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if values else None
