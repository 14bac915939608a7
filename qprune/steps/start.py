"""First passes: scores of weights without couplings.

A start is a strategy with one method, `scores`; the higher, the more worth keeping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError
from qprune.objective.curvature import Expansion
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Recorder, forward

if TYPE_CHECKING:
    from jaxtyping import Float


class Start(Protocol):
    """Protocol of a start that scores weights."""

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        """Worth of every targeted weight, shape (N,); the higher, the more worth keeping.

        Args:
            objective: to fit on; its model holds ``values``.
            expansion: of the objective there.
            values: current ones, shape (N,).
            generator: for random choices.
        """
        ...


@dataclass(frozen=True)
class Random:
    """Uniformly random scores."""

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        return torch.rand(values.shape, generator=generator)


@dataclass(frozen=True)
class Magnitude:
    """Magnitude |w|."""

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        return values.abs()


@dataclass(frozen=True)
class Gradient:
    """First-order change of the loss |w g| (SNIP, Lee et al., arXiv 1810.02340)."""

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        return (values * expansion.gradient).abs()


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
        >>> method = qprune.Networkwise(start=DiagonalFisher(), stages=2, rounds=1)
        >>> run = qprune.prune(model, inputs, sparsity=0.5, method=method)
        >>> run.report.achieved_sparsity
        0.5
    """

    damping: float = 1.0

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        diagonal = expansion.diagonal
        damped = torch.where(diagonal > 0, diagonal + self.damping * diagonal.mean(), 0.0)
        return 0.5 * values**2 * damped


@dataclass(frozen=True)
class Wanda:
    """|w| times the norm of its input (Wanda, Sun et al., arXiv 2306.11695, eq. 1)."""

    def scores(
        self,
        objective: Objective,
        expansion: Expansion,
        values: Float[Tensor, " N"],
        generator: torch.Generator,
    ) -> Float[Tensor, " N"]:
        norms = _input_norms(objective)
        parts = objective.weights.split(values.abs())
        return torch.cat([part * norm for part, norm in zip(parts, norms, strict=True)])


def _input_norms(objective: Objective) -> list[Tensor]:
    """Per layer, the norm of every weight's input over samples and tokens, flat (size,).

    Raises:
        ImpossibleRequestError: the inputs of a tensor are unknown, as within an LSTM.
    """
    layers = objective.weights
    squares = [torch.zeros(layer.size, dtype=layers.dtype) for layer in layers]
    used = [False] * len(layers)
    for batch in objective.samples.batches(objective.batch_size):
        with torch.no_grad(), Recorder(layers) as recorder:
            forward(objective.model, batch.inputs)
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
