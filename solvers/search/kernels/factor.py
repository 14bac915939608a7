# pyright: standard
"""Inner loops on the factor U of Q = U'U: the m numbers U x are kept instead of n fields.

A proposal costs a pass over m numbers instead of one look-up, an accepted move a pass over m
instead of n: the form for high temperatures and m much smaller than n. Arguments beyond those of
`solvers.search.kernels.common`:

``factor``
    U', shape (n, m): row i is what variable i adds to the projection.
``linear``
    shape (n,).
``projection``
    U x, shape (m,), kept right in place.
"""

from __future__ import annotations

import numpy as np

from solvers.search.kernels.common import below, copy_into, exponential, kernel, next_random, part
from solvers.search.kernels.swap import arranged


@part
def pull(factor, linear, projection, i):
    """The field of variable i, linear_i + U_i.(U x)."""
    row = factor[i]
    total = linear[i]
    for t in range(projection.size):
        total += row[t] * projection[t]
    return total


@part
def push(factor, projection, i, sign):
    """``projection += sign * U_i``."""
    row = factor[i]
    for t in range(projection.size):
        projection[t] += sign * row[t]


@part
def exchange_gain(factor, linear, projection, out, into, steps):
    """Change of E when ``out`` (at 1) and ``into`` (at 0) exchange.

    It is the difference of linear plus d.(U x + d / 2); d = U_into - U_out is left in ``steps``.
    """
    real = projection.dtype.type
    out_row, in_row = factor[out], factor[into]
    gain = linear[into] - linear[out]
    for t in range(projection.size):
        step = in_row[t] - out_row[t]
        steps[t] = step
        gain += step * (projection[t] + real(0.5) * step)
    return gain


@kernel
def lowrank_swap_metropolis(
    factor, linear, projection, x, starts, temperatures, random, best, tally
):
    """`swap_metropolis` on the factor; the same moves, the same answer."""
    place, firsts = arranged(x, starts)
    steps = np.empty_like(projection)
    energy, lowest, moves = tally[0], tally[1], tally[2]
    for temperature in temperatures:
        for g in range(starts.size - 1):
            low, middle, high = starts[g], firsts[g], starts[g + 1]
            if middle in (low, high):
                continue
            for p in range(low, high):
                bits = next_random(random)
                if p < middle:
                    q = middle + below(bits, high - middle)
                    out, into = place[p], place[q]
                else:
                    q = low + below(bits, middle - low)
                    out, into = place[q], place[p]
                gain = exchange_gain(factor, linear, projection, out, into, steps)
                if gain < temperature * exponential(bits):
                    if gain > 0 and energy < lowest:
                        lowest = energy
                        copy_into(best, x)
                    for t in range(projection.size):
                        projection[t] += steps[t]
                    x[out], x[into] = 0, 1
                    place[p], place[q] = place[q], place[p]
                    energy += gain
                    moves += 1
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1], tally[2] = energy, lowest, moves


@kernel
def lowrank_flip_metropolis(factor, linear, half, projection, x, temperatures, random, best, tally):
    """`flip_metropolis` on the factor; the same moves, the same answer."""
    real = projection.dtype.type
    energy, lowest, moves = tally[0], tally[1], tally[2]
    for temperature in temperatures:
        for i in range(x.size):
            sign = real(1.0) if x[i] == 0 else real(-1.0)
            gain = sign * pull(factor, linear, projection, i) + half[i]
            if gain < temperature * exponential(next_random(random)):
                if gain > 0 and energy < lowest:
                    lowest = energy
                    copy_into(best, x)
                push(factor, projection, i, sign)
                x[i] = 1 - x[i]
                energy += gain
                moves += 1
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1], tally[2] = energy, lowest, moves
