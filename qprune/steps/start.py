"""First passes: scores of weights without couplings.

A start is a strategy with one method, `scores`; higher = more worth keeping. Or it is a
`Pruner`, which sets mask and values at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs
from qprune.errors import ImpossibleRequestError
from qprune.network.groups import Groups
from qprune.network.weights import Weights
from qprune.objective import Expansion
from qprune.objective.trace.recorder import Recorder, Samples, forward


@dataclass(frozen=True, eq=False)
class Situation:
    """Input of a start.

    Attributes:
        model: the model with its current weights.
        layers: the targeted weights.
        samples: the fitting split.
        weights: current values, shape (N,).
        expansion: expansion of the loss at the current weights.
        batch_size: for passes over the samples.
        generator: for random choices.
    """

    model: nn.Module
    layers: Weights
    samples: Samples
    weights: Tensor
    expansion: Expansion
    batch_size: int
    generator: torch.Generator


class Start(Protocol):
    """Protocol of a start that scores weights."""

    def scores(self, situation: Situation) -> Tensor:
        """Return the worth of every targeted weight, shape (N,)."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """Protocol of a start that chooses the mask itself, and may move the kept values."""

    def prune(
        self, model: nn.Module, layers: Weights, groups: Groups, inputs: AnyInputs, seed: int
    ) -> Tensor:
        """Prune ``model`` in place to the counts of ``groups``; return the mask (N,)."""
        ...


@dataclass(frozen=True)
class Random:
    """Uniformly random scores."""

    def scores(self, situation: Situation) -> Tensor:
        return torch.rand(situation.weights.shape, generator=situation.generator)


@dataclass(frozen=True)
class Magnitude:
    """Magnitude |w|."""

    def scores(self, situation: Situation) -> Tensor:
        return situation.weights.abs()


@dataclass(frozen=True)
class Gradient:
    """First-order change of the loss |w g| (SNIP, Lee et al., arXiv 1810.02340)."""

    def scores(self, situation: Situation) -> Tensor:
        return (situation.weights * situation.expansion.gradient).abs()


@dataclass(frozen=True)
class DiagonalFisher:
    """Second-order change without couplings, 1/2 w^2 (H_ii + damping mean(H)) (OBD).

    Args:
        damping: weight of squared magnitude, since a curvature from few samples is mostly
            noise. Weights that no sample reaches (H_ii = 0) are still pruned first.

    Example:
        >>> import qprune
        >>> from torch import nn
        >>> model, inputs = nn.Linear(8, 4), torch.eye(8)
        >>> run = qprune.prune(model, inputs, sparsity=0.5, start=DiagonalFisher())
        >>> run.report.achieved_sparsity
        0.5
    """

    damping: float = 1.0

    def scores(self, situation: Situation) -> Tensor:
        diagonal = situation.expansion.diagonal
        damped = torch.where(diagonal > 0, diagonal + self.damping * diagonal.mean(), 0.0)
        return 0.5 * situation.weights**2 * damped


@dataclass(frozen=True)
class Wanda:
    """|w| times the norm of its input (Wanda, Sun et al., arXiv 2306.11695, eq. 1)."""

    def scores(self, situation: Situation) -> Tensor:
        norms = _input_norms(situation)
        parts = situation.layers.split(situation.weights.abs())
        return torch.cat([part * norm for part, norm in zip(parts, norms, strict=True)])


def _input_norms(situation: Situation) -> list[Tensor]:
    """Return per layer the norm of every weight's input over samples and tokens, flat (size,).

    Raises:
        ImpossibleRequestError: the inputs of a tensor are unknown, as within an LSTM.
    """
    layers = situation.layers
    squares = [torch.zeros(layer.size, dtype=layers.dtype) for layer in layers]
    used = [False] * len(layers)
    for batch in situation.samples.batches(situation.batch_size):
        with torch.no_grad(), Recorder(layers) as recorder:
            forward(situation.model, batch.inputs)
        for number, uses in enumerate(recorder.seen):
            used[number] |= bool(uses)
            for use, inputs, outputs in uses:
                # The order of the samples does not matter to a sum.
                samples = len(batch) if recorder.rows(number, len(batch)) else 1
                seen = use.call(inputs, outputs, samples).input_squares()
                assert seen is not None
                squares[number].add_(seen.flatten().to(squares[number]))
    if not all(used):
        name = layers[used.index(False)].name
        raise ImpossibleRequestError(
            f"Wanda needs the inputs of {name!r}, which no function of torch shows; use another "
            "start, such as DiagonalFisher(), or add the layer to ignore"
        )
    return [square.sqrt() for square in squares]


#: Names on the command line.
STARTS: dict[str, Start] = {
    "random": Random(),
    "magnitude": Magnitude(),
    "wanda": Wanda(),
    "gradient": Gradient(),
    "fisher": DiagonalFisher(),
}
