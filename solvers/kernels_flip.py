"""Inner loops of single flips, for problems without counts.

The names of the arguments are those of `solvers.kernels`.
"""

from __future__ import annotations

from solvers.kernels import add_row, fast_kernel


@fast_kernel
def flip(matrix, field, x, i):
    """Change the value of i, fields kept right."""
    real = field.dtype.type
    add_row(matrix, i, real(1.0) if x[i] == 0 else real(-1.0), field)
    x[i] = 1 - x[i]


@fast_kernel
def flip_gain(field, half, x, i):
    """Change of E when i flips."""
    return (field[i] if x[i] == 0 else -field[i]) + half[i]


@fast_kernel
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
