"""The loss around the current weights: value, gradient, diagonal, and curvature on a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qprune.objective.samples import Objective
from solvers import Dense, LowRank

if TYPE_CHECKING:
    from jaxtyping import Float


class BlockCurvature(Protocol):
    """Protocol of an expansion's curvature: its diagonal, and any block of it."""

    def diagonal(self) -> Float[Tensor, " N"]:
        """Return H_ii of every targeted weight, shape (N,), non-negative."""
        ...

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        """Return H at each index vector (n,): a full matrix, or a factor F (m, n), H = F'F."""
        ...


@dataclass(frozen=True, eq=False)
class Part:
    """An expansion as some of the samples see it.

    Attributes:
        gradient: of the mean loss over them, shape (N,).
        rows: theirs in the factor of every block.
        half: 0 or 1; no sample of one half was made from one of the other.
        given: True if they were given, False if made from given ones.
    """

    gradient: Float[Tensor, " N"]
    rows: slice
    half: int
    given: bool

    @property
    def size(self) -> int:
        """Number of samples."""
        return self.rows.stop - self.rows.start


@dataclass(frozen=True, eq=False)
class Expansion:
    """Second-order expansion of the mean loss at the model's current weights.

    Attributes:
        loss: mean loss over the samples, nats.
        gradient: of the mean loss, over all targeted weights, shape (N,).
        diagonal: of the curvature, shape (N,).
        curvature: source of blocks of the curvature.
        damping: added to every diagonal entry, for directions that the samples miss.
        parts: the samples in halves; none where the curvature is not a sum over samples.
    """

    loss: float
    gradient: Float[Tensor, " N"]
    diagonal: Float[Tensor, " N"]
    curvature: BlockCurvature
    damping: float = 0.0
    parts: tuple[Part, ...] = ()

    def damped(self, damping: float) -> Expansion:
        """With ``damping`` times the mean diagonal added to every diagonal entry."""
        return replace(self, damping=damping * float(self.diagonal.mean()))

    def half(self, number: int) -> Expansion:
        """As one half of the samples sees it; the diagonal and the loss are those of all."""
        parts = tuple(part for part in self.parts if part.half == number)
        return replace(self, gradient=mean_gradient(parts), parts=parts)

    @property
    def halves(self) -> bool:
        """True if there are two halves."""
        return {part.half for part in self.parts} == {0, 1}


def mean_gradient(parts: Sequence[Part], indices: Tensor | None = None) -> Tensor:
    """The gradient of the mean loss over the samples of all ``parts``; at some ``indices`` only."""
    total = sum(part.size for part in parts)
    picked = [part.gradient if indices is None else part.gradient[indices] for part in parts]
    return weighted([part.size / total for part in parts], picked)


def weighted(shares: Sequence[float], vectors: Sequence[Tensor]) -> Tensor:
    """The sum of the ``vectors``, each times its share."""
    total = vectors[0] * shares[0]
    for share, vector in zip(shares[1:], vectors[1:], strict=True):
        total.add_(vector, alpha=share)
    return total


class Curvature(Protocol):
    """Protocol of an expansion of the loss."""

    def expand(self, objective: Objective, generator: torch.Generator) -> Expansion:
        """Expand ``objective`` at the model's current weights; ``generator`` for what is drawn."""
        ...
