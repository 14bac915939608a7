"""The best values on a given support, for all rows at once: conjugate gradients.

The row code runs on a host in numpy (float64) or on a device in torch. It is written once, in
operations that both spell alike; `array_api_compat` gives the functions of an array's library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

#: A numpy array or a torch tensor.
Array = Any

# From this many rows on, selecting in each of them keeps a device busy.
_MANY_ROWS = 64


def nth_smallest(array: Array, at: Array) -> Array:
    """The ``at[r]``-th smallest entry (from 0) of every row of ``array``, shape (rows,).

    One ``at``, of shape (1,), holds for all rows. For few different ones, rows are partitioned,
    which is far cheaper than sorting.
    """
    places = np.unique(as_host(at))
    if is_torch_array(array):
        # A device selects in all rows at once; one long row it sorts far faster.
        if len(places) == 1 and len(array) >= _MANY_ROWS:
            return array.kthvalue(int(places[0]) + 1, dim=-1).values
        return array.sort(dim=-1).values.gather(-1, at.expand(len(array))[:, None])[:, 0]
    parted = np.partition(array, places, -1) if len(places) < 8 else np.sort(array, axis=-1)
    return np.take_along_axis(parted, at[:, None], -1)[:, 0]


def as_like(array: Array, like: Array, dtype: str | None = None) -> Array:
    """``array`` on the device of ``like``, in its dtype or the one named."""
    xp = array_namespace(like)
    dtype = like.dtype if dtype is None else getattr(xp, dtype)
    return xp.asarray(array, dtype=dtype, device=device(like))


def as_host(array: Array) -> np.ndarray:
    """``array`` in numpy."""
    return array.detach().cpu().numpy() if is_torch_array(array) else np.asarray(array)


# Share of the start's residual at which a row has converged: smaller ones are rounding.
CONVERGED = {"float64": 1e-12, "float32": 1e-9}

# The inverse of a smaller number may overflow.
SMALLEST = {"float64": 1e-300, "float32": 1e-36}

# Converged rows are dropped from the products once fewer than this share are still live.
SHRINK = 0.75


def safe_inverse(diagonal: Array) -> Array:
    """1 / diagonal, and 0 where the diagonal is 0 (an input that never fires) or next to it."""
    positive = diagonal > SMALLEST[str(diagonal.dtype).removeprefix("torch.")]
    xp = array_namespace(diagonal)
    ones = xp.ones_like(diagonal)
    return xp.where(positive, 1.0 / xp.where(positive, diagonal, ones), 0.0 * ones)


def objectives(gram: Array, targets: Array, values: Array) -> Array:
    """1/2 (w - w0)' A (w - w0) of every row, shape (rows,)."""
    change = values - targets
    return 0.5 * ((change @ gram) * change).sum(-1)


def refit(
    gram: Array, targets: Array, mask: Array, values: Array, *, max_iterations: int = 500
) -> Array:
    """Minimise every row's objective over the values that ``mask`` keeps.

    Solves A_SS (w_S - w0_S) = A_SP w0_P (P the pruned inputs) by conjugate gradients with the
    diagonal of A as preconditioner, started from ``values``; one product with A serves all rows.
    A row is done when r' D^-1 r (D the diagonal of A, r the residual) falls below `CONVERGED`
    times the energy of the row pruned entirely. Converged rows are kept, and left out of
    later products a quarter at a time.

    Args:
        gram: A, shape (inputs, inputs).
        targets: w0, shape (rows, inputs).
        mask: True where kept, same shape.
        values: where to start, same shape; pruned entries are ignored.
        max_iterations: products with A at most.

    Returns:
        The values, exact zeros where pruned; in no row worse than the start.
    """
    inverse = safe_inverse(gram.diagonal())
    small = CONVERGED[str(gram.dtype).removeprefix("torch.")]
    stop = small * ((targets @ gram) * targets).sum(-1)
    keep = as_like(mask, values)
    start = values * keep
    result = start + 0.0
    residual = ((targets - result) @ gram) * keep
    direction = residual * inverse
    power = (residual * direction).sum(-1)
    rows = as_like(range(len(targets)), gram, "int64")[power > stop]
    keep, residual, direction, power = keep[rows], residual[rows], direction[rows], power[rows]
    for _ in range(max_iterations):
        if not len(rows):
            break
        live = power > stop[rows]
        if int(live.sum()) < SHRINK * len(rows):
            rows, keep, residual = rows[live], keep[live], residual[live]
            direction, power, live = direction[live], power[live], live[live]
        image = (direction @ gram) * keep
        step = live * power * safe_inverse((direction * image).sum(-1))
        result[rows] += step[:, None] * direction
        residual = residual - step[:, None] * image
        scaled = residual * inverse
        new_power = (residual * scaled).sum(-1)
        direction = scaled + (live * new_power * safe_inverse(power))[:, None] * direction
        power = new_power
    better = objectives(gram, targets, result) <= objectives(gram, targets, start)
    return array_namespace(gram).where(better[:, None], result, start)
