"""The default sampler: convex relaxation, rounding, swap descent, a short warm annealing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.bounds import Counts, Relaxation, relax
from solvers.convex_kernels import linear_minimum
from solvers.greedy import descend
from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler, Deadline, States, checked_states, positive_int
from solvers.solution import Solution


def rounded(
    problem: QuadraticProblem, relaxation: Relaxation, num: int, seed: int | None
) -> States:
    """``num`` binary states with exact counts near the fractional point, shape (num, n).

    The first takes the largest entries of x; the others add noise to it first, so that a variable
    is rounded up roughly with probability x_i.
    """
    counts = Counts.of(problem)
    rng = np.random.default_rng(seed)
    states = np.empty((num, problem.num_variables), np.int8)
    scratch = np.empty(problem.num_variables)
    ranked = 0.5 - relaxation.x + 1e-9 * (1 - 2.0 * relaxation.vertex)
    for index, state in enumerate(states):
        noise = rng.uniform(-0.5, 0.5, scratch.size) if index else 0.0
        cost = ranked + noise
        linear_minimum(cost, counts.order, counts.starts, counts.counts, state, scratch)
    return states


class Relax(CountingSampler):
    """Convex relaxation with rounding and descent; answers with a certified lower bound."""

    options: ClassVar = {
        "num_reads": "roundings, each descended (default 1)",
        "seed": "seed of the random roundings",
        "initial_states": "states to descend from besides the roundings, shape (k, n)",
        "time_limit": "seconds of wall time (default: none)",
    }

    @property
    def properties(self) -> dict:
        return {**super().properties, "bound": True}

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        time_limit: float | None = None,
    ) -> Solution:
        num_reads = positive_int("num_reads", num_reads)
        deadline = Deadline(time_limit)
        given = checked_states(problem, initial_states)
        relaxation = relax(problem, tolerance=1e-4, deadline=deadline)
        starts = rounded(problem, relaxation, num_reads, seed)
        if given is not None:
            starts = np.concatenate([starts, given])
        states = descend(problem, starts)
        info = {"iterations": relaxation.iterations, "convexified": relaxation.convexified}
        return Solution.of(problem, states, lower_bound=relaxation.lower_bound, info=info)
