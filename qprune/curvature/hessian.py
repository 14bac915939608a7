"""The exact Hessian of tiny networks: ground truth for tests and for studies of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from qprune.curvature.expansion import Expansion
from qprune.errors import ImpossibleRequestError
from qprune.layers import Layers
from qprune.losses import Loss
from qprune.traces import Samples, differentiating
from solvers import Dense, LowRank


@dataclass(frozen=True)
class ExactHessian:
    """All second derivatives of the mean loss over all targeted weights, in float64.

    Args:
        max_weights: more targeted weights than this are refused; N^2 numbers are stored.
    """

    max_weights: int = 4096

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
        """See `Curvature.expand`.

        Raises:
            ImpossibleRequestError: more than ``max_weights`` targeted weights.
        """
        if layers.size > self.max_weights:
            raise ImpossibleRequestError(
                f"the exact Hessian of {layers.size} weights would hold {layers.size**2:.1e} "
                f"numbers (limit {self.max_weights} weights); use curvature=SketchedFisher()"
            )
        function = _loss_of_weights(model, layers, samples, loss)
        weights = layers.read().double()
        with differentiating(model, layers):
            gradient = torch.func.grad(function)(weights)
            hessian = torch.func.hessian(function)(weights)
            value = function(weights).item()
        hessian = 0.5 * (hessian + hessian.T)
        diagonal = hessian.diagonal().clamp(min=0).float()
        return Expansion(value, gradient.float(), diagonal, _HessianBlocks(hessian))


def _loss_of_weights(model: nn.Module, layers: Layers, samples: Samples, loss: Loss):
    """The mean loss as a function of the flat float64 weights (N,)."""
    rest = {
        name: tensor.detach().double() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    inputs, targets = (
        t.double() if t.is_floating_point() else t for t in (samples.inputs, samples.targets)
    )

    def function(flat: Tensor) -> Tensor:
        own = {
            layer.parameter_name: part.view_as(layer.module.weight)
            for layer, part in zip(layers, layers.split(flat), strict=True)
        }
        outputs = functional_call(model, {**rest, **own}, (inputs,))
        outputs = getattr(outputs, "logits", outputs)
        return loss.per_sample(outputs, targets).mean()

    return function


@dataclass(frozen=True, eq=False)
class _HessianBlocks:
    hessian: Tensor

    def diagonal(self) -> Tensor:
        return self.hessian.diagonal()

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        return [Dense(self.hessian[indices][:, indices].numpy()) for indices in chosen]
