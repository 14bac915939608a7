# pyright: standard
"""Inner loops of swap moves: a variable at 1 and one at 0 of the same group change places.

The names of the arguments are those of `solvers.search.kernels.common`. All but `swap_metropolis`
look at a
whole row at once: for a variable i of the rarer value of its group, the score of every partner j
is ``sign field_j + half_j - Q_ij``, one vectorised pass over contiguous memory, which sees as
many candidate swaps as the group is long in about the time of two dozen single proposals.
"""

from __future__ import annotations

import numpy as np

from solvers.search.kernels.common import (
    SEGMENT,
    add_rows,
    below,
    copy_into,
    entry,
    exponential,
    kernel,
    locate,
    next_random,
    part,
    score_row,
    smaller,
)


@part
def rarer_value(x, low, high):
    """The value that fewer of ``x[low:high]`` have (1 on a tie)."""
    ones = 0
    for t in range(low, high):
        ones += x[t]
    return 1 if 2 * ones <= high - low else 0


@part
def score_partners(matrix, field, half, x, low, high, i, temperature, random, noise, scores):
    """The least score of the partners of i in its group ``low:high``; infinite without any.

    The scores stay in ``scores[: high - low]`` for `locate`. With a temperature they carry Gumbel
    noise, drawn afresh for every ``SEGMENT``.
    """
    real = field.dtype.type
    sign = real(1.0) if x[i] == 1 else real(-1.0)
    least = real(np.inf)
    for start in range(low, high, SEGMENT):
        stop = min(high, start + SEGMENT)
        offset = 0
        if temperature > 0:
            offset = below(next_random(random), noise.size - SEGMENT)
        found = score_row(
            matrix,
            i,
            start,
            sign,
            field[start:stop],
            half[start:stop],
            x[start:stop],
            temperature,
            noise[offset : offset + stop - start],
            scores[start - low : stop - low],
        )
        least = smaller(least, found)
    return least


@part
def swap(matrix, field, x, i, j):
    """Exchange the values of i and j, fields kept right."""
    real = field.dtype.type
    add_rows(matrix, i, j, real(1.0) if x[i] == 1 else real(-1.0), field)
    x[i], x[j] = x[j], x[i]


@part
def swap_gain(matrix, field, half, x, i, j):
    """Change of E when i and j, of different values, exchange them."""
    real = field.dtype.type
    sign = real(1.0) if x[i] == 1 else real(-1.0)
    return sign * (field[j] - field[i]) + half[i] + half[j] - entry(matrix, i, j)


@kernel
def swap_descent(matrix, field, half, x, starts, random, noise, scores, most_rows, cursor):
    """Swaps inside groups until none improves E, or ``most_rows`` were looked at.

    Every variable of the rarer value in turn takes its best partner if that lowers E. ``cursor``
    is the position of a call, in and out: the variable, its group, and how many variables in
    a row had no better partner; zeros at first. At a local minimum the last is n or more.
    ``scores`` is scratch, as long as the largest group, ``random`` and ``noise`` are not used.
    """
    real = field.dtype.type
    tolerance = real(1e-12) if field.itemsize == 8 else real(1e-6)
    i, g, idle = cursor[0], cursor[1], cursor[2]
    rows = 0
    while idle < x.size and rows < most_rows:
        low, high = starts[g], starts[g + 1]
        value = rarer_value(x, low, high)
        while i < high and idle < x.size and rows < most_rows:
            idle += 1
            if x[i] == value:
                rows += 1
                own = half[i] - field[i] if value == 1 else half[i] + field[i]
                least = score_partners(
                    matrix, field, half, x, low, high, i, real(0.0), random, noise, scores
                )
                if least + own < -tolerance * (abs(own) + abs(field[i])):
                    swap(matrix, field, x, i, low + locate(scores[: high - low], least))
                    idle = 0
            i += 1
        if i >= high:
            g = (g + 1) % (starts.size - 1)
            i = starts[g]
    cursor[0], cursor[1], cursor[2] = i, g, idle


@kernel
def swap_heat_bath(
    matrix, field, half, x, starts, places, temperatures, random, noise, best, tally, scores
):
    """Anneal by heat-bath swaps, one sweep per temperature: for low temperatures and warm starts.

    Every variable i of the rarer value of its group in turn moves to a partner j, or stays, with
    probability proportional to exp(-E / T): an exact Gibbs update of the position of that value.

    Args:
        matrix: (n, n) float32 or float64, or CSR.
        field: linear + Q x, kept right in place.
        half: half the diagonal.
        x: state, changed in place; counts stay exact.
        starts: group boundaries, (g + 1,) int64; one group is ``[0, n]``.
        places: what `arranged` makes of x and starts, changed in place; carried on by a second
            call with the same arrays.
        temperatures: one per sweep, in units of E, dtype of the matrix; 0 is a descent sweep.
        random: generator state, (4,) uint64, from `random_states_for`; advanced in place.
        noise: `GUMBELS`.
        best: (n,) int8, the best state seen; written only when one better than ``tally[1]`` is.
        tally: float64 [E now, best E, swaps made], relative to any origin: pass zeros to get
            changes from the start; carried on by a second call with the same arrays.
        scores: scratch, as long as the largest group, dtype of the matrix.
    """
    place, firsts = places
    energy, lowest, moves = tally[0], tally[1], tally[2]
    for temperature in temperatures:
        for g in range(starts.size - 1):
            low, middle, high = starts[g], firsts[g], starts[g + 1]
            first, last = (low, middle) if 2 * middle <= low + high else (middle, high)
            for p in range(first, last):
                i = place[p]
                own = half[i] - field[i] if x[i] == 1 else half[i] + field[i]
                stay = -own - temperature * noise[below(next_random(random), noise.size)]
                least = score_partners(
                    matrix, field, half, x, low, high, i, temperature, random, noise, scores
                )
                if least < stay:
                    j = low + locate(scores[: high - low], least)
                    gain = swap_gain(matrix, field, half, x, i, j)
                    if gain > 0 and energy < lowest:
                        lowest = energy
                        copy_into(best, x)
                    swap(matrix, field, x, i, j)
                    # Only the list of the rarer value is read here, and updated.
                    place[p] = j
                    energy += gain
                    moves += 1
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1], tally[2] = energy, lowest, moves


@kernel
def swap_metropolis(matrix, field, half, x, starts, temperatures, random, best, tally):
    """Anneal by random swaps, one sweep of n proposals per temperature: for high temperatures.

    Every variable in turn is offered a random partner of the other value in its group and takes
    it with probability min(1, exp(-dE / T)) (Metropolis et al. 1953). Arguments are those of
    `swap_heat_bath`.
    """
    place, firsts = arranged(x, starts)
    energy, lowest, moves = tally[0], tally[1], tally[2]
    for temperature in temperatures:
        for g in range(starts.size - 1):
            low, middle, high = starts[g], firsts[g], starts[g + 1]
            if middle in (low, high):
                continue
            for p in range(low, high):
                bits = next_random(random)
                q = (
                    middle + below(bits, high - middle)
                    if p < middle
                    else low + below(bits, middle - low)
                )
                i, j = place[p], place[q]
                gain = swap_gain(matrix, field, half, x, i, j)
                if gain < temperature * exponential(bits):
                    if gain > 0 and energy < lowest:
                        lowest = energy
                        copy_into(best, x)
                    swap(matrix, field, x, i, j)
                    place[p], place[q] = j, i
                    energy += gain
                    moves += 1
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1], tally[2] = energy, lowest, moves


@kernel
def arranged(x, starts):
    """(variables of each group with those at 1 first, where those at 0 begin)."""
    place = np.empty(x.size, dtype=np.int64)
    firsts = np.empty(starts.size - 1, dtype=np.int64)
    for g in range(firsts.size):
        at = starts[g]
        for value in (1, 0):
            for i in range(starts[g], starts[g + 1]):
                if x[i] == value:
                    place[at] = i
                    at += 1
            if value == 1:
                firsts[g] = at
    return place, firsts
