"""Which weights are offered together: blocks that mix kept and pruned ones, across layers.

A swap prunes one kept weight and restores one pruned weight of the same group, so a block is
made of such pairs. Selectors differ in which pairs they take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError
from qprune.layers import Layers
from qprune.sparsity import Groups


@dataclass(frozen=True, eq=False)
class Offer:
    """What a selector may choose from.

    Attributes:
        layers: the targeted weights.
        groups: the partition with exact counts.
        mask: shape (N,), True = kept.
        cost: shape (N,), predicted loss change of changing one decision alone, nats.
        resting: shape (N,), bool, weights offered lately without effect; taken last.
        generator: for random choices.
    """

    layers: Layers
    groups: Groups
    mask: Tensor
    cost: Tensor
    resting: Tensor
    generator: torch.Generator


class Select(Protocol):
    """A strategy: disjoint blocks of at most ``block_size`` weights, the most promising first."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        """Flat indices of each block, ascending; fewer or smaller blocks where weights lack."""
        ...


@dataclass(frozen=True)
class Boundary:
    """The pruned weights most worth restoring and the kept ones cheapest to prune.

    Args:
        layer_share: share of every block that is dealt evenly to the layers, so that a small
            layer's few weights are offered too; the rest goes by cost alone.
    """

    layer_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.layer_share <= 1:
            raise ImpossibleRequestError(
                f"layer_share must lie in [0, 1], not {self.layer_share!r}"
            )

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        # Past any finite cost, so that resting weights keep their order among themselves.
        cost = offer.cost.double()
        cost = cost + offer.resting * (1.0 + 2.0 * cost.abs().max())
        pairs = block_size // 2
        dealt = _dealt_pairs(offer, cost, round(pairs * self.layer_share), num_blocks)
        taken = torch.zeros_like(offer.mask)
        if dealt.numel():
            taken[dealt.flatten()] = True
        general = _best_pairs(cost, offer.mask, offer.groups, taken, pairs * num_blocks)
        return _cut(dealt, general, pairs, num_blocks)


@dataclass(frozen=True)
class RandomPairs:
    """Random pairs, for comparison."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        cost = torch.rand(offer.mask.shape, generator=offer.generator, dtype=torch.float64)
        pairs = block_size // 2
        none = torch.zeros_like(offer.mask)
        chosen = _best_pairs(cost, offer.mask, offer.groups, none, pairs * num_blocks)
        return _cut(chosen[:0], chosen, pairs, num_blocks)


@dataclass(frozen=True)
class LayerByLayer:
    """Boundary pairs of one layer a block, the layers with the most to gain first."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        pairs = block_size // 2
        cost = offer.cost.double() + offer.resting * (1.0 + 2.0 * offer.cost.double().abs().max())
        ranked = []
        for layer in offer.layers:
            chosen = _layer_pairs(offer, cost, layer.offset, layer.end, pairs)
            if len(chosen):
                ranked.append((cost[chosen].sum().item(), chosen))
        ranked.sort(key=lambda entry: entry[0])
        return [chosen.flatten().sort().values for _, chosen in ranked[:num_blocks]]


def _best_pairs(cost: Tensor, mask: Tensor, groups: Groups, taken: Tensor, limit: int) -> Tensor:
    """At most ``limit`` disjoint (kept, pruned) pairs within groups, cheapest first, (p, 2).

    In every group the r-th cheapest kept weight is paired with the r-th cheapest pruned one.
    """
    kept, pruned = (_ranked(cost, side & ~taken, groups, limit) for side in (mask, ~mask))
    if groups.ids is None:
        number = min(len(kept[0]), len(pruned[0]))
        return torch.stack([kept[0][:number], pruned[0][:number]], 1)
    # Both sides are keyed by (group, rank); pairs are the keys they share.
    span = len(cost) + 1
    kept_key, pruned_key = (g * span + r for _, g, r in (kept, pruned))
    at = torch.searchsorted(pruned_key, kept_key)
    both = (at < len(pruned_key)) & (
        pruned_key[at.clamp(max=max(len(pruned_key) - 1, 0))] == kept_key
        if len(pruned_key)
        else torch.zeros_like(at, dtype=torch.bool)
    )
    pairs = torch.stack([kept[0][both], pruned[0][at[both]]], 1)
    order = cost[pairs].sum(1).argsort(stable=True)
    return pairs[order[:limit]]


def _ranked(
    cost: Tensor, side: Tensor, groups: Groups, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of one side by (group, cost): (indices, group, rank within the group)."""
    members = torch.nonzero(side)[:, 0]
    values = cost[members]
    if groups.ids is None:
        if len(members) > 4 * limit:
            # Only the cheapest can be in a pair; a partial sort is enough to find them.
            bound = values.kthvalue(limit).values
            members, values = members[values <= bound], values[values <= bound]
        ordered = members[values.argsort(stable=True)][:limit]
        return ordered, torch.zeros_like(ordered), torch.arange(len(ordered))
    order = values.argsort(stable=True)
    members = members[order]
    group = groups.ids[members]
    by_group = group.argsort(stable=True)
    members, group = members[by_group], group[by_group]
    first = torch.searchsorted(group, group, right=False)
    return members, group, torch.arange(len(members)) - first


def _dealt_pairs(offer: Offer, cost: Tensor, share: int, num_blocks: int) -> Tensor:
    """Pairs dealt evenly to the layers, (p, 2): per block, ``share`` pairs over all layers."""
    each = max(1, share // len(offer.layers)) if share else 0
    wanted = each * num_blocks
    if not wanted:
        return torch.zeros(0, 2, dtype=torch.long)
    per_layer = [
        _layer_pairs(offer, cost, layer.offset, layer.end, wanted) for layer in offer.layers
    ]
    # Round robin over the layers, so that every block gets its part of each.
    rows = [pairs[rank] for rank in range(wanted) for pairs in per_layer if rank < len(pairs)]
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.long)


def _layer_pairs(offer: Offer, cost: Tensor, start: int, end: int, limit: int) -> Tensor:
    part = slice(start, end)
    ids = None if offer.groups.ids is None else offer.groups.ids[part]
    inside = Groups(ids, offer.groups.sizes, offer.groups.counts)
    none = torch.zeros(end - start, dtype=torch.bool)
    return _best_pairs(cost[part], offer.mask[part], inside, none, limit) + start


def _cut(dealt: Tensor, general: Tensor, pairs: int, num_blocks: int) -> list[Tensor]:
    """Blocks of ``pairs`` pairs: an even part of the dealt ones, then the best of the rest."""
    blocks = []
    quota = -(-len(dealt) // num_blocks)
    for number in range(num_blocks):
        own = dealt[number * quota : (number + 1) * quota][:pairs]
        room = pairs - len(own)
        chosen = torch.cat([own, general[:room]])
        general = general[room:]
        if len(chosen):
            blocks.append(chosen.flatten().sort().values)
    return blocks
