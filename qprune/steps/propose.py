"""Proposals of one expansion: which blocks are decided, and what model of the loss they get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprune.network.groups import Groups
from qprune.network.weights import Weights
from qprune.objective.curvature import Expansion, Part, mean_gradient
from qprune.steps.accept import Proposal
from qprune.steps.anticipate import worth
from qprune.steps.crossfit import Trial, View, kept_share, modelled
from qprune.steps.formulate import Block, Terms, formulate, with_terms
from qprune.steps.select import Offer, Select
from solvers import LowRank, QuadraticProblem

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Floats = NDArray[np.float64]

#: Numbers in the factor of the weights that are looked at together; beyond, fewer move along.
FACTOR_FLOATS = 1 << 26
# Pruned weights that are looked at closely, for each of a block.
_LOOKED_AT = 2


@dataclass(frozen=True, eq=False)
class Present:
    """The weights when blocks are chosen.

    Attributes:
        weights: the targeted ones.
        groups: the partition with exact counts.
        mask: True = kept, shape (N,).
        values: shape (N,), 0 where pruned.
        dense: those of the dense network, shape (N,).
        resting: shape (N,), weights offered recently without effect; taken last.
        moving: whether kept values move; else a restored weight has its dense value.
        random: for random choices.
    """

    weights: Weights
    groups: Groups
    mask: Bool[Tensor, " N"]
    values: Float[Tensor, " N"]
    dense: Float[Tensor, " N"]
    resting: Bool[Tensor, " N"]
    moving: bool
    random: torch.Generator

    def offer(self, cost: Float[Tensor, " N"]) -> Offer:
        """To a selector, at a ``cost`` of each change."""
        return Offer(self.weights, self.groups, self.mask, cost, self.resting, self.random)

    def values_if_kept(self, expansion: Expansion) -> Float[Tensor, " N"]:
        """Every weight's value if kept: as it is, or what a pruned one would come back with.

        That is the dense value, or where values move the minimum of the loss along the weight
        alone, -g / (H_ii + damping), no larger than the dense value.
        """
        if not self.moving:
            return self.dense
        # Where nothing is known of a weight, 0 / 0, nothing is proposed for it.
        alone = -expansion.gradient / (expansion.diagonal + expansion.damping)
        return torch.where(self.mask, self.values, self.limited(alone.nan_to_num()))

    def limited(self, values: Tensor) -> Tensor:
        """No larger than the dense values."""
        limit = self.dense.abs()
        return values.clamp(-limit, limit)

    def block(self, indices: Tensor, keep_values: Tensor) -> Block:
        """The weights at ``indices`` as a block without a gradient."""
        pruned = (~self.mask[indices]).numpy()
        _, groups = np.unique(self.groups.of(indices).numpy(), return_inverse=True)
        return Block(
            indices=indices.numpy(),
            current=self.values[indices].double().numpy(),
            keep_value=keep_values[indices].double().numpy(),
            pruned=pruned.astype(np.int8),
            gradient=np.zeros(len(indices)),
            groups=groups.astype(np.int64),
            counts=np.bincount(groups, weights=pruned).astype(np.int64),
        )


@dataclass(frozen=True, eq=False)
class Chosen:
    """Blocks as the samples of a view choose them.

    Attributes:
        view: the expansion as they see it.
        blocks: flat indices of each.
        rest: of the kept weights that move along.
        keep_values: every weight's value if kept, shape (N,).
    """

    view: Expansion
    blocks: Sequence[Tensor]
    rest: Tensor
    keep_values: Float[Tensor, " N"]


@dataclass(frozen=True)
class Propose:
    """A strategy: blocks are chosen, and get models of the loss.

    Args:
        select: chooses by cost.
        block_size, num_blocks: see `Select`.
        terms: the user's energy.
        corrected: whether the models are corrected by halves of the samples.
        anticipates: whether kept weights around the blocks move along in the models.
    """

    select: Select
    block_size: int
    num_blocks: int
    terms: Terms | None
    corrected: bool
    anticipates: bool

    def proposals(self, present: Present, expansion: Expansion) -> list[Proposal]:
        """The blocks with their models; none where no weight is worth a change."""
        if not expansion.parts:
            return self._plain(present, expansion)
        halves = (0, 1) if self.corrected and expansion.halves else ()
        views = [expansion, *(expansion.half(number) for number in halves)]
        chosen = [self._by_cost(present, view) for view in views]
        if self.anticipates and present.moving:
            chosen = self._by_worth(present, expansion, chosen)
        columns = _Columns.of(expansion, [t for one in chosen for t in (*one.blocks, one.rest)])
        trials = [
            _trial(present, expansion, one, indices, columns)
            for one in chosen[1:]
            for indices in one.blocks
        ]
        share = kept_share(trials, expansion.damping) if trials else 1.0
        return [
            self._modelled(present, chosen[0], indices, columns, share)
            for indices in chosen[0].blocks
        ]

    def _plain(self, present: Present, expansion: Expansion) -> list[Proposal]:
        """The proposals where the curvature is not a sum over samples."""
        chosen = self._by_cost(present, expansion)
        curvatures = expansion.curvature.blocks(chosen.blocks) if chosen.blocks else []
        proposals: list[Proposal] = []
        for indices, curvature in zip(chosen.blocks, curvatures, strict=True):
            block = present.block(indices, chosen.keep_values)
            block = replace(block, gradient=expansion.gradient[indices].double().numpy())
            model = formulate(block, curvature, ridge=expansion.damping / 2)
            proposals.append(Proposal(block, model, self._problem(model, block)))
        return proposals

    def _by_cost(self, present: Present, view: Expansion) -> Chosen:
        """Blocks by what each change alone costs if nothing else moves."""
        keep_values = present.values_if_kept(view)
        # Pruning takes a value away, restoring brings one back.
        move = keep_values * (1 - 2 * present.mask.to(keep_values))
        curvature = view.diagonal + view.damping
        offer = present.offer(move * (view.gradient + 0.5 * curvature * move))
        blocks = self.select.blocks(offer, self.block_size, self.num_blocks)
        return Chosen(view, blocks, torch.empty(0, dtype=torch.long), keep_values)

    def _by_worth(
        self, present: Present, expansion: Expansion, chosen: Sequence[Chosen]
    ) -> list[Chosen]:
        """Blocks by what each change alone costs if all kept weights move along."""
        looked_at = [self._looked_at(present, one.view) for one in chosen]
        columns = _Columns.of(expansion, looked_at)
        found: list[Chosen] = []
        for one, indices in zip(chosen, looked_at, strict=True):
            view = columns.view(one.view.parts, indices)
            kept = present.mask[indices].numpy()
            values = present.values[indices].double().numpy()
            each = worth(view.gradient, view.factor, values, kept, expansion.damping)
            cost = torch.full_like(one.keep_values, torch.inf)
            cost[indices] = torch.from_numpy(each.cost).to(cost)
            keep_values = present.values.clone()
            keep_values[indices] = torch.from_numpy(each.keep_value).to(keep_values)
            keep_values = torch.where(present.mask, present.values, present.limited(keep_values))
            blocks = self.select.blocks(present.offer(cost), self.block_size, self.num_blocks)
            around = present.mask[indices] & ~torch.isin(indices, torch.cat([*blocks, indices[:0]]))
            found.append(Chosen(one.view, blocks, indices[around], keep_values))
        return found

    def _looked_at(self, present: Present, view: Expansion) -> Tensor:
        """Indices of kept weights that can move along, and of pruned ones worth a closer look."""
        rows = max(1, sum(part.size for part in view.parts))
        pruned = min(_LOOKED_AT * self.block_size * self.num_blocks, int((~present.mask).sum()))
        room = max(self.block_size, FACTOR_FLOATS // rows - pruned)
        curvature = view.diagonal + view.damping
        gain = (view.gradient.square() / curvature).masked_fill(present.mask, -1)
        felt = (view.diagonal + view.damping).masked_fill(~present.mask, -1)
        kept = felt.topk(min(room, int(present.mask.sum()))).indices
        return torch.cat([kept, gain.topk(pruned).indices]).sort().values

    def _modelled(
        self, present: Present, chosen: Chosen, indices: Tensor, columns: _Columns, share: float
    ) -> Proposal:
        """The proposal of one block."""
        view = columns.view(chosen.view.parts, torch.cat([indices, chosen.rest]))
        damping, unknown = chosen.view.damping, present.block(indices, chosen.keep_values)
        left = view.left(len(indices), damping).compact()
        plain, _ = modelled(unknown, left, 1.0, damping)
        model, block = modelled(unknown, left, share, damping)
        problem, rest = self._problem(model, block), chosen.rest
        return Proposal(block, model, problem, None, plain, rest, left.response)

    def _problem(self, model: QuadraticProblem, block: Block) -> QuadraticProblem:
        return model if self.terms is None else with_terms(model, block, self.terms)


@dataclass(frozen=True, eq=False)
class _Columns:
    """Columns of the curvature's factor for some weights.

    Attributes:
        indices: of the weights, ascending.
        factor: F, H = F'F on them, shape (m, k).
        parts: the samples of its rows.
    """

    indices: Tensor
    factor: Floats
    parts: Sequence[Part]

    @classmethod
    def of(cls, expansion: Expansion, chosen: Sequence[Tensor]) -> _Columns:
        """Those of all ``chosen`` weights."""
        indices = torch.cat(list(chosen)).unique()
        if not len(indices):
            return cls(indices, np.zeros((0, 0)), expansion.parts)
        (curvature,) = expansion.curvature.blocks([indices])
        assert isinstance(curvature, LowRank)
        return cls(indices, curvature.factor, expansion.parts)

    def view(self, parts: Sequence[Part], chosen: Tensor) -> View:
        """The ``chosen`` weights as the samples of some ``parts`` see them."""
        at = torch.searchsorted(self.indices, chosen).numpy()
        rows = np.concatenate([np.arange(part.rows.start, part.rows.stop) for part in parts])
        factor = self.factor[np.ix_(rows, at)] * (len(self.factor) / len(rows)) ** 0.5
        return View(mean_gradient(parts, chosen).double().numpy(), factor)


def _trial(
    present: Present, expansion: Expansion, chosen: Chosen, indices: Tensor, columns: _Columns
) -> Trial:
    """A block that one half has chosen, as both halves see it."""
    own, together = chosen.view.parts, torch.cat([indices, chosen.rest])
    other = [part for part in expansion.parts if part.half != own[0].half]
    given = [part for part in expansion.parts if part.given]
    return Trial(
        present.block(indices, chosen.keep_values),
        columns.view(own, together),
        columns.view(other, together),
        columns.view(given, together) if 0 < len(given) < len(expansion.parts) else None,
    )
