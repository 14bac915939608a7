"""`restricted`: part of a problem, the rest held fixed.

Exact elimination of variables with at most two couplings, most of a very sparse problem's.

With its neighbours fixed, such a variable has a best value, and the energy at that value is a
function of at most two binary variables: linear terms and one coupling. So the smaller problem
has the same optimum, and its states extend to states of the original of the same energy.
(For MaxCut: Dunning, Gupta and Silberholz 2018; the general rule is bucket elimination.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.host.clock import Deadline
from solvers.problem.problem import Integers, QuadraticProblem, States
from solvers.problem.quadratic import Quadratic, Sparse
from solvers.problem.solution import Solution


def restricted(
    problem: QuadraticProblem, x: NDArray[np.generic], free: NDArray[np.integer]
) -> QuadraticProblem:
    """The problem over the variables ``free``, the others held at ``x``.

    Its energies are those of the whole problem; its counts are the given ones less the fixed ones.

    Args:
        problem: with or without counts.
        x: a state, shape (n,); its entries at ``free`` do not matter.
        free: indices of the free variables, each once.

    Raises:
        InvalidProblemError: the fixed ones already break a count.

    Example:
        >>> problem = QuadraticProblem([1.0, 2.0], [[0.0, 3.0], [3.0, 0.0]], counts=1)
        >>> part = restricted(problem, np.array([1, 0]), np.array([1]))
        >>> part.linear.tolist(), part.offset, part.counts.tolist()
        ([5.0], 1.0, [0])
    """
    rest = np.array(x, dtype=np.float64)
    rest[free] = 0.0
    field = problem.fields(rest)[0]
    groups, counts = problem.groups, problem.counts
    if groups is not None and counts is not None:
        taken = np.bincount(groups, weights=rest, minlength=counts.size).astype(np.int64)
        groups, counts = groups[free], counts - taken
    return QuadraticProblem(
        field[free], problem.quadratic.restrict(free), problem.energy(rest), groups, counts
    )


_MOST_COUPLINGS = 2
_SHARE = 0.05
# Seconds to eliminate a variable and to restore it, about.
_SECONDS_PER_VARIABLE = 15e-6

#: A variable, its linear term, and its couplings when it went: it is 1 where their sum is below 0.
Elimination = tuple[int, float, dict[int, float]]


@dataclass(frozen=True, eq=False)
class Reduction:
    """A problem, a smaller one with the same optimum, and the way back.

    Attributes:
        original: the problem as given.
        problem: the smaller one, the original itself if nothing could be eliminated.
        kept: its variables as indices of the original.
        eliminated: the others, in the order of their elimination.
    """

    original: QuadraticProblem
    problem: QuadraticProblem
    kept: Integers
    eliminated: tuple[Elimination, ...] = ()

    def restrict(self, states: States | None) -> States | None:
        """States of the original as states of the smaller problem."""
        return None if states is None else np.ascontiguousarray(states[:, self.kept])

    def lift(self, states: States) -> States:
        """States of the smaller problem as states of the original, of the same energy."""
        if not self.eliminated:
            return states
        lifted = np.zeros((len(states), self.original.num_variables), dtype=np.int8)
        lifted[:, self.kept] = states
        columns = np.ascontiguousarray(lifted.T)
        for i, linear, couplings in reversed(self.eliminated):
            field = np.full(len(states), linear)
            for j, coupling in couplings.items():
                field += coupling * columns[j]
            columns[i] = field < 0
        return np.ascontiguousarray(columns.T)

    def lifted(self, solution: Solution) -> Solution:
        """A solution of the smaller problem as one of the original."""
        if not self.eliminated:
            return solution
        info = {**solution.info, "variables_eliminated": len(self.eliminated)}
        return Solution.of(self.original, self.lift(solution.samples), info=info)


def reduced(problem: QuadraticProblem, deadline: Deadline | None = None) -> Reduction:
    """Eliminate variables from a sparse problem without counts; return others as given.

    So is one whose elimination would take more than a small part of the time left.

    Example:
        >>> problem = QuadraticProblem([-1.0, 2.0, 1.0], sparse.csr_array((3, 3)))
        >>> reduced(problem).problem.num_variables, reduced(problem).problem.offset
        (0, -1.0)
    """
    everything = np.arange(problem.num_variables)
    left = float("inf") if deadline is None else _SHARE * deadline.remaining
    in_time = _SECONDS_PER_VARIABLE * problem.num_variables <= left
    if problem.groups is None and in_time and _few_couplings(problem.quadratic):
        assert isinstance(problem.quadratic, Sparse)
        graph = _Graph(problem, problem.quadratic.matrix)
        if graph.removable.size:
            graph.eliminate()
            return graph.reduction()
    return Reduction(problem, problem, everything)


def _few_couplings(quadratic: Quadratic) -> bool:
    """True if some row is short enough, diagonal included, for its variable to be eliminated."""
    if not isinstance(quadratic, Sparse):
        return False
    lengths = np.diff(quadratic.matrix.indptr)
    return bool((lengths <= _MOST_COUPLINGS + 1).any())


class _Graph:
    """The couplings as a dictionary per variable, shrinking."""

    def __init__(self, problem: QuadraticProblem, matrix: sparse.csr_array) -> None:
        self.problem = problem
        off_diagonal = sparse.csr_array(matrix - sparse.diags_array(matrix.diagonal()))
        off_diagonal.eliminate_zeros()
        self._matrix = off_diagonal
        self.offset = problem.offset
        self.eliminated: list[Elimination] = []

    @property
    def removable(self) -> NDArray[np.int64]:
        """Variables with few enough couplings at the start."""
        return np.flatnonzero(np.diff(self._matrix.indptr) <= _MOST_COUPLINGS)

    @cached_property
    def couplings(self) -> list[dict[int, float]]:
        indptr: Any = self._matrix.indptr.tolist()
        columns: list[int] = self._matrix.indices.tolist()
        values: list[Any] = self._matrix.data.tolist()
        return [
            dict(zip(columns[low:high], values[low:high], strict=True))
            for low, high in pairwise(indptr)
        ]

    @cached_property
    def linear(self) -> list[float]:
        return (self.problem.linear + 0.5 * self.problem.quadratic.diagonal()).tolist()

    def eliminate(self) -> None:
        """Eliminate variables until all that are left have more couplings."""
        waiting = self.removable.tolist()
        gone = [False] * self.problem.num_variables
        while waiting:
            i = waiting.pop()
            if gone[i] or len(self.couplings[i]) > _MOST_COUPLINGS:
                continue
            gone[i] = True
            waiting.extend(self._remove(i))

    def _remove(self, i: int) -> list[int]:
        """Eliminate i; return its neighbours, which may be next."""
        neighbours, linear = self.couplings[i], self.linear[i]
        self.eliminated.append((i, linear, neighbours))
        for j in neighbours:
            del self.couplings[j][i]
        none = min(0.0, linear)
        self.offset += none
        single = {j: min(0.0, linear + coupling) for j, coupling in neighbours.items()}
        for j, value in single.items():
            self.linear[j] += value - none
        if len(neighbours) == _MOST_COUPLINGS:
            j, k = neighbours
            both = min(0.0, linear + neighbours[j] + neighbours[k])
            self._couple(j, k, both - single[j] - single[k] + none)
        return list(neighbours)

    def _couple(self, j: int, k: int, coupling: float) -> None:
        total = self.couplings[j].get(k, 0.0) + coupling
        for one, other in ((j, k), (k, j)):
            if total == 0.0:
                self.couplings[one].pop(other, None)
            else:
                self.couplings[one][other] = total

    def reduction(self) -> Reduction:
        """The remaining variables as a problem, with the way back."""
        gone = {i for i, _, _ in self.eliminated}
        kept = np.array([i for i in range(self.problem.num_variables) if i not in gone], np.int64)
        place = {i: p for p, i in enumerate(kept.tolist())}
        lists = [self.couplings[i] for i in kept.tolist()]
        indptr = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
        indices = np.array([place[j] for one in lists for j in one], dtype=np.int64)
        data = np.array([value for one in lists for value in one.values()])
        matrix = sparse.csr_array((data, indices, indptr), shape=(kept.size, kept.size))
        smaller = QuadraticProblem(np.array(self.linear)[kept], Sparse(matrix), offset=self.offset)
        return Reduction(self.problem, smaller, kept, tuple(self.eliminated))
