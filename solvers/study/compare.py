"""Samplers compared: every trial by every sampler, in a fair order, every outcome a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    MissingPackageError,
    ProblemTooLargeError,
    StudyError,
    WorkerDiedError,
)
from solvers.host.disk import bits_of
from solvers.host.machine import now, session
from solvers.host.worker import Worker
from solvers.study.bench import RECALLED, Bench
from solvers.study.budgets import Budget
from solvers.study.instances import Instance, checked_instances
from solvers.study.plan import Plan, PlannedRun
from solvers.study.storage import (
    ProblemRecord,
    ProblemRow,
    StoredRecord,
    StoredRow,
    StudyFolder,
    checked_rows,
    read_record,
    read_rows,
)

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Observer = Callable[[Row, int, int], None]
"""Called with every row, how many rows there are, and how many there will be."""

#: Fields of a run's key, unique within its study.
_KEY = ("problem", "sampler", "budget_kind", "budget", "repeat")
_BY_THE_CLOCK = ("seconds", "cpu_seconds", "build_seconds", "warmup_seconds", "started")
#: A best-known value is beaten by an energy lower by this share: tables are rounded.
BEATEN_BY = 1e-6
#: Seconds for compiling kernels, building models and choosing penalties, before any run.
PREPARATION = 600.0
#: Beginning of the reason of a pair that was not ready in that time; it is not tried again.
UNREADY = "not ready to run: "
_INCOMPATIBLE = (
    InvalidOptionError,
    InvalidProblemError,
    MissingPackageError,
    ProblemTooLargeError,
)


class Trial(Protocol):
    """Thing that every sampler of a study is run on: a problem; in `qprune.study` a pruning run."""

    @property
    def title(self) -> str:
        """Unique in a study; the column ``problem``."""
        ...

    def to_json(self) -> dict[str, Any]:
        """All that decides its runs but the sampler, JSON-friendly."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of study: where its trials are run, and what a row and the record hold.

    Attributes:
        bench: made in the worker process of threads and clock; has the methods of
            `solvers.study.bench.Bench` that are called here.
        row, record: models of what is stored.
        marks: further fields of the record, by which studies of two kinds differ.
        loading_limit: seconds that a trial may take to be loaded into the process; None where
            nothing is loaded. Else the first one is loaded before there is a folder.
        paired: True if all runs of one repeat share their seed; else each has its own.
    """

    bench: Callable[[int, str], Any]
    row: type[StoredRow]
    record: type[StoredRecord]
    marks: Mapping[str, Any] = field(default_factory=dict[str, Any])
    loading_limit: float | None = None
    paired: bool = False

    def facts(self, trial: Any) -> Row:
        """Columns that describe the trial."""
        return {}

    def outcome(self, trial: Any, found: Row) -> Row:
        """Columns of the answer ``found`` in the worker process."""
        return found


class _Problems(Kind):
    """Samplers on problems, each an `Instance`."""

    def facts(self, trial: Instance) -> Row:
        return {"n": trial.problem.num_variables, "num_groups": trial.problem.num_groups}

    def outcome(self, trial: Instance, found: Row) -> Row:
        beaten = _beaten(trial, found["energy"], found["state"])
        return found | {"beaten": beaten, "state": found["state"] if beaten else None}


PROBLEMS = _Problems(Bench, ProblemRow, ProblemRecord)
#: Fields of a row that come from sampling; None in the row of a run without an answer.
ANSWERED = tuple(n for n, v in ProblemRow.unanswered().items() if v is None and n != "state")


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a study of any kind, and the record of what was run.

    Attributes:
        record: what ``study.json`` holds: ``problems``, ``samplers``, ``budgets``,
            ``repeats``, ``seed``, ``time_limit``, ``threads``, ``sessions``.
        row_list: the rows, in the order in which they ran.
        folder: where they are stored; None if they are not.
    """

    record: Mapping[str, Any]
    row_list: Sequence[Row]
    folder: Path | None = None

    @property
    def complete(self) -> bool:
        """True if every run has its row."""
        return len(self.row_list) >= self.record["runs"]

    def table(self, kind: type[StoredRow]) -> pd.DataFrame:
        """One line per row; what may be a number or empty is a float."""
        import pandas as pd

        frame = pd.DataFrame(list(self.row_list))
        return frame.astype({name: float for name in kind.numbers() if name in frame})


class Study(Rows):
    """A study of samplers on problems.

    Example:
        >>> from solvers.study.instances import generate
        >>> one = generate("fisher:n=16,samples=4,count=8,seed=1")
        >>> study = compare([one], ["greedy"], ["1reads"], repeats=1)
        >>> study.complete, len(study.rows)
        (True, 1)
    """

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per run; see `compare` for the columns."""
        return self.table(ProblemRow)

    @cached_property
    def problems(self) -> pd.DataFrame:
        """One row per problem: what was known before, ``best_seen``, ``best_known``, ``beaten``."""
        import pandas as pd

        table = pd.DataFrame([dict(one) for one in self.record["problems"]])
        lowest: dict[str, float] = {}
        for row in self.row_list:
            if row["status"] == "ok":
                lowest[row["problem"]] = min(row["energy"], lowest.get(row["problem"], np.inf))
        table["known"] = table["known"].astype(float)
        table["bound"] = table["bound"].astype(float)
        table["best_seen"] = table["problem"].map(lowest).astype(float)
        table["best_known"] = table[["known", "best_seen"]].min(axis=1)
        flagged = {row["problem"] for row in self.row_list if row.get("beaten")}
        table["beaten"] = table["problem"].isin(flagged)
        return table


def compare(
    problems: Iterable[Instance],
    samplers: Iterable[Any],
    budgets: Iterable[str | Budget],
    repeats: int = 3,
    seed: int = 0,
    *,
    folder: str | Path | None = None,
    time_limit: float | None = None,
    prepare_limit: float = PREPARATION,
    threads: int = 1,
    clock: str = "wall",
    observe: Observer | Sequence[Observer] = (),
) -> Study:
    """Run every sampler on every problem with every budget, ``repeats`` times.

    Only sampling is timed; building models, choosing penalties, compiling and warming up are
    noted apart. Energies and counts are the problem's own, in float64, of what the sampler
    returned. Runs go in a random order (`solvers.study.plan.ordered_runs`), one at a time, in
    a process that is killed when a run exceeds its limit, and replaced when it crashes.

    A sampler that cannot count gets the counts as a penalty whose strength a short, untimed
    trial has chosen, and its answers are repaired, untimed too. Under a budget of seconds,
    sweeps are reduced where not even one read of the sampler's usual number fits, unless
    ``num_sweeps`` is among its options.

    Args:
        problems: `read_instances`, `generate`, or your own `Instance`.
        samplers: each a name, ``(name, options)`` or ``(label, name, options)``; an importable
            sampler class or object in place of the name will do.
        budgets: like ``"0.5s"``, ``"100reads"`` (of ``num_reads``), ``"1000sweeps"``.
        repeats: runs that differ in nothing but their seed.
        seed: decides the order and all seeds.
        folder: where rows are stored as they come; a folder with the same study goes on.
        time_limit: seconds after which a run is killed; default the larger of 60 and ten
            times the longest budget.
        prepare_limit: seconds for making a sampler and a problem ready, untimed; a pair that
            takes longer is tried once, and its other runs are "timeout" too.
        threads: number of threads of BLAS, OpenMP and numba in the samplers.
        clock: what measures seconds: "wall"; or "cpu", on a machine with other work, for
            samplers of one thread that run here. Limits go by it too.
        observe: called with every row.

    Returns:
        A study, whose ``rows`` have: ``problem, n, num_groups, sampler`` (the label)``, name,
        options, budget_kind, budget, repeat, seed, order, status`` ("ok", "timeout",
        "crashed", "incompatible")``, reason, energy`` (best after repair)``, energy_raw_best``
        (best feasible before repair)``, num_reads, num_best, feasible_share`` (before
        repair)``, energies`` (of at most 1,000 reads)``, seconds, cpu_seconds, build_seconds,
        warmup_seconds, lower_bound, trace`` ([seconds, best energy] after each
        improvement)``, settings`` (options as called)``, beaten, state`` (where a best-known
        value was beaten: the state's bits)``, started``.

    Raises:
        StudyError: no problem, sampler or budget; two of one name; no common budget; a number
            that is out of range.
        UnknownSamplerError, UnknownOptionError: a sampler or option does not exist.
        StudyFolderError: the folder holds another study, or cannot be used.

    Example:
        >>> from solvers.study import compare, generate
        >>> study = compare([generate("fisher:n=16")], ["greedy"], ["2reads"], repeats=1)
        >>> study.rows.status.tolist()
        ['ok']
    """
    plan = Plan.of(
        samplers,
        budgets,
        repeats,
        seed,
        threads=threads,
        clock=clock,
        time_limit=time_limit,
        prepare_limit=prepare_limit,
    )
    return Study(*carry_out(PROBLEMS, checked_instances(problems), plan, folder, observe))


def read_study(folder: str | Path) -> Study:
    """The study in a folder, finished or not.

    Raises:
        StudyFolderError: no study is there, or it cannot be read.

    Example:
        >>> import tempfile
        >>> from solvers.study.instances import generate
        >>> folder = tempfile.mkdtemp()
        >>> problem = generate("fisher:n=16,samples=4,count=8,seed=1")
        >>> _ = compare([problem], ["greedy"], ["1reads"], repeats=1, folder=folder)
        >>> read_study(folder).complete
        True
    """
    path = Path(folder)
    return Study(read_record(path, ProblemRecord), read_rows(path, ProblemRow), path)


# -- carried out ---------------------------------------------------------------------------


def carry_out(
    kind: Kind,
    trials: Sequence[Trial],
    plan: Plan,
    folder: str | Path | None,
    observe: Observer | Sequence[Observer],
) -> tuple[Mapping[str, Any], list[Row], Path | None]:
    """Make every run of a study that has no row yet; the fields of `Rows`.

    Raises:
        StudyFolderError: the folder holds another study, or cannot be used.
        Exception: a trial cannot be loaded.
    """
    runs = plan.runs([one.title for one in trials], paired=kind.paired)
    problems = [{"problem": one.title, **one.to_json()} for one in trials]
    record = {**kind.marks, "problems": problems, **plan.to_json(), "runs": len(runs)}
    home = None if folder is None else StudyFolder(Path(folder))
    here = session(plan.threads)
    observers = (observe,) if callable(observe) else tuple(observe)
    with _Runner(kind, trials, plan) as runner:
        if kind.loading_limit is not None and (home is None or not home.begun):
            runner.load(trials[0])  # Where it cannot be loaded, no folder is left behind.
        if home is not None:
            runner.add(*checked_rows(home.begin(record, here), kind.row, home.path))
        done = {_key(row) for row in runner.rows}
        for run in runs:
            if run.key in done:
                continue
            row = runner.row(run)
            if home is not None:
                home.append(row)
            runner.add(row)
            for tell in observers:
                tell(row, len(runner.rows), len(runs))
    rows = runner.rows
    if home is None:
        return {**record, "sessions": [here]}, rows, None
    return read_record(home.path), rows, home.path


class _Runner:
    """Makes runs in a worker process, which is replaced when it dies.

    Attributes:
        rows: so far; options chosen for a pair are recalled from them in a new process.
    """

    def __init__(self, kind: Kind, trials: Sequence[Trial], plan: Plan) -> None:
        self.rows: list[Row] = []
        self._kind, self._plan = kind, plan
        self._trials = {one.title: one for one in trials}
        self._settings = {one.label: one for one in plan.settings}
        self._loaded: set[str] = set()
        self._late: dict[tuple[str, str], str] = {}
        made_there = partial(kind.bench, plan.threads, plan.clock)
        self._worker = Worker(made_there, self._greet, plan.clock)

    def __enter__(self) -> _Runner:
        self._worker.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._worker.__exit__(*error)

    def _greet(self, worker: Worker) -> None:
        self._loaded.clear()
        for setting in self._plan.settings:
            worker.call("define", setting)
        chosen = [row for row in self.rows if row.get("settings") is not None]
        worker.call("recall", [{name: row[name] for name in RECALLED} for row in chosen])

    def load(self, trial: Trial) -> None:
        """Send a trial to the process, if it is not there."""
        self._worker.ensure()  # A new process has none.
        if trial.title not in self._loaded:
            self._worker.call("hold", trial, limit=self._kind.loading_limit)
            self._loaded.add(trial.title)

    def add(self, *rows: Row) -> None:
        """Take note of rows; a pair that was not ready in time is not tried again."""
        self.rows += rows
        for row in rows:
            if row["status"] == "timeout" and row["reason"].startswith(UNREADY):
                self._late[row["problem"], row["sampler"]] = row["reason"]

    def row(self, run: PlannedRun) -> Row:
        """Make a run; a failure is a row, too.

        Raises:
            StudyError: the trial or the sampler cannot be sent to the process.
            Exception: the trial cannot be loaded.
        """
        setting = self._settings[run.label]
        row = {
            "problem": run.problem,
            **self._kind.facts(self._trials[run.problem]),
            "sampler": run.label,
            "name": setting.name,
            "options": dict(setting.options),
            "budget_kind": run.budget.kind,
            "budget": run.budget.amount,
            "repeat": run.repeat,
            "seed": run.seed,
            "order": run.order,
            "status": "ok",
            "reason": "",
            **self._kind.row.unanswered(),
            "started": now(),
        }
        refused = self._plan.refused.get((run.label, run.budget.kind))
        if refused:
            return row | {"status": "incompatible", "reason": refused}
        late = self._late.get((run.problem, run.label))
        return row | ({"status": "timeout", "reason": late} if late else self._found(run))

    def _found(self, run: PlannedRun) -> Row:
        """Columns that a run adds to its row, also when it fails."""
        trial, call, doing = self._trials[run.problem], self._worker.call, ""
        try:
            self._worker.ensure()
            doing = UNREADY
            self.load(trial)
            try:
                limit = self._plan.prepare_limit
                times = call("prepare", run.problem, run.label, run.budget, limit=limit)
                doing = ""
                found = call("sample", run.budget, run.seed, limit=self._plan.time_limit)
            except (StudyError, WorkerDiedError):
                raise
            except _INCOMPATIBLE as error:
                return {"status": "incompatible", "reason": _one_line(error)}
            except Exception as error:
                reason = f"{type(error).__name__}: {_one_line(error)}"
                return {"status": "crashed", "reason": reason}
        except WorkerDiedError as died:
            status = "timeout" if died.timed_out else "crashed"
            return {"status": status, "reason": f"{doing}{died}"}
        return self._kind.outcome(trial, found | times)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _beaten(instance: Instance, energy: float, state: str) -> bool:
    """True if the state, evaluated here once more, has less than the best-known energy."""
    if instance.known is None:
        return False
    margin = BEATEN_BY * max(1.0, abs(instance.known))
    if energy >= instance.known - margin:
        return False
    x = bits_of(state, instance.problem.num_variables)
    feasible = bool(instance.problem.feasible(x)[0])
    return feasible and instance.problem.energy(x) < instance.known - margin


def untimed(rows: Iterable[Row]) -> list[Row]:
    """The rows without times: equal for equal studies by reads or sweeps, stopped or not."""
    kept = [{name: row[name] for name in row if name not in _BY_THE_CLOCK} for row in rows]
    return [row | {"trace": [energy for _, energy in row["trace"] or ()]} for row in kept]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
