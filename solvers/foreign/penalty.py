"""Exact counts from samplers that cannot count: by a penalty, or by Lagrange multipliers.

Samplers of this package keep counts by their moves; these composites are for all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import dimod
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.foreign.composite import CompositeOptions, CountingComposite, Search
from solvers.foreign.strength import first_strength, marginal_costs, penalised, strength_bound
from solvers.options import Positive
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Floats


class PenaltyOptions(CompositeOptions):
    """Options of `CardinalityPenalty`."""

    strength: Positive | None = Field(
        default=None, description="penalty strength; None lets it be chosen and raised"
    )
    growth: Annotated[float, Field(gt=1, allow_inf_nan=False)] = Field(
        default=4.0, description="factor from one round to the next (default 4)"
    )


class CardinalityPenalty(CountingComposite):
    """A composite that keeps counts by a penalty strength * (sum of x over the group - count)^2.

    The strength starts small (`first_strength`), grows by ``growth`` until the child returns a
    feasible sample, and never goes past the provable bound (`strength_bound`), at which every
    minimiser is feasible. Infeasible samples are repaired greedily; energies are those of the
    problem as asked. The best of all rounds and of the initial states is returned first.

    ``info["penalty"]`` has the last ``strength``, the ``bound``, the shares of samples
    ``feasible`` and ``repaired`` over all rounds, and the ``rounds``.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.

    Example:
        >>> import dimod
        >>> sampler = CardinalityPenalty(dimod.ExactSolver())
        >>> bqm = dimod.BinaryQuadraticModel({"a": -3.0, "b": -2.0, "c": 1.0}, {}, 0.0, "BINARY")
        >>> float(sampler.sample(bqm, cardinality=1).first.energy)
        -3.0
    """

    Options = PenaltyOptions

    def _rounds(self, search: Search, asked: PenaltyOptions) -> None:
        problem = search.problem
        if problem.counts is None:
            search.ask(problem.to_bqm, 0.0)
            return
        bound = strength_bound(problem)
        search.info["bound"] = bound
        fixed = asked.strength
        pairs = float(np.square(problem.group_sizes, dtype=np.float64).sum())
        current = min(first_strength(problem), bound) if fixed is None else fixed
        while search.goes_on:
            model = partial(_model, problem, current)
            feasible = search.ask(model, current, pairs)
            enough = feasible is None or feasible > 0 or fixed is not None or current >= bound
            if enough:
                return
            current = min(current * asked.growth, bound)


def _model(problem: QuadraticProblem, strength: float) -> dimod.BinaryQuadraticModel:
    return penalised(problem, strength).to_bqm()


class LagrangeCardinality(CountingComposite):
    """A composite that keeps counts by one Lagrange multiplier per group; Q stays as it is.

    Each round asks the child for the minimum of E(x) - sum_g multiplier_g * (ones in g), and
    bisects every multiplier on whether its group has too many ones or too few. No coupling is
    added, so that a sparse problem stays sparse and a chip needs no larger clique. Counts that
    no multiplier hits (a gap in the Lagrange dual) are reached by greedy repair.

    ``info["penalty"]`` is as in `CardinalityPenalty`, with the multipliers as strength.

    Args:
        child: any object with ``sample(bqm, **options) -> dimod.SampleSet``.

    Example:
        >>> from dimod import ExactSolver
        >>> problem = QuadraticProblem([-1.0, -2.0, -3.0], np.zeros((3, 3)), counts=1)
        >>> LagrangeCardinality(ExactSolver()).sample_problem(problem).energy
        -3.0
    """

    def _rounds(self, search: Search, asked: CompositeOptions) -> None:
        problem = search.problem
        if problem.groups is None or problem.counts is None:
            search.ask(problem.to_bqm, ())
            return
        bracket = _Bracket.around(problem)
        while search.goes_on:
            current = bracket.current
            shifted = problem.with_linear(problem.linear - current[problem.groups])
            share = search.ask(shifted.to_bqm, tuple(current.tolist()))
            if share is None or (search.ones_of_last == problem.counts).all():
                return
            bracket = bracket.narrowed(search.ones_of_last - problem.counts)


@dataclass(frozen=True)
class _Bracket:
    """One multiplier per group, the interval it lies in, and the step while that is open."""

    current: Floats
    low: Floats
    high: Floats
    step: Floats

    @classmethod
    def around(cls, problem: QuadraticProblem) -> _Bracket:
        """The marginal costs at a greedy state, and steps of half their size."""
        current = marginal_costs(problem)
        smallest = 1e-3 * max(1e-9, np.abs(problem.linear).max(initial=0.0))
        step = np.maximum(0.5 * np.abs(current), smallest)
        infinite = np.full_like(current, np.inf)
        return cls(current, -infinite, infinite, step)

    def narrowed(self, excess: NDArray[np.int64]) -> _Bracket:
        """After a round with ``excess`` ones per group: bisect, or step on (steps double)."""
        high = np.where(excess > 0, self.current, self.high)
        low = np.where(excess < 0, self.current, self.low)
        closed = np.isfinite(low) & np.isfinite(high)
        with np.errstate(invalid="ignore"):
            middle = 0.5 * (low + high)
        moved = np.where(closed, middle, self.current - np.sign(excess) * self.step)
        current = np.where(excess == 0, self.current, moved)
        return _Bracket(current, low, high, np.where(closed, self.step, 2.0 * self.step))
