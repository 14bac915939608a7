"""Inner loops of the convex relaxation: projections and linear minima over exact counts.

``order`` lists the variables group by group, group g owning ``order[starts[g]:starts[g + 1]]``.
No groups at all is ``starts`` of length 1: then every variable only has its box [0, 1].
"""

from __future__ import annotations

import numpy as np

from solvers.kernels import kernel


@kernel
def project(target, width, order, starts, counts, shift, x):  # noqa: PLR0912
    """``x = clip(target + shift_g * width, 0, 1)`` with ``shift`` so that every count is exact.

    This is the projection of ``target`` in the metric 1 / width. ``shift`` (g,) is where the
    search starts and where its answer goes (safeguarded Newton on a monotone, piecewise linear
    function).
    """
    groups = starts.size - 1
    if groups == 0:
        for i in range(x.size):
            x[i] = min(1.0, max(0.0, target[i]))
    for g in range(groups):
        members = order[starts[g] : starts[g + 1]]
        lower = -np.inf
        upper = np.inf
        t = shift[g]
        for _ in range(200):
            total = 0.0
            slope = 0.0
            for i in members:
                value = target[i] + t * width[i]
                if value >= 1.0:
                    total += 1.0
                elif value > 0.0:
                    total += value
                    slope += width[i]
            excess = total - counts[g]
            if abs(excess) <= 1e-13 * (1.0 + counts[g]):
                break
            if excess > 0.0:
                upper = t
            else:
                lower = t
            guess = t - excess / slope if slope > 0.0 else np.inf
            if not (lower < guess < upper) or guess == np.inf:
                if lower == -np.inf:
                    guess = upper - 2.0 * abs(upper) - 1.0
                elif upper == np.inf:
                    guess = lower + 2.0 * abs(lower) + 1.0
                else:
                    guess = 0.5 * (lower + upper)
            if guess == t:
                break
            t = guess
        shift[g] = t
        for i in members:
            x[i] = min(1.0, max(0.0, target[i] + t * width[i]))


@kernel
def linear_minimum(cost, order, starts, counts, state, threshold):
    """The least cost.s over binary s with exact counts; its argmin goes to ``state``.

    ``threshold`` (n,) gets for every variable the cost it would have to trade against: changing
    s_i costs |cost_i - threshold_i| more, inf where the count leaves no choice.
    """
    groups = starts.size - 1
    value = 0.0
    if groups == 0:
        for i in range(cost.size):
            state[i] = 1 if cost[i] < 0.0 else 0
            value += min(0.0, cost[i])
            threshold[i] = 0.0
    for g in range(groups):
        members = order[starts[g] : starts[g + 1]]
        k = counts[g]
        ranked = members[np.argsort(cost[members], kind="mergesort")]
        worst_in = cost[ranked[k - 1]] if k > 0 else -np.inf
        best_out = cost[ranked[k]] if k < ranked.size else np.inf
        for position in range(ranked.size):
            i = ranked[position]
            if position < k:
                value += cost[i]
                state[i] = 1
                threshold[i] = best_out
            else:
                state[i] = 0
                threshold[i] = worst_in
    return value
