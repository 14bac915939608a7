"""Descent to a state that no swap (or, without counts, no flip) improves."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.kernels import GUMBELS
from solvers.kernels_flip import flip_descent
from solvers.kernels_swap import swap_descent
from solvers.layout import Layout
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


def descend(problem: QuadraticProblem, states: States, layout: Layout | None = None) -> States:
    """Every row of ``states`` after swap (or flip) descent; rows keep their counts.

    Args:
        problem: what to descend on.
        states: shape (reads, n), with exact counts.
        layout: the problem's layout, when the caller has it; otherwise one in float64 is made.
    """
    layout = layout or Layout.of(problem)
    result = layout.sorted(states)
    scores = np.empty(problem.num_variables, dtype=layout.dtype)
    unused = np.zeros(4, dtype=np.uint64)
    for x, field in zip(result, layout.fields(result), strict=True):
        if problem.groups is None:
            flip_descent(layout.matrix, field, layout.half, x, _NO_LIMIT)
        else:
            swap_descent(
                layout.matrix,
                field,
                layout.half,
                x,
                layout.starts,
                unused,
                GUMBELS,
                scores,
                _NO_LIMIT,
            )
    return layout.unsorted(result)


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
