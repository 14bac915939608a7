# pyright: standard
"""Inner loops of single flips, for problems without counts.

The names of the arguments are those of `solvers.search.kernels.common`.
"""

from __future__ import annotations

from solvers.search.kernels.common import (
    EXPONENTIALS,
    add_row,
    copy_into,
    exponential,
    kernel,
    next_random,
    part,
)

HIGHEST = EXPONENTIALS[0]


@part
def flip(matrix, field, x, i):
    """Change the value of i, fields kept right."""
    real = field.dtype.type
    add_row(matrix, i, real(1.0) if x[i] == 0 else real(-1.0), field)
    x[i] = 1 - x[i]


@part
def flip_gain(field, half, x, i):
    """Change of E when i flips."""
    return (field[i] if x[i] == 0 else -field[i]) + half[i]


@kernel
def flip_descent(matrix, field, half, x, max_flips):
    """Single flips until none improves E; returns the number made."""
    real = field.dtype.type
    tolerance = real(1e-12) if field.itemsize == 8 else real(1e-6)
    flips = 0
    improved = True
    while improved and flips < max_flips:
        improved = False
        for i in range(x.size):
            if flip_gain(field, half, x, i) < -tolerance * abs(field[i]):
                flip(matrix, field, x, i)
                flips += 1
                improved = True
                if flips >= max_flips:
                    break
    return flips


@kernel
def flip_metropolis(matrix, field, half, x, temperatures, random, best, tally):
    """Anneal by single flips, one sweep over all variables per temperature.

    Args:
        matrix: (n, n) float32 or float64, or CSR.
        field: linear + Q x, kept right in place.
        half: half the diagonal.
        x: state, changed in place.
        temperatures: one per sweep, in units of E, dtype of the matrix.
        random: generator state, (4,) uint64, advanced in place.
        best: (n,) int8, the best state seen; written only when better than ``tally[1]``.
        tally: float64 [E now, best E, flips made], relative to any origin.
    """
    energy, lowest, moves = tally[0], tally[1], tally[2]
    for temperature in temperatures:
        for i in range(x.size):
            gain = flip_gain(field, half, x, i)
            # Beyond the largest quantile of the table no draw could accept.
            if gain < temperature * HIGHEST and gain < temperature * exponential(
                next_random(random)
            ):
                if gain > 0 and energy < lowest:
                    lowest = energy
                    copy_into(best, x)
                flip(matrix, field, x, i)
                energy += gain
                moves += 1
    if energy < lowest:
        lowest = energy
        copy_into(best, x)
    tally[0], tally[1], tally[2] = energy, lowest, moves
