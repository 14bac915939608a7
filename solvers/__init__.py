"""Binary quadratic problems with exact counts: problems, samplers, bounds. Knows no networks."""

from solvers.ask import solve
from solvers.files import read_problem, write_problem
from solvers.penalty import CardinalityPenalty, LagrangeCardinality
from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, LowRank, Sparse
from solvers.registry import SamplerEntry, get_sampler, list_samplers
from solvers.sampler import CountingSampler
from solvers.solution import Solution

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
    "read_problem",
    "solve",
    "write_problem",
]

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True
