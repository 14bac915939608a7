"""Losses of heads whose outputs are no logits over classes, against the dense model's outputs.

To be replaced: the losses of these names in `qprune.losses`, when it has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class SquaredDistance:
    """Mean squared distance of a sample's outputs, with its exact Gauss-Newton matrix 2/n J'J."""

    needs_labels: ClassVar[bool] = False

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().flatten(1).mean(1)

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        flat = outputs.flatten(1)
        return (flat * _signs(flat, generator)).sum(1) * (2 / flat.shape[1]) ** 0.5

    sampled = sketched

    def fits(self, *, values_move: bool) -> bool:
        return False

    def refit(self, outputs: Tensor, targets: Tensor) -> Self:
        return self


@dataclass(frozen=True)
class LabelwiseDivergence(SquaredDistance):
    """KL(dense || pruned) of independent labels, each with its own sigmoid; logits in, nats."""

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        dense = targets.sigmoid()
        ours = binary_cross_entropy_with_logits(outputs, dense, reduction="none")
        least = binary_cross_entropy_with_logits(targets, dense, reduction="none")
        return (ours - least).flatten(1).sum(1)

    def sketched(self, outputs: Tensor, generator: torch.Generator) -> Tensor:
        flat = outputs.flatten(1)
        share = flat.detach().sigmoid()
        return (flat * _signs(flat, generator) * (share * (1 - share)).sqrt()).sum(1)

    sampled = sketched


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, generator=generator, device=generator.device)
    return (2 * drawn - 1).to(like)
