"""A worker's side of a study: a run prepared, so that only sampling is timed; made; and judged."""

from __future__ import annotations

import inspect
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import dimod
import numpy as np
from numpy.typing import NDArray

from solvers.ask import Ask, ProblemSampler
from solvers.foreign.border import ForeignSampler, checked_answer
from solvers.foreign.composite import CountingComposite
from solvers.foreign.local import steepest_descent
from solvers.foreign.penalty import CardinalityPenalty
from solvers.foreign.strength import penalised
from solvers.host.disk import bits_of, hex_of
from solvers.problem.problem import QuadraticProblem
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.sampler import CountingSampler
from solvers.study.budgets import CLOCKS, SWEEP_OPTIONS, Budget, Call, Clock, Seconds
from solvers.study.instances import Instance

#: Sweeps of a read where neither the user nor the sampler's signature has a number.
USUAL_SWEEPS = 1000
_TRIAL_READS = 10
#: Short work for warming up and for choosing a penalty; each where the sampler has the option.
_SHORT: Mapping[str, Any] = {
    "num_reads": 1,
    **dict.fromkeys(SWEEP_OPTIONS, 100),
    "num_iterations": 1000,
    "num_restarts": 0,
    "max_nodes": 1,
    "coefficient_z_first": 20,
    "coefficient_z_restart": 5,
    "lower_bound_z": 1000,
}


@dataclass(frozen=True, eq=False)
class Judged:
    """The answer of one call, before repair.

    Attributes:
        states: shape (reads, n), int8.
        lower_bound: certified by the sampler; -inf without one.
        repaired: share of states that the sampler itself repaired; 0 if it reports none.
    """

    states: NDArray[np.int8]
    lower_bound: float = -np.inf
    repaired: float = 0.0


class Asking(Protocol):
    """One sampler on one problem."""

    @property
    def takes(self) -> frozenset[str]:
        """Options that a call has."""
        ...

    @property
    def settled(self) -> Mapping[str, Any]:
        """Options of every call, those chosen for the sampler included."""
        ...

    @property
    def function(self) -> Callable[..., Any]:
        """The sampler's own method, whose signature has the defaults of its options."""
        ...

    def __call__(self, **options: Any) -> Any:
        """Sample; only this call is timed."""
        ...

    def judged(self, answer: Any) -> Judged:
        """The states of an answer of `__call__`."""
        ...

    def learned(self, answer: Any) -> dict[str, Any]:
        """Options that the sampler chose itself in its first answer, to be given to later calls."""
        ...


@dataclass(frozen=True, eq=False)
class Direct:
    """A sampler that takes problems and keeps counts."""

    ask: Ask
    problem: QuadraticProblem

    @property
    def takes(self) -> frozenset[str]:
        """Options of ``sample_problem``."""
        return frozenset(self.ask.sampler.parameters) - {"cardinality", "groups"}

    @property
    def settled(self) -> Mapping[str, Any]:
        """The user's options."""
        return self.ask.options

    @property
    def function(self) -> Callable[..., Any]:
        """``sample_problem``."""
        return self.ask.sampler.sample_problem

    def __call__(self, **options: Any) -> Any:
        """A `Solution`."""
        return self.ask.sampler.sample_problem(self.problem, **{**self.ask.options, **options})

    def judged(self, answer: Any) -> Judged:
        """The samples of a `Solution`."""
        repaired = float(answer.info.get("repaired", 0.0))
        return Judged(np.asarray(answer.samples, np.int8), float(answer.lower_bound), repaired)

    def learned(self, answer: Any) -> dict[str, Any]:
        """Nothing: our samplers choose anew in every call."""
        return {}


@dataclass(frozen=True, eq=False)
class Penalised:
    """A third party's sampler and its model: counts as a penalty, or no counts.

    Attributes:
        child: the sampler.
        bqm: over 0..n-1.
        options: the user's, those of the penalty taken out.
        strength: of the penalty; None without counts.
    """

    child: ForeignSampler
    bqm: dimod.BinaryQuadraticModel
    options: Mapping[str, Any]
    strength: float | None

    @property
    def takes(self) -> frozenset[str]:
        """Options of the child."""
        return self.child.theirs

    @property
    def settled(self) -> Mapping[str, Any]:
        """The user's options and the strength of the penalty."""
        chosen = {} if self.strength is None else {"strength": self.strength}
        return {**self.options, **chosen}

    @property
    def function(self) -> Callable[..., Any]:
        """``sample`` of the third party's object."""
        return self.child.child.sample

    def __call__(self, **options: Any) -> Any:
        """A resolved `dimod.SampleSet`, as the child made it."""
        answer = self.child.run(self.bqm, {**self.options, **options})
        if isinstance(answer, dimod.SampleSet):
            answer.resolve()
        return answer

    def judged(self, answer: Any) -> Judged:
        """Every read of a sample set."""
        states = checked_answer(answer, self.bqm, self.child.name)
        return Judged(np.repeat(states, answer.record.num_occurrences, axis=0))

    def learned(self, answer: Any) -> dict[str, Any]:
        """The range of temperatures, if the sampler has chosen one.

        D-Wave's annealers derive ``beta_range`` from the model, by a loop over all couplings that
        takes seconds at n = 1024 and does not depend on the seed.
        """
        info = getattr(answer, "info", None)
        chosen = info.get("beta_range") if isinstance(info, Mapping) else None
        if chosen is None or "beta_range" not in self.takes - self.settled.keys():
            return {}
        return {"beta_range": [float(beta) for beta in chosen]}


def short_options(takes: frozenset[str], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a short call; the user's own stay."""
    return {n: v for n, v in _SHORT.items() if n in takes and n not in fixed}


def usual(asking: Asking, option: str, otherwise: int) -> int:
    """An option's value by the user's setting, or else by the sampler's signature."""
    if option in asking.settled:
        return int(asking.settled[option])
    parameter = inspect.signature(asking.function).parameters.get(option)
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) else otherwise


def sweeps_that_fit(
    asking: Asking, seconds: float, learned: Mapping[str, Any], clock: Clock
) -> dict[str, int]:
    """Fewer sweeps than usual, where a call of the usual number would exceed ``seconds``.

    Calls of growing length separate the time of a sweep from that of a call. Sweeps that
    the user has set stay as they are.
    """
    option = next((name for name in SWEEP_OPTIONS if name in asking.takes), None)
    if option is None or option in asking.settled:
        return {}
    wanted, reads = usual(asking, option, USUAL_SWEEPS), usual(asking, "num_reads", 1)
    short = {**short_options(asking.takes, asking.settled), **learned}
    if "num_reads" in asking.takes:
        short["num_reads"] = reads

    def timed(sweeps: int) -> float:
        began = clock()
        asking(**{**short, option: sweeps})
        return clock() - began

    sweeps, first = 2, timed(1)
    while True:
        sweeps = min(wanted, 4 * sweeps)
        elapsed = timed(sweeps)
        moving = max(0.0, elapsed - first)
        if sweeps >= wanted and elapsed <= seconds:
            return {}
        if sweeps >= wanted or elapsed > seconds or moving > 0.25 * (seconds - first):
            per_sweep = max(moving / (sweeps - 1), 1e-9)
            return {option: max(1, min(wanted, 1 + int((seconds - first) / per_sweep)))}


def foreign_child(sampler: ProblemSampler) -> ForeignSampler | None:
    """The sampler inside a penalty; None for one that takes problems itself."""
    if not isinstance(sampler, CountingComposite):
        return None
    child = sampler.children[0]
    return child if isinstance(child, ForeignSampler) else None


def penalty_strength(problem: QuadraticProblem, seed: int) -> float:
    """The strength at which steepest descent's answers, repaired, are best.

    `CardinalityPenalty` raises the strength to the first one that gives a feasible sample, or
    is provably strong enough. Often a weaker one, whose samples all need repair, is better, and
    for all samplers alike; the trial is not timed, so that those without counts do as well as
    they can.
    """
    trial = CardinalityPenalty(steepest_descent())
    answer = trial.sample_problem(problem, num_reads=_TRIAL_READS, seed=seed)
    rounds = answer.info["penalty"]["rounds"]
    return float(min(rounds, key=lambda one: one["energy"])["strength"])


#: Energies kept of a run: all of them, or a random sample of this size.
MOST_ENERGIES = 1000
# Numbers of float64; about half of them fit into the second-level cache of a core.
_CACHED = 2**16
#: Fields of a row that `Bench.recall` needs.
RECALLED = ("problem", "sampler", "budget_kind", "budget", "settings")
# A model of 4096 variables takes 0.3 GB; samplers that agree on the strength share one.
_MODELS_HELD = 3


@dataclass(frozen=True)
class SamplerSetting:
    """One sampler with its options: a column of the study.

    Attributes:
        label: unique in a study.
        name: a registered name, or the class of `sampler`.
        options: of the constructor or of the call.
        sampler: a sampler object or class where no registered name is meant; picklable.

    Example:
        >>> SamplerSetting("long", "swap-anneal", {"num_sweeps": 5000}).label
        'long'
    """

    label: str
    name: str
    options: Mapping[str, Any]
    sampler: Any = None


def question(setting: SamplerSetting) -> Ask:
    """The sampler of a setting, made ready as a pruning run makes it.

    Raises:
        SolverError: there is no such sampler or option, or it cannot be made here.
    """
    return Ask.to(setting.name if setting.sampler is None else setting.sampler, setting.options)


class Bench:
    """Runs samplers on problems, one at a time, in a process of its own.

    Args:
        threads: of BLAS, OpenMP and numba.
        clock: a name in `CLOCKS`, for budgets of seconds and for ``seconds`` and ``trace``.
    """

    def __init__(self, threads: int = 1, clock: str = "wall") -> None:
        self._clock = CLOCKS[clock]
        _limit_threads(threads)
        self._problems: dict[str, QuadraticProblem] = {}
        self._settings: dict[str, SamplerSetting] = {}
        self._strengths: dict[str, float] = {}
        self._models: OrderedDict[tuple[str, float | None], dimod.BinaryQuadraticModel] = (
            OrderedDict()
        )
        self._sweeps: dict[tuple[str, str, float], Mapping[str, Any]] = {}
        self._questions: dict[str, Ask] = {}
        self._learned: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._warm: set[tuple[str, str]] = set()
        self._asking: Asking | None = None
        self._extra: Mapping[str, Any] = {}

    def hold(self, instance: Instance) -> None:
        """Keep a problem under its name; one held before, and all learned of it, is dropped."""
        name = instance.name
        if name in self._problems:
            self._strengths.pop(name, None)
            held: tuple[Any, ...] = (self._models, self._sweeps, self._learned)
            for table in held:
                for key in [key for key in table if key[0] == name]:
                    del table[key]
        self._problems[name] = instance.problem

    def define(self, setting: SamplerSetting) -> None:
        """Keep a sampler's setting under its label."""
        self._settings[setting.label] = setting

    def recall(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over from their rows the options chosen for pairs in an earlier process.

        They need not be chosen again, and the number of sweeps, which depends on timing, is the
        same before and after a study was interrupted.
        """
        for row in rows:
            pair = (row["problem"], row["sampler"])
            fixed = self._settings[row["sampler"]].options
            chosen = {n: value for n, value in row["settings"].items() if n not in fixed}
            if chosen.get("strength") is not None:
                self._strengths[row["problem"]] = chosen["strength"]
            self._learned[pair] = {n: chosen[n] for n in ("beta_range",) if n in chosen}
            if row["budget_kind"] == Seconds.kind:
                fitting = {n: chosen[n] for n in SWEEP_OPTIONS if n in chosen}
                self._sweeps[*pair, float(row["budget"])] = fitting

    def prepare(self, problem: str, label: str, budget: Budget) -> dict[str, float]:
        """Build the model, compile and warm up; the next `sample` is of this pair.

        Returns:
            Fields of a row: ``build_seconds`` (of model and penalty) and ``warmup_seconds``.

        Raises:
            SolverError: the pair is not compatible, or the sampler fails in a first call.
        """
        began = time.perf_counter()
        self._asking = asking = self._asked(problem, label)
        built = time.perf_counter()
        key = (problem, label)
        if key not in self._warm or key not in self._learned:
            known = self._learned.get(key)
            first = asking(**short_options(asking.takes, asking.settled), **(known or {}))
            self._learned[key] = asking.learned(first) if known is None else known
            self._warm.add(key)
        learned = self._learned[key]
        self._extra = {**learned, **self._fitted(key, asking, budget, learned)}
        return {"build_seconds": built - began, "warmup_seconds": time.perf_counter() - built}

    def sample(self, budget: Budget, seed: int, cap: int = MOST_ENERGIES) -> dict[str, Any]:
        """Spend the budget on the prepared pair; the fields of a row that come from it."""
        asking = self._asking
        assert asking is not None, "prepare comes first"

        def ask(**options: Any) -> Any:
            return asking(**self._extra, **options)

        cpu = time.process_time()
        calls = budget.spend(ask, asking.takes, usual(asking, "num_reads", 1), seed, self._clock)
        cpu = time.process_time() - cpu
        return judgement(self._problem, asking, calls, seed, cap) | {
            "seconds": calls[-1].elapsed,
            "cpu_seconds": cpu,
            "settings": {**asking.settled, **self._extra},
        }

    def _fitted(
        self, pair: tuple[str, str], asking: Asking, budget: Budget, learned: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if not isinstance(budget, Seconds):
            return {}
        key = (*pair, budget.amount)
        if key not in self._sweeps:
            self._sweeps[key] = sweeps_that_fit(asking, budget.amount, learned, self._clock)
        return self._sweeps[key]

    def _asked(self, name: str, label: str) -> Asking:
        self._problem = problem = self._problems[name]
        if label not in self._questions:
            self._questions[label] = question(self._settings[label])
        ask = self._questions[label]
        child, options = foreign_child(ask.sampler), ask.options
        if child is None:
            return Direct(ask, problem)
        strength = options.get("strength")
        mine = {n: v for n, v in options.items() if n in child.theirs}
        if problem.counts is not None and strength is None:
            if name not in self._strengths:
                self._strengths[name] = penalty_strength(problem, zlib.crc32(name.encode()))
            strength = self._strengths[name]
        model = self._model(name, None if problem.counts is None else strength)
        return Penalised(child, model, mine, strength)

    def _model(self, name: str, strength: float | None) -> dimod.BinaryQuadraticModel:
        key = (name, strength)
        if key not in self._models:
            while len(self._models) >= _MODELS_HELD:
                self._models.popitem(last=False)
            problem = replace(self._problems[name], labels=None)
            model = problem if strength is None else penalised(problem, strength)
            self._models[key] = model.to_bqm()
        self._models.move_to_end(key)
        return self._models[key]


def judgement(
    problem: QuadraticProblem, asking: Asking, calls: Sequence[Call], seed: int, cap: int
) -> dict[str, Any]:
    """The answers judged by the problem: energies in float64, counts, repair.

    Fields: ``energy`` (best after repair), ``energy_raw_best`` (best of the feasible before
    repair, None without), ``num_reads``, ``feasible_share`` (before repair), ``energies``
    (after repair, of all reads or of ``cap`` chosen at random), ``num_best`` (reads that have
    the best energy), ``lower_bound``, ``trace`` (seconds and best energy so far, after each
    call that improved it), ``state`` (the best, as hexadecimal digits of its bits).
    """
    told: list[Judged] = [asking.judged(call.answer) for call in calls]
    every = np.concatenate([one.states for one in told])
    # Fast samplers return the same few states ten thousand times.
    raw, place = _distinct(every)
    feasible = problem.feasible(raw)
    states = raw if feasible.all() else repair(problem, raw).astype(np.int8)
    judged = _energies(problem, states)
    best_state = states[int(judged.argmin())]
    energies = judged[place]
    best = int(energies.argmin())
    repaired = sum(one.repaired * len(one.states) for one in told) / len(every)
    bound = max(one.lower_bound for one in told)
    chosen = energies
    if energies.size > cap:
        chosen = np.random.default_rng(seed).choice(energies, cap, replace=False)
    close = 1e-9 * max(1.0, abs(float(energies[best])))
    return {
        "energy": float(energies[best]),
        "energy_raw_best": float(judged[feasible].min()) if feasible.any() else None,
        "num_reads": int(energies.size),
        "num_best": int((energies <= energies[best] + close).sum()),
        "feasible_share": float(feasible[place].mean()) - repaired,
        "energies": chosen.tolist(),
        "lower_bound": bound if np.isfinite(bound) else None,
        "trace": _trace(calls, told, energies),
        "state": hex_of(best_state),
    }


def _distinct(states: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.intp]]:
    """Every state once, by first appearance, and where among those each of ``states`` is."""
    number: dict[bytes, int] = {}
    packed = np.packbits(states, axis=1)
    place = np.array([number.setdefault(line.tobytes(), len(number)) for line in packed])
    return states[np.unique(place, return_index=True)[1]], place


def _energies(problem: QuadraticProblem, states: NDArray[np.int8]) -> NDArray[np.float64]:
    """The energies of all states, computed in parts that fit into the cache."""
    size = max(1, _CACHED // max(1, states.shape[1]))
    parts = range(0, len(states), size)
    return np.concatenate([problem.energies(states[start : start + size]) for start in parts])


def _trace(
    calls: Sequence[Call], told: Sequence[Judged], energies: NDArray[np.float64]
) -> list[list[float]]:
    points: list[list[float]] = []
    start, best = 0, np.inf
    for call, one in zip(calls, told, strict=True):
        stop = start + len(one.states)
        lowest = float(energies[start:stop].min())
        if lowest < best:
            best = lowest
            points.append([call.elapsed, best])
        start = stop
    return points


def _limit_threads(threads: int) -> None:
    """Hold BLAS, OpenMP and numba to ``threads``; libraries loaded later read the environment."""
    import numba
    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    numba.set_num_threads(min(threads, int(numba.config.NUMBA_NUM_THREADS)))  # pyright: ignore
    threadpool_limits(threads)


_NAME = "the block"


class Budgeted(CountingSampler):
    """A sampler that is called, on each problem anew, as `solvers.study.compare` does.

    The model is built, the penalty's strength and the number of sweeps that fit are chosen, and
    the sampler is warmed up before its clock starts. It does not get the caller's initial states
    (``initial_states``): all samplers begin with the problem alone.

    Args:
        setting: the sampler and its options.
        budget: of one call.
        clock: "wall" or "cpu".
        threads: of the sampler.
    """

    options: ClassVar[Mapping[str, str]] = {"seed": "of the sampler, where it has one"}

    def __init__(
        self, setting: SamplerSetting, budget: Budget, clock: str = "wall", threads: int = 1
    ) -> None:
        self.setting, self.budget = setting, budget
        self._bench = Bench(threads, clock)
        self._bench.define(setting)

    def sample_problem(self, problem: QuadraticProblem, *, seed: int = 0) -> Solution:
        """The best state that the budget found, counts exact.

        The solution's ``info`` has ``sampler_seconds`` (by the clock), ``sampler_cpu_seconds``,
        ``preparation_seconds``, ``num_reads`` and ``feasible_share`` (before repair).

        Raises:
            SolverError: the sampler cannot take the problem, or fails.
        """
        self._bench.hold(Instance(_NAME, problem))
        ready = self._bench.prepare(_NAME, self.setting.label, self.budget)
        found = self._bench.sample(self.budget, seed)
        state = bits_of(found["state"], problem.num_variables)
        bound = found["lower_bound"]
        info = {
            "sampler_seconds": found["seconds"],
            "sampler_cpu_seconds": found["cpu_seconds"],
            "preparation_seconds": sum(ready.values()),
            "num_reads": found["num_reads"],
            "feasible_share": found["feasible_share"],
        }
        return Solution.of(
            problem, state, lower_bound=-np.inf if bound is None else bound, info=info
        )
