"""Penalties for counts: their strength, and the problem with one added."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from solvers.errors import InvalidProblemError
from solvers.host.machine import require_memory
from solvers.problem.problem import Integers, QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, LowRank, Quadratic, Sparse
from solvers.problem.repair import repair


def penalised(problem: QuadraticProblem, strength: float) -> QuadraticProblem:
    """The problem without counts, strength * (sum over group - count)^2 added per group.

    The square is 1/2 x.(2 strength 11').x - 2 strength count sum(x) + strength count^2, so that
    the quadratic part gains 2 strength on every pair of a group and on its diagonal.

    Raises:
        InvalidProblemError: the problem has no counts.
        ProblemTooLargeError: the penalty couples every pair of a group, and the pairs do not
            fit into memory.

    Example:
        >>> problem = QuadraticProblem([1.0, 1.0], np.zeros((2, 2)), counts=1)
        >>> penalised(problem, 5.0).energies([[0, 0], [0, 1], [1, 1]]).tolist()
        [5.0, 1.0, 7.0]
    """
    groups, counts = _counted(problem)
    return QuadraticProblem(
        problem.linear - 2.0 * strength * counts[groups],
        _with_couplings(problem, 2.0 * strength),
        problem.offset + strength * float(np.square(counts, dtype=np.float64).sum()),
        labels=problem.labels,
    )


def _with_couplings(problem: QuadraticProblem, coupling: float) -> Quadratic:
    """Q with ``coupling`` added to every pair inside a group, diagonal included."""
    size = problem.num_variables
    groups, _ = _counted(problem)
    pairs = float((problem.group_sizes.astype(np.float64) ** 2).sum())
    way_out = "use LagrangeCardinality, which adds no coupling, or smaller groups"
    if isinstance(problem.quadratic, Sparse) and pairs < 0.25 * size * size:
        require_memory(50.0 * pairs, f"the penalty on {pairs:.0f} pairs", way_out)
        one_hot = sparse.csr_array(
            (np.ones(size), groups, np.arange(size + 1)), shape=(size, problem.num_groups)
        )
        return Sparse(sparse.csr_array(problem.quadratic.matrix + coupling * one_hot @ one_hot.T))
    # The matrix, its copy in the model, and dimod's own adjacency of 16 bytes an entry.
    require_memory(40.0 * size * size, f"the penalty on all pairs of {size} variables", way_out)
    matrix = problem.quadratic.dense()
    if problem.num_groups == 1:
        return Dense(matrix + coupling)
    return Dense(matrix + coupling * (groups[:, None] == groups[None, :]))


def with_matrix(problem: QuadraticProblem) -> QuadraticProblem:
    """The problem with its matrix formed, if it had a low-rank factor: a BQM needs it anyway.

    Raises:
        ProblemTooLargeError: the matrix does not fit into memory.
    """
    if not isinstance(problem.quadratic, LowRank):
        return problem
    size = problem.num_variables
    require_memory(24.0 * size * size, f"the matrix of {size} variables", "use smaller blocks")
    return QuadraticProblem(
        problem.linear,
        Dense(problem.quadratic.dense()),
        problem.offset,
        problem.groups,
        problem.counts,
        problem.labels,
    )


def flip_costs(problem: QuadraticProblem) -> tuple[Floats, Floats]:
    """The most that setting, and that clearing, a variable can cost in any state, two (n,).

    Setting i costs linear_i + 1/2 Q_ii + sum_{j != i} Q_ij x_j, at most the sum with every
    positive Q_ij; clearing it costs the negative, at most with every negative one.
    """
    if isinstance(problem.quadratic, Sparse):
        matrix = problem.quadratic.matrix
        positive = np.asarray(matrix.maximum(0).sum(axis=1)).ravel()
        negative = np.asarray(matrix.minimum(0).sum(axis=1)).ravel()
    else:
        matrix = problem.quadratic.dense()
        positive = np.maximum(matrix, 0.0).sum(axis=1)
        negative = np.minimum(matrix, 0.0).sum(axis=1)
    diagonal = problem.quadratic.diagonal()
    own = problem.linear + 0.5 * diagonal
    up = own + positive - np.maximum(diagonal, 0.0)
    down = -(own + negative - np.minimum(diagonal, 0.0))
    return up, down


def strength_bound(problem: QuadraticProblem) -> float:
    """A strength from which on every minimiser of the penalised problem is feasible.

    A state with too few ones in a group of s variables has at least s - count + 1 zeros there,
    so the cheapest of them costs at most the count-th smallest of `flip_costs`, while setting
    it lowers the penalty by at least the strength; likewise for too many ones.

    Example:
        >>> problem = QuadraticProblem([-3.0, 1.0], np.zeros((2, 2)), counts=2)
        >>> round(float(strength_bound(problem)), 3)
        1.0
    """
    groups, counts = _counted(problem)
    up, down = flip_costs(problem)
    bound = 0.0
    for group, count in enumerate(counts.tolist()):
        members = np.flatnonzero(groups == group)
        if count > 0:
            bound = max(bound, float(np.sort(up[members])[count - 1]))
        if count < members.size:
            bound = max(bound, float(np.sort(down[members])[members.size - count - 1]))
    scale = max(1e-12, np.abs(problem.linear).max(initial=0.0), bound)
    # Strictly more than the worst flip, so that no infeasible state ties.
    return bound + 1e-6 * scale


def first_strength(problem: QuadraticProblem) -> float:
    """The first strength: a tenth of the cost of one variable more or less at a greedy state.

    Small on purpose: on pruning blocks, samples a few flips from feasible, repaired, are better
    than feasible ones found under a penalty that hides the problem: at n = 1024 with gradient
    term, annealing reached -1548 at a fiftieth of that cost, -1454 at the cost itself.
    """
    _, changes = _greedy_flip_costs(problem)
    typical = float(np.median(np.abs(changes))) if changes.size else 0.0
    largest = float(np.abs(marginal_costs(problem)).max(initial=0.0))
    return max(0.1 * largest, 1e-3 * typical, 1e-12)


def marginal_costs(problem: QuadraticProblem) -> Floats:
    """The cost of the next variable of each group at a greedy state, shape (g,)."""
    groups, counts = _counted(problem)
    x, gains = _greedy_flip_costs(problem)
    costs = np.zeros(counts.size)
    for group in range(counts.size):
        members = groups == group
        zeros, ones = gains[members & (x == 0)], gains[members & (x == 1)]
        sides = [zeros.min()] if zeros.size else []
        sides += [-ones.min()] if ones.size else []
        costs[group] = float(np.mean(sides)) if sides else 0.0
    return costs


def _greedy_flip_costs(problem: QuadraticProblem) -> tuple[NDArray[np.int8], Floats]:
    """A state built one cheapest flip at a time, and what each flip costs there, two (n,)."""
    x = repair(problem, np.zeros(problem.num_variables))[0]
    field = problem.fields(x)[0]
    return x, (1.0 - 2.0 * x) * field + 0.5 * problem.quadratic.diagonal()


def _counted(problem: QuadraticProblem) -> tuple[Integers, Integers]:
    """The problem's groups (n,) and counts (g,)."""
    if problem.groups is None or problem.counts is None:
        raise InvalidProblemError("the problem has no counts; pass some, or use the child itself")
    return problem.groups, problem.counts
