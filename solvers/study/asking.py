"""A sampler and a problem made ready, so that only sampling is timed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import dimod
import numpy as np
from numpy.typing import NDArray

from solvers.composite import CountingComposite
from solvers.counting import ProblemSampler
from solvers.foreign import ForeignSampler, checked_answer
from solvers.ocean import steepest_descent
from solvers.penalty import CardinalityPenalty
from solvers.problem import QuadraticProblem
from solvers.strength import penalised
from solvers.study.budgets import SWEEP_OPTIONS, Clock

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

    def __call__(self, **options: Any) -> Any:
        """Sample; only this call is timed."""
        ...

    def judged(self, answer: Any) -> Judged:
        """The states of an answer of `__call__`."""
        ...


@dataclass(frozen=True, eq=False)
class Direct:
    """A sampler that takes problems and keeps counts."""

    sampler: ProblemSampler
    problem: QuadraticProblem
    options: Mapping[str, Any]

    @property
    def takes(self) -> frozenset[str]:
        """Options of ``sample_problem``."""
        return frozenset(self.sampler.parameters) - {"cardinality", "groups"}

    @property
    def settled(self) -> Mapping[str, Any]:
        """The user's options."""
        return self.options

    def __call__(self, **options: Any) -> Any:
        """A `Solution`."""
        return self.sampler.sample_problem(self.problem, **{**self.options, **options})

    def judged(self, answer: Any) -> Judged:
        """The samples of a `Solution`."""
        repaired = float(answer.info.get("repaired", 0.0))
        return Judged(np.asarray(answer.samples, np.int8), float(answer.lower_bound), repaired)


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


def short_options(takes: frozenset[str], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Options for a short call; the user's own stay."""
    return {n: v for n, v in _SHORT.items() if n in takes and n not in fixed}


def sweep_option(asking: Asking) -> str | None:
    """The option that counts sweeps; None if there is none."""
    return next((name for name in SWEEP_OPTIONS if name in asking.takes), None)


def usual(asking: Asking, option: str, otherwise: int) -> int:
    """An option's value by the user's setting, or else by the sampler's signature."""
    if option in asking.settled:
        return int(asking.settled[option])
    sample = asking.child.child.sample if isinstance(asking, Penalised) else None
    sample = asking.sampler.sample_problem if isinstance(asking, Direct) else sample
    parameter = inspect.signature(sample).parameters.get(option) if sample else None
    default = None if parameter is None else parameter.default
    return default if isinstance(default, int) else otherwise


def sweeps_that_fit(
    asking: Asking, seconds: float, learned: Mapping[str, Any], clock: Clock
) -> dict[str, int]:
    """Fewer sweeps than usual, where a call of the usual number would exceed ``seconds``.

    Calls of growing length separate the time of a sweep from that of a call. Sweeps that
    the user has set stay as they are.
    """
    option = sweep_option(asking)
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


def learned_options(asking: Asking, answer: Any) -> dict[str, Any]:
    """Options that the sampler chose itself in its first answer, to be given to later calls.

    D-Wave's annealers derive ``beta_range`` from the model, by a loop over all couplings that
    takes seconds at n = 1024 and does not depend on the seed.
    """
    if isinstance(asking, Direct) or "beta_range" in asking.settled:
        return {}
    info = getattr(answer, "info", None)
    chosen = info.get("beta_range") if isinstance(info, Mapping) else None
    if chosen is None or "beta_range" not in asking.takes:
        return {}
    return {"beta_range": [float(beta) for beta in chosen]}


def model_of(problem: QuadraticProblem, strength: float | None) -> dimod.BinaryQuadraticModel:
    """The model over 0..n-1 that a sampler without counts is given."""
    plain = QuadraticProblem(
        problem.linear, problem.quadratic, problem.offset, problem.groups, problem.counts
    )
    return (plain if strength is None else penalised(plain, strength)).to_bqm()
