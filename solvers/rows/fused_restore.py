# pyright: standard
"""The gain of restoring the best weight after pruning another one, as one GPU kernel.

The inner loop of `solvers.rows.device`: it reads one row of A for a candidate and writes two
numbers, where plain tensor operations write that row ten times.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from solvers.rows.moves import Restore

# Entries of a row in one block.
_CHUNK = 1024


@triton.jit
def _restore_kernel(
    gram, fields, slopes, masks, curve, diagonal, out, values, gains, into,
    inputs, width,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One candidate a program: the best input to restore once the candidate is pruned."""
    pair = tl.program_id(0).to(tl.int64)
    row = pair // width * inputs
    pruned = tl.load(out + pair)
    value = tl.load(values + pair)
    best = tl.full((), float("-inf"), gains.dtype.element_ty)
    where = tl.zeros((), tl.int64)
    for first in range(0, inputs, CHUNK):
        at = first + tl.arange(0, CHUNK)
        inside = at < inputs
        field = tl.load(fields + row + at, mask=inside, other=0.0)
        field -= value * tl.load(gram + pruned * inputs + at, mask=inside, other=0.0)
        slope = tl.load(slopes + row + at, mask=inside, other=0.0)
        bend = tl.load(curve + at, mask=inside, other=0.0)
        own = tl.load(diagonal + at, mask=inside, other=0.0)
        gain = field * (bend * field - slope) - 0.5 * slope * slope * own
        kept = tl.load(masks + row + at, mask=inside, other=1)
        gain = tl.where(inside & (kept == 0), gain, float("-inf"))
        top = tl.max(gain, axis=0)
        if top > best:
            best = top
            where = (first + tl.argmax(gain, axis=0)).to(tl.int64)
    tl.store(gains + pair, best)
    tl.store(into + pair, where)


def best_restored(
    gram: torch.Tensor,
    field: torch.Tensor,
    mask: torch.Tensor,
    slope: torch.Tensor,
    restore: Restore,
    diagonal: torch.Tensor,
    out: torch.Tensor,
    values: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gain of the best input to restore for every candidate, and which input that is.

    Args:
        gram: A, shape (inputs, inputs).
        field: (w - w0) A, shape (rows, inputs).
        mask: True where kept, same shape.
        slope: of `Restore`, the same rows.
        restore: the `Restore` of the rows.
        diagonal: of A.
        out: the candidates to prune, shape (rows, width).
        values: their present values, same shape.

    Returns:
        Both of shape (rows, width); -inf where a row keeps all.
    """
    rows, width = out.shape
    gains = torch.empty_like(values)
    into = torch.empty_like(out)
    launch: Any = _restore_kernel
    launch[(rows * width,)](
        gram,
        field,
        slope,
        mask.view(torch.int8),
        restore.curve,
        diagonal,
        out,
        values,
        gains,
        into,
        gram.shape[0],
        width,
        CHUNK=_CHUNK,
        num_warps=4,
    )
    return gains, into
