# pyright: standard
"""Inner loops of tabu search: the best move that is not tabu, whether E falls or rises.

The names of the arguments are those of `solvers.search.kernels.common`; besides them

``until``
    int32, shape (n,): variable i may not move again before iteration ``until[i]``.
``tenure``, ``spread``
    a moved variable stays tabu for ``tenure`` plus a random number below ``spread`` iterations.
"""

from __future__ import annotations

import numpy as np

from solvers.search.kernels.common import (
    GUMBELS,
    below,
    copy_into,
    kernel,
    locate,
    next_random,
    part,
    smaller,
)
from solvers.search.kernels.flip import flip
from solvers.search.kernels.swap import score_partners, swap


@part
def locate_from(scores, least, random):
    """An index with a score of at most ``least``, the first one after a random place."""
    middle = below(next_random(random), scores.size)
    index = middle + locate(scores[middle:], least)
    return index if scores[index] <= least else locate(scores[:middle], least)


@part
def flip_scores(field, half, x, until, now, aspired, scores):
    """Gain of every flip; infinite where tabu, unless below ``aspired``. Returns the least."""
    infinity = field.dtype.type(np.inf)
    least = infinity
    for t in range(x.size):
        gain = (field[t] if x[t] == 0 else -field[t]) + half[t]
        blocked = (until[t] > now) & (gain >= aspired)
        gain = infinity if blocked else gain
        scores[t] = gain
        least = smaller(least, gain)
    return least


@kernel
def flip_tabu(
    matrix, field, half, x, until, tenure, spread, iterations, goal, random, best, tally, scores
):
    """One-flip tabu search (Glover 1989; for QUBO, Glover, Kochenberger and Alidaee 1998).

    Args:
        matrix: (n, n) float32 or float64, or CSR.
        field: linear + Q x, kept right in place.
        half: half the diagonal.
        x: state, changed in place.
        until: see the module; zeros at first.
        tenure: least number of iterations that a flipped variable is tabu.
        spread: its random part, at least 1.
        iterations: how many.
        goal: stop when E, in the tally's terms, is at most this.
        random: generator state, (4,) uint64, advanced in place.
        best: (n,) int8, the best state seen; written only when better than ``tally[1]``.
        tally: float64 [E now, best E, flips made], relative to any origin.
        scores: scratch of shape (n,), dtype of the matrix.
    """
    real = field.dtype.type
    energy, lowest = tally[0], tally[1]
    for iteration in range(iterations):
        now = np.int32(iteration)
        aspired = real(lowest - energy) - real(1e-6) * abs(real(lowest - energy))
        least = flip_scores(field, half, x, until, now, aspired, scores)
        if least == np.inf:
            # All variables are tabu: flip the one whose tenure ends first.
            i = np.argmin(until)
            least = (field[i] if x[i] == 0 else -field[i]) + half[i]
        else:
            i = locate_from(scores, least, random)
        if least >= 0 and energy < lowest:
            lowest = energy
            copy_into(best, x)
        flip(matrix, field, x, i)
        energy += least
        until[i] = iteration + tenure + below(next_random(random), spread)
        tally[2] += 1
        if energy <= goal:
            break
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1] = energy, lowest


@part
def group_of(starts, i):
    """The group that variable i is in."""
    low, high = 0, starts.size - 1
    while high - low > 1:
        middle = (low + high) >> 1
        if starts[middle] <= i:
            low = middle
        else:
            high = middle
    return low


@part
def rest(scores, until, now, aspired):
    """Make the scores of variables that are tabu infinite, unless below ``aspired``; the least."""
    infinity = scores.dtype.type(np.inf)
    least = infinity
    for t in range(scores.size):
        blocked = (until[t] > now) & (scores[t] >= aspired)
        score = infinity if blocked else scores[t]
        scores[t] = score
        least = smaller(least, score)
    return least


@kernel
def swap_tabu(
    matrix,
    field,
    half,
    x,
    starts,
    until,
    tenure,
    spread,
    candidates,
    iterations,
    goal,
    random,
    best,
    tally,
    scores,
):
    """Swap tabu search with a candidate list.

    An iteration draws ``candidates`` random variables, finds the best partner of each that is
    not tabu by its whole row, and makes the best of these swaps. (The cheapest pair of all
    variables would nearly always be among the few with the smallest coefficients.)
    Other arguments are those of `flip_tabu`; ``starts`` are the group boundaries.
    """
    real = field.dtype.type
    energy, lowest = tally[0], tally[1]
    for iteration in range(iterations):
        now = np.int32(iteration)
        best_i, best_j = -1, -1
        best_gain = real(np.inf)
        for _ in range(candidates):
            i = below(next_random(random), x.size)
            if until[i] > now:
                continue
            group = group_of(starts, i)
            low, high = starts[group], starts[group + 1]
            score_partners(matrix, field, half, x, low, high, i, real(0.0), random, GUMBELS, scores)
            own = half[i] - field[i] if x[i] == 1 else half[i] + field[i]
            aspired = real(lowest - energy) - own
            aspired -= real(1e-6) * abs(aspired)
            least = rest(scores[: high - low], until[low:high], now, aspired)
            if least + own < best_gain:
                best_gain = least + own
                best_i = i
                best_j = low + locate_from(scores[: high - low], least, random)
        if best_i >= 0:
            if best_gain >= 0 and energy < lowest:
                lowest = energy
                copy_into(best, x)
            swap(matrix, field, x, best_i, best_j)
            energy += best_gain
            for moved in (best_i, best_j):
                until[moved] = iteration + tenure + below(next_random(random), spread)
            tally[2] += 1
            if energy <= goal:
                break
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1] = energy, lowest
