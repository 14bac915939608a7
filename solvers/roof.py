"""Roof duality: a lower bound for any binary quadratic problem, and variables it decides.

Computed by ``dwave.preprocessing`` as a maximum flow (Hammer, Hansen and Simeone, Math.
Programming 28, 1984; Boros, Hammer and Tavares, RUTCOR Research Report 10-2006). It needs no
convexity; for convex pruning blocks the relaxation's bound is far better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dimod
import numpy as np

from solvers.counting import counting
from solvers.foreign import refuse_unknown
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import Sparse
from solvers.restrict import restricted
from solvers.sampler import CountingSampler, checked_states
from solvers.solution import Solution
from solvers.strength import marginal_costs


@dataclass(frozen=True)
class RoofDual:
    """What roof duality says about a problem.

    Attributes:
        lower_bound: no (feasible) state has a lower energy.
        fixed: index -> value that some optimal state has, for all of them together; empty for
            a problem with counts, where persistency does not hold.
    """

    lower_bound: float
    fixed: Mapping[int, int]


def roof_dual(problem: QuadraticProblem) -> RoofDual:
    """The roof dual of ``problem``.

    With counts the bound is the better of two Lagrangians: without multipliers, and with the
    marginal costs of a greedy state as multipliers.

    Raises:
        MissingPackageError: ``dwave-preprocessing`` is not installed.
        ProblemTooLargeError: the flow network does not fit into memory.
    """
    if problem.groups is None or problem.counts is None:
        bound, fixed = _flow(problem)
        return RoofDual(bound, fixed)
    multipliers = marginal_costs(problem)
    shifted = problem.with_linear(
        problem.linear - multipliers[problem.groups],
        problem.offset + float(multipliers @ problem.counts),
    )
    return RoofDual(max(_flow(problem)[0], _flow(shifted)[0]), {})


def _flow(problem: QuadraticProblem) -> tuple[float, dict[int, int]]:
    if not problem.num_variables:
        return problem.offset, {}
    from dwave.preprocessing import roof_duality

    quadratic = problem.quadratic
    size = float(problem.num_variables)
    entries = quadratic.matrix.nnz if isinstance(quadratic, Sparse) else size * size
    require_memory(150.0 * entries, f"roof duality on {size:.0f} variables", "use decompose")
    plain = QuadraticProblem(problem.linear, quadratic, problem.offset)
    bqm = plain.to_bqm()
    bound, fixed = roof_duality(bqm, strict=False)
    # The flow is exact on coefficients rounded to 61 bits; sums of them are not.
    vectors = bqm.to_numpy_vectors()
    total = np.abs(vectors[0]).sum() + np.abs(vectors[1][2]).sum() + abs(problem.offset)
    slack = 16.0 * float(np.finfo(np.float64).eps * total)
    return float(bound) - slack, {int(i): int(value) for i, value in fixed.items()}


class RoofDuality(CountingSampler, dimod.ComposedSampler):
    """Fixes what roof duality decides and leaves the rest to another sampler.

    A problem with counts goes to the child whole, and gets the bound only.

    Args:
        child: a sampler for the rest: a name, a class or an object.

    Example:
        >>> problem = QuadraticProblem([1.0, -2.0, 0.5], np.zeros((3, 3)))
        >>> solution = RoofDuality("greedy").sample_problem(problem)
        >>> solution.energy, solution.info["fixed"]
        (-2.0, 3)
    """

    def __init__(self, child: Any = "swap-tabu") -> None:
        self._child = counting(child)

    @property
    def children(self) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one child."""
        return [self._child]

    @property
    def options(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The child's options."""
        names = set(self._child.parameters) - {"cardinality", "groups"}
        return dict.fromkeys(sorted(names), "as in the child")

    @property
    def properties(self) -> dict[str, Any]:
        """What the composite can do."""
        return {**super().properties, "bound": True}

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:
        refuse_unknown(type(self).__name__, options, self.options)
        given = checked_states(problem, options.get("initial_states"))
        dual = roof_dual(problem)
        x = np.zeros(problem.num_variables, dtype=np.int8)
        for index, value in dual.fixed.items():
            x[index] = value
        free = np.array([i for i in range(x.size) if i not in dual.fixed], dtype=np.int64)
        if given is not None:
            options["initial_states"] = given[:, free]
        part = restricted(problem, x, free) if dual.fixed else problem
        found = self._child.sample_problem(part, **options)
        states = np.tile(x, (len(found.samples), 1))
        states[:, free] = found.samples
        bound = max(dual.lower_bound, found.lower_bound)
        info = dict(found.info) | {"fixed": len(dual.fixed), "roof_dual": dual.lower_bound}
        return Solution.of(problem, states, lower_bound=bound, info=info)
