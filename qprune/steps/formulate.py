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

User's extra energy over a block's variables: a BQM or a pyqubo expression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dimod
import numpy as np
from numpy.typing import NDArray

from qprune.errors import ImpossibleRequestError
from solvers import Dense, LowRank, QuadraticProblem
from solvers.problem.symbolic import from_pyqubo

if TYPE_CHECKING:
    from jaxtyping import Float64, Int8, Int64

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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

    indices: Int64[Integers, " n"]
    current: Float64[Floats, " n"]
    keep_value: Float64[Floats, " n"]
    pruned: Int8[NDArray[np.int8], " n"]
    gradient: Float64[Floats, " n"]
    groups: Int64[Integers, " n"]
    counts: Int64[Integers, " g"]


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
        else Dense.trusted(curvature.matrix * np.outer(v, v))
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


Terms = Callable[[Block], Any]
"""Function of a block: BQM or pyqubo expression, nats. A weight's variable is its flat index: the
integer in a BQM, its decimal string in pyqubo; 1 = pruned."""


def with_terms(problem: QuadraticProblem, block: Block, terms: Terms) -> QuadraticProblem:
    """Return ``problem`` plus the user's terms, less their energy of the present decision.

    Raises:
        ImpossibleRequestError: neither BQM nor pyqubo, or a variable that the block lacks.
    """
    bqm = _as_bqm(terms(block))
    position = {label: i for i, label in enumerate(problem.variables)}
    unknown = [v for v in bqm.variables if v not in position]
    if unknown:
        raise ImpossibleRequestError(
            f"terms use the variable {unknown[0]!r}, which is not in the block; its "
            "variables are the flat indices in block.indices"
        )
    linear, quadratic = problem.linear.copy(), problem.quadratic
    for label, bias in bqm.linear.items():
        linear[position[label]] += bias
    if bqm.num_interactions:
        matrix = quadratic.dense().copy()
        for u, v, bias in bqm.iter_quadratic():
            matrix[position[u], position[v]] += bias
            matrix[position[v], position[u]] += bias
        quadratic = Dense(matrix)
    joined = QuadraticProblem(
        linear, quadratic, problem.offset, problem.groups, problem.counts, problem.labels
    )
    rise = joined.energy(block.pruned) - problem.energy(block.pruned)
    return joined.with_linear(joined.linear, joined.offset - rise)


def _as_bqm(terms: Any) -> dimod.BinaryQuadraticModel:
    if isinstance(terms, dimod.BinaryQuadraticModel):
        return terms.change_vartype(dimod.BINARY, inplace=False)
    try:
        problem = from_pyqubo(terms)
    except (TypeError, AttributeError, ValueError) as error:
        raise ImpossibleRequestError(
            f"terms must return a dimod BQM or a pyqubo expression, not "
            f"{type(terms).__name__}: {error}"
        ) from error
    bqm = problem.to_bqm()
    numbers = {v: int(str(v)) for v in bqm.variables if str(v).isdecimal()}
    return bqm.relabel_variables(numbers, inplace=False)
