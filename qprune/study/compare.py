"""Pruning study: one sampler after another, everything else equal; one row per run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qprune.jobs.settings import Settings
from qprune.study.trial import SettingsTrial, Trial
from qprune.study.yardstick import REFERENCE, PruningBench
from solvers.errors import StudyError, WorkerDiedError
from solvers.host.machine import now, session
from solvers.host.ranges import MAX_SEED
from solvers.host.worker import Worker
from solvers.study.bench import SamplerSetting
from solvers.study.budgets import CLOCKS, Budget
from solvers.study.compare import (
    Run,
    checked_budgets,
    checked_settings,
    ordered_runs,
    refusals,
    require_in_range,
)
from solvers.study.storage import STUDY, StudyFolder, read_record, read_rows

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Observer = Callable[[Row, int, int], None]
"""Progress callback: (row, rows so far, total)."""

KIND = "pruning"
#: Fields of a row that come from pruning; None in the row of a run that failed.
OUTCOME = (
    *("sparsity", "dense_accuracy", "dense_loss", "start_accuracy", "start_loss"),
    *("final_accuracy", "final_loss", "accept_loss", "steps", "accepted", "accepted_share"),
    *("predicted", "real", "flips", "blocks", "energy_mean", "missed_mean", "missed_median"),
    *("uncertain_median", "sampler_seconds", "sampler_cpu_seconds", "preparation_seconds"),
    *("cpu_seconds", "seconds", "trace"),
)
#: Time limit for loading model and data, or training a network without a weight file.
_PREPARATION = 1800.0


@dataclass(frozen=True, eq=False)
class PruningStudy:
    """Rows of a study, with its record.

    Attributes:
        record: content of ``study.json``.
        row_list: the rows, in the order of the runs.
        folder: folder of the study; None if not stored.
    """

    record: Mapping[str, Any]
    row_list: Sequence[Row]
    folder: Path | None = None

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Table of one row per run, samplers in the study's order; see `compare_pruning`."""
        import pandas as pd

        frame = pd.DataFrame(list(self.row_list))
        plain = [name for name in OUTCOME if name != "trace" and name in frame]
        frame[plain] = frame[plain].astype(float)
        places = {one["label"]: i for i, one in enumerate(self.record["samplers"])}
        frame["place"] = frame["sampler"].map(places)
        order = ["place", "budget_kind", "budget", "repeat"]
        return frame.sort_values(order, kind="stable").drop(columns="place").reset_index(drop=True)

    @property
    def complete(self) -> bool:
        """True if every run has its row."""
        return len(self.row_list) >= self.record["runs"]


def compare_pruning(
    trial: Trial | Settings,
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
    """Prune with every sampler and every budget, ``repeats`` times.

    The budget limits the sampler on each block (`solvers.study.bench`), so that all
    samplers have the same time and the same rounds; building models and warming up is not
    counted. Runs of one repeat share their seed, and with it calibration samples, splits and
    first pass. They go in a random order, one at a time, in a process that is killed when a run
    exceeds its limit, and replaced when it crashes. With budgets in seconds a run does not
    repeat to the bit.

    Args:
        trial: the settings of ``qprune prune``, or a `ModelTrial`.
        samplers: each a name, ``(name, options)`` or ``(label, name, options)``.
        budgets: of one block, like ``"0.1s"``, ``"10reads"``, ``"1000sweeps"``.
        repeats: runs with the seeds ``seed``, ``seed + 1``, ...
        seed: decides the order and all seeds.
        folder: folder for the rows, stored as they come; a folder with the same study is resumed.
        time_limit: seconds after which a run is killed.
        threads: threads of the arithmetic and of the samplers.
        clock: clock for budgets of seconds: "wall"; or "cpu", on a machine with other work.
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
    trial = SettingsTrial(trial) if isinstance(trial, Settings) else trial
    settings, allowed = checked_settings(samplers), checked_budgets(budgets)
    require_in_range(repeats=repeats, seed=seed, threads=threads, time_limit=time_limit)
    if clock not in CLOCKS:
        raise StudyError(f"the clock is one of {', '.join(CLOCKS)}, not {clock!r}")
    refused = refusals(settings, allowed)
    labels = [one.label for one in settings]
    runs = ordered_runs([trial.title], labels, allowed, repeats, seed)
    record = {
        "kind": KIND,
        "problems": [{"problem": trial.title, **trial.to_json()}],
        "samplers": [
            {"label": s.label, "name": s.name, "options": dict(s.options)} for s in settings
        ],
        "budgets": [{"kind": b.kind, "amount": b.amount} for b in allowed],
        "repeats": repeats,
        "seed": seed,
        "time_limit": float(time_limit),
        "threads": threads,
        "clock": clock,
        "reference": REFERENCE,
        "runs": len(runs),
    }
    home = None if folder is None else StudyFolder(Path(folder))
    here = session(threads)
    observers = (observe,) if callable(observe) else tuple(observe)
    by_label = {one.label: one for one in settings}

    def greet(worker: Worker) -> None:
        worker.call("hold", trial, limit=_PREPARATION)

    with Worker(partial(PruningBench, threads, clock), greet) as worker:
        if home is None or not (home.path / STUDY).exists():
            # Loaded first: a model that cannot be loaded leaves no folder behind.
            worker.ensure()
        rows = [] if home is None else home.begin(record, here)
        done = {_key(row) for row in rows}
        for run in runs:
            if run.key in done:
                continue
            setting = by_label[run.label]
            row = _blank(run, setting, (seed + run.repeat) % (MAX_SEED + 1))
            reason = refused.get((run.label, run.budget.kind))
            if reason:
                row |= {"status": "incompatible", "reason": reason}
            else:
                row |= _outcome(worker, setting, run, row["seed"], time_limit)
            if home is not None:
                home.append(row)
            rows.append(row)
            for tell in observers:
                tell(row, len(rows), len(runs))
    full = {**record, "sessions": [here]} if home is None else read_record(home.path)
    return PruningStudy(full, rows, None if home is None else home.path)


def read_pruning_study(folder: str | Path) -> PruningStudy:
    """Read the study in a folder, finished or not.

    Raises:
        StudyFolderError: the folder holds no study, or it cannot be read.
        StudyError: it is a study of samplers on problems.
    """
    path = Path(folder)
    record = read_record(path)
    if record.get("kind") != KIND:
        raise StudyError(f"{path} holds a study of samplers on problems, not of pruning")
    return PruningStudy(record, read_rows(path), path)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("problem", "sampler", "budget_kind", "budget", "repeat")
    return tuple(row[name] for name in names)


def _blank(run: Run, setting: SamplerSetting, seed: int) -> Row:
    """Return a row before its run."""
    return {
        "problem": run.problem,
        "sampler": run.label,
        "name": setting.name,
        "options": dict(setting.options),
        "budget_kind": run.budget.kind,
        "budget": run.budget.amount,
        "repeat": run.repeat,
        "seed": seed,
        "order": run.order,
        "status": "ok",
        "reason": "",
        **dict.fromkeys(OUTCOME),
        "started": now(),
    }


def _outcome(worker: Worker, setting: SamplerSetting, run: Run, seed: int, limit: float) -> Row:
    """Make the run and return its fields of the row; failures are fields, too."""
    # An error in loading ends the study, since no run could be made.
    worker.ensure()
    try:
        return worker.call("run", setting, run.budget, seed, limit=limit)
    except StudyError:
        raise
    except WorkerDiedError as died:
        return {"status": "timeout" if died.timed_out else "crashed", "reason": str(died)}
    except Exception as error:
        return {"status": "crashed", "reason": f"{type(error).__name__}: {_one_line(error)}"}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
