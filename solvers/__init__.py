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
    from solvers.composites.decompose import Decompose
    from solvers.composites.roof import RoofDuality
    from solvers.convex.bounds import relax
    from solvers.convex.exact import Enumeration, Exact
    from solvers.convex.relax import Relax
    from solvers.foreign.penalty import CardinalityPenalty, LagrangeCardinality
    from solvers.problem.symbolic import from_pyqubo
    from solvers.rows.counts import Counts
    from solvers.rows.problem import RowProblem
    from solvers.rows.search import solve_rows
    from solvers.search.annealing import SwapAnnealing
    from solvers.search.batched.annealing import TorchAnnealing
    from solvers.search.batched.bifurcation import Bifurcation
    from solvers.search.descent import Greedy, Random
    from solvers.search.tabu import SwapTabu
    from solvers.study.compare import compare
    from solvers.testing import check_sampler

__all__ = [
    "Answer",
    "AnswerStore",
    "Ask",
    "Bifurcation",
    "CardinalityPenalty",
    "CountingSampler",
    "Counts",
    "Decompose",
    "Dense",
    "Enumeration",
    "Exact",
    "Fault",
    "FaultPolicy",
    "Greedy",
    "LagrangeCardinality",
    "LowRank",
    "QuadraticProblem",
    "Random",
    "Relax",
    "RoofDuality",
    "RowProblem",
    "SamplerEntry",
    "Solution",
    "Sparse",
    "SwapAnnealing",
    "SwapTabu",
    "TorchAnnealing",
    "check_sampler",
    "compare",
    "from_pyqubo",
    "get_sampler",
    "list_samplers",
    "read_problem",
    "relax",
    "solve",
    "solve_rows",
    "write_problem",
]

#: Lets `qprune` tell this package from a `solvers.py` of the user's own.
QPRUNE_SOLVERS = True


# Imported when first used: most of them bring numba, some torch.
_LAZY = {
    "Answer": "solvers.ask",
    "AnswerStore": "solvers.ask",
    "Ask": "solvers.ask",
    "Bifurcation": "solvers.search.batched.bifurcation",
    "CardinalityPenalty": "solvers.foreign.penalty",
    "Counts": "solvers.rows.counts",
    "Decompose": "solvers.composites.decompose",
    "Enumeration": "solvers.convex.exact",
    "Exact": "solvers.convex.exact",
    "Fault": "solvers.ask",
    "FaultPolicy": "solvers.ask",
    "Greedy": "solvers.search.descent",
    "LagrangeCardinality": "solvers.foreign.penalty",
    "Random": "solvers.search.descent",
    "Relax": "solvers.convex.relax",
    "RoofDuality": "solvers.composites.roof",
    "RowProblem": "solvers.rows.problem",
    "SwapAnnealing": "solvers.search.annealing",
    "SwapTabu": "solvers.search.tabu",
    "TorchAnnealing": "solvers.search.batched.annealing",
    "check_sampler": "solvers.testing",
    "compare": "solvers.study.compare",
    "from_pyqubo": "solvers.problem.symbolic",
    "relax": "solvers.convex.bounds",
    "solve": "solvers.ask",
    "solve_rows": "solvers.rows.search",
}


def __getattr__(name: str) -> Any:
    """Import the names that need numba on first use."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
