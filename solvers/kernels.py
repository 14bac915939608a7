"""Inner loops in numba. Every kernel works in place on plain arrays and releases the GIL.

Names used throughout: ``matrix`` (n, n) symmetric with its diagonal, ``field`` = linear + Q x,
``x`` int8 state, ``groups`` the group of every variable.
"""

from __future__ import annotations

import numpy as np
from numba import njit

kernel = njit(cache=True, nogil=True, fastmath=False, error_model="numpy")


@kernel
def swap_descent(matrix, field, x, groups, max_swaps):
    """Best-improvement swaps inside groups until none improves; returns the number made.

    Swapping i (1 -> 0) with j (0 -> 1) changes E by
    field_j - field_i + 1/2 (Q_ii + Q_jj) - Q_ij. For each candidate i the best j is found by
    one pass over row i; candidates are tried in the order of the gain they promise without Q_ij.
    """
    n = x.size
    swaps = 0
    improved = True
    while improved and swaps < max_swaps:
        improved = False
        for i in range(n):
            if x[i] == 0:
                continue
            out_cost = -field[i] + 0.5 * matrix[i, i]
            best = -1e-12 * (1.0 + abs(out_cost))
            best_j = -1
            for j in range(n):
                if x[j] == 0 and groups[j] == groups[i]:
                    delta = out_cost + field[j] + 0.5 * matrix[j, j] - matrix[i, j]
                    if delta < best:
                        best = delta
                        best_j = j
            if best_j >= 0:
                x[i] = 0
                x[best_j] = 1
                for t in range(n):
                    field[t] += matrix[best_j, t] - matrix[i, t]
                swaps += 1
                improved = True
                if swaps >= max_swaps:
                    break
    return swaps


@kernel
def flip_descent(matrix, field, x, max_flips):
    """Single flips until none improves (problems without counts); returns the number made."""
    n = x.size
    flips = 0
    improved = True
    while improved and flips < max_flips:
        improved = False
        for i in range(n):
            sign = 1.0 - 2.0 * x[i]
            delta = sign * field[i] + 0.5 * matrix[i, i]
            if delta < -1e-12 * (1.0 + abs(field[i])):
                x[i] = 1 - x[i]
                for t in range(n):
                    field[t] += sign * matrix[i, t]
                flips += 1
                improved = True
                if flips >= max_flips:
                    break
    return flips


def as_kernel_groups(groups: np.ndarray | None, size: int) -> np.ndarray:
    """Group ids for a kernel: all zero where the problem has none."""
    return np.zeros(size, dtype=np.int64) if groups is None else groups
