"""Swap descent as a sampler of its own.

Random states with exact counts: the baseline of every comparison.
"""

from __future__ import annotations

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
        num_reads = asked.reads(1)
        answers = Answers(problem, num_reads)
        layout, rng = Layout.of(problem), np.random.default_rng(asked.seed)
        for index in count() if num_reads is None else range(num_reads):
            if index and deadline.passed:
                break
            state = random_states(problem, 1, rng)
            if given is not None and index < len(given):
                state = given[index : index + 1]
            answers.add(index, descend(problem, state, layout, deadline)[0])
        return answers.solution({})


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
        answers, rng = Answers(problem, num_reads), np.random.default_rng(asked.seed)
        for index in range(num_reads):
            if index and deadline.passed:
                break
            state = random_states(problem, 1, rng)[0]
            answers.add(index, state if given is None or index >= len(given) else given[index])
        return answers.solution({})
