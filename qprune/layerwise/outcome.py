"""What a layer-by-layer run reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerOutcome:
    """What became of one matrix.

    Attributes:
        name: as in `Matrix`.
        shape: (rows, inputs).
        num_weights: rows x inputs.
        num_pruned: how many of them are zero.
        error: output error as a share of the target outputs' energy.
        tokens: how many the statistics are from.
        seconds: wall time of the solve.
        cpu_seconds: process CPU time of the solve.
    """

    name: str
    shape: tuple[int, int]
    num_weights: int
    num_pruned: int
    error: float
    tokens: int
    seconds: float
    cpu_seconds: float

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.num_pruned / self.num_weights


@dataclass(frozen=True, eq=False)
class Layerwise:
    """What a layer-by-layer run made.

    Attributes:
        mask: True = kept, by parameter name, in each parameter's own shape.
        layers: every matrix, in order of use.
        asked_sparsity: what was asked for.
        seconds: wall time.
        cpu_seconds: process CPU time.
    """

    mask: dict[str, Tensor]
    layers: tuple[LayerOutcome, ...]
    asked_sparsity: float
    seconds: float
    cpu_seconds: float

    @property
    def achieved_sparsity(self) -> float:
        """Share of the targeted weights that are zero."""
        return sum(o.num_pruned for o in self.layers) / sum(o.num_weights for o in self.layers)


#: Called with every matrix when it is done, how many are, and how many there are in all.
LayerObserver = Callable[[LayerOutcome, int, int], None]
