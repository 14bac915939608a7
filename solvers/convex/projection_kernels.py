# pyright: standard
"""Inner loops around exact counts over a box: projection, linear minimum, Lagrangian bound.

Variables are sorted by group: group g owns ``starts[g]`` to ``starts[g + 1] - 1``. No groups at
all is ``starts`` of length 1: then every variable only has its box [0, 1].
"""

from __future__ import annotations

import numpy as np

from solvers.search.kernels.common import kernel


@kernel
def clipped_sum(target, width, t):
    """(sum, slope) of ``clip(target + t width, 0, 1)`` as a function of t."""
    total = 0.0
    slope = 0.0
    for i in range(target.size):
        value = target[i] + t * width[i]
        inside = 1.0 if 0.0 < value < 1.0 else 0.0
        total += min(1.0, max(0.0, value))
        slope += inside * width[i]
    return total, slope


@kernel
def count_shift(target, width, count, start):
    """The t with sum(clip(target + t width, 0, 1)) = count, by safeguarded Newton steps."""
    lower = -np.inf
    upper = np.inf
    t = start
    for attempt in range(300):
        total, slope = clipped_sum(target, width, t)
        excess = total - count
        if abs(excess) <= 1e-13 * (1.0 + count):
            break
        if excess > 0.0:
            upper = t
        else:
            lower = t
        guess = t - excess / slope if slope > 0.0 else np.inf
        bisect = attempt % 4 == 3 and upper - lower < np.inf
        if bisect or not lower < guess < upper:
            if lower == -np.inf:
                guess = upper - 2.0 * abs(upper) - 1.0
            elif upper == np.inf:
                guess = lower + 2.0 * abs(lower) + 1.0
            else:
                guess = 0.5 * (lower + upper)
        if guess in (t, lower, upper):
            break
        t = guess
    return t


@kernel
def project(target, width, starts, counts, shift, x):
    """``x = clip(target + shift_g width, 0, 1)`` with ``shift`` so that every count is exact.

    The projection of ``target`` in the metric 1 / width. ``shift`` (g,) holds the multipliers
    of the counts, in and out.
    """
    if counts.size == 0:
        for i in range(x.size):
            x[i] = min(1.0, max(0.0, target[i]))
    for g in range(counts.size):
        low, high = starts[g], starts[g + 1]
        t = count_shift(target[low:high], width[low:high], counts[g], shift[g])
        shift[g] = t
        for i in range(low, high):
            x[i] = min(1.0, max(0.0, target[i] + t * width[i]))


@kernel
def negative_part(cost, level):
    """Sum of min(0, cost - level)."""
    total = 0.0
    for i in range(cost.size):
        total += min(0.0, cost[i] - level)
    return total


@kernel
def lagrangian(cost, starts, counts, shift):
    """A lower bound of min cost.s under the counts, exact for the right multipliers ``shift``."""
    if counts.size == 0:
        return negative_part(cost, 0.0)
    value = 0.0
    for g in range(counts.size):
        value += counts[g] * shift[g] + negative_part(cost[starts[g] : starts[g + 1]], shift[g])
    return value


@kernel
def linear_minimum(cost, starts, counts, state, threshold):
    """The least cost.s over binary s with exact counts; its argmin goes to ``state``.

    ``threshold`` (n,) gets for every variable the cost of its best exchange partner:
    changing s_i costs |cost_i - threshold_i| more, inf where the count leaves no choice.
    """
    value = 0.0
    if counts.size == 0:
        for i in range(cost.size):
            state[i] = 1 if cost[i] < 0.0 else 0
            value += min(0.0, cost[i])
            threshold[i] = 0.0
    for g in range(counts.size):
        low, high = starts[g], starts[g + 1]
        k = counts[g]
        ranked = np.argsort(cost[low:high], kind="mergesort")
        worst_in = cost[low + ranked[k - 1]] if k > 0 else -np.inf
        best_out = cost[low + ranked[k]] if k < high - low else np.inf
        for position in range(high - low):
            i = low + ranked[position]
            if position < k:
                value += cost[i]
                state[i] = 1
                threshold[i] = best_out
            else:
                state[i] = 0
                threshold[i] = worst_in
    return value
