"""The default sampler of `qprune solve`: for each shape of problem the best of a study.

The rules are one table, `RULES`; the first that fits decides. Each names the families of
``benchmarks/SOLVERS.md``, section "Defaults", that set it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from solvers.convex.exact import Enumeration, Exact
from solvers.convex.relax import Relax
from solvers.host.clock import Deadline
from solvers.options import SamplerOptions, read_options
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Sparse
from solvers.problem.solution import Solution
from solvers.sampler import States
from solvers.search.annealing import SwapAnnealing
from solvers.search.tabu import SwapTabu
from solvers.search.timed import TimedSampler

# Samples kept where several samplers have answered.
_MOST_KEPT = 100


@dataclass(frozen=True)
class Shape:
    """The properties of a problem that the rules depend on.

    Attributes:
        size: number of variables.
        neighbours: mean number of couplings of a variable.
        counts: True with exact counts.
    """

    size: int
    neighbours: float
    counts: bool

    @classmethod
    def of(cls, problem: QuadraticProblem) -> Shape:
        """The shape of ``problem``; one pass over it at most."""
        size, quadratic = problem.num_variables, problem.quadratic
        if isinstance(quadratic, Sparse):
            coupled = quadratic.matrix.nnz - np.count_nonzero(quadratic.diagonal())
        elif size <= _COUNTED:
            matrix = quadratic.dense()
            coupled = np.count_nonzero(matrix) - np.count_nonzero(np.diagonal(matrix))
        else:
            coupled = size * size  # a large matrix that is not kept as a sparse one is full
        return cls(size, coupled / max(1, size), problem.counts is not None)


# Zeros of dense matrices are counted up to this size.
_COUNTED = 1000


@dataclass(frozen=True)
class Step:
    """One sampler of a rule, its share of the time, and its options.

    Attributes:
        sampler: starts from the best state of the steps before it.
        share: of the time that is left when it begins, in (0, 1].
        effort: its options where there is no time limit, for a problem of so many variables.
    """

    sampler: TimedSampler
    share: float
    effort: Callable[[int], Mapping[str, Any]]


@dataclass(frozen=True)
class Rule:
    """The samplers to run on problems of one shape.

    Attributes:
        when: the shape, in words.
        fits: True for a problem of that shape.
        steps: samplers in turn, until one has proved its answer or the time is over.
        study: the families of the study that set the rule.
    """

    when: str
    fits: Callable[[Shape], bool]
    steps: tuple[Step, ...]
    study: str


def _tabu(size: int) -> dict[str, Any]:
    return {"num_reads": 3, "num_restarts": min(300, max(30, 60_000 // size))}


def _anneal(size: int) -> dict[str, Any]:
    return {"num_reads": min(50, max(5, 10_000 // size))}


def _relax(size: int) -> dict[str, Any]:
    return {"num_reads": 10}


def _proof(size: int) -> dict[str, Any]:
    return {"max_nodes": 5_000}


def _nothing(size: int) -> dict[str, Any]:
    return {}


RULES: tuple[Rule, ...] = (
    Rule(
        "at most 16 variables",
        lambda shape: shape.size <= 16,
        (Step(Enumeration(), 1.0, _nothing),),
        "every family: all states take a few milliseconds",
    ),
    Rule(
        "exact counts, at most 100 variables",
        lambda shape: shape.counts and shape.size <= 100,
        (Step(Relax(), 0.3, _relax), Step(Exact(), 1.0, _proof)),
        "fisher n = 64, features: proved within 0.1 s",
    ),
    Rule(
        "exact counts",
        lambda shape: shape.counts,
        (Step(Relax(), 1.0, _relax),),
        "fisher, features, portfolio: best of all at 1 s, swap moves 1 to 100 times further off",
    ),
    Rule(
        "at most 64 variables",
        lambda shape: shape.size <= 64,
        (Step(SwapTabu(), 0.75, _tabu), Step(Exact(), 1.0, _proof)),
        "tour, knapsack, assignment, coloring, mean-field: swap-tabu at 0.1 s; exact proves chains "
        "and assignments, from a good state only",
    ),
    Rule(
        "at most 24 neighbours each",
        lambda shape: shape.neighbours <= 24,
        (Step(SwapAnnealing(), 1.0, _anneal),),
        "glass, torus, loops, processor, gset, sparse: swap-anneal best at 1 s on every one; "
        "strictly ahead up to 20 neighbours",
    ),
    Rule(
        "more neighbours",
        lambda shape: True,
        (Step(SwapTabu(), 1.0, _tabu),),
        "tour, knapsack, cut, mean-field, orlib: swap-tabu reaches the best of each at 1 s; "
        "strictly ahead from 27 neighbours",
    ),
)


class Auto(TimedSampler):
    """The sampler that suits the problem, by the table `RULES`; ``info["auto"]`` has the rule.

    With a time limit all of it is used, unless the optimum is proved before. Without one the
    number of sweeps is fixed, so that a seed gives one answer.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> solution = Auto().sample_problem(problem)
        >>> solution.sample.tolist(), solution.proved, solution.info["auto"]["samplers"]
        ([0, 1, 1], True, ['Enumeration'])
    """

    bounds = True

    def _search(
        self,
        problem: QuadraticProblem,
        asked: SamplerOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        shape = Shape.of(problem)
        rule = next(rule for rule in RULES if rule.fits(shape))
        found: Solution | None = None
        used: list[str] = []
        for step in rule.steps:
            if found is not None and (found.proved or deadline.passed):
                break
            start = given if found is None else found.samples[:1]
            answer = _answer(step, problem, asked, start, deadline)
            used.append(type(step.sampler).__name__)
            found = answer if found is None else _both(problem, found, answer)
        assert found is not None
        auto = {"rule": rule.when, "samplers": used}
        return Solution.of(
            problem,
            found.samples,
            energies=found.energies,
            lower_bound=found.lower_bound,
            info={**found.info, "auto": auto},
        )


def _answer(
    step: Step,
    problem: QuadraticProblem,
    asked: SamplerOptions,
    start: States | None,
    deadline: Deadline,
) -> Solution:
    """The solution that one step finds."""
    kind = step.sampler.Options
    wanted = {"num_reads": asked.num_reads, "seed": asked.seed, "time_limit": asked.time_limit}
    given = {name: value for name, value in wanted.items() if value is not None}
    effort: Mapping[str, Any] = (
        step.effort(problem.num_variables) if asked.time_limit is None else {}
    )
    options = {**effort, **given}
    known = {name: value for name, value in options.items() if name in kind.model_fields}
    own = read_options(type(step.sampler).__name__, kind, known)
    return step.sampler._search(problem, own, start, deadline.part(step.share))


def _both(problem: QuadraticProblem, one: Solution, other: Solution) -> Solution:
    """The best samples and the higher bound of two answers."""
    samples = np.concatenate([one.samples, other.samples])
    energies = np.concatenate([one.energies, other.energies])
    best = np.argsort(energies, kind="stable")[:_MOST_KEPT]
    return Solution.of(
        problem,
        samples[best],
        energies=energies[best],
        lower_bound=max(one.lower_bound, other.lower_bound),
        info={**one.info, **other.info},
    )
