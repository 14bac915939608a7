"""Random states with exact counts: the floor of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler, checked_states, positive_int, random_states
from solvers.solution import Solution


class Random(CountingSampler):
    """States drawn uniformly among those with the exact counts.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.zeros((3, 3)), counts=2)
        >>> int(Random().sample_problem(problem, seed=0).sample.sum())
        2
    """

    options: ClassVar[Mapping[str, str]] = {
        "num_reads": "how many states (default 1)",
        "seed": "decides them",
        "initial_states": "states that take the place of the first, shape (k, n)",
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
    ) -> Solution:
        """Draw."""
        num_reads = positive_int("num_reads", num_reads)
        states = random_states(problem, num_reads, np.random.default_rng(seed))
        given = checked_states(problem, initial_states)
        if given is not None:
            states[: len(given)] = given[:num_reads]
        return Solution.of(problem, states)
