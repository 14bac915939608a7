"""The convex relaxation of a problem, and the lower bound that it certifies.

min linear.x + 1/2 x.Q.x over 0 <= x <= 1 with exact group sums. For every y, feasible or not,

    E(x) >= offset - 1/2 y.Q.y + min over feasible s of (linear + Q y).s

holds for all feasible x when Q is positive semidefinite (the tangent of E at y lies below E;
Frank and Wolfe 1956), so the bound is valid whatever the accuracy of y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from solvers.convex_kernels import linear_minimum, project
from solvers.convexify import Convex, convexify
from solvers.problem import Integers, QuadraticProblem
from solvers.quadratic import Floats
from solvers.sampler import Deadline

_EPS = float(np.finfo(np.float64).eps)
# A Newton system beyond this is not worth its cubic cost.
_LARGEST_SYSTEM = 1500


@dataclass(frozen=True, eq=False)
class Counts:
    """The exact counts as kernels read them, see `solvers.convex_kernels`."""

    order: Integers
    starts: Integers
    counts: Integers

    @classmethod
    def of(cls, problem: QuadraticProblem) -> Counts:
        """The counts of ``problem``; none is ``starts`` of length 1."""
        if problem.groups is None or problem.counts is None:
            none = np.zeros(0, np.int64)
            return cls(np.arange(problem.num_variables), np.zeros(1, np.int64), none)
        order = np.argsort(problem.groups, kind="stable")
        starts = np.concatenate([[0], np.cumsum(problem.group_sizes)]).astype(np.int64)
        return cls(order, starts, problem.counts)

    @property
    def num_groups(self) -> int:
        """Number of groups, 0 for none."""
        return self.counts.size

    def centre(self, size: int) -> Floats:
        """The point with all variables of a group alike, shape (n,)."""
        x = np.full(size, 0.5)
        if self.num_groups:
            shares = self.counts / np.maximum(np.diff(self.starts), 1)
            x[self.order] = np.repeat(shares, np.diff(self.starts))
        return x


@dataclass(frozen=True, eq=False)
class Relaxation:
    """A nearly optimal fractional point and what it proves.

    Attributes:
        x: shape (n,), exact group sums up to rounding.
        reduced_costs: shape (n,), at least how much above ``lower_bound`` every state is in which
            variable i differs from ``vertex`` (inf where its count leaves no choice).
        vertex: shape (n,), int8, the state that minimises the tangent at the best bound.
        energy: E of x, offset included.
        lower_bound: no binary state with exact counts has a lower energy.
        iterations: Newton steps taken.
        convexified: "" if Q is positive semidefinite, else how it was made so.
    """

    x: Floats
    reduced_costs: Floats
    vertex: np.ndarray
    energy: float
    lower_bound: float
    iterations: int
    convexified: str = ""


@dataclass(frozen=True, eq=False)
class Tangent:
    """The bound at one point, with the state and reduced costs that go with it."""

    bound: float
    vertex: np.ndarray
    reduced_costs: Floats


def tangent_bound(convex: Convex, counts: Counts, y: Floats, product: Floats) -> Tangent:
    """The bound of the module's docstring at ``y``, rounding errors taken off.

    Rounding: |Q_ij| <= r_i r_j with r the root of the diagonal, so with S = r.|y| an entry of
    Q y is off by at most (n + m) eps r_i S, and every sum here by at most (n + m) eps times
    S max(S, r.s) plus that of the linear part.
    """
    cost = convex.linear + product
    vertex = np.empty(y.size, np.int8)
    threshold = np.empty(y.size)
    least = linear_minimum(cost, counts.order, counts.starts, counts.counts, vertex, threshold)
    root = np.sqrt(np.maximum(convex.diagonal(), 0.0))
    size = max(float(root @ np.abs(y)), float(root @ vertex))
    terms = size * size + float(np.abs(convex.linear).sum()) + abs(convex.problem.offset)
    slack = 4.0 * (y.size + 64) * _EPS * terms
    bound = convex.problem.offset + least - 0.5 * float(y @ product) - slack
    return Tangent(bound, vertex, np.abs(cost - threshold))


def relax(
    problem: QuadraticProblem,
    *,
    tolerance: float = 1e-6,
    deadline: Deadline | None = None,
    convex: Convex | None = None,
) -> Relaxation:
    """Solve the convex relaxation to a relative duality gap of ``tolerance``.

    Scaled accelerated projection (Beck and Teboulle 2009) from the centre finds the region,
    a proximal semismooth Newton method (Li, Sun and Toh 2018) the point.
    """
    convex = convex or convexify(problem)
    solver = _Solver(convex, Counts.of(problem), tolerance, deadline or Deadline(None))
    solver.accelerate(60)
    solver.newton()
    tangent = solver.best
    return Relaxation(
        solver.x,
        tangent.reduced_costs,
        tangent.vertex,
        solver.energy + problem.offset,
        tangent.bound,
        solver.iterations,
        convex.method,
    )


class _Solver:
    """The state of one solve: the point x, its product Q x, the best bound so far."""

    def __init__(
        self, convex: Convex, counts: Counts, tolerance: float, deadline: Deadline
    ) -> None:
        n = convex.linear.size
        self.convex, self.counts = convex, counts
        self.tolerance, self.deadline = tolerance, deadline
        self.x = counts.centre(n)
        self.product = convex.product(self.x)
        self.shift = np.zeros(counts.num_groups)
        diagonal = np.maximum(convex.diagonal(), 0.0)
        mean = float(diagonal.mean()) if n else 0.0
        self.metric = diagonal + (1e-3 * mean or 1.0)
        self.iterations = 0
        self.best = Tangent(-np.inf, np.zeros(n, np.int8), np.zeros(n))
        self._update_bound(self.x, self.product)

    @property
    def energy(self) -> float:
        """E(x) without the offset."""
        return float(self.x @ self.convex.linear + 0.5 * (self.x @ self.product))

    @property
    def done(self) -> bool:
        """Whether the duality gap is small enough, or the time is over."""
        gap = self.energy + self.convex.problem.offset - self.best.bound
        scale = abs(self.energy) + abs(self.convex.problem.offset)
        return gap <= self.tolerance * max(scale, 1e-300) or self.deadline.passed

    def _update_bound(self, y: Floats, product: Floats) -> None:
        tangent = tangent_bound(self.convex, self.counts, y, product)
        if tangent.bound > self.best.bound:
            self.best = tangent

    def _project(self, target: Floats, width: Floats, shift: Floats) -> Floats:
        x = np.empty_like(target)
        counts = self.counts
        project(target, width, counts.order, counts.starts, counts.counts, shift, x)
        return x

    def accelerate(self, iterations: int) -> None:
        """Accelerated projected gradient in the metric, restarted when it turns uphill."""
        linear, x, product = self.convex.linear, self.x, self.product
        width = 1.0 / (self._lipschitz() * self.metric)
        y, y_product, momentum = x, product, 1.0
        for _ in range(iterations):
            gradient = linear + y_product
            new = self._project(y - width * gradient, width, self.shift)
            new_product = self.convex.product(new)
            if gradient @ (new - x) > 0:
                y, y_product, momentum = new, new_product, 1.0
            else:
                following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum * momentum))
                share = (momentum - 1.0) / following
                y = new + share * (new - x)
                y_product = new_product + share * (new_product - product)
                momentum = following
            x, product = new, new_product
            if self.deadline.passed:
                break
        self.x, self.product = x, product
        self._update_bound(x, product)

    def _lipschitz(self) -> float:
        """An upper estimate of the largest eigenvalue of Q in the metric (power iteration)."""
        scale = 1.0 / np.sqrt(self.metric)
        vector = np.random.default_rng(0).normal(size=scale.size)
        length = 1.0
        for _ in range(10):
            vector = scale * self.convex.product(scale * vector)
            length = float(np.linalg.norm(vector))
            if length == 0.0:
                return 1.0
            vector /= length
        return 1.1 * length

    def newton(self, max_rounds: int = 60) -> None:
        """Proximal rounds: x <- argmin of E + |. - x|^2 / (2 step) in the metric."""
        step = 10.0
        for _ in range(max_rounds):
            if self.done:
                return
            taken = self._proximal(step)
            step *= 3.0 if taken <= 3 else (1.0 if taken <= 8 else 0.5)

    def _proximal(self, step: float, max_steps: int = 30) -> int:
        """One proximal round by semismooth Newton on its dual; returns the steps taken."""
        linear, centre = self.convex.linear, self.x
        width = step / self.metric
        y, y_product = centre, self.product
        taken = 0
        for taken in range(max_steps):
            shift = self.shift.copy()
            x = self._project(centre - width * (linear + y_product), width, shift)
            self.shift = shift
            residual = x - y
            moved = self.convex.product(residual)
            distance = max(0.0, float(residual @ moved))
            proximity = float(((x - centre) ** 2 / width).sum())
            self._update_bound(y, y_product)
            self.x, self.product = x, y_product + moved
            if (taken and distance < 0.1 * proximity) or self.done:
                break
            free = np.flatnonzero((x > 0) & (x < 1))
            direction = self._newton_direction(free, width, residual)
            change = self.convex.product(direction)
            length = self._line_search(centre, width, y, y_product, direction, change, moved)
            y = y + length * direction
            y_product = y_product + length * change
            self.iterations += 1
        self._update_bound(self.x, self.product)
        return taken

    def _newton_direction(self, free: Integers, width: Floats, residual: Floats) -> Floats:
        """Where the linearised fixed point x(y) = y is, relative to y."""
        direction = residual.copy()
        if free.size == 0 or free.size > _LARGEST_SYSTEM:
            return direction
        system = self.convex.block(free)
        system[np.diag_indices(free.size)] += 1.0 / width[free]
        factor = cho_factor(system, lower=True, overwrite_a=True, check_finite=False)
        outside = residual.copy()
        outside[free] = 0.0
        right = residual[free] / width[free] - self.convex.product(outside)[free]
        solved = cho_solve(factor, right, check_finite=False)
        if self.counts.num_groups:
            solved += self._keep_counts(factor, free, residual[free] - solved)
        direction[free] = solved
        return direction

    def _keep_counts(self, factor, free: Integers, missing: Floats) -> Floats:
        """The correction that makes the direction's sum in every group that of the residual."""
        groups = self.convex.problem.groups
        assert groups is not None
        present, member = np.unique(groups[free], return_inverse=True)
        ones = np.zeros((free.size, present.size))
        ones[np.arange(free.size), member] = 1.0
        columns = cho_solve(factor, ones, check_finite=False)
        return columns @ np.linalg.solve(ones.T @ columns, ones.T @ missing)

    def _line_search(self, centre, width, y, y_product, direction, change, moved) -> float:
        """A step along ``direction`` where the slope of the concave dual has mostly gone."""
        slope = float(direction @ moved)
        lower, upper, length = 0.0, np.inf, 1.0
        for attempt in range(12):
            product = y_product + length * change
            shift = self.shift.copy()
            x = self._project(centre - width * (self.convex.linear + product), width, shift)
            there = float(change @ (x - y - length * direction))
            if abs(there) <= 0.3 * slope or (there > 0 and length == 1.0):
                break
            if there < 0:
                upper = length
            else:
                lower = length
            length = lower + (0.3 if attempt <= 3 else 0.5) * (upper - lower)
        return length
