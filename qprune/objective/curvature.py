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
class Expansion:
    """Second-order expansion of the mean loss at the model's current weights.

    Attributes:
        loss: mean loss over the samples, nats.
        gradient: of the mean loss, over all targeted weights, shape (N,).
        diagonal: of the curvature, shape (N,).
        curvature: source of blocks of the curvature.
        damping: added to every diagonal entry, for directions that the samples miss.
    """

    loss: float
    gradient: Float[Tensor, " N"]
    diagonal: Float[Tensor, " N"]
    curvature: BlockCurvature
    damping: float = 0.0

    def damped(self, damping: float) -> Expansion:
        """With ``damping`` times the mean diagonal added to every diagonal entry."""
        return replace(self, damping=damping * float(self.diagonal.mean()))


class Curvature(Protocol):
    """Protocol of an expansion of the loss."""

    def expand(self, objective: Objective, generator: torch.Generator) -> Expansion:
        """Expand ``objective`` at the model's current weights; ``generator`` for what is drawn."""
        ...
