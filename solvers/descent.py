"""Descent to a state that no swap (or, without counts, no flip) improves."""

from __future__ import annotations

import numpy as np

from solvers.clock import Deadline
from solvers.kernels import GUMBELS
from solvers.kernels_flip import flip_descent
from solvers.kernels_swap import swap_descent
from solvers.layout import Layout
from solvers.problem import QuadraticProblem
from solvers.quadratic import Sparse
from solvers.sampler import States

# Numbers read between two looks at the clock: about ten milliseconds of descent.
_READS_PER_LOOK = 20_000_000


def descend(
    problem: QuadraticProblem,
    states: States,
    layout: Layout | None = None,
    deadline: Deadline | None = None,
) -> States:
    """Every row of ``states`` after swap (or flip) descent; rows keep their counts.

    Args:
        problem: what to descend on.
        states: shape (reads, n), with exact counts.
        layout: the problem's layout, when the caller has it; otherwise one in float64 is made.
        deadline: when to stop; what is not at the bottom then is returned as far as it is.
    """
    deadline = deadline or Deadline()
    layout = layout or Layout.of(problem)
    result = layout.sorted(states)
    scores = np.empty(problem.num_variables, dtype=layout.dtype)
    unused = np.zeros(4, dtype=np.uint64)
    most = max(1, _READS_PER_LOOK // _reads_per_move(problem))
    for x in result:
        if deadline.passed:
            break
        field = layout.fields(x[None])[0]
        made = most
        while made == most and not deadline.passed:
            if problem.groups is None:
                made = flip_descent(layout.matrix, field, layout.half, x, most)
            else:
                made = swap_descent(
                    layout.matrix,
                    field,
                    layout.half,
                    x,
                    layout.starts,
                    unused,
                    GUMBELS,
                    scores,
                    most,
                )
    return layout.unsorted(result)


def _reads_per_move(problem: QuadraticProblem) -> int:
    """Numbers that a move reads or writes, about."""
    n = problem.num_variables
    row = n
    if isinstance(problem.quadratic, Sparse):
        row = problem.quadratic.matrix.nnz // max(1, n)
    # A swap looks through its group, too.
    return 100 + (2 * row if problem.groups is None else 4 * row + n)
