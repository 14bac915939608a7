"""The gap between the best energy found and the proved lower bound.

The *absolute* gap is E - B, with E the energy found and B a lower bound. The *relative* gap is
(E - B) / (M - B), with M the mean energy of uniformly random feasible states: 0 is the optimum,
1 is no better than chance. Neither depends on a constant added to the problem, nor on whether it is
written in spins or in bits; the relative gap does not depend on a positive factor either.

A state is *proved* optimal where the relative gap is at most `TOLERANCE`; or where the absolute
one is within `rounding`, the error of a sum of the coefficients (without the offset),
and then counts as 0. Where all energies are multiples of one number (integer coefficients), the
absolute gap must be less than it, however large the coefficients are, and is 0 then.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import Dense, Floats, LowRank, Sparse

#: Relative gap up to which an energy counts as proved optimal.
TOLERANCE = 1e-10

_EPS = float(np.finfo(np.float64).eps)
# Sums of integers up to here are exact, also in sixteenths.
_EXACT = 2.0**48
# Times the rounding of one sum: twice the slack of a bound.
_FACTOR = 32.0
# Rows of a dense matrix in one block.
_ROWS = 256


@dataclass(frozen=True)
class Gap:
    """The distance of an energy from the optimum, at most.

    Attributes:
        absolute: in units of the energy; infinite where there is no bound.
        relative: between 0 and 1 for a state that is better than chance; infinite likewise.
        proved: True if the energy is proved optimal, see the module.

    Example:
        >>> Gap(0.0, 0.0, True).proved, Gap().relative
        (True, inf)
    """

    absolute: float = float("inf")
    relative: float = float("inf")
    proved: bool = False


#: Where there is no bound.
UNKNOWN = Gap()


def gap_between(problem: QuadraticProblem, energy: float, bound: float, error: float = 0.0) -> Gap:
    """The gap of a state of ``energy`` to ``bound``, neither with the problem's offset.

    Args:
        problem: its offset does not matter.
        energy: of a feasible state.
        bound: no feasible state has a lower energy; -inf when nothing is known.
        error: rounding error of their difference.

    Example:
        >>> problem = QuadraticProblem([-1.0, -3.0], np.zeros((2, 2)), counts=1)
        >>> gap_between(problem, -2.5, -3.0).relative
        0.5
    """
    if not np.isfinite(bound) or not np.isfinite(energy):
        return UNKNOWN
    absolute = max(0.0, energy - bound) + error
    scale = max(0.0, mean_energy(problem) - bound)
    relative = absolute / scale if scale > 0.0 else float("inf")
    nothing = absolute <= _rounding_at_most(problem) and absolute <= rounding(problem)
    if nothing or relative <= TOLERANCE:
        step = energy_step(problem)
        if step > 0.0:
            nothing = absolute < step
            return Gap(0.0, 0.0, True) if nothing else Gap(absolute, relative, False)
    if nothing:
        return Gap(0.0, 0.0, True)
    return Gap(absolute, relative, relative <= TOLERANCE)


def mean_energy(problem: QuadraticProblem) -> float:
    """The mean energy of uniformly random feasible states, without the offset.

    In a group of n variables of which k are 1, each is 1 with probability p = k / n, and two are
    with p (k - 1) / (n - 1) (the hypergeometric law); variables of different groups, and all
    without counts, are independent.

    Example:
        >>> round(mean_energy(QuadraticProblem([1, 2, 3], np.ones((3, 3)), counts=2)), 9)
        6.0
    """
    n, quadratic = problem.num_variables, problem.quadratic
    within = 0.0
    if problem.groups is None or problem.counts is None:
        p = np.full(n, 0.5)
        product = quadratic.product(p)
    else:
        sizes = problem.group_sizes
        share = problem.counts / np.maximum(sizes, 1)
        p = share[problem.groups]
        # The covariance of two variables of one group.
        less = -share * (1.0 - share) / np.maximum(sizes - 1, 1)
        own = np.bincount(problem.groups, weights=quadratic.diagonal(), minlength=sizes.size)
        if sizes.size == 1:
            # One pass over the matrix for both.
            sums = quadratic.product(np.ones(n))
            product, inside = share[0] * sums, np.array([sums.sum()])
        else:
            product, inside = quadratic.product(p), _within_groups(problem)
        within = float(less @ (inside - own))
    diagonal = float(quadratic.diagonal() @ (p * (1.0 - p)))
    return float(problem.linear @ p + 0.5 * (p @ product + diagonal + within))


def _within_groups(problem: QuadraticProblem) -> Floats:
    """The sum of Q over the pairs inside each group, both ways and diagonal included, (g,)."""
    quadratic, groups, sizes = problem.quadratic, problem.groups, problem.group_sizes
    assert groups is not None
    n, g = groups.size, sizes.size
    if isinstance(quadratic, LowRank):
        one_hot = sparse.csr_array((np.ones(n), (np.arange(n), groups)), shape=(n, g))
        return np.asarray((one_hot.T @ quadratic.factor.T) ** 2).sum(axis=1)
    if isinstance(quadratic, Sparse):
        entries = sparse.coo_array(quadratic.matrix)
        rows, columns = groups[entries.row], groups[entries.col]
        weights = np.where(rows == columns, entries.data, 0.0)
        return np.bincount(rows, weights=weights, minlength=g).astype(np.float64)
    order = np.split(np.argsort(groups, kind="stable"), np.cumsum(sizes)[:-1])
    return np.array([quadratic.restrict(members).dense().sum() for members in order])


def magnitude(problem: QuadraticProblem) -> float:
    """The sum of all coefficients' sizes: no energy, bare of its offset, is larger."""
    quadratic = problem.quadratic
    linear = float(np.abs(problem.linear).sum())
    if isinstance(quadratic, LowRank):
        norms = float(np.sqrt(quadratic.diagonal()).sum())
        return linear + 0.5 * norms * norms
    if isinstance(quadratic, Sparse):
        return linear + 0.5 * float(np.abs(quadratic.matrix.data).sum())
    matrix = quadratic.dense()
    rows = range(0, len(matrix), _ROWS)
    return linear + 0.5 * float(sum(np.abs(matrix[i : i + _ROWS]).sum() for i in rows))


def rounding(problem: QuadraticProblem) -> float:
    """The rounding error of a difference of two energies, or of an energy and a bound, at most."""
    return _FACTOR * (problem.num_variables + 64) * _EPS * magnitude(problem)


def _rounding_at_most(problem: QuadraticProblem) -> float:
    """`rounding` or more, from the Euclidean norm of Q, which takes one fast look at it."""
    quadratic, n = problem.quadratic, problem.num_variables
    if not isinstance(quadratic, Dense):
        return float("inf")
    flat = quadratic.matrix.ravel()
    squares = float(flat @ flat)
    if not 1e-200 < squares < 1e200:
        return float("inf")
    size = float(np.abs(problem.linear).sum()) + 0.5 * n * float(np.sqrt(squares))
    return _FACTOR * (n + 64) * _EPS * size


def energy_step(problem: QuadraticProblem) -> float:
    """A number that divides all energies without the offset; 0 where none is known.

    It is the greatest common divisor of the coefficients where they are integers, or become so
    times a power of two up to 16.

    Example:
        >>> energy_step(QuadraticProblem([1.0, -2.0], [[0.0, 3.0], [3.0, 0.0]]))
        1.0
    """
    quadratic = problem.quadratic
    linear = problem.linear + 0.5 * quadratic.diagonal()
    if isinstance(quadratic, Sparse):
        entries = sparse.coo_array(quadratic.matrix)
        couplings = [entries.data[entries.row < entries.col]]
    elif isinstance(quadratic, Dense):
        matrix = quadratic.matrix
        couplings = [np.asarray(row[i + 1 :]) for i, row in enumerate(matrix)]
    else:
        return 0.0
    for factor in (1.0, 2.0, 4.0, 8.0, 16.0):
        divisor = 0
        for values in (linear, *couplings):
            scaled = factor * values
            if (
                np.abs(scaled).sum() > _EXACT / max(1, len(couplings))
                or (np.rint(scaled) != scaled).any()
            ):
                break
            if divisor != 1:
                divisor = int(np.gcd(np.gcd.reduce(scaled.astype(np.int64)), divisor))
        else:
            return divisor / factor
    return 0.0


def raised(bound: float, step: float) -> float:
    """The least multiple of ``step`` from ``bound`` on; ``bound`` itself where there is no step.

    Both without the offset. Division never rounds a quotient past an integer, so that a valid
    bound stays one.
    """
    return step * float(np.ceil(bound / step)) if step > 0.0 and np.isfinite(bound) else bound
