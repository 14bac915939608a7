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
        sides = _Sides.of(offer, _rested(offer))
        pairs = block_size // 2
        dealt = _dealt_pairs(offer, sides, round(pairs * self.layer_share), num_blocks)
        general = sides.without(dealt).pairs(pairs * num_blocks)
        return _cut(dealt, general, pairs, num_blocks)


@dataclass(frozen=True)
class RandomPairs:
    """Random pairs, for comparison."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        cost = torch.rand(offer.mask.shape, generator=offer.generator, dtype=torch.float64)
        pairs = block_size // 2
        chosen = _Sides.of(offer, cost).pairs(pairs * num_blocks)
        return _cut(chosen[:0], chosen, pairs, num_blocks)


@dataclass(frozen=True)
class LayerByLayer:
    """Boundary pairs of one layer a block, the layers with the most to gain first."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        cost = _rested(offer)
        sides = _Sides.of(offer, cost)
        ranked = []
        for layer in offer.layers:
            chosen = sides.part(layer.offset, layer.end).pairs(block_size // 2) + layer.offset
            if len(chosen):
                ranked.append((cost[chosen].sum().item(), chosen))
        ranked.sort(key=lambda entry: entry[0])
        return [chosen.flatten().sort().values for _, chosen in ranked[:num_blocks]]


def _rested(offer: Offer) -> Tensor:
    """The cost with resting weights past any other."""
    if not offer.resting.any():
        return offer.cost
    low, high = offer.cost.aminmax()
    past = 1.0 + 2.0 * float(high - low)
    return offer.cost.add(offer.resting, alpha=past)


@dataclass(frozen=True, eq=False)
class _Sides:
    """What each side of a swap costs: infinite for weights that are not on that side.

    Attributes:
        kept, pruned: shape (N,).
        ids: group of each, shape (N,); None for one group.
    """

    kept: Tensor
    pruned: Tensor
    ids: Tensor | None

    @classmethod
    def of(cls, offer: Offer, cost: Tensor) -> _Sides:
        return cls(
            cost.masked_fill(~offer.mask, torch.inf),
            cost.masked_fill(offer.mask, torch.inf),
            offer.groups.ids,
        )

    def part(self, start: int, end: int) -> _Sides:
        ids = None if self.ids is None else self.ids[start:end]
        return _Sides(self.kept[start:end], self.pruned[start:end], ids)

    def without(self, pairs: Tensor) -> _Sides:
        kept, pruned = self.kept.clone(), self.pruned.clone()
        kept[pairs[:, 0]] = torch.inf
        pruned[pairs[:, 1]] = torch.inf
        return _Sides(kept, pruned, self.ids)

    def pairs(self, limit: int) -> Tensor:
        """At most ``limit`` disjoint (kept, pruned) pairs within groups, cheapest first, (p, 2).

        In every group the r-th cheapest kept weight is paired with the r-th cheapest pruned one.
        """
        if self.ids is None:
            sides = [_cheapest(side, limit) for side in (self.kept, self.pruned)]
            number = min(len(side) for side in sides)
            return torch.stack([side[:number] for side in sides], 1)
        (kept, kept_key), (pruned, pruned_key) = (
            _ranked(side, self.ids) for side in (self.kept, self.pruned)
        )
        # Both sides are keyed by (group, rank); pairs are the keys they share.
        at = torch.searchsorted(pruned_key, kept_key)
        both = torch.isin(kept_key, pruned_key, assume_unique=True)
        found = torch.stack([kept[both], pruned[at[both]]], 1)
        order = (self.kept[found[:, 0]] + self.pruned[found[:, 1]]).argsort(stable=True)
        return found[order[:limit]]


def _cheapest(side: Tensor, limit: int) -> Tensor:
    """Indices of the at most ``limit`` cheapest finite entries, ascending."""
    values, indices = side.topk(min(limit, len(side)), largest=False)
    return indices[values.isfinite()]


def _ranked(side: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The members of one side by (group, cost), and a key that grows with (group, rank)."""
    members = torch.nonzero(side.isfinite())[:, 0]
    members = members[side[members].argsort(stable=True)]
    members = members[ids[members].argsort(stable=True)]
    group = ids[members]
    rank = torch.arange(len(members)) - torch.searchsorted(group, group)
    return members, group * (len(side) + 1) + rank


def _dealt_pairs(offer: Offer, sides: _Sides, share: int, num_blocks: int) -> Tensor:
    """Pairs dealt evenly to the layers, (p, 2): per block, ``share`` pairs over all layers."""
    each = max(1, share // len(offer.layers)) if share else 0
    wanted = each * num_blocks
    per_layer = [
        sides.part(layer.offset, layer.end).pairs(wanted) + layer.offset for layer in offer.layers
    ]
    # Round robin over the layers, so that every block gets its part of each.
    rows = [pairs[rank] for rank in range(wanted) for pairs in per_layer if rank < len(pairs)]
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.long)


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
