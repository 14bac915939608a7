"""Binary quadratic problems with exact counts: problems, samplers, bounds. Knows no networks."""

from solvers.problem import QuadraticProblem
from solvers.quadratic import Dense, LowRank, Sparse
from solvers.sampler import CountingSampler
from solvers.solution import Solution

__all__ = ["CountingSampler", "Dense", "LowRank", "QuadraticProblem", "Solution", "Sparse"]

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True
