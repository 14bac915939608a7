# pyright: standard
"""Inner loops of the row problems in numba: best swaps in one row, one kernel call a row.

Names used throughout: ``gram`` A (d, d); ``kept`` the row's mask; ``run`` the length of the runs
of consecutive inputs that swaps stay inside.
"""

from __future__ import annotations

import numpy as np

from solvers.search.kernels.common import compiler, copy_into

# No NaN occurs (inputs are checked) and the order of a maximum does not matter, so LLVM may
# vectorise the searches; sums keep their order.
kernel = compiler(fastmath={"nnan", "nsz"})


@kernel
def _best(gains, low, high):
    """The first position of the largest of ``gains[low:high]``."""
    most = -np.inf
    for j in range(low, high):
        most = max(most, gains[j])
    for j in range(low, high):
        if gains[j] == most:
            return j
    return low


@kernel
def swap_row(gram, values, field, kept, curve, slope, cost, run, tolerance, max_swaps, at):
    """Swaps in one row, other values held, until none improves; returns the number made.

    Fewer than ``max_swaps`` means that none improves; after as many, another call goes on.

    Restoring j at value t, once i is gone, changes the objective by t f + 1/2 t^2 A_jj with
    f = F_j - w_i A_ij. Both ways of choosing t are one expression,

        gain_j = curve_j f^2 - slope_j f - cost_j

    with curve = 1 / (2 A_jj), slope = cost = 0 for the best t = -f / A_jj, and curve = 0,
    slope = w0_j, cost = 1/2 w0_j^2 A_jj for the original value. Kept inputs have cost = inf.

    Args:
        gram: A, shape (d, d).
        values: w, changed in place.
        field: F = (w - w0) A, changed in place.
        kept: the mask, changed in place.
        curve: shape (d,).
        slope: shape (d,).
        cost: shape (d,), changed in place.
        run: swaps stay inside runs of this many inputs.
        tolerance: improvements smaller than this do not count.
        max_swaps: stop after this many.
        at: int64, shape (1,), the input that is next, in and out; 0 at first.
    """
    size = values.size
    gains = np.empty(size)
    swaps = 0
    improved = True
    while improved and swaps < max_swaps:
        # A continued call comes after a swap, so that another sweep is needed.
        improved = at[0] > 0
        first = at[0]
        at[0] = 0
        for i in range(first, size):
            if not kept[i]:
                continue
            w = values[i]
            loss = -w * field[i] + 0.5 * w * w * gram[i, i]
            low = i // run * run
            high = min(low + run, size)
            for j in range(low, high):
                f = field[j] - w * gram[i, j]
                gains[j] = f * (curve[j] * f - slope[j]) - cost[j]
            j = _best(gains, low, high)
            if not loss - gains[j] < -tolerance:
                continue
            f = field[j] - w * gram[i, j]
            t = slope[j] - 2.0 * f * curve[j]
            for c in range(size):
                field[c] += t * gram[j, c] - w * gram[i, c]
            values[i] = 0.0
            values[j] = t
            kept[i] = False
            kept[j] = True
            cost[i] = 0.5 * slope[i] * slope[i] * gram[i, i]
            cost[j] = np.inf
            swaps += 1
            improved = True
            if swaps >= max_swaps:
                at[0] = i + 1
                break
    return swaps


@kernel
def _column(tableau, gram, kept, k):
    """Column k of the whole tableau; for a pruned k its rows of N are Z_k = A_k - A_kS D."""
    size = kept.size
    column = tableau[k].copy()
    if not kept[k]:
        copy_into(column[:size], gram[k])
        for a in range(size):
            if kept[a]:
                factor = gram[k, a]
                for b in range(size):
                    column[b] -= factor * tableau[a, b]
        for a in range(size):
            if kept[a] or a == k:
                column[a] = tableau[a, k]
    column[size] = tableau[size, k]
    return column


@kernel
def pivot(tableau, gram, kept, k):
    """One step of the sweep operator: input k into the support or out of it, ``kept`` too.

    Only what is read is kept up to date: the rows of the support, the diagonal, the last row.
    """
    size = kept.size
    sign = -1.0 if kept[k] else 1.0
    column = _column(tableau, gram, kept, k)
    shares = column / column[k]
    kept[k] = not kept[k]
    for a in range(size):
        if a != k and kept[a]:
            for b in range(size):
                tableau[a, b] -= shares[a] * column[b]
            tableau[a, k] = sign * shares[a]
        elif a != k:
            tableau[a, a] -= shares[a] * column[a]
    for b in range(size + 1):
        tableau[size, b] -= shares[size] * column[b]
    tableau[size, k] = sign * shares[size]
    if kept[k]:
        for b in range(size):
            tableau[k, b] = sign * shares[b]
    tableau[k, k] = -1.0 / column[k]


@kernel
def exact_swap_row(tableau, gram, kept, diagonal, run, tolerance, max_swaps):
    """The best swap of a row, all kept values refitted, again and again until none improves.

    ``tableau`` is the sweep of [[A, b], [b', c]] (b = A w0, c = w0'b) on the support S, of shape
    (d + 1, d + 1). With C the inverse of A_SS it holds -C on S x S, D = C A_SN on S x N (N the
    pruned inputs), the diagonal of the Schur complement Z = A_NN - A_NS C A_SN, in its last row the
    best values w_S and the residuals r_N = b_N - A_NS w_S, and twice the objective in its corner.
    Its other entries, in the rows of N, mean nothing: keeping them would double or triple the work.
    Exchanging i in S for j in N then changes twice the objective by exactly

        w_i^2 / C_ii - (r_j + D_ij w_i / C_ii)^2 / (Z_jj + D_ij^2 / C_ii).

    Args:
        tableau: changed in place.
        gram: A.
        kept: the mask, changed in place.
        diagonal: the diagonal of A; a restore whose remaining curvature is below 1e-9 of it
            is never made (the input is a combination of those kept).
        run: swaps stay inside runs of this many inputs.
        tolerance: improvements of the objective smaller than this do not count.
        max_swaps: stop after this many.

    Returns:
        The number of swaps.
    """
    size = kept.size
    residual = np.empty(size)
    curvature = np.empty(size)
    gains = np.empty(size)
    swaps = 0
    while swaps < max_swaps:
        for j in range(size):
            residual[j] = tableau[size, j]
            curvature[j] = np.inf if kept[j] else max(tableau[j, j], 1e-9 * diagonal[j])
        best = -2.0 * tolerance
        out = -1
        into = -1
        for i in range(size):
            if not kept[i]:
                continue
            scale = -1.0 / tableau[i, i]
            w = residual[i]
            loss = w * w * scale
            low = i // run * run
            high = min(low + run, size)
            for j in range(low, high):
                d = tableau[i, j]
                e = d * scale
                r = residual[j] + e * w
                gains[j] = r * r / (curvature[j] + e * d)
            j = _best(gains, low, high)
            if loss - gains[j] < best and not kept[j]:
                best = loss - gains[j]
                out = i
                into = j
        # A gain above the objective itself is rounding.
        if out < 0 or tableau[size, size] + best < -2.0 * tolerance:
            break
        pivot(tableau, gram, kept, out)
        pivot(tableau, gram, kept, into)
        swaps += 1
    return swaps
