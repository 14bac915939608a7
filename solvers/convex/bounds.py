"""The convex relaxation of a problem, and the lower bound that it certifies.

The relaxation is min linear.x + 1/2 x.Q.x over 0 <= x <= 1 with exact group sums. For every y,
feasible or not,

    E(x) >= offset - 1/2 y.Q.y + min over feasible s of (linear + Q y).s

holds for all feasible x when Q is positive semidefinite (the tangent of E at y lies below E;
Frank and Wolfe 1956), so the bound is valid whatever the accuracy of y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from solvers.convex.convexify import Convex, convexify
from solvers.convex.newton_kernels import accelerate, largest_eigenvalue, proximal_newton
from solvers.convex.projection_kernels import linear_minimum, project
from solvers.host.clock import Deadline
from solvers.problem.problem import Integers, QuadraticProblem
from solvers.problem.quadratic import Floats, LowRank, Quadratic, Sparse

_EPS = float(np.finfo(np.float64).eps)
# Up to this size Q is formed and all variables are worked on at once.
_SMALL = 384
# A larger working set is not formed; Newton then runs on the whole problem where it can.
_LARGEST_SET = 1200
# Accelerated steps before Newton, and proximal step that fits where they end.
_WARM_UP = 80
_FIRST_STEP = 40.0
_MAX_STEPS = 1000
_MAX_SETS = 20
# Entries of a matrix read, and multiplications of a factorisation made, in a second; at least.
_ENTRIES_PER_SECOND = 7e8
_OPERATIONS_PER_SECOND = 6e9
# Seconds between two looks at the clock, about.
_SECONDS_PER_LOOK = 0.03
# With less time than this many passes over the matrix take, the bound is that of the centre.
_FEWEST_PASSES = 20
# A relative gap below this counts as 0.
_LEAST_SHARE = 1e-6
# A variable at a bound is beyond doubt when ``_DOUBT`` diagonal Newton steps would not free it.
_DOUBT = 20.0


@dataclass(frozen=True, eq=False)
class Tangent:
    """The bound at one point, variables in the order of the `Convex` problem.

    Attributes:
        bound: no binary state with exact counts has a lower energy.
        vertex: shape (n,), int8, the state that minimises the tangent.
        reduced_costs: shape (n,); a state that differs from ``vertex`` at i has an energy of at
            least ``bound + reduced_costs[i]``; inf where the count leaves no choice.
    """

    bound: float
    vertex: NDArray[np.int8]
    reduced_costs: Floats

    def open_below(self, energy: float) -> Integers:
        """The variables in which a state of less ``energy`` may differ from ``vertex``."""
        return np.flatnonzero(self.bound + self.reduced_costs < energy)


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A nearly optimal fractional point and what it proves, in the order of ``convex``.

    Attributes:
        convex: the convex problem that was relaxed.
        x: shape (n,), exact group sums up to rounding.
        energy: E of x, offset included.
        tangent: the best bound found.
        steps: Newton steps taken.
    """

    convex: Convex
    x: Floats
    energy: float
    tangent: Tangent
    steps: int

    @property
    def lower_bound(self) -> float:
        """No binary state with exact counts has a lower energy."""
        return self.tangent.bound

    @property
    def preference(self) -> Floats:
        """x, ties broken by the state that minimises the tangent, for rounding."""
        return self.x + 1e-9 * self.tangent.vertex

    @property
    def num_fractional(self) -> int:
        """Number of variables that are neither 0 nor 1."""
        return int(((self.x > 0.0) & (self.x < 1.0)).sum())


def tangent_at(convex: Convex, y: Floats, product: Floats) -> Tangent:
    """The bound of the module's docstring at ``y``, rounding errors taken off."""
    cost = convex.linear + product
    vertex = np.empty(y.size, np.int8)
    threshold = np.empty(y.size)
    least = linear_minimum(cost, convex.starts, convex.counts, vertex, threshold)
    slack = rounding_slack(convex, np.maximum(np.abs(y), vertex))
    bound = convex.offset + least - 0.5 * float(y @ product) - slack
    return Tangent(bound, vertex, np.abs(cost - threshold))


def rounding_slack(convex: Convex, y: Floats) -> float:
    """The rounding error of a bound at y, or at any point smaller in every entry, at most.

    |Q_ij| <= r_i r_j with r the root of the diagonal. With S = r.|y|, an entry of Q y is off by
    at most (n + m) eps r_i S (m the rank of a low-rank Q) and every sum of them with y by that
    times S. Negative eigenvalues of Q, by rounding, add to that.
    """
    size = float(np.sqrt(np.maximum(convex.diagonal, 0.0)) @ np.abs(y))
    terms = size * size + float(np.abs(convex.linear).sum()) + abs(convex.offset)
    rank = convex.quadratic.rank if isinstance(convex.quadratic, LowRank) else 0
    return 4.0 * (y.size + rank + 16) * _EPS * terms + 0.5 * convex.missing * y.size


def relax(
    problem: QuadraticProblem,
    *,
    tolerance: float = 1e-4,
    deadline: Deadline | None = None,
) -> Relaxation:
    """Solve the convex relaxation of ``problem``, made convex first if it is not.

    Args:
        problem: with or without counts.
        tolerance: relative gap between the energy of x and the bound at which to stop.
        deadline: time limit.

    Example:
        >>> problem = QuadraticProblem([-1.0, -1.0], 2.0 * np.eye(2), counts=1)
        >>> round(relax(problem).lower_bound, 6)
        -0.5
    """
    return relax_convex(convexify(problem, deadline), tolerance=tolerance, deadline=deadline)


def relax_convex(
    convex: Convex, *, tolerance: float = 1e-4, deadline: Deadline | None = None
) -> Relaxation:
    """`relax` for a problem known to be convex.

    Accelerated projected gradient steps, in single precision, find the region; proximal Newton
    steps on the working set of undecided variables find the point. The set grows by the variables
    whose bound the whole gradient contradicts, until the whole gap is small.
    """
    deadline = deadline or Deadline(None)
    look = pass_seconds(convex.quadratic)
    if convex.size <= _SMALL and not isinstance(convex.quadratic, Sparse):
        convex = convex.as_dense()
    metric = diagonal_metric(convex)
    # A large tolerance needs few accelerated steps.
    steps = _WARM_UP if tolerance < 0.1 else _WARM_UP // 4
    if deadline.remaining > _FEWEST_PASSES * look:
        x, shift = _warm_up(convex, metric, steps, deadline)
    else:
        x, shift = convex.centre(), np.zeros(convex.counts.size)
    product = convex.quadratic.product(x)
    energy = convex.energy(x, product)
    best = tangent_at(convex, x, product)
    members = np.zeros(convex.size, bool)
    # A gap relative to an optimum near 0 would never be small.
    least = _LEAST_SHARE * max(0.0, _mean(convex) - best.bound)
    newton = _Newton(metric, shift, 0.5 * tolerance, least, deadline)
    for _ in range(_MAX_SETS):
        enough = energy - best.bound <= tolerance * max(abs(energy), least)
        if enough or deadline.remaining <= 4.0 * look:
            break
        before = members.sum(), best.bound
        members |= _in_doubt(convex, metric, x, product, shift)
        if convex.size <= _SMALL or members.sum() > min(_LARGEST_SET, 0.8 * convex.size):
            members[:] = True
        energy, y = newton.improve(convex, np.flatnonzero(members), x, product)
        y_product = convex.quadratic.product(y)
        best = max(best, tangent_at(convex, y, y_product), key=lambda t: t.bound)
        if members.all() or (members.sum(), best.bound) == before:
            break
        product = convex.quadratic.product(x)
    return Relaxation(convex, x, energy, best, newton.steps)


def diagonal_metric(convex: Convex) -> Floats:
    """The diagonal of Q, kept away from 0 for variables that touch nothing."""
    diagonal = np.maximum(convex.diagonal, 0.0)
    return diagonal + (1e-3 * float(diagonal.mean() if diagonal.size else 0.0) or 1.0)


def pass_seconds(quadratic: Quadratic) -> float:
    """About how long it takes to read a matrix once, on a slow machine."""
    if isinstance(quadratic, LowRank):
        entries = 2 * quadratic.factor.size
    elif isinstance(quadratic, Sparse):
        entries = 4 * quadratic.matrix.nnz
    else:
        entries = quadratic.size**2
    return 1e-5 + entries / _ENTRIES_PER_SECOND


def _mean(convex: Convex) -> float:
    """About the mean energy of random states: as if independent."""
    p = convex.centre()
    energy = convex.energy(p, convex.quadratic.product(p))
    return energy + 0.5 * float(convex.diagonal @ (p * (1.0 - p)))


def _warm_up(
    convex: Convex, metric: Floats, steps: int, deadline: Deadline
) -> tuple[Floats, Floats]:
    """(x, multipliers of the counts) after the accelerated steps."""
    real = np.float32 if convex.size > _SMALL and _fits_single(convex) else np.float64
    operator = _as(convex.operator, real)
    largest = largest_eigenvalue(operator, _as(1.0 / np.sqrt(metric), real), 8)
    width = 1.0 / ((1.2 * largest or 1.0) * metric)
    x = _as(convex.centre(), real)
    product = _as(convex.quadratic.product(convex.centre()), real)
    shift = np.zeros(convex.counts.size)
    linear, width_as = _as(convex.linear, real), _as(width, real)
    y, y_product, momentum = x.copy(), product.copy(), np.ones(1)
    together = max(1, int(_SECONDS_PER_LOOK / pass_seconds(convex.quadratic)))
    for first in range(0, steps, together):
        if deadline.passed:
            break
        accelerate(
            operator,
            linear,
            convex.starts,
            convex.counts,
            width_as,
            min(together, steps - first),
            shift,
            x,
            product,
            y,
            y_product,
            momentum,
        )
    # Single precision leaves the counts inexact; entries between 0 and 1 are corrected.
    target = np.where(x <= 0.0, -1.0, np.where(x >= 1.0, 2.0, x)).astype(np.float64)
    exact = np.empty(convex.size)
    project(target, width, convex.starts, convex.counts, np.zeros_like(shift), exact)
    return exact, shift


def _as(values: Any, dtype: type[np.floating]) -> Any:
    """An array, or each of a tuple's floating arrays, in ``dtype``."""
    if isinstance(values, tuple):
        return tuple(v if v.dtype.kind == "i" else v.astype(dtype, copy=False) for v in values)
    return values.astype(dtype, copy=False)


def _fits_single(convex: Convex) -> bool:
    """True where no coefficient comes near the limits of float32."""
    sizes = np.array([np.abs(convex.linear).max(), convex.diagonal.max()])
    return bool(((sizes < 1e15) & ((sizes > 1e-15) | (sizes == 0.0))).all())


def _in_doubt(
    convex: Convex, metric: Floats, x: Floats, product: Floats, shift: Floats
) -> NDArray[np.bool_]:
    """All variables but those at a bound that the gradient clearly holds there."""
    gradient = convex.linear + product
    if shift.size:
        gradient = gradient - np.repeat(shift, np.diff(convex.starts))
    pull = -_DOUBT * gradient / metric
    return ~(((x == 0.0) & (pull < -1.0)) | ((x == 1.0) & (pull > 1.0)))


def newton_seconds(size: int) -> float:
    """About how long a Newton step on so many fractional variables takes, on a slow machine."""
    return 1e-6 + (size**3 / 3.0 + 20.0 * size**2) / _OPERATIONS_PER_SECOND


def _step_seconds(quadratic: Quadratic, fractional: int) -> float:
    """About how long a Newton step takes with the looks at the matrix that go with it."""
    looks = 3.0 * pass_seconds(quadratic)
    if isinstance(quadratic, Sparse):
        return looks
    if isinstance(quadratic, LowRank) and fractional > quadratic.rank:
        # By an m x m system.
        return looks + 3.0 * quadratic.rank**2 * fractional / _OPERATIONS_PER_SECOND
    return looks + newton_seconds(fractional)


class _Newton:
    """Proximal Newton on parts of a problem; each part starts from the state of the one before."""

    def __init__(
        self,
        metric: Floats,
        shift: Floats,
        tolerance: float,
        least: float,
        deadline: Deadline,
    ) -> None:
        self.metric, self.shift = metric, shift
        self.tolerance, self.least, self.deadline = tolerance, least, deadline
        self.proximal_step = _FIRST_STEP
        self.steps = 0

    def improve(
        self, convex: Convex, keep: Integers, x: Floats, product: Floats
    ) -> tuple[float, Floats]:
        """Move x[keep] towards its optimum in place; returns (E(x), where the bound is best)."""
        part = convex if keep.size == convex.size else convex.restrict(keep, x, product)
        inner, best_y = x[keep], x[keep]
        centre, y = x[keep], x[keep]
        start = part.energy(inner, part.quadratic.product(inner)) - part.offset
        best = np.array([-np.inf, start, self.proximal_step, 0.0])
        chunk = max(1, int(_SECONDS_PER_LOOK / _step_seconds(part.quadratic, keep.size)))
        tolerance = self.tolerance * max(abs(start + part.offset), self.least)
        total = 0
        while total < _MAX_STEPS:
            fractional = int(((inner > 0.0) & (inner < 1.0)).sum())
            if self.deadline.remaining <= chunk * _step_seconds(part.quadratic, fractional):
                break
            taken = proximal_newton(
                part.operator,
                part.linear,
                part.starts,
                part.counts,
                self.metric[keep],
                tolerance,
                np.inf,
                chunk,
                self.shift,
                inner,
                centre,
                y,
                best_y,
                best,
            )
            total += taken
            if taken < chunk:
                break
        self.steps += total
        self.proximal_step = best[2]
        x[keep] = inner
        whole_y = x.copy()
        whole_y[keep] = best_y
        return float(best[1]) + part.offset, whole_y
