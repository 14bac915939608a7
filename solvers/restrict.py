"""`restricted`: part of a problem, the rest held fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from solvers.problem import QuadraticProblem


def restricted(
    problem: QuadraticProblem, x: NDArray, free: NDArray[np.integer]
) -> QuadraticProblem:
    """The problem over the variables ``free``, the others held at ``x``.

    Its energies are those of the whole problem; its counts are the given ones less the fixed ones.

    Args:
        problem: with or without counts.
        x: a state, shape (n,); its entries at ``free`` do not matter.
        free: indices of the free variables, each once.

    Raises:
        InvalidProblemError: the fixed ones already break a count.

    Example:
        >>> problem = QuadraticProblem([1.0, 2.0], [[0.0, 3.0], [3.0, 0.0]], counts=1)
        >>> part = restricted(problem, [1, 0], [1])
        >>> part.linear.tolist(), part.offset, part.counts.tolist()
        ([5.0], 1.0, [0])
    """
    rest = np.array(x, dtype=np.float64)
    rest[free] = 0.0
    field = problem.fields(rest)[0]
    groups, counts = problem.groups, problem.counts
    if groups is not None and counts is not None:
        taken = np.bincount(groups, weights=rest, minlength=counts.size).astype(np.int64)
        groups, counts = groups[free], counts - taken
    return QuadraticProblem(
        field[free], problem.quadratic.restrict(free), problem.energy(rest), groups, counts
    )
