"""Descent to a state that no swap (or, without counts, no flip) improves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.clock import Deadline
from solvers.kernels import GUMBELS
from solvers.kernels_flip import flip_descent
from solvers.kernels_swap import swap_descent
from solvers.layout import Layout
from solvers.problem import QuadraticProblem
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
        problem: with or without counts.
        states: shape (reads, n), with exact counts.
        layout: the problem's layout; None makes one in float64.
        deadline: time limit; rows not at a local minimum by then are returned as they are, all
            of them unchanged where forming the matrix alone would take longer.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> descend(problem, np.array([[1, 1, 0]])).tolist()
        [[0, 1, 1]]
    """
    deadline = deadline or Deadline()
    layout = layout or Layout.of(problem)
    if not layout.affords_matrix(deadline):
        return states
    result = layout.sorted(states)
    down = _flips if problem.groups is None else _swaps
    for x in result:
        if deadline.passed or not down(layout, x, deadline):
            break
    return layout.unsorted(result)


def _flips(layout: Layout, x: NDArray[np.int8], deadline: Deadline) -> bool:
    """Descend by single flips, in place; return True at a local minimum."""
    field = layout.fields(x[None])[0]
    most = max(1, _READS_PER_LOOK // (100 + 2 * layout.row_length))
    while flip_descent(layout.matrix, field, layout.half, x, most) == most:
        if deadline.passed:
            return False
    return True


def _swaps(layout: Layout, x: NDArray[np.int8], deadline: Deadline) -> bool:
    """Descend by swaps inside groups, in place; return True at a local minimum."""
    field = layout.fields(x[None])[0]
    scores = np.empty(x.size, dtype=layout.dtype)
    unused, cursor = np.zeros(4, dtype=np.uint64), np.zeros(3, dtype=np.int64)
    most = max(1, _READS_PER_LOOK // (100 + 2 * x.size))
    while cursor[2] < x.size:
        if deadline.passed:
            return False
        swap_descent(
            layout.matrix,
            field,
            layout.half,
            x,
            layout.starts,
            unused,
            GUMBELS,
            scores,
            most,
            cursor,
        )
    return True
