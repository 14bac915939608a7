"""Presolve: exact reductions of a problem before any search, in a few passes.

Counts of 0 or n decide their groups. Without counts, a variable whose linear term outweighs all
its couplings is fixed (first-order persistency: Hammer and Hansen 1981, in Boros and Hammer,
Discrete Applied Mathematics 123, 2002), and one with at most two couplings is eliminated. Where
couplings depend on groups alone, a problem with counts is solved by sorting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.host.clock import Deadline
from solvers.problem.gap import energy_step, rounding
from solvers.problem.parts import reduced, restricted
from solvers.problem.problem import Integers, QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, LowRank, Quadratic, Sparse
from solvers.sampler import States

_EPS = float(np.finfo(np.float64).eps)
# A low-rank matrix is formed up to this size.
_FORMED = 2048
# Seconds to eliminate a variable, about, on a slow machine.
_SECONDS_PER_VARIABLE = 1e-4
_MOST_ROUNDS = 50
# Range of the largest coefficient's power of two in which a problem is not scaled.
_COMFORTABLE = 200
# The power of two of a zero.
_NONE = -10_000
# Rows of a matrix in one block.
_ROWS = 256


class _Step(Protocol):
    def restrict(self, states: States | None) -> States | None: ...

    def lift(self, states: States) -> States: ...


@dataclass(frozen=True, eq=False)
class Fixing:
    """A step that fixes variables.

    Attributes:
        state: shape (n,), int8; its values at ``kept`` are not used.
        kept: indices of the others.
    """

    state: NDArray[np.int8]
    kept: Integers

    def restrict(self, states: States | None) -> States | None:
        """States of all variables as states of those kept."""
        return None if states is None else np.ascontiguousarray(states[:, self.kept])

    def lift(self, states: States) -> States:
        """States of those kept as states of all."""
        lifted = np.tile(self.state, (len(states), 1))
        lifted[:, self.kept] = states
        return lifted


@dataclass(frozen=True, eq=False)
class Presolved:
    """A problem after presolve, and the way back.

    Attributes:
        problem: has the same optimum, up to ``slack``; its offset holds what was decided.
        slack: rounding error of its energies.
        steps: the reductions, in order.
    """

    problem: QuadraticProblem
    slack: float = 0.0
    steps: tuple[_Step, ...] = ()

    def restrict(self, states: States | None) -> States | None:
        """States of the whole problem as states of what is left."""
        for step in self.steps:
            states = step.restrict(states)
        return states

    def lift(self, states: States) -> States:
        """States of what is left as states of the whole problem."""
        for step in reversed(self.steps):
            states = step.lift(states)
        return states

    def then(self, problem: QuadraticProblem, step: _Step, slack: float) -> Presolved:
        """The same with one more step."""
        return Presolved(problem, max(self.slack, slack), (*self.steps, step))


def presolved(problem: QuadraticProblem, deadline: Deadline | None = None) -> Presolved:
    """Apply all reductions for which there is time.

    Example:
        >>> problem = QuadraticProblem([5.0, -1.0], [[0.0, 2.0], [2.0, 0.0]])
        >>> presolved(problem).problem.num_variables
        0
    """
    deadline = deadline or Deadline()
    slack = cache(lambda: _slack(problem))
    found = _sorted_out(_forced(Presolved(problem)), slack)
    found = replace(found, problem=_without_rivals(found.problem))
    for _ in range(_MOST_ROUNDS):
        left = found.problem
        if deadline.passed or left.num_variables == 0 or left.groups is not None:
            break
        found = _persistent(found, slack)
        cost = _SECONDS_PER_VARIABLE * found.problem.num_variables
        if cost < deadline.remaining:
            smaller = reduced(found.problem)
            if smaller.eliminated:
                found = found.then(smaller.problem, smaller, slack())
        if found.problem.num_variables == left.num_variables:
            break
    return found


def without_choice(problem: QuadraticProblem) -> Presolved | None:
    """`presolved` where counts, or sorting, already fix all variables; else None."""
    found = _sorted_out(_forced(Presolved(problem)), lambda: _slack(problem))
    return None if found.problem.num_variables else found


def sign_bound(problem: QuadraticProblem) -> float:
    """A lower bound of the energies, without the offset: every term at its least.

    A coupling is shared by its two variables, half and half.

    Example:
        >>> sign_bound(QuadraticProblem([1.0, -3.0], [[0.0, -4.0], [-4.0, 0.0]])) <= -6.0
        True
    """
    falls, _ = _sides(problem.quadratic)
    linear = problem.linear + 0.5 * problem.quadratic.diagonal()
    least = np.minimum(0.0, linear + 0.5 * falls)
    error = (problem.num_variables + 16) * _EPS * (np.abs(linear).sum() - falls.sum())
    return float(least.sum() - error)


def _slack(problem: QuadraticProblem) -> float:
    """A bound on the rounding error of all sums of coefficients in this module together."""
    return 0.0 if energy_step(problem) > 0.0 else 0.5 * rounding(problem)


def _without_rivals(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem without couplings inside groups with count 1, of which no state has both ends."""
    quadratic, groups, counts = problem.quadratic, problem.groups, problem.counts
    if groups is None or counts is None or not (counts == 1).any():
        return problem
    single = counts == 1
    if isinstance(quadratic, Sparse):
        entries = sparse.coo_array(quadratic.matrix)
        row, column = entries.row, entries.col
        keep = (row == column) | (groups[row] != groups[column]) | ~single[groups[row]]
        kept = sparse.coo_array((entries.data[keep], (row[keep], column[keep])), entries.shape)
        quadratic = Sparse(sparse.csr_array(kept))
    elif isinstance(quadratic, Dense):
        matrix = quadratic.matrix.copy()
        for group in np.flatnonzero(single):
            members = np.flatnonzero(groups == group)
            matrix[np.ix_(members, members)] = np.diag(matrix[members, members])
        quadratic = Dense.trusted(matrix)
    return QuadraticProblem(problem.linear, quadratic, problem.offset, groups, counts)


def _fixed(found: Presolved, state: NDArray[np.int8], kept: Integers, slack: float) -> Presolved:
    part = restricted(found.problem, state, kept)
    return found.then(part, Fixing(state, kept), slack)


def _forced(found: Presolved) -> Presolved:
    """Remove the groups with a count of 0 or of their size: these are decided."""
    problem = found.problem
    if problem.groups is None or problem.counts is None:
        return found
    sizes, counts = problem.group_sizes, problem.counts
    open_ = (counts > 0) & (counts < sizes)
    if open_.all():
        return found
    state = (counts == sizes)[problem.groups].astype(np.int8)
    kept = np.flatnonzero(open_[problem.groups])
    part = restricted(problem.without_counts(), state, kept)
    if kept.size:
        names = (np.cumsum(open_) - 1)[problem.groups[kept]]
        part = QuadraticProblem(part.linear, part.quadratic, part.offset, names, counts[open_])
    return found.then(part, Fixing(state, kept), 0.0)


def _persistent(found: Presolved, slack: Callable[[], float]) -> Presolved:
    """Fix the variables whose optimal value does not depend on the others."""
    problem = found.problem
    n = problem.num_variables
    if isinstance(problem.quadratic, LowRank) and n > _FORMED:
        return found
    linear = problem.linear + 0.5 * problem.quadratic.diagonal()
    falls, rises = _sides(problem.quadratic)
    down, up = linear + falls, -(linear + rises)
    zero = down >= 0.0
    one = (up >= 0.0) & ~zero
    if not (zero | one).any():
        return found
    error = 4.0 * (n + 64) * _EPS * (np.abs(linear) + rises - falls)
    # A sum of given coefficients of one sign has no cancellation.
    given = not found.steps
    doubtful = (zero & (down <= error) & ~(given & (falls == 0.0))) | (
        one & (up <= error) & ~(given & (rises == 0.0))
    )
    return _fixed(
        found,
        one.astype(np.int8),
        np.flatnonzero(~(zero | one)),
        slack() if doubtful.any() else 0.0,
    )


def _sides(quadratic: Quadratic) -> tuple[Floats, Floats]:
    """The sum of the negative, and of the positive, couplings of each variable."""
    diagonal = quadratic.diagonal()
    if isinstance(quadratic, Sparse):
        negative = np.asarray(quadratic.matrix.minimum(0.0).sum(axis=1)).ravel()
        positive = np.asarray(quadratic.matrix.maximum(0.0).sum(axis=1)).ravel()
    else:
        matrix = quadratic.dense()
        parts = [matrix[i : i + _ROWS] for i in range(0, max(1, len(matrix)), _ROWS)]
        negative = np.concatenate([np.minimum(part, 0.0).sum(1) for part in parts])
        positive = np.concatenate([np.maximum(part, 0.0).sum(1) for part in parts])
    # A sum of one sign minus one of its terms: exactly 0 if that was the only one.
    falls = np.minimum(0.0, negative - np.minimum(diagonal, 0.0))
    rises = np.maximum(0.0, positive - np.maximum(diagonal, 0.0))
    return falls, rises


def _sorted_out(found: Presolved, slack: Callable[[], float]) -> Presolved:
    """Fix all variables by sorting where couplings are the same within and between groups."""
    problem = found.problem
    if problem.groups is None or problem.counts is None or not _alike(problem):
        return found
    cost = problem.linear + 0.5 * problem.quadratic.diagonal()
    order = np.lexsort((cost, problem.groups))
    group = problem.groups[order]
    rank = np.arange(order.size) - (np.cumsum(problem.group_sizes) - problem.group_sizes)[group]
    state = np.zeros(order.size, np.int8)
    state[order[rank < problem.counts[group]]] = 1
    decided = problem.without_counts()
    part = restricted(decided, state, np.zeros(0, np.int64))
    return found.then(part, Fixing(state, np.zeros(0, np.int64)), slack())


def _alike(problem: QuadraticProblem) -> bool:
    """True if a coupling depends on the two groups alone, up to rounding."""
    quadratic, groups, n = problem.quadratic, problem.groups, problem.num_variables
    assert groups is not None
    if isinstance(quadratic, Sparse):
        entries = np.count_nonzero(quadratic.matrix.data)
        if entries < n * (n - 1):
            return entries == np.count_nonzero(quadratic.diagonal())
    if n == 0 or (n > _FORMED and isinstance(quadratic, LowRank)):
        return False
    allowed = 0.0
    if isinstance(quadratic, LowRank):
        allowed = 16.0 * quadratic.rank * _EPS * float(quadratic.diagonal().max())
    # Rarely true, and cheap to refute: two rows of one group that differ elsewhere.
    i, j = np.flatnonzero(groups == groups[0])[:2]
    difference = np.abs(quadratic.row(int(i)) - quadratic.row(int(j)))
    if np.delete(difference, [i, j]).max(initial=0.0) > allowed:
        return False
    matrix = quadratic.dense()
    starts = np.array([np.flatnonzero(groups == g)[:2] for g in range(problem.num_groups)])
    # Every group has at least two variables: smaller ones are fixed.
    between = matrix[np.ix_(starts[:, 0], starts[:, 1])][groups]
    return all(
        np.abs(np.delete(row - between[i][groups], i)).max(initial=0.0) <= allowed
        for i, row in enumerate(matrix)
    )


def extreme(problem: QuadraticProblem) -> int:
    """The power of two of the largest coefficient where squares might not be representable; or 0.

    Times 2 to minus that, only the scale changes: no significant digit is lost.
    """
    power = max(_power(problem.linear), _largest_power(problem.quadratic))
    return power - power % 2 if abs(power) > _COMFORTABLE and power > _NONE else 0


def _power(values: Floats) -> int:
    largest = float(max(values.max(initial=0.0), -values.min(initial=0.0)))
    return int(np.frexp(largest)[1]) if largest > 0.0 else _NONE


def _largest_power(quadratic: Quadratic) -> int:
    if isinstance(quadratic, LowRank):
        return 2 * _power(quadratic.factor)
    return _power(
        np.asarray(quadratic.matrix.data, np.float64)
        if isinstance(quadratic, Sparse)
        else quadratic.dense()
    )


def times_power(problem: QuadraticProblem, power: int) -> QuadraticProblem:
    """The problem times 2^``power``, an even number; its offset, too."""
    quadratic = problem.quadratic
    if isinstance(quadratic, LowRank):
        quadratic = LowRank(np.ldexp(quadratic.factor, power // 2))
    elif isinstance(quadratic, Sparse):
        matrix = quadratic.matrix.copy()
        matrix.data = np.ldexp(matrix.data, power)
        quadratic = Sparse(matrix)
    else:
        quadratic = Dense.trusted(np.ldexp(quadratic.dense(), power))
    return QuadraticProblem(
        np.ldexp(problem.linear, power),
        quadratic,
        float(np.ldexp(problem.offset, power)),
        problem.groups,
        problem.counts,
    )
