# pyright: standard
"""Inner loops of branch and bound, and of enumeration.

Everything works on a dense convex problem (``matrix``, ``linear``, ``starts``, ``counts`` as in
`solvers.convex.projection_kernels`). ``state`` (n,) int8 says what is decided: 0, 1, or -1 for
free.
"""

from __future__ import annotations

import numpy as np

from solvers.convex.newton_kernels import (
    add_damping,
    add_multiple,
    choose_references,
    dot,
    factorise,
    proximal_newton,
    reduced_system,
)
from solvers.convex.projection_kernels import linear_minimum, project
from solvers.search.kernels.common import copy_into, kernel


@kernel
def free_part(state, starts, counts):
    """(free variables, their group boundaries, the counts left for them)."""
    free = np.flatnonzero(state < 0)
    part_starts = np.zeros(starts.size, np.int64)
    part_counts = counts.copy()
    position = 0
    for g in range(counts.size):
        for i in range(starts[g], starts[g + 1]):
            if state[i] < 0:
                position += 1
            else:
                part_counts[g] -= state[i]
        part_starts[g + 1] = position
    return free, part_starts, part_counts


@kernel
def settle(state, starts, counts):
    """Decide what the counts force; False if what is decided already breaks one.

    The rest of a full group is 0; where a group needs all of its rest, that is 1.
    """
    for g in range(counts.size):
        left = counts[g]
        free = 0
        for i in range(starts[g], starts[g + 1]):
            if state[i] < 0:
                free += 1
            else:
                left -= state[i]
        if left < 0 or left > free:
            return False
        if left in (0, free):
            for i in range(starts[g], starts[g + 1]):
                if state[i] < 0:
                    state[i] = 1 if left > 0 else 0
    return True


@kernel
def fixed_field(matrix, linear, state):
    """(linear + Q ones, E of the ones) for the variables decided to be 1."""
    field = linear.copy()
    for i in range(state.size):
        if state[i] == 1:
            add_multiple(matrix[i], 1.0, field)
    energy = 0.0
    for i in range(state.size):
        if state[i] == 1:
            energy += 0.5 * (linear[i] + field[i])
    return field, energy


@kernel
def gather(matrix, free):
    """The rows and columns ``free``."""
    part = np.empty((free.size, free.size))
    for a in range(free.size):
        row = matrix[free[a]]
        for b in range(free.size):
            part[a, b] = row[free[b]]
    return part


@kernel
def relaxed(matrix, linear, starts, counts, metric, accuracy, cutoff, max_steps, x):
    """The best feasible point found from ``x``, and the dual variable of the best bound.

    The arguments are those of `proximal_newton`.
    """
    point = np.empty(x.size)
    project(x, np.ones(x.size), starts, counts, np.zeros(counts.size), point)
    shift, centre, y, best_y = np.zeros(counts.size), point.copy(), point.copy(), point.copy()
    best = np.array([-np.inf, np.inf, 50.0, 0.0])
    groups = (starts, counts)
    steps = (accuracy, cutoff, max_steps)
    proximal_newton(matrix, linear, *groups, metric, *steps, shift, point, centre, y, best_y, best)
    return point, best_y


@kernel
def bound_node(
    matrix, linear, starts, counts, metric, upper, slack, accuracy, max_steps, state, x, sample
):
    """Relax what is free, decide what its reduced costs allow, round, pick where to branch.

    Args:
        matrix: (n, n).
        linear: (n,).
        starts: group boundaries.
        counts: (g,).
        metric: (n,), positive, see `proximal_newton`.
        upper: states of this energy or more are not searched for.
        slack: taken off every bound for rounding errors.
        accuracy: gap at which the relaxation is good enough.
        max_steps: Newton steps at most.
        state: (n,), in and out.
        x: (n,) a fractional point to start from, in and out.
        sample: (n,) int8 where the rounded state goes.

    Returns:
        (bound, energy of ``sample``, variable to branch on or -1 when there is nothing left).
    """
    if not settle(state, starts, counts):
        return np.inf, np.inf, -1
    free, part_starts, part_counts = free_part(state, starts, counts)
    field, fixed = fixed_field(matrix, linear, state)
    copy_into(sample, state)
    if free.size == 0:
        return fixed - slack, fixed, -1
    part = gather(matrix, free)
    cost = field[free]
    cutoff = upper - fixed + slack
    point, best_y = relaxed(
        part, cost, part_starts, part_counts, metric[free], accuracy, cutoff, max_steps, x[free]
    )
    product = np.dot(part, best_y)
    vertex = np.empty(free.size, np.int8)
    threshold = np.empty(free.size)
    least = linear_minimum(cost + product, part_starts, part_counts, vertex, threshold)
    bound = fixed + least - 0.5 * dot(best_y, product) - slack
    x[free] = point
    if bound >= upper:
        return bound, np.inf, -1
    branch = choose_branch(part, part_starts, part_counts, metric[free], point)
    rounded = np.empty(free.size, np.int8)
    linear_minimum(-point, part_starts, part_counts, rounded, np.empty(free.size))
    values = rounded.astype(np.float64)
    energy = fixed + dot(cost, values) + 0.5 * dot(values, np.dot(part, values))
    sample[free] = rounded
    for a in range(free.size):
        if a != branch and bound + abs(cost[a] + product[a] - threshold[a]) >= upper:
            state[free[a]] = vertex[a]
    return bound, energy, free[branch]


@kernel
def choose_branch(matrix, starts, counts, metric, x):
    """The variable to branch on: both its values raise E most, by the curvature on the face.

    Moving x_i by d and the other fractional ones after it costs d^2 / (2 G_ii), G the inverse of
    the Hessian on the face.
    """
    free = np.empty(x.size, np.int64)
    reference = np.empty(x.size, np.int64)
    size = choose_references(x, starts, counts, free, reference)
    if size == 0:
        return np.argmax(metric)
    free, reference = free[:size], reference[:size]
    system = reduced_system(matrix, free, reference)
    add_damping(system, free, reference, 1e-6 * metric)
    if not factorise(system):
        return free[np.argmax(metric[free])]
    chosen = free[0]
    most = -1.0
    column = np.empty(size)
    for a in range(size):
        column.fill(0.0)
        column[a] = 1.0 / system[a, a]
        for b in range(a + 1, size):
            column[b] = -dot(system[b, a:b], column[a:b]) / system[b, b]
        curvature = 0.5 / dot(column[a:], column[a:])
        value = x[free[a]]
        low, high = curvature * value * value, curvature * (1.0 - value) * (1.0 - value)
        score = min(low, high) + 0.1 * max(low, high)
        if score > most:
            most = score
            chosen = free[a]
    return chosen


@kernel
def enumerate_states(matrix, half, linear, groups, counts, low_bits, first, last, lowest, best):
    """The least E over states with exact counts, in Gray code order; ``best`` gets its state.

    ``half`` is half the diagonal. The first ``low_bits`` variables run through their code for
    every value of the others, from fields computed afresh, so that rounding does not pile up.
    These values are the bits of ``first`` up to ``last``, excluded. Returns ``lowest``, the least
    E known before, or what is lower.
    """
    n = linear.size
    x = np.zeros(n, np.int8)
    for block in range(first, last):
        missing = counts.copy()
        energy = 0.0
        field = linear.copy()
        for i in range(n):
            x[i] = (block >> (i - low_bits)) & 1 if i >= low_bits else 0
            if x[i]:
                energy += field[i] + half[i]
                add_multiple(matrix[i], 1.0, field)
                if counts.size:
                    missing[groups[i]] -= 1
        for code in range(1 << low_bits):
            if code:
                i = 0
                while not (code >> i) & 1:
                    i += 1
                sign = 1.0 - 2.0 * x[i]
                energy += sign * field[i] + half[i]
                add_multiple(matrix[i], sign, field)
                x[i] = 1 - x[i]
                if counts.size:
                    missing[groups[i]] -= np.int64(sign)
            if energy < lowest and not missing.any():
                lowest = energy
                copy_into(best, x)
    return lowest
