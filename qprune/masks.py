"""Masks: which weights are kept. True = kept; one flat vector over all targeted weights."""

from __future__ import annotations

import torch
from torch import Tensor

from qprune.layers import Layers
from qprune.sparsity import Groups


def prune_lowest(scores: Tensor, kept: Tensor, groups: Groups, counts: Tensor) -> Tensor:
    """The mask with ``counts[g]`` weights pruned in every group, the lowest scores first.

    Weights that are already pruned stay so; among the rest ties are broken by index, so that
    the count is met exactly whatever the scores.

    Args:
        scores: shape (N,), the higher the more worth keeping.
        kept: shape (N,), bool, the mask to start from.
        groups: the partition.
        counts: shape (g,), at least what is pruned already.
    """
    key = torch.where(kept, scores.double(), -torch.inf)
    order = key.argsort(stable=True)
    if groups.ids is not None:
        order = order[groups.ids[order].argsort(stable=True)]
        first = torch.repeat_interleave(groups.sizes.cumsum(0) - groups.sizes, groups.sizes)
        rank = torch.arange(order.numel()) - first
        pruned = order[rank < torch.repeat_interleave(counts, groups.sizes)]
    else:
        pruned = order[: int(counts[0])]
    mask = torch.ones_like(kept)
    mask[pruned] = False
    return mask


def mask_by_name(layers: Layers, mask: Tensor) -> dict[str, Tensor]:
    """The flat mask as one bool tensor per parameter, in the parameter's own shape."""
    return {
        layer.parameter_name: part.view_as(layer.module.weight).clone()
        for layer, part in zip(layers, layers.split(mask), strict=True)
    }
