"""The plan of a study: runs, order and seeds, decided before anything runs.

Compare samplers on problems: every run in a fair order, every outcome a row.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    MissingPackageError,
    ProblemTooLargeError,
    SamplerFailedError,
    StudyError,
    WorkerDiedError,
)
from solvers.host.legible import legible
from solvers.host.machine import now, session
from solvers.host.ranges import MAX_SECONDS, Repeats, Seed, Threads, checked
from solvers.host.ranges import Seconds as Limit
from solvers.host.worker import Worker
from solvers.study.bench import RECALLED, Bench, SamplerSetting, foreign_child, made
from solvers.study.budgets import (
    CLOCK_OPTIONS,
    CLOCKS,
    SWEEP_OPTIONS,
    Budget,
    Seconds,
    parse_budget,
)
from solvers.study.instances import Instance, checked_instances
from solvers.study.storage import StudyFolder, checked_record, checked_rows, read_record, read_rows

#: Options that the study sets itself, by the kind of budget.
_RESERVED: Mapping[str, tuple[str, ...]] = {
    "seconds": tuple(CLOCK_OPTIONS),
    "reads": ("num_reads",),
    "sweeps": SWEEP_OPTIONS,
}
#: The most runs of a study: each is a row in memory, and takes some milliseconds.
MAX_RUNS = 1_000_000
_RANGES: Mapping[str, Any] = {
    "repeats": Repeats,
    "seed": Seed,
    "threads": Threads,
    "time_limit": Limit,
    "prepare_limit": Limit,
}


def require_in_range(**numbers: Any) -> None:
    """Refuse arguments of a study that are out of range; None passes.

    Raises:
        StudyError: names the first, and its range.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        try:
            checked(_RANGES[name], value, name)
        except ValueError as error:
            raise StudyError(str(error)) from error


@dataclass(frozen=True)
class Run:
    """One run, planned.

    Attributes:
        order: its position in the order of runs, from 0.
        seed: of the sampler.
    """

    order: int
    problem: str
    label: str
    budget: Budget
    repeat: int
    seed: int

    @property
    def key(self) -> tuple[str, str, str, float, int]:
        """The key of the run, unique within the study."""
        return (self.problem, self.label, self.budget.kind, self.budget.amount, self.repeat)


def as_setting(sampler: Any) -> SamplerSetting:
    """A name, ``(name, options)``, ``(label, name, options)`` or a setting, as a setting.

    A sampler class or object that can be pickled may take the place of a name.

    Raises:
        StudyError: it is none of these.

    Example:
        >>> as_setting(("long", "swap-anneal", {"num_sweeps": 5000})).name
        'swap-anneal'
    """
    if isinstance(sampler, SamplerSetting):
        return sampler
    parts = sampler if isinstance(sampler, tuple) else (sampler,)
    if len(parts) == 1:
        parts = (parts[0], {})
    if len(parts) == 2:
        named = isinstance(parts[0], str)
        name = parts[0] if named else _class_name(parts[0])
        written = ",".join(f"{key}={value}" for key, value in parts[1].items())
        parts = (f"{name}({written})" if written else name, *parts)
    if len(parts) != 3 or not isinstance(parts[0], str) or not isinstance(parts[2], Mapping):
        raise StudyError(
            f"a sampler is a name, (name, options) or (label, name, options), not {sampler!r}"
        )
    label, what, options = parts
    if isinstance(what, str):
        return SamplerSetting(label, what, dict(options))
    return SamplerSetting(label, _class_name(what), dict(options), what)


def checked_settings(samplers: Iterable[Any]) -> tuple[SamplerSetting, ...]:
    """Settings with labels of their own.

    Raises:
        StudyError: there are none, two have one label, or a label holds a NUL.
    """
    settings = tuple(as_setting(sampler) for sampler in samplers)
    if not settings:
        raise StudyError("a study needs at least one sampler; none was given")
    labels = [setting.label for setting in settings]
    for label in labels:
        if "\0" in label:
            # NUL separates the words that a seed is made of, and pandas cuts text there.
            raise StudyError(f"the label {legible(label, 60)} holds a NUL; leave it out")
        if labels.count(label) > 1:
            raise StudyError(
                f"two samplers have the label {label!r}; give one another, as in other={label}"
            )
    return settings


def refusals(
    settings: Sequence[SamplerSetting], budgets: Sequence[Budget]
) -> dict[tuple[str, str], str]:
    """(label, kind of budget) -> reason why that sampler cannot keep it, for those that cannot.

    A sampler whose package is missing refuses all.

    Raises:
        StudyError: no budget is common to all samplers that are installed; or an option is
            both in a setting and the budget's.
        UnknownSamplerError, UnknownOptionError: a sampler or option does not exist.
    """
    refused: dict[tuple[str, str], str] = {}
    absent: set[str] = set()
    for setting in settings:
        try:
            takes = _options_of(setting)
        except (MissingPackageError, SamplerFailedError) as error:
            absent.add(setting.label)
            refused |= {(setting.label, budget.kind): str(error) for budget in budgets}
            continue
        for budget in budgets:
            _refuse_reserved(setting, budget)
            reason = budget.refusal(takes)
            if reason:
                refused[setting.label, budget.kind] = f"no budget in {budget.kind}: {reason}"
    here = [setting.label for setting in settings if setting.label not in absent]
    kinds = {budget.kind for budget in budgets}
    if here and not any(all((one, kind) not in refused for one in here) for kind in kinds):
        one, kind = next(key for key in refused if key[0] in here)
        raise StudyError(
            f"the samplers have no common budget: {one} has {refused[one, kind]}; "
            "every sampler can keep seconds, as in 0.5s"
        )
    return refused


def ordered_runs(
    problems: Sequence[str],
    labels: Sequence[str],
    budgets: Sequence[Budget],
    repeats: int,
    seed: int,
) -> list[Run]:
    """Every run, in a random order that the seed decides.

    In each repeat the problems are shuffled, and on each problem all samplers and budgets:
    competing runs are close in time, so that load on the machine affects all alike, and a
    model is built once for all that share it. A run's seed depends on its key, not on its
    position.
    """
    number = repeats * len(problems) * len(labels) * len(budgets)
    if number > MAX_RUNS:
        raise StudyError(
            f"{len(problems):,} problems, {len(labels)} samplers, {len(budgets)} budgets and "
            f"{repeats:,} repeats are {number:,} runs; a study has at most {MAX_RUNS:,}"
        )
    rng = np.random.default_rng(seed)
    runs: list[Run] = []
    for repeat in range(repeats):
        for p in map(int, rng.permutation(len(problems))):
            pairs = [(label, budget) for label in labels for budget in budgets]
            for i in map(int, rng.permutation(len(pairs))):
                label, budget = pairs[i]
                words = (problems[p], label, budget.kind, repr(float(budget.amount)), str(repeat))
                own = seed_of(seed, *words)
                runs.append(Run(len(runs), problems[p], label, budget, repeat, own))
    return runs


def seed_of(seed: int, *words: str) -> int:
    """A seed of 31 bits, derived from the words.

    Example:
        >>> seed_of("0", "a") == seed_of("0", "b")
        False
    """
    digest = zlib.crc32("\0".join(words).encode(errors="surrogatepass"))
    return int(np.random.SeedSequence([seed, digest]).generate_state(1)[0]) % 2**31


def _class_name(sampler: Any) -> str:
    return sampler.__name__ if isinstance(sampler, type) else type(sampler).__name__


def _options_of(setting: SamplerSetting) -> frozenset[str]:
    """The options of a call of the sampler, as a study calls it."""
    sampler, _ = made(setting)
    child = foreign_child(sampler)
    return frozenset(sampler.parameters if child is None else child.parameters)


def _refuse_reserved(setting: SamplerSetting, budget: Budget) -> None:
    both = [name for name in _RESERVED[budget.kind] if name in setting.options]
    if both:
        raise StudyError(
            f"sampler {setting.label!r}: {both[0]} is set by the budget of {budget.kind}; "
            "leave it out, or choose another kind of budget"
        )


if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
Observer = Callable[[Row, int, int], None]
"""Called with every row, how many rows there are, and how many there will be."""

#: Fields of a row that come from sampling; None in the row of a run without an answer.
ANSWERED = (
    "energy",
    "energy_raw_best",
    "num_reads",
    "num_best",
    "feasible_share",
    "energies",
    "seconds",
    "cpu_seconds",
    "build_seconds",
    "warmup_seconds",
    "lower_bound",
    "trace",
    "settings",
)
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


@dataclass(frozen=True, eq=False)
class Study:
    """The rows of a study, and the record of what was run.

    Attributes:
        record: what ``study.json`` holds: ``problems``, ``samplers``, ``budgets``,
            ``repeats``, ``seed``, ``time_limit``, ``threads``, ``sessions``.
        row_list: the rows, in the order in which they ran.
        folder: where they are stored; None if they are not.

    Example:
        >>> from solvers.study.instances import generate
        >>> one = generate("fisher:n=16,samples=4,count=8,seed=1")
        >>> study = compare([one], ["greedy"], ["1reads"], repeats=1)
        >>> study.complete, len(study.rows)
        (True, 1)
    """

    record: Mapping[str, Any]
    row_list: Sequence[Row]
    folder: Path | None = None

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per run; see `compare` for the columns."""
        import pandas as pd

        frame = pd.DataFrame(list(self.row_list))
        for name in ("energy", "energy_raw_best", "lower_bound", "seconds", "cpu_seconds"):
            if name in frame:
                frame[name] = frame[name].astype(float)
        return frame

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

    @property
    def complete(self) -> bool:
        """True if every run has its row."""
        return len(self.row_list) >= self.record["runs"]


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
    returned. Runs go in a random order (`solvers.study.compare.ordered_runs`), one at a time, in
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
    instances = checked_instances(problems)
    settings = checked_settings(samplers)
    allowed = checked_budgets(budgets)
    require_in_range(
        repeats=repeats,
        seed=seed,
        threads=threads,
        time_limit=time_limit,
        prepare_limit=prepare_limit,
    )
    if clock not in CLOCKS:
        raise StudyError(f"the clock is one of {', '.join(CLOCKS)}, not {clock!r}")
    limits = (_limit(allowed, time_limit), float(prepare_limit))
    refused = refusals(settings, allowed)
    labels = [one.label for one in settings]
    runs = ordered_runs([one.name for one in instances], labels, allowed, repeats, seed)
    record = {
        "problems": [one.to_json() for one in instances],
        "samplers": [
            {"label": s.label, "name": s.name, "options": dict(s.options)} for s in settings
        ],
        "budgets": [{"kind": b.kind, "amount": b.amount} for b in allowed],
        "repeats": repeats,
        "seed": seed,
        "time_limit": limits[0],
        "prepare_limit": limits[1],
        "threads": threads,
        "clock": clock,
        "runs": len(runs),
    }
    home = None if folder is None else StudyFolder(Path(folder))
    here = session(threads)
    rows = [] if home is None else checked_rows(home.begin(record, here), home.path)
    observers = (observe,) if callable(observe) else tuple(observe)
    done = {_key(row) for row in rows}
    unready = {pair: row["reason"] for row in rows for pair in _unready(row)}
    by_label = {one.label: one for one in settings}

    def greet(worker: Worker) -> None:
        for setting in settings:
            worker.call("define", setting)
        answered = [row for row in rows if row["status"] == "ok"]
        worker.call("recall", [{name: row[name] for name in RECALLED} for row in answered])
        sent.clear()

    sent: set[str] = set()
    by_name = {one.name: one for one in instances}
    with Worker(partial(Bench, threads, clock), greet, clock) as worker:
        for run in runs:
            if run.key in done:
                continue
            instance, setting = by_name[run.problem], by_label[run.label]
            row = _blank(run, instance) | {"name": setting.name, "options": dict(setting.options)}
            reason = refused.get((run.label, run.budget.kind))
            if reason:
                row |= {"status": "incompatible", "reason": reason}
            elif (run.problem, run.label) in unready:
                row |= {"status": "timeout", "reason": unready[run.problem, run.label]}
            else:
                row |= _outcome(worker, sent, run, instance, limits)
            unready |= dict.fromkeys(_unready(row), row["reason"])
            if home is not None:
                home.append(row)
            rows.append(row)
            for tell in observers:
                tell(row, len(rows), len(runs))
    full = {**record, "sessions": [here]} if home is None else read_record(home.path)
    return Study(full, rows, None if home is None else home.path)


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
    return Study(checked_record(read_record(path), path), checked_rows(read_rows(path), path), path)


def checked_budgets(budgets: Iterable[str | Budget]) -> tuple[Budget, ...]:
    """The budgets, if there are any, each once.

    Raises:
        StudyError: otherwise.
    """
    found = tuple(parse_budget(budget) for budget in budgets)
    if not found:
        raise StudyError("a study needs at least one budget, such as 0.5s; none was given")
    keys = [(budget.kind, budget.amount) for budget in found]
    if len(set(keys)) != len(keys):
        raise StudyError("a budget is given twice; give each once")
    return found


def _limit(budgets: Sequence[Budget], time_limit: float | None) -> float:
    longest = max([b.amount for b in budgets if isinstance(b, Seconds)], default=0.0)
    if time_limit is None:
        return min(max(60.0, 10.0 * longest), MAX_SECONDS)
    if not time_limit > longest:
        raise StudyError(f"time_limit must exceed the longest budget, {longest:g} s")
    return float(time_limit)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    names = ("problem", "sampler", "budget_kind", "budget", "repeat")
    return tuple(row[name] for name in names)


def _blank(run: Run, instance: Instance) -> Row:
    """A row before its run."""
    return {
        "problem": run.problem,
        "n": instance.problem.num_variables,
        "num_groups": instance.problem.num_groups,
        "sampler": run.label,
        "name": "",
        "options": {},
        "budget_kind": run.budget.kind,
        "budget": run.budget.amount,
        "repeat": run.repeat,
        "seed": run.seed,
        "order": run.order,
        "status": "ok",
        "reason": "",
        **dict.fromkeys(ANSWERED),
        "beaten": False,
        "state": None,
        "started": now(),
    }


def _unready(row: Row) -> list[tuple[str, str]]:
    """The row's (problem, sampler) if they were not ready in time, else an empty list."""
    late = row["status"] == "timeout" and row["reason"].startswith(UNREADY)
    return [(row["problem"], row["sampler"])] if late else []


def _outcome(
    worker: Worker, sent: set[str], run: Run, instance: Instance, limits: tuple[float, float]
) -> Row:
    """The columns that a run adds to its row, also when it fails; ``limits``: run, preparing."""
    doing = ""
    try:
        # The first call of a new process empties `sent`.
        worker.ensure()
        if run.problem not in sent:
            worker.call("hold", run.problem, instance.problem)
            sent.add(run.problem)
        doing = UNREADY
        ready = worker.call("prepare", run.problem, run.label, run.budget, limit=limits[1])
        doing = ""
        found = worker.call("sample", run.budget, run.seed, limit=limits[0])
    except StudyError:
        raise
    except WorkerDiedError as died:
        status = "timeout" if died.timed_out else "crashed"
        return {"status": status, "reason": f"{doing}{died}"}
    except _INCOMPATIBLE as error:
        return {"status": "incompatible", "reason": _one_line(error)}
    except Exception as error:
        return {"status": "crashed", "reason": f"{type(error).__name__}: {_one_line(error)}"}
    state = found.pop("state")
    times = {"build_seconds": ready.build_seconds, "warmup_seconds": ready.warmup_seconds}
    beaten = _beaten(instance, found["energy"], state)
    return {**found, **times, "beaten": beaten, "state": state if beaten else None}


def _beaten(instance: Instance, energy: float, state: str) -> bool:
    """True if the state, evaluated here once more, has less than the best-known energy."""
    if instance.known is None:
        return False
    margin = BEATEN_BY * max(1.0, abs(instance.known))
    if energy >= instance.known - margin:
        return False
    x = unpacked(state, instance.problem.num_variables)
    feasible = bool(instance.problem.feasible(x)[0])
    return feasible and instance.problem.energy(x) < instance.known - margin


def unpacked(state: str, size: int) -> np.ndarray:
    """A row's ``state`` as 0 and 1, shape (size,)."""
    bits = np.frombuffer(bytes.fromhex(state), dtype=np.uint8)
    return np.unpackbits(bits, count=size).astype(np.int8)


def untimed(rows: Iterable[Row]) -> list[Row]:
    """The rows without times: equal for equal studies by reads or sweeps, stopped or not."""
    kept = [{name: row[name] for name in row if name not in _BY_THE_CLOCK} for row in rows]
    return [row | {"trace": [energy for _, energy in row["trace"] or ()]} for row in kept]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
