"""Selection of blocks: weights, kept and pruned, that are decided together, across layers.

A swap prunes one kept weight and restores one pruned weight of the same group, so a block is
made of such pairs. Selectors differ in which pairs they take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError
from qprune.network.groups import Groups
from qprune.network.weights import Weights

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64


@dataclass(frozen=True, eq=False)
class Offer:
    """Input of a selector: all weights, their costs and the present mask.

    Attributes:
        layers: the targeted weights.
        groups: the partition with exact counts.
        mask: shape (N,), True = kept.
        cost: shape (N,), predicted loss change of changing one decision alone, nats.
        resting: shape (N,), bool, weights offered recently without effect; taken last.
        generator: source of random choices.
    """

    layers: Weights
    groups: Groups
    mask: Bool[Tensor, " N"]
    cost: Float[Tensor, " N"]
    resting: Bool[Tensor, " N"]
    generator: torch.Generator


class Select(Protocol):
    """Protocol of a selector: disjoint blocks of at most ``block_size`` weights, best first."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        """Return ascending flat indices of each block; fewer or smaller ones if weights run out."""
        ...


@dataclass(frozen=True)
class Boundary:
    """Selector of the pruned weights most worth restoring and the kept ones cheapest to prune.

    Args:
        layer_share: share of every block that is dealt evenly to the layers, so that a small
            layer's few weights are offered too; the rest goes by cost alone.

    Example:
        >>> import qprune
        >>> from torch import nn
        >>> model, inputs = nn.Linear(8, 4), torch.eye(8)
        >>> method = qprune.Networkwise(select=Boundary(), stages=2, rounds=1)
        >>> run = qprune.prune(model, inputs, sparsity=0.5, method=method)
        >>> run.report.achieved_sparsity
        0.5
    """

    layer_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.layer_share <= 1:
            raise ImpossibleRequestError(
                f"layer_share must lie in [0, 1], not {self.layer_share!r}"
            )

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        pairs = block_size // 2
        share = round(pairs * self.layer_share)
        each = max(1, share // len(offer.layers)) * num_blocks if share else 0
        among = _shortlist(offer, pairs * num_blocks + each)
        sides = _Sides.of(offer, among)
        dealt = _dealt_pairs(sides, each)
        general = sides.without(dealt).pairs(pairs * num_blocks)
        return _cut(among[dealt], among[general], pairs, num_blocks)


@dataclass(frozen=True)
class RandomPairs:
    """Selector of random pairs, for comparison."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        cost = torch.rand(offer.mask.shape, generator=offer.generator, dtype=torch.float64)
        pairs = block_size // 2
        sides = _Sides.of(replace(offer, cost=cost), torch.arange(len(cost)))
        chosen = sides.pairs(pairs * num_blocks)
        return _cut(chosen[:0], chosen, pairs, num_blocks)


@dataclass(frozen=True)
class LayerByLayer:
    """Selector of boundary pairs, one layer a block, the layers with the most to gain first."""

    def blocks(self, offer: Offer, block_size: int, num_blocks: int) -> list[Tensor]:
        among = _shortlist(offer, block_size // 2)
        sides = _Sides.of(offer, among)
        ranked: list[tuple[float, Tensor]] = []
        for start, end in sides.spans:
            chosen = sides.part(start, end).pairs(block_size // 2) + start
            if len(chosen):
                gain = sides.kept[chosen[:, 0]].sum() + sides.pruned[chosen[:, 1]].sum()
                ranked.append((gain.item(), among[chosen]))
        ranked.sort(key=lambda entry: entry[0])
        return [chosen.flatten().sort().values for _, chosen in ranked[:num_blocks]]


#: Names for ``Networkwise(select=)`` and on the command line.
SELECTORS: dict[str, Select] = {
    "boundary": Boundary(),
    "random": RandomPairs(),
    "layer-by-layer": LayerByLayer(),
}


def _rested(cost: Float[Tensor, " k"], resting: Bool[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the cost, with resting weights after all others."""
    if not resting.any():
        return cost
    finite = cost[cost.isfinite()]
    if not len(finite):
        return cost
    low, high = finite.aminmax()
    return torch.where(resting, cost + (1.0 + 2.0 * float(high - low)), cost)


def _shortlist(offer: Offer, limit: int) -> Int64[Tensor, " k"]:
    """Return ascending candidates for pairs: per layer, the ``limit`` cheapest of either side.

    Each layer is read once; all later steps work on the list. With several groups a pair
    can be anywhere, and the list has all weights.
    """
    if offer.groups.ids is not None:
        return torch.arange(len(offer.mask))
    found: list[Tensor] = []
    for layer in offer.layers:
        part = slice(layer.offset, layer.end)
        cost, mask = _rested(offer.cost[part], offer.resting[part]), offer.mask[part]
        for other in (~mask, mask):
            cheapest = _cheapest(cost.masked_fill(other, torch.inf), limit)
            found.append(cheapest + layer.offset)
    return torch.cat(found).sort().values


@dataclass(frozen=True, eq=False)
class _Sides:
    """Costs of each side of a swap: infinite for weights that are not on that side.

    Attributes:
        kept, pruned: shape (k,).
        ids: group of each, shape (k,); None for one group.
        spans: where each layer begins and ends.
    """

    kept: Float[Tensor, " k"]
    pruned: Float[Tensor, " k"]
    ids: Int64[Tensor, " k"] | None
    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, offer: Offer, among: Int64[Tensor, " k"]) -> _Sides:
        cost, mask = _rested(offer.cost[among], offer.resting[among]), offer.mask[among]
        ids = None if offer.groups.ids is None else offer.groups.ids[among]
        bounds = torch.tensor([(layer.offset, layer.end) for layer in offer.layers])
        spans = torch.searchsorted(among, bounds).tolist()
        return cls(
            cost.masked_fill(~mask, torch.inf),
            cost.masked_fill(mask, torch.inf),
            ids,
            tuple((start, end) for start, end in spans),
        )

    def part(self, start: int, end: int) -> _Sides:
        ids = None if self.ids is None else self.ids[start:end]
        return _Sides(self.kept[start:end], self.pruned[start:end], ids)

    def without(self, pairs: Int64[Tensor, "p 2"]) -> _Sides:
        kept, pruned = self.kept.clone(), self.pruned.clone()
        kept[pairs[:, 0]] = torch.inf
        pruned[pairs[:, 1]] = torch.inf
        return _Sides(kept, pruned, self.ids)

    def pairs(self, limit: int) -> Int64[Tensor, "p 2"]:
        """Return at most ``limit`` disjoint (kept, pruned) pairs within groups by cost, (p, 2).

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
    """Return ascending indices of the at most ``limit`` cheapest finite entries."""
    values, indices = side.topk(min(limit, len(side)), largest=False)
    return indices[values.isfinite()]


def _ranked(side: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return one side sorted by (group, cost), and a key that grows with (group, rank)."""
    members = torch.nonzero(side.isfinite())[:, 0]
    members = members[side[members].argsort(stable=True)]
    members = members[ids[members].argsort(stable=True)]
    group = ids[members]
    rank = torch.arange(len(members)) - torch.searchsorted(group, group)
    return members, group * (len(side) + 1) + rank


def _dealt_pairs(sides: _Sides, wanted: int) -> Int64[Tensor, "p 2"]:
    """Return at most ``wanted`` pairs of each layer, (p, 2), round robin over the layers."""
    per_layer = [sides.part(start, end).pairs(wanted) + start for start, end in sides.spans]
    rows = [pairs[rank] for rank in range(wanted) for pairs in per_layer if rank < len(pairs)]
    return torch.stack(rows) if rows else torch.zeros(0, 2, dtype=torch.long)


def _cut(
    dealt: Int64[Tensor, "p 2"], general: Int64[Tensor, "q 2"], pairs: int, num_blocks: int
) -> list[Tensor]:
    """Return blocks of ``pairs`` pairs: an even part of ``dealt``, then the best of the rest."""
    blocks: list[Tensor] = []
    quota = -(-len(dealt) // num_blocks)
    for number in range(num_blocks):
        own = dealt[number * quota : (number + 1) * quota][:pairs]
        room = pairs - len(own)
        chosen = torch.cat([own, general[:room]])
        general = general[room:]
        if len(chosen):
            blocks.append(chosen.flatten().sort().values)
    return blocks
