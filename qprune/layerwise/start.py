"""Stage 1 as the first pass of the walk: layer by layer, then across the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qprune.layers import Layers
from qprune.layerwise.methods import Method
from qprune.layerwise.outcome import LayerObserver
from qprune.layerwise.walk import prune_layerwise
from qprune.sparsity import Groups, apportion


@dataclass(frozen=True)
class LayerwiseStart:
    """A start (`qprune.scores.Pruner`) that prunes layer by layer (`prune_layerwise`).

    Args:
        method: as `prune_layerwise` takes it.
        mask_structure: the run's own, where it has one.
        compensate: whether values may move.
        layer_sparsity: how the weights to prune are shared among the layers, by module name;
            scaled to the run's own count, and the same for all where nothing is said.
        observe: called with every matrix that is done.
    """

    method: Method | str = "reconstruct"
    mask_structure: str | None = None
    compensate: bool = True
    layer_sparsity: Mapping[str, float] = field(default_factory=dict)
    observe: LayerObserver | None = field(default=None, repr=False)

    def prune(
        self, model: nn.Module, layers: Layers, groups: Groups, inputs: Tensor, seed: int
    ) -> Tensor:
        """Prune ``model`` in place; the mask of all targeted weights, shape (N,), True = kept.

        Raises:
            QpruneError: see `prune_layerwise`.
        """
        result = prune_layerwise(
            model,
            inputs,
            method=self.method,
            sparsity=None if self.mask_structure else groups.total / layers.size,
            mask_structure=self.mask_structure,
            layer_sparsity=None if self.mask_structure else self._shares(layers, groups),
            compensate=self.compensate,
            targets=[layer.name for layer in layers],
            seed=seed,
            observe=self.observe,
        )
        return torch.cat([result.mask[layer.parameter_name].flatten() for layer in layers])

    def _shares(self, layers: Layers, groups: Groups) -> dict[str, float]:
        """The sparsity of every layer; the counts add up to the run's."""
        sizes = torch.tensor([layer.size for layer in layers])
        if groups.ids is not None and len(groups.counts) == len(sizes):
            counts = groups.counts
        else:
            uniform = groups.total / layers.size
            asked = [self.layer_sparsity.get(layer.name, uniform) for layer in layers]
            wanted = torch.tensor(asked, dtype=torch.float64) * sizes
            counts = apportion(wanted * (groups.total / wanted.sum()), groups.total, sizes - 1)
        return {
            layer.name: int(count) / layer.size for layer, count in zip(layers, counts, strict=True)
        }
