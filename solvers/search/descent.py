"""Swap descent as a sampler of its own.

Random states with exact counts: the baseline of every comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import numpy as np
from pydantic import Field

from solvers.host.clock import Deadline
from solvers.options import Count, SamplerOptions, TimedOptions
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.kernels.layout import Layout
from solvers.search.runs import Answers
from solvers.search.timed import TimedSampler, descend


def _answered(
    problem: QuadraticProblem,
    num_reads: int | None,
    seed: int | None,
    given: States | None,
    deadline: Deadline,
    improve: Callable[[States], States],
) -> Solution:
    """Given states first, then random ones, each improved; without ``num_reads`` there is no end.

    The first one is always answered with.
    """
    answers, rng = Answers(problem, num_reads), np.random.default_rng(seed)
    for index in count() if num_reads is None else range(num_reads):
        if index and deadline.passed:
            break
        state = random_states(problem, 1, rng)
        if given is not None and index < len(given):
            state = given[index : index + 1]
        answers.add(index, improve(state)[0])
    return answers.solution({})


class Greedy(TimedSampler):
    """Swap descent from given states first, then random ones.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> Greedy().sample_problem(problem, seed=0).sample.tolist()
        [0, 1, 1]
    """

    def _search(
        self,
        problem: QuadraticProblem,
        asked: SamplerOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        layout = Layout.of(problem)

        def descended(state: States) -> States:
            return descend(problem, state, layout, deadline)

        return _answered(problem, asked.reads(1), asked.seed, given, deadline, descended)


class RandomOptions(SamplerOptions):
    """Options of `Random`."""

    num_reads: Count | None = Field(default=None, description="how many states (default 1)")


class Random(TimedSampler):
    """States drawn uniformly among those with the exact counts.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.zeros((3, 3)), counts=2)
        >>> int(Random().sample_problem(problem, seed=0).sample.sum())
        2
    """

    Options = RandomOptions

    def _first(
        self, problem: QuadraticProblem, asked: TimedOptions, deadline: Deadline
    ) -> States | None:
        """No first state: random states are what this sampler answers with."""
        return None

    def _search(
        self,
        problem: QuadraticProblem,
        asked: RandomOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        num_reads = asked.num_reads or 1
        return _answered(problem, num_reads, asked.seed, given, deadline, lambda state: state)
