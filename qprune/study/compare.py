"""Pruning study: one sampler after another, everything else equal; one row per run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qprune.study.trial import Trial
from qprune.study.yardstick import REFERENCE, PruningBench, PruningRow
from solvers.errors import StudyError
from solvers.study.budgets import Budget
from solvers.study.compare import Kind, Observer, Rows, carry_out
from solvers.study.plan import Plan
from solvers.study.storage import StoredRecord, read_record, read_rows

if TYPE_CHECKING:
    import pandas as pd

#: Pruning runs as a kind of study. Loading may train a network that has no weight file.
PRUNING = Kind(
    PruningBench,
    PruningRow,
    StoredRecord,
    {"kind": "pruning", "reference": REFERENCE},
    loading_limit=1800.0,
    paired=True,
)


class PruningStudy(Rows):
    """Rows of a pruning study, with its record."""

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Table of one row per run, samplers in the study's order; see `compare_pruning`."""
        from solvers.study.measures import in_order

        trials, samplers = self.record["problems"], self.record["samplers"]
        names = [one["problem"] for one in trials], [one["label"] for one in samplers]
        return in_order(self.table(PruningRow), *names)


def compare_pruning(
    trial: Trial,
    samplers: Iterable[Any],
    budgets: Iterable[str | Budget],
    repeats: int = 3,
    seed: int = 0,
    *,
    folder: str | Path | None = None,
    time_limit: float = 3600.0,
    threads: int = 1,
    clock: str = "wall",
    observe: Observer | Sequence[Observer] = (),
) -> PruningStudy:
    """Prune with every sampler and every budget, ``repeats`` times; see `solvers.study.compare`.

    The budget limits the sampler on each block (`solvers.study.bench`), so that all
    samplers have the same time and the same rounds; building models and warming up is not
    counted. Runs of one repeat share their seed, and with it calibration samples, splits and
    first pass. With budgets in seconds a run does not repeat to the bit.

    Args:
        trial: a `ModelTrial`; or another `Trial`.
        samplers: each a name, ``(name, options)`` or ``(label, name, options)``.
        budgets: of one block, like ``"0.1s"``, ``"10reads"``, ``"1000sweeps"``.
        repeats: runs with the seeds ``seed``, ``seed + 1``, ...
        seed: decides the order and all seeds.
        folder: folder for the rows, stored as they come; a folder with the same study is resumed.
        time_limit: seconds after which a run is killed.
        threads: threads of the arithmetic and of the samplers.
        clock: clock for budgets of seconds and for limits: "wall"; or "cpu", on a machine with
            other work.
        observe: callback for every row.

    Returns:
        A study, whose ``rows`` have: ``problem`` (the trial's title)``, sampler`` (the label)``,
        name, options, budget_kind, budget, repeat, seed, order, status`` ("ok", "timeout",
        "crashed", "incompatible")``, reason, started``; on test data ``dense_accuracy,
        dense_loss, start_accuracy, start_loss`` (first pass alone)``, final_accuracy,
        final_loss``; ``accept_loss`` (at the end, on the acceptance split); of the steps that
        the sampler proposed: ``steps, accepted, accepted_share, flips``, and summed over those
        taken ``predicted`` and ``real`` change of the loss, nats; ``blocks`` answered, their
        ``energy_mean``, and of a block's possible decrease of energy the share not
        found, ``missed_mean, missed_median``, at most ``uncertain_median``; ``sampler_seconds``
        (by the clock)``, sampler_cpu_seconds, preparation_seconds, cpu_seconds, seconds``;
        ``trace`` ([stage, round, accepted, predicted, real, loss] of every proposal).

    Raises:
        StudyError: no sampler or budget; two of one name; no common budget.
        UnknownSamplerError, UnknownOptionError: a sampler or option does not exist.
        StudyFolderError: the folder holds another study, or cannot be used.
        QpruneError: model or data cannot be loaded.
    """
    if not hasattr(trial, "load"):
        raise StudyError(
            f"{trial!r:.60} is no trial; pass a ModelTrial, or qprune.cli.compare.SettingsTrial of "
            "the settings of a run"
        )
    plan = Plan.of(
        samplers, budgets, repeats, seed, threads=threads, clock=clock, time_limit=time_limit
    )
    return PruningStudy(*carry_out(PRUNING, [trial], plan, folder, observe))


def read_pruning_study(folder: str | Path) -> PruningStudy:
    """Read the study in a folder, finished or not.

    Raises:
        StudyFolderError: the folder holds no study, or it cannot be read.
        StudyError: it is a study of samplers on problems.
    """
    path = Path(folder)
    if read_record(path).get("kind") != PRUNING.marks["kind"]:
        raise StudyError(f"{path} holds a study of samplers on problems, not of pruning")
    return PruningStudy(read_record(path, StoredRecord), read_rows(path, PruningRow), path)
