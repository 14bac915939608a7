"""Sparsity per layer by the sensitivity of the end-to-end loss.

Every weight is scored by the loss that its removal alone would cost at the dense network, with
the curvature of its layer as a product (K-FAC, Martens and Grosse 2015, arXiv 1503.05671, its
diagonal): 1/2 w^2 E[delta_o^2] E[x_i^2], x the layer's input and delta the derivative of the
Gauss-Newton sketch by its output. One threshold over the whole network gives every layer's
share; layers then stay within a band around the common density, since the scores ignore
compensation. (Non-uniform budgets: OWL, Yin et al. 2023, arXiv 2310.05175.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import Weights
from qprune.objective.losses import DenseOutputs, Loss
from qprune.objective.trace.functions import LinearCall
from qprune.objective.trace.recorder import Recorder, differentiating, forward

# Largest number of a layer's weights that are scored.
_SCORED = 1 << 16
_LOSS = DenseOutputs()


@dataclass(frozen=True)
class Sensitivity:
    """Layer budgets from one backward pass over some of the calibration samples.

    Args:
        band: a layer's density lies within (1 - band, 1 + band) times the network's.
        num_samples: number of calibration samples used.
        loss: loss of the run.

    Raises:
        ImpossibleRequestError: ``band`` is not in [0, 1), or ``num_samples`` is below 1.
    """

    band: float = 0.25
    num_samples: int = 32
    loss: Loss = _LOSS

    def __post_init__(self) -> None:
        if not 0 <= self.band < 1:
            raise ImpossibleRequestError(f"band must lie in [0, 1), not {self.band!r}")
        if self.num_samples < 1:
            raise ImpossibleRequestError(
                f"num_samples must be at least 1, not {self.num_samples!r}"
            )

    def shares(
        self, model: nn.Module, layers: Weights, inputs: AnyInputs, sparsity: float, seed: int
    ) -> dict[str, float]:
        """Return the sparsity of every layer by module name; overall close to ``sparsity``."""
        generator = torch.Generator().manual_seed(seed)
        scores = _scores(model, layers, inputs[: self.num_samples], self.loss, generator)
        sizes = [layer.size for layer in layers]
        density = 1 - sparsity
        low, high = max(0.0, 1 - density * (1 + self.band)), 1 - density * (1 - self.band)
        found = _at_one_threshold(scores, sizes, sparsity, low, high)
        return {layer.name: share for layer, share in zip(layers, found, strict=True)}


def _scores(
    model: nn.Module, layers: Weights, inputs: AnyInputs, loss: Loss, generator: torch.Generator
) -> list[Tensor]:
    """Return ascending float64 logarithms of the scores of some weights of every layer."""
    outputs_felt = [torch.zeros(layer.shape[0], dtype=torch.float64) for layer in layers]
    inputs_seen = [torch.zeros(layer.shape[1], dtype=torch.float64) for layer in layers]
    for sample in inputs.split(1):
        with differentiating(model, layers):
            with Recorder(layers) as recorder:
                outputs = forward(model, sample)
            sketch = loss.sketched(outputs, generator)
            deltas = torch.autograd.grad(sketch.sum(), recorder.outputs(), allow_unused=True)
            trace = recorder.trace(deltas, len(sample))
        for calls, felt, seen in zip(trace.calls, outputs_felt, inputs_seen, strict=True):
            for call in calls:
                assert isinstance(call, LinearCall)  # The only kind in decoder blocks.
                felt.add_(call.deltas.double().square().flatten(0, -2).sum(0))
                seen.add_(call.inputs.double().square().flatten(0, -2).sum(0))
    found: list[Tensor] = []
    for layer, felt, seen in zip(layers, outputs_felt, inputs_seen, strict=True):
        weight = layer.parameter.detach().double().square()
        worth = (weight * felt[:, None] * seen[None, :]).flatten()
        if len(worth) > _SCORED:
            worth = worth[torch.randint(len(worth), (_SCORED,), generator=generator)]
        found.append(worth.clamp(min=1e-300).log().sort().values)
    return found


def _at_one_threshold(
    scores: Sequence[Tensor], sizes: Sequence[int], sparsity: float, low: float, high: float
) -> list[float]:
    """Return every layer's share below one threshold, clipped to [low, high]; bisection."""

    def below(threshold: float) -> list[float]:
        at = torch.tensor([threshold], dtype=torch.float64)
        return [
            min(max(float(torch.searchsorted(worth, at)) / len(worth), low), high)
            for worth in scores
        ]

    bottom = min(float(worth[0]) for worth in scores)
    top = max(float(worth[-1]) for worth in scores) + 1.0
    wanted = sparsity * sum(sizes)
    for _ in range(60):
        middle = 0.5 * (bottom + top)
        pruned = sum(share * size for share, size in zip(below(middle), sizes, strict=True))
        bottom, top = (middle, top) if pruned < wanted else (bottom, middle)
    return below(top)
