"""The exact Hessian of tiny networks: ground truth for tests and for studies of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from qprune.data.inputs import mapped
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.objective.curvature import Expansion
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import differentiating, forward_with, out_of_memory
from solvers import Dense, LowRank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExactHessian:
    """Hessian of the mean loss over all targeted weights, in float64.

    Args:
        max_weights: more targeted weights than this are refused; N^2 numbers are stored.

    Example:
        >>> import qprune
        >>> from torch import nn
        >>> model, inputs = nn.Linear(8, 4), torch.eye(8)
        >>> method = qprune.Networkwise(curvature=ExactHessian(), stages=2, rounds=1)
        >>> run = qprune.prune(model, inputs, sparsity=0.5, method=method)
        >>> run.report.achieved_sparsity
        0.5
    """

    max_weights: int = 4096

    def expand(self, objective: Objective, generator: torch.Generator) -> Expansion:
        """See `Curvature.expand`.

        Raises:
            ImpossibleRequestError: more than ``max_weights`` targeted weights.
        """
        model, layers = objective.model, objective.weights
        if layers.size > self.max_weights:
            raise ImpossibleRequestError(
                f"the exact Hessian of {layers.size} weights would hold {layers.size**2:.1e} "
                f"numbers (limit {self.max_weights} weights); use curvature=SketchedFisher()"
            )
        function = _loss_of_weights(objective)
        weights = layers.read().double()
        # Fused attention has no forward derivative.
        with differentiating(model, layers), sdpa_kernel(SDPBackend.MATH):
            hessian = _hessian(function, weights)
            weights.requires_grad_()
            at = function(weights)
            (gradient,) = torch.autograd.grad(at, weights)
            value = at.item()
        hessian = 0.5 * (hessian + hessian.T)
        diagonal = hessian.diagonal().clamp(min=0).to(layers.dtype)
        return Expansion(value, gradient.to(layers.dtype), diagonal, _HessianBlocks(hessian))


def _hessian(function: Callable[[Tensor], Tensor], weights: Tensor) -> Tensor:
    """Return the Hessian (N, N): vectorised, or row by row where the network forbids that."""
    try:
        return torch.func.hessian(function)(weights)
    except (RuntimeError, CalibrationError) as error:  # Either if a derivative is missing.
        if out_of_memory(error):
            raise
        logger.info("the Hessian is taken row by row: %s", " ".join(str(error).split()))
    try:
        found = torch.autograd.functional.hessian(function, weights)
    except (RuntimeError, CalibrationError) as error:
        if out_of_memory(error):
            raise
        raise ImpossibleRequestError(
            "the network has no second derivatives, which the exact Hessian needs; use "
            f"curvature=SketchedFisher(): {' '.join(str(error).split())}"
        ) from error
    assert isinstance(found, Tensor)
    # Functions with one derivative only drop out of second derivatives without an error.
    if not torch.allclose(found, found.T, rtol=1e-6, atol=1e-6 * float(found.abs().max())):
        raise ImpossibleRequestError(
            "the network has a function without a second derivative, which the exact Hessian "
            "needs; use curvature=SketchedFisher()"
        )
    return found


def _loss_of_weights(objective: Objective) -> Callable[[Tensor], Tensor]:
    """The mean loss as a function of the flat float64 weights (N,)."""
    model, layers, samples = objective.model, objective.weights, objective.samples
    named = [*model.named_parameters(), *model.named_buffers()]
    rest = {name: _double(tensor.detach()) for name, tensor in named}
    inputs, targets = mapped(samples.inputs, _double), _double(samples.targets)

    def function(flat: Tensor) -> Tensor:
        own = {
            layer.parameter_name: part.view_as(layer.parameter)
            for layer, part in zip(layers, layers.split(flat), strict=True)
        }
        outputs = forward_with(model, {**rest, **own}, inputs)
        return objective.loss.per_sample(outputs, targets).mean()

    return function


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


@dataclass(frozen=True, eq=False)
class _HessianBlocks:
    hessian: Tensor

    def diagonal(self) -> Tensor:
        return self.hessian.diagonal()

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        return [Dense(self.hessian[indices][:, indices].numpy()) for indices in chosen]
