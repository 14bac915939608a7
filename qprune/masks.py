"""Masks of kept weights: one flat bool vector over all targeted weights, True = kept."""

from __future__ import annotations

import torch
from torch import Tensor

from qprune.layers import Layers
from qprune.sparsity import Groups


def prune_lowest(scores: Tensor, kept: Tensor, groups: Groups, total: int) -> Tensor:
    """Return the mask with ``total`` weights pruned, the lowest scores first.

    No group loses more than its final count, so that with ``groups.total`` every count is met
    exactly whatever the scores. Weights that are already pruned stay so; among the rest ties
    are broken by index.

    Args:
        scores: shape (N,), higher = more worth keeping.
        kept: shape (N,), bool, the mask to start from.
        groups: the partition.
        total: number of weights pruned, from the present one to ``groups.total``.
    """
    key = torch.where(kept, scores.double(), -torch.inf)
    order = key.argsort(stable=True)
    if groups.ids is not None:
        by_group = order[groups.ids[order].argsort(stable=True)]
        first = torch.repeat_interleave(groups.sizes.cumsum(0) - groups.sizes, groups.sizes)
        rank = torch.arange(order.numel()) - first
        may_go = torch.zeros_like(kept)
        may_go[by_group[rank < torch.repeat_interleave(groups.counts, groups.sizes)]] = True
        order = order[may_go[order]]
    mask = torch.ones_like(kept)
    mask[order[:total]] = False
    return mask


def mask_by_name(layers: Layers, mask: Tensor) -> dict[str, Tensor]:
    """Return one bool tensor per parameter, in the parameter's own shape."""
    return {
        layer.parameter_name: part.view(layer.shape).clone()
        for layer, part in zip(layers, layers.split(mask), strict=True)
    }
