"""Stage 1 as the first pass of the walk: layer by layer, then across the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from qprune.cost import Pass, Phase
from qprune.data.inputs import AnyInputs
from qprune.network.groups import Groups, apportion
from qprune.network.matrices import find_matrices
from qprune.network.transformer import find_blocks
from qprune.network.weights import Weights
from qprune.steps.reconstruct import METHODS, Method
from qprune.walk.layerwise import LayerObserver, prune_layerwise
from qprune.walk.layerwise_needs import gauged_phase
from qprune.walk.sensitivity import Sensitivity


@dataclass(frozen=True)
class LayerwiseStart:
    """A start (`qprune.steps.start.Pruner`) that prunes layer by layer (`prune_layerwise`).

    Args:
        method: as `prune_layerwise` takes it.
        mask_structure: the run's own, where it has one.
        compensate: whether values may move.
        budgets: how the weights to prune are shared among the layers, where the run's budget is
            the whole network's; None gives every layer the same sparsity.
        offload: where activations wait: "cpu", "device", or a folder for temporary files.
        threads: see `prune_layerwise`.
        observe: called with every matrix that is done.
    """

    method: Method | str = "reconstruct"
    mask_structure: str | None = None
    compensate: bool = True
    budgets: Sensitivity | None = field(default_factory=Sensitivity)
    offload: str | Path = "cpu"
    # Not shown: a run may be resumed with another number.
    threads: int | None = field(default=None, repr=False)
    observe: LayerObserver | None = field(default=None, repr=False)

    def prune(
        self, model: nn.Module, layers: Weights, groups: Groups, inputs: AnyInputs, seed: int
    ) -> Tensor:
        """Prune ``model`` in place; the mask of all targeted weights, shape (N,), True = kept.

        Raises:
            QpruneError: see `prune_layerwise`.
        """
        shares = self._shares(model, layers, groups, inputs, seed)
        result = prune_layerwise(
            model,
            inputs,
            method=self.method,
            sparsity=None if self.mask_structure else groups.total / layers.size,
            mask_structure=self.mask_structure,
            layer_sparsity=None if self.mask_structure else shares,
            compensate=self.compensate,
            targets=[layer.name for layer in layers],
            offload=self.offload,
            seed=seed,
            observe=self.observe,
            threads=self.threads,
        )
        return torch.cat([result.mask[layer.parameter_name].flatten() for layer in layers])

    def needs(self, model: nn.Module, layers: Weights, inputs: AnyInputs, forwards: Pass) -> Phase:
        """See `qprune.walk.estimate.Foreseen`."""
        method = METHODS[self.method] if isinstance(self.method, str) else self.method
        by_block = find_matrices(find_blocks(model), [layer.name for layer in layers])
        return gauged_phase(
            model, inputs, method, by_block, offload=self.offload, forwards=forwards
        )

    def _shares(
        self, model: nn.Module, layers: Weights, groups: Groups, inputs: AnyInputs, seed: int
    ) -> dict[str, float]:
        """The sparsity of every layer; the counts add up to the run's."""
        sizes = torch.tensor([layer.size for layer in layers])
        sparsity = groups.total / layers.size
        if groups.ids is not None and len(groups.counts) == len(sizes):
            counts = groups.counts
        else:
            shares = dict.fromkeys((layer.name for layer in layers), sparsity)
            if self.budgets is not None and not self.mask_structure:
                shares = self.budgets.shares(model, layers, inputs, sparsity, seed)
            wanted = torch.tensor(list(shares.values()), dtype=torch.float64) * sizes
            # The threshold hits the count up to ties and sampling; the rest is scaled away.
            wanted *= groups.total / float(wanted.sum())
            counts = apportion(wanted, groups.total, sizes - 1)
        return {
            layer.name: int(count) / layer.size for layer, count in zip(layers, counts, strict=True)
        }
