"""Second moments of a matrix' inputs, summed over batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qprune.errors import NonFiniteError
from qprune.ranks import ALONE, Ranks

# Types whose significands have no more bits than TF32's.
_EXACT_IN_TF32 = (torch.float16, torch.bfloat16)


@contextmanager
def _tensor_cores(use: bool) -> Iterator[None]:
    """Take float32 products in TF32 within the context, if ``use``."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = use or before
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class Moments:
    """Sums X X' of the inputs X, and X0 X' with the dense network's inputs X0 for the same tokens.

    Products are taken in float32 or better, whatever the model's dtype, and summed in float64
    (float32 on a device). A device multiplies float16 or bfloat16 inputs on its tensor
    cores: TF32 holds such numbers exactly, and sums in float32.

    Args:
        name: for messages.
        inputs: number of inputs.
        device: device of the sums.
        with_dense: True if dense inputs are given too.
        ranks: processes, each of which adds its own tokens, all at the same time.
    """

    def __init__(
        self,
        name: str,
        inputs: int,
        device: torch.device,
        with_dense: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.name = name
        self.tokens = 0
        self.gram = torch.zeros(inputs, inputs, dtype=dtype, device=device)
        self.cross = torch.zeros_like(self.gram) if with_dense else None
        self._ranks = ranks
        self._sums = ranks.summing([t for t in (self.gram, self.cross) if t is not None])

    def add(self, x: Tensor, dense: Tensor | None = None) -> None:
        """Add inputs (..., inputs) of some tokens, and the dense network's for the same ones.

        Raises:
            NonFiniteError: NaN or Inf among them.
        """
        exact_in_tf32 = x.is_cuda and x.dtype in _EXACT_IN_TF32
        x = _flat(x)
        with _tensor_cores(exact_in_tf32):
            product = x.T @ x
        if self._ranks.any(not bool(torch.isfinite(product.diagonal()).all())):
            raise NonFiniteError(
                f"the inputs of layer {self.name!r} hold NaN or Inf, or overflow; look at the "
                "layers before it, or load the model in a wider dtype"
            )
        parts = [product]
        if self.cross is not None:
            with _tensor_cores(exact_in_tf32):
                parts.append(torch.zeros_like(product) if dense is None else _flat(dense).T @ x)
        self._sums.add(parts, self._ranks.size)
        self.tokens += len(x)

    def close(self) -> None:
        """Finish the sums, after all ranks have added their tokens."""
        self._sums.close()
        self.tokens = self._ranks.total(self.tokens)


@dataclass(frozen=True, eq=False)
class Quadratic:
    """Output error of a matrix: (W - targets) gram (W - targets)' up to a constant.

    Attributes:
        gram: A, shape (inputs, inputs), symmetric.
        targets: shape (rows, inputs).
    """

    gram: Tensor
    targets: Tensor


def quadratic(
    moments: Moments, weights: Tensor, damping: float, dense_share: float = 1.0
) -> Quadratic:
    """Return |W X - W0 X0|^2 + ridge |W - W0|^2 around its unconstrained optimum.

    With C = X0 X' the optimum is W0 (C + ridge) (A + ridge)^-1; it is W0 itself where the inputs
    are the dense network's own (or C is not known), as SparseGPT and ALPS take them.

    Args:
        moments: moments of the inputs.
        weights: W0, shape (rows, inputs).
        damping: the ridge, as a share of the mean of A's diagonal.
        dense_share: position of the optimum between W0 (0) and the one for X0 (1).
    """
    gram = 0.5 * (moments.gram + moments.gram.T)
    ridge = damping * gram.diagonal().mean()
    # Without tokens the error is the squared change of the weights.
    shift = torch.where(ridge > 0, ridge, torch.ones_like(ridge)) if not moments.tokens else ridge
    gram.diagonal().add_(shift)
    targets = weights.to(gram)
    if moments.cross is not None and moments.tokens:
        cross = torch.lerp(moments.gram, moments.cross, dense_share)
        cross.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            targets = torch.cholesky_solve(cross.T @ targets.T, factor).T
    return Quadratic(gram, targets.contiguous())


def _flat(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1])
    return x.to(torch.promote_types(x.dtype, torch.float32))
