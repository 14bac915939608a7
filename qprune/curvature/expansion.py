"""The loss around the current weights: value, gradient, diagonal, and curvature on a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qprune.layers import Layers
from qprune.losses import Loss
from qprune.traces import Samples
from solvers import Dense, LowRank


class BlockCurvature(Protocol):
    """What an expansion knows of the curvature: its diagonal, and any block of it."""

    def diagonal(self) -> Tensor:
        """H_ii of every targeted weight, shape (N,), non-negative."""
        ...

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        """H at each of the index vectors (n,): a full matrix, or a factor (m, n) with H = F'F."""
        ...


@dataclass(frozen=True, eq=False)
class Expansion:
    """Second-order expansion of the mean loss at the model's current weights.

    Attributes:
        loss: mean loss over the samples, nats.
        gradient: of the mean loss, over all targeted weights, shape (N,).
        diagonal: of the curvature, shape (N,).
        curvature: gives blocks of the curvature.
        damping: what to add to every diagonal entry, for what the samples did not show.
    """

    loss: float
    gradient: Tensor
    diagonal: Tensor
    curvature: BlockCurvature
    damping: float = 0.0


class Curvature(Protocol):
    """A strategy: how to expand the loss."""

    def expand(
        self,
        model: nn.Module,
        layers: Layers,
        samples: Samples,
        loss: Loss,
        *,
        batch_size: int,
        generator: torch.Generator,
    ) -> Expansion:
        """Expand the mean loss over ``samples`` at the model's current weights."""
        ...
