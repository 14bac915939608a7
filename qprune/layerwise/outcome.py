"""Report of a layer-by-layer run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerOutcome:
    """Record of one pruned matrix.

    Attributes:
        name: as in `Matrix`.
        shape: (rows, inputs).
        num_weights: rows x inputs.
        num_pruned: number of them that are zero.
        error: output error as a share of the target outputs' energy.
        tokens: number of tokens in the statistics.
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
    """Result of a layer-by-layer run.

    Attributes:
        mask: True = kept, by parameter name, in each parameter's own shape.
        layers: every matrix, in order of use.
        asked_sparsity: requested sparsity.
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


#: Progress callback: (finished matrix, number done, total).
LayerObserver = Callable[[LayerOutcome, int, int], None]
