# pyright: standard
"""Inner loops of the convex relaxation: products, Newton systems, projected and proximal steps.

``matrix`` is the positive semidefinite Q in one of three forms: an (n, n) array; ``(factor,)``
with Q = factor.T @ factor; ``(indptr, indices, data)`` (CSR). Other names are those of
`solvers.convex.projection_kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from solvers.convex.projection_kernels import lagrangian, project
from solvers.search.kernels.common import copy_into, kernel


def multiply(matrix, v, out):
    """``out = Q v``, in kernels only."""
    raise NotImplementedError


def newton_step(matrix, free, reference, damping, right, step, change):
    """Solve (Q + damping) step = right on the free variables, counts kept; ``change += Q step``.

    Leaves ``step`` at 0 where no system is cheap enough. In kernels only.
    """
    raise NotImplementedError


@overload(multiply)
def _multiply(matrix, v, out):
    if isinstance(matrix, types.Array):
        return _multiply_dense
    return _multiply_factor if len(matrix) == 1 else _multiply_sparse


@overload(newton_step)
def _newton_step(matrix, free, reference, damping, right, step, change):
    if isinstance(matrix, types.Array):
        return _newton_dense
    return _newton_factor if len(matrix) == 1 else _newton_none


@kernel
def add_multiple(row, factor, out):
    """``out += factor * row``."""
    for t in range(out.size):
        out[t] += factor * row[t]


@kernel
def dot(a, b):
    """The inner product."""
    total = a.dtype.type(0.0)
    for t in range(a.size):
        total += a[t] * b[t]
    return total


def _multiply_dense(matrix, v, out):
    nonzero = 0
    for i in range(v.size):
        nonzero += v[i] != 0.0
    if 2 * nonzero > v.size:
        np.dot(matrix, v, out)
        return
    out.fill(0.0)
    for i in range(v.size):
        if v[i] != 0.0:
            add_multiple(matrix[i], v[i], out)


def _multiply_factor(matrix, v, out):
    factor = matrix[0]
    np.dot(factor.T, np.dot(factor, v), out)


def _multiply_sparse(matrix, v, out):
    indptr, indices, data = matrix
    for i in range(v.size):
        total = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            total += data[p] * v[indices[p]]
        out[i] = total


@kernel
def factorise(a):
    """Cholesky factor of the symmetric ``a`` (lower half) in place; False if not positive."""
    for i in range(a.shape[0]):
        for j in range(i):
            a[i, j] = (a[i, j] - dot(a[i, :j], a[j, :j])) / a[j, j]
        pivot = a[i, i] - dot(a[i, :i], a[i, :i])
        if pivot <= 0.0:
            return False
        a[i, i] = np.sqrt(pivot)
    return True


@kernel
def back_solve(a, b):
    """``b = (L L^T)^-1 b`` in place for a factor from `factorise`."""
    n = b.size
    for i in range(n):
        b[i] = (b[i] - dot(a[i, :i], b[:i])) / a[i, i]
    for i in range(n - 1, -1, -1):
        b[i] /= a[i, i]
        add_multiple(a[i, :i], -b[i], b[:i])


@kernel
def choose_references(x, starts, counts, free, reference):
    """List the fractional variables; the first of every group is its others' reference.

    The reference of a group takes the sum that keeps its count. Returns the numbers of
    non-references, whose indices go to ``free`` and references to ``reference`` (-1: no counts).
    """
    found = 0
    if counts.size == 0:
        for i in range(x.size):
            if 0.0 < x[i] < 1.0:
                free[found] = i
                reference[found] = -1
                found += 1
    for g in range(counts.size):
        first = -1
        for i in range(starts[g], starts[g + 1]):
            if 0.0 < x[i] < 1.0:
                if first < 0:
                    first = i
                else:
                    free[found] = i
                    reference[found] = first
                    found += 1
    return found


@kernel
def reduced_right(free, reference, right):
    """The right-hand side ``right`` on the space that keeps the counts."""
    reduced = np.empty(free.size, right.dtype)
    for a in range(free.size):
        reduced[a] = right[free[a]]
        if reference[a] >= 0:
            reduced[a] -= right[reference[a]]
    return reduced


@kernel
def add_damping(system, free, reference, damping):
    """Add the diagonal ``damping`` to a system on the space that keeps the counts."""
    for a in range(free.size):
        system[a, a] += damping[free[a]]
        b = a
        while b >= 0 and reference[a] >= 0 and reference[b] == reference[a]:
            system[a, b] += damping[reference[a]]
            b -= 1


@kernel
def spread(free, reference, solved, step):
    """The step of all variables from that of the non-references."""
    step.fill(0.0)
    for a in range(free.size):
        step[free[a]] += solved[a]
        if reference[a] >= 0:
            step[reference[a]] -= solved[a]


@kernel
def reduced_system(matrix, free, reference):
    """Q on the space that keeps the counts, lower half only, for a dense Q."""
    size = free.size
    system = np.empty((size, size), matrix.dtype)
    for a in range(size):
        row = matrix[free[a]]
        for b in range(a + 1):
            system[a, b] = row[free[b]]
        if reference[a] >= 0:
            base = matrix[reference[a]]
            for b in range(a + 1):
                system[a, b] -= base[free[b]]
            for b in range(a + 1):
                system[a, b] -= row[reference[b]] - base[reference[b]]
    return system


def _newton_dense(matrix, free, reference, damping, right, step, change):
    system = reduced_system(matrix, free, reference)
    add_damping(system, free, reference, damping)
    if not factorise(system):
        return
    solved = reduced_right(free, reference, right)
    back_solve(system, solved)
    spread(free, reference, solved, step)
    for i in range(step.size):
        if step[i] != 0.0:
            add_multiple(matrix[i], step[i], change)


def _newton_factor(matrix, free, reference, damping, right, step, change):
    factor = matrix[0]
    rank = factor.shape[0]
    size = free.size
    reduced = np.empty((rank, size), factor.dtype)
    for t in range(rank):
        row = factor[t]
        for a in range(size):
            reduced[t, a] = row[free[a]]
            if reference[a] >= 0:
                reduced[t, a] -= row[reference[a]]
    solved = reduced_right(free, reference, right)
    if size <= rank:
        system = np.dot(reduced.T, reduced)
        add_damping(system, free, reference, damping)
        if not factorise(system):
            return
        back_solve(system, solved)
    else:
        solve_low_rank(reduced, free, reference, damping, solved)
    spread(free, reference, solved, step)
    change += np.dot(factor.T, np.dot(reduced, solved))


def _newton_none(matrix, free, reference, damping, right, step, change):
    return


@kernel
def apply_inverse(free, reference, damping, block):
    """Inverse of the damping on the space that keeps the counts, times the rows of ``block``."""
    result = np.empty_like(block)
    low = 0
    while low < free.size:
        high = low + 1
        while reference[low] >= 0 and high < free.size and reference[high] == reference[low]:
            high += 1
        inverse = 1.0 / damping[free[low:high]]
        shared = 0.0
        if reference[low] >= 0:
            shared = 1.0 / (inverse.sum() + 1.0 / damping[reference[low]])
        for t in range(block.shape[0]):
            mean = shared * dot(inverse, block[t, low:high])
            for a in range(low, high):
                result[t, a] = inverse[a - low] * (block[t, a] - mean)
        low = high
    return result


@kernel
def solve_low_rank(reduced, free, reference, damping, right):
    """``right = (damping + reduced.T reduced)^-1 right`` by an m x m system (Woodbury)."""
    scaled = apply_inverse(free, reference, damping, reduced)
    system = np.dot(scaled, reduced.T)
    for t in range(system.shape[0]):
        system[t, t] += 1.0
    inner = np.dot(scaled, right)
    factorise(system)
    back_solve(system, inner)
    plain = apply_inverse(free, reference, damping, right.reshape(1, right.size))
    copy_into(right, plain[0] - np.dot(scaled.T, inner))


@kernel
def largest_eigenvalue(matrix, scale, steps):
    """An estimate from below of the largest eigenvalue of diag(scale) Q diag(scale)."""
    v = np.empty_like(scale)
    for i in range(v.size):
        v[i] = 1.0 + 0.5 * np.sin(12.9898 * (i + 1))
    out = np.empty_like(scale)
    value = 0.0
    for _ in range(steps):
        value = np.sqrt(dot(v, v))
        if value == 0.0:
            return 0.0
        v /= scale.dtype.type(value)
        multiply(matrix, scale * v, out)
        copy_into(v, scale * out)
    return np.sqrt(dot(v, v))


@kernel
def accelerate(
    matrix, linear, starts, counts, width, iterations, shift, x, product, y, y_product, momentum
):
    """Accelerated projected gradient steps ``width`` (Beck and Teboulle 2009) on x, Q x.

    Restarted when a step goes uphill (O'Donoghue and Candes 2015). ``y``, ``y_product`` (x, Q x
    at first) and ``momentum`` (1,) (1 at first) are in and out, for further calls.
    """
    new = np.empty_like(x)
    new_product = np.empty_like(x)
    for _ in range(iterations):
        project(y - width * (linear + y_product), width, starts, counts, shift, new)
        multiply(matrix, new, new_product)
        if dot(y - new, new - x) > 0.0:
            momentum[0] = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum[0] * momentum[0]))
        share = linear.dtype.type((momentum[0] - 1.0) / following)
        momentum[0] = following
        for i in range(x.size):
            y[i] = new[i] + share * (new[i] - x[i])
            y_product[i] = new_product[i] + share * (new_product[i] - product[i])
            x[i] = new[i]
            product[i] = new_product[i]


@kernel
def begin_round(matrix, linear, starts, counts, width, shift, centre, y, y_product, point):
    """Q y computed afresh, so that rounding errors do not add up, and the point of that y."""
    multiply(matrix, y, y_product)
    project(centre - width * (linear + y_product), width, starts, counts, shift, point)


@kernel
def note_best(linear, starts, counts, shift, y, y_product, point, moved, x, best_y, best):
    """Keep y where its bound is the best one, and ``point`` where its energy is."""
    bound = lagrangian(linear + y_product, starts, counts, shift) - 0.5 * dot(y, y_product)
    if bound > best[0]:
        best[0] = bound
        copy_into(best_y, y)
    energy = dot(point, linear) + 0.5 * (dot(point, y_product) + dot(point, moved))
    if energy < best[1]:
        best[1] = energy
        copy_into(x, point)


@kernel
def proximal_newton(
    matrix,
    linear,
    starts,
    counts,
    metric,
    tolerance,
    cutoff,
    max_steps,
    shift,
    x,
    centre,
    y,
    best_y,
    best,
):
    """Proximal rounds by semismooth Newton (Li, Sun and Toh 2018) until the gap is small.

    A round minimises E + |. - centre|^2 / (2 step) in ``metric``; its dual is concave and smooth
    in y, where Q y is the tangent's slope, and is maximised by Newton steps.

    Args:
        matrix: positive semidefinite, in one of the three forms.
        linear: (n,).
        starts: group boundaries.
        counts: (g,).
        metric: (n,), positive.
        tolerance: gap at which to stop.
        cutoff: bound at which to stop.
        max_steps: Newton steps at most.
        shift: (g,) multipliers of the counts, in and out.
        x: (n,) where the best feasible point goes.
        centre: (n,) of the round in progress, in and out; a new solve starts it and y at x.
        y: (n,) the dual variable, in and out.
        best_y: (n,) where the best bound was found, in and out.
        best: float64 [best bound, E(x), proximal step, steps in this round], in and out; offsets
            left out. A new solve starts with the first two at -inf and inf.

    Returns:
        Newton steps taken; fewer than ``max_steps`` means converged.
    """
    n = x.size
    real = linear.dtype.type
    y_product, point = np.empty_like(x), np.empty_like(x)
    residual, moved = np.empty_like(x), np.empty_like(x)
    step, change = np.empty_like(x), np.empty_like(x)
    free, reference = np.empty(n, np.int64), np.empty(n, np.int64)
    width = real(best[2]) / metric
    begin_round(matrix, linear, starts, counts, width, shift, centre, y, y_product, point)
    for taken in range(max_steps):
        copy_into(residual, point - y)
        multiply(matrix, residual, moved)
        note_best(linear, starts, counts, shift, y, y_product, point, moved, x, best_y, best)
        if best[1] - best[0] <= tolerance or best[0] >= cutoff:
            return taken
        distance = dot(residual, moved)
        proximity = 0.0
        for i in range(n):
            proximity += (point[i] - centre[i]) ** 2 / width[i]
        if best[3] > 0 and (distance < 0.1 * proximity or best[3] >= 30):
            best[2] *= 3.0 if best[3] <= 3 else (1.0 if best[3] <= 8 else 0.5)
            best[3] = 0
            width = real(best[2]) / metric
            copy_into(centre, point)
            copy_into(y, point)
            begin_round(matrix, linear, starts, counts, width, shift, centre, y, y_product, point)
            continue
        best[3] += 1
        copy_into(change, moved)
        step.fill(0.0)
        size = choose_references(point, starts, counts, free, reference)
        if size:
            newton_step(
                matrix, free[:size], reference[:size], real(1.0) / width, -moved, step, change
            )
        step += residual
        search(
            linear, starts, counts, width, centre, y, y_product, step, change, moved, shift, point
        )
    return max_steps


@kernel
def search(linear, starts, counts, width, centre, y, y_product, step, change, moved, shift, x):
    """Move y along ``step`` until the slope of the concave dual is small (line search).

    ``x`` becomes the projection that belongs to the new y.
    """
    slope = dot(step, moved)
    lower = 0.0
    upper = np.inf
    length = 1.0
    size = linear.dtype.type(length)
    for attempt in range(12):
        size = linear.dtype.type(length)
        project(
            centre - width * (linear + y_product + size * change), width, starts, counts, shift, x
        )
        there = dot(change, x - y - size * step)
        if abs(there) <= 0.3 * slope or (there > 0.0 and length == 1.0):
            break
        if there < 0.0:
            upper = length
        else:
            lower = length
        length = lower + (0.3 if attempt <= 3 else 0.5) * (upper - lower)
    y += size * step
    y_product += size * change
