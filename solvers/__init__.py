"""Binary quadratic problems with exact counts: problems, samplers, bounds. Knows no networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from solvers.formats.files import read_problem, write_problem
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, LowRank, Sparse
from solvers.problem.solution import Solution
from solvers.registry import SamplerEntry, get_sampler, list_samplers
from solvers.sampler import CountingSampler

if TYPE_CHECKING:
    from solvers.ask import Answer, AnswerStore, Ask, Fault, FaultPolicy, solve
    from solvers.foreign.penalty import CardinalityPenalty, LagrangeCardinality

__all__ = [
    "Answer",
    "AnswerStore",
    "Ask",
    "CardinalityPenalty",
    "CountingSampler",
    "Dense",
    "Fault",
    "FaultPolicy",
    "LagrangeCardinality",
    "LowRank",
    "QuadraticProblem",
    "SamplerEntry",
    "Solution",
    "Sparse",
    "get_sampler",
    "list_samplers",
    "read_problem",
    "solve",
    "write_problem",
]

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True


_LAZY = {
    "CardinalityPenalty": "solvers.foreign.penalty",
    "LagrangeCardinality": "solvers.foreign.penalty",
    **dict.fromkeys(
        ("Answer", "AnswerStore", "Ask", "Fault", "FaultPolicy", "solve"), "solvers.ask"
    ),
}


def __getattr__(name: str) -> Any:
    """Import the names that need numba on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
