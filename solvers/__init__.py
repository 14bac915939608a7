"""Binary quadratic problems with exact counts: problems, samplers, bounds. Knows no networks."""

from typing import TYPE_CHECKING, Any

from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, LowRank, Sparse
from solvers.registry import SamplerEntry, get_sampler, list_samplers
from solvers.sampler import CountingSampler
from solvers.solution import Solution

if TYPE_CHECKING:
    from solvers.penalty import CardinalityPenalty, LagrangeCardinality

__all__ = [
    "CardinalityPenalty",
    "CountingSampler",
    "Dense",
    "LagrangeCardinality",
    "LowRank",
    "QuadraticProblem",
    "SamplerEntry",
    "Solution",
    "Sparse",
    "get_sampler",
    "list_samplers",
]

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True


def __getattr__(name: str) -> Any:
    """The composites, imported when they are asked for: they need numba."""
    if name in ("CardinalityPenalty", "LagrangeCardinality"):
        from solvers import penalty

        return getattr(penalty, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
