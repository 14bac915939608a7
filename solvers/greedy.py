"""Swap descent as a sampler of its own."""

from __future__ import annotations

from itertools import count

import numpy as np

from solvers.clock import Deadline
from solvers.descent import descend
from solvers.layout import Layout
from solvers.options import SamplerOptions
from solvers.problem import QuadraticProblem
from solvers.reads import Answers
from solvers.sampler import States, random_states
from solvers.solution import Solution
from solvers.timed import TimedSampler


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
