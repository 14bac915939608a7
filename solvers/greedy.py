"""Descent: from any state to one that no swap (or, without counts, no flip) improves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.kernels import as_kernel_groups, flip_descent, swap_descent
from solvers.problem import QuadraticProblem
from solvers.sampler import (
    CountingSampler,
    States,
    checked_states,
    positive_int,
    random_states,
)
from solvers.solution import Solution

_NO_LIMIT = np.iinfo(np.int64).max


def descend(problem: QuadraticProblem, states: States) -> States:
    """Every row of ``states`` after swap (or flip) descent; rows keep their counts."""
    matrix = problem.quadratic.dense()
    result = states.copy()
    for row, field in zip(result, problem.fields(states), strict=True):
        if problem.groups is None:
            flip_descent(matrix, field, row, _NO_LIMIT)
        else:
            groups = as_kernel_groups(problem.groups, row.size)
            swap_descent(matrix, field, row, groups, _NO_LIMIT)
    return result


class Greedy(CountingSampler):
    """Swap descent from given or random states."""

    options: ClassVar = {
        "num_reads": "descents, from the initial states first, random ones after (default 1)",
        "seed": "seed of the random starts",
        "initial_states": "states to start from, shape (k, n)",
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
    ) -> Solution:
        num_reads = positive_int("num_reads", num_reads)
        given = checked_states(problem, initial_states)
        start = random_states(problem, num_reads, np.random.default_rng(seed))
        if given is not None:
            start[: len(given)] = given[:num_reads]
        return Solution.of(problem, descend(problem, start))
