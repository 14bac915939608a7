"""User's extra energy over a block's variables: a BQM or a pyqubo expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dimod

from qprune.errors import ImpossibleRequestError
from qprune.formulate import Block
from solvers import Dense, QuadraticProblem
from solvers.symbolic import from_pyqubo

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
