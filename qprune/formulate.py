"""Formulation of a block of weights and an expansion of the loss as a quadratic problem.

With c the current values, v the values if kept, a = v - c, gradient g and curvature H on the
block, H' = H + 2 ridge I, the move of a decision x (1 = pruned) is d = (1 - x) v - c and

    E(x) = g.d + 1/2 d.H.d + ridge |d|^2 + price * (number of changed decisions)
         = offset + linear.x + 1/2 x.quadratic.x

    offset       = g.a + 1/2 a.H'.a + price * (number pruned now)
    linear_i     = -v_i (g + H'a)_i + ridge v_i^2 + price * (1 - 2 x_i now)
    quadratic_ij = v_i v_j H_ij

The quadratic part keeps its diagonal, so that it is positive semidefinite when H is; the
ridge's, which only makes the problem easier, is linear for binary x. The decisions as they
are now have energy 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from solvers import Dense, LowRank, QuadraticProblem

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """Weights that are decided together, with their values and gradients.

    Attributes:
        indices: flat indices, ascending, shape (n,).
        current: values now, 0 where pruned, shape (n,).
        keep_value: value of each if kept, shape (n,).
        pruned: decision now, 1 = pruned, shape (n,), int8.
        gradient: of the mean loss, shape (n,).
        groups: group 0..g-1 of each, shape (n,).
        counts: exact number pruned in each group, shape (g,).
    """

    indices: NDArray[np.int64]
    current: Floats
    keep_value: Floats
    pruned: NDArray[np.int8]
    gradient: Floats
    groups: NDArray[np.int64]
    counts: NDArray[np.int64]


def formulate(
    block: Block, curvature: Dense | LowRank, *, ridge: float = 0.0, price: float = 0.0
) -> QuadraticProblem:
    """Return the restore-or-prune problem of a block; energies are loss changes in nats.

    Args:
        block: weights to decide.
        curvature: H on the block, of size n.
        ridge: cost of a squared change of value, nats; also makes up for directions H misses.
        price: cost of every changed decision, nats: a trust region that stays linear.
    """
    v, x = block.keep_value, block.pruned.astype(np.float64)
    a = v - block.current
    curved = curvature.product(a) + 2 * ridge * a
    linear = -v * (block.gradient + curved) + ridge * v**2 + price * (1 - 2 * x)
    offset = block.gradient @ a + 0.5 * a @ curved + price * x.sum()
    quadratic = (
        LowRank(curvature.factor * v)
        if isinstance(curvature, LowRank)
        else Dense(curvature.matrix * np.outer(v, v))
    )
    return QuadraticProblem(
        linear,
        quadratic,
        float(offset),
        groups=block.groups,
        counts=block.counts,
        labels=block.indices.tolist(),
    )


def repriced(problem: QuadraticProblem, block: Block, change: float) -> QuadraticProblem:
    """Return the problem with ``change`` added to the price of every changed decision."""
    x = block.pruned.astype(np.float64)
    return problem.with_linear(
        problem.linear + change * (1 - 2 * x), problem.offset + change * float(x.sum())
    )
