# Every public name and its module: `__init__.py` imports one when it is first used.
from .ask import (
    Answer as Answer,
)
from .ask import (
    AnswerStore as AnswerStore,
)
from .ask import (
    Ask as Ask,
)
from .ask import (
    Fault as Fault,
)
from .ask import (
    FaultPolicy as FaultPolicy,
)
from .ask import (
    solve as solve,
)
from .composites.decompose import Decompose as Decompose
from .composites.roof import RoofDuality as RoofDuality
from .convex.bounds import relax as relax
from .convex.exact import Enumeration as Enumeration
from .convex.exact import Exact as Exact
from .convex.relax import Relax as Relax
from .foreign.penalty import (
    CardinalityPenalty as CardinalityPenalty,
)
from .foreign.penalty import (
    LagrangeCardinality as LagrangeCardinality,
)
from .formats.files import read_problem as read_problem
from .formats.files import write_problem as write_problem
from .problem.problem import QuadraticProblem as QuadraticProblem
from .problem.quadratic import Dense as Dense
from .problem.quadratic import LowRank as LowRank
from .problem.quadratic import Sparse as Sparse
from .problem.solution import Solution as Solution
from .problem.symbolic import from_pyqubo as from_pyqubo
from .registry import (
    SamplerEntry as SamplerEntry,
)
from .registry import (
    get_sampler as get_sampler,
)
from .registry import (
    list_samplers as list_samplers,
)
from .rows.counts import Counts as Counts
from .rows.problem import RowProblem as RowProblem
from .rows.search import solve_rows as solve_rows
from .sampler import CountingSampler as CountingSampler
from .search.annealing import SwapAnnealing as SwapAnnealing
from .search.batched.annealing import TorchAnnealing as TorchAnnealing
from .search.batched.bifurcation import Bifurcation as Bifurcation
from .search.descent import Greedy as Greedy
from .search.descent import Random as Random
from .search.tabu import SwapTabu as SwapTabu
from .study.compare import compare as compare
from .testing import check_sampler as check_sampler
