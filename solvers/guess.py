"""Random states with exact counts: the baseline of every comparison."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from solvers.clock import Deadline
from solvers.options import Count, SamplerOptions, TimedOptions
from solvers.problem import QuadraticProblem
from solvers.reads import Answers
from solvers.sampler import States, random_states
from solvers.solution import Solution
from solvers.timed import TimedSampler


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
