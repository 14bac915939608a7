"""The exact counts of a run: over the model, per layer, per row, or N of every M.

A sparsity becomes integers here, once; nothing turns them into shares again. A mask is one flat
bool vector over all targeted weights, True = kept.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError
from qprune.network.weights import Weights
from solvers.rows.counts import Counts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Groups:
    """Partition of all targeted weights, with the number to prune in each part.

    Attributes:
        sizes: shape (g,), weights per group.
        counts: shape (g,), weights to prune per group at the end.
        make_ids: makes the group 0..g-1 of every weight, shape (N,); None = there is one group.
        of_weight: exact counts of the weight of that number by itself; None where the groups
            leave them open.
        asked: the sparsity that was asked for, for reports.
    """

    sizes: Int64[Tensor, " g"]
    counts: Int64[Tensor, " g"]
    make_ids: Callable[[], Tensor] | None = None
    of_weight: Callable[[int], Counts | None] = lambda number: None
    asked: float = math.nan

    @cached_property
    def ids(self) -> Int64[Tensor, " N"] | None:
        """The group of every weight, shape (N,), made when first asked for."""
        return None if self.make_ids is None else self.make_ids()

    @property
    def total(self) -> int:
        """Number of weights pruned at the end."""
        return int(self.counts.sum())

    def of(self, indices: Int64[Tensor, " k"]) -> Int64[Tensor, " k"]:
        """Return the group of each flat index."""
        return torch.zeros_like(indices) if self.ids is None else self.ids[indices]

    def sizes_of(self, chosen: Bool[Tensor, " N"]) -> Int64[Tensor, " g"]:
        """Return the number of True entries of a bool vector (N,) in each group, shape (g,)."""
        if self.ids is None:
            return chosen.sum()[None]
        zeros = torch.zeros(len(self.sizes), dtype=self.sizes.dtype)
        return zeros.index_add_(0, self.ids, chosen.to(self.sizes.dtype))


def apportion(
    wanted: Float[Tensor, " g"], total: int, limit: Int64[Tensor, " g"]
) -> Int64[Tensor, " g"]:
    """Round ``wanted`` (g,) to integers of sum ``total``, each at most its ``limit``."""
    whole = torch.minimum((wanted + 1e-9).floor().long(), limit)
    missing = total - int(whole.sum())
    if missing > 0:
        room = torch.where(whole < limit, wanted - whole, -torch.inf)
        whole[room.argsort(descending=True, stable=True)[:missing]] += 1
    return whole


class Budget(Protocol):
    """Protocol of a budget: the parts of the model with exact counts."""

    def groups(self, weights: Weights, sparsity: float) -> Groups:
        """The partition and its counts, which sum to round(sparsity * N) if not said otherwise."""
        ...


@dataclass(frozen=True)
class Global:
    """Budget with one count over all targeted weights; each layer finds its own sparsity."""

    def groups(self, weights: Weights, sparsity: float) -> Groups:
        sizes, counts = (torch.tensor([n]) for n in (weights.size, round(sparsity * weights.size)))
        _refuse_empty("the model", sizes, counts, sparsity, "lower the sparsity")
        return Groups(sizes, counts)


@dataclass(frozen=True)
class PerLayer:
    """The same sparsity in every layer.

    Args:
        alone: round every layer's count by itself, as one-shot methods do; else the counts add up
            to the model's.
        sparsities: of some layers, by name, instead of the common one; each count is then rounded
            by itself.

    Raises:
        ImpossibleRequestError: when applied, an unknown name, or a value outside [0, 1).
    """

    alone: bool = False
    sparsities: Mapping[str, float] | None = None

    def groups(self, weights: Weights, sparsity: float) -> Groups:
        sizes = torch.tensor([weight.size for weight in weights])
        counts = self._counts(weights, sizes, sparsity)
        for weight, size, count in zip(weights, sizes, counts, strict=True):
            _refuse_empty(f"layer {weight.name!r}", size, count, sparsity, _WAY_OUT)
        return Groups(
            sizes,
            counts,
            lambda: torch.repeat_interleave(torch.arange(len(weights)), sizes),
            lambda number: Counts(int(sizes[number] - counts[number])),
            int(counts.sum()) / weights.size if self.sparsities else math.nan,
        )

    def _counts(self, weights: Weights, sizes: Tensor, sparsity: float) -> Tensor:
        if self.alone or self.sparsities:
            each = _by_layer(weights, sparsity, self.sparsities or {})
            return torch.tensor([round(s * w.size) for s, w in zip(each, weights, strict=True)])
        return apportion(sizes.double() * sparsity, round(sparsity * int(sizes.sum())), sizes)


def _by_layer(weights: Weights, sparsity: float, given: Mapping[str, float]) -> list[float]:
    names = [weight.name for weight in weights]
    for name, value in given.items():
        if name not in names:
            raise ImpossibleRequestError(
                f"the budget names the layer {name!r}, which is not pruned; it takes names such as "
                f"{names[0]!r}"
            )
        if not 0 <= value < 1:
            raise ImpossibleRequestError(
                f"the sparsity of layer {name!r} must lie in [0, 1), not {value!r}"
            )
    return [given.get(name, sparsity) for name in names]


@dataclass(frozen=True)
class PerRow:
    """The same sparsity for every output of every layer.

    Args:
        alone: round every layer's count by itself and spread the remainder evenly over its rows,
            as one-shot methods do; else the counts add up to the model's.
    """

    alone: bool = False

    def groups(self, weights: Weights, sparsity: float) -> Groups:
        sizes = torch.cat([torch.full((weight.rows,), weight.inputs) for weight in weights])
        rows = [weight.rows for weight in weights]
        counts = self._counts(weights, sizes, sparsity)
        kept = (sizes - counts).split(rows)
        for weight, size, left in zip(weights, sizes.split(rows), kept, strict=True):
            _refuse_empty(f"a row of layer {weight.name!r}", size, size - left, sparsity, _WAY_OUT)

        def ids() -> Tensor:
            first = [sum(rows[:number]) for number in range(len(rows))]
            return torch.cat([w.row_ids() + n for w, n in zip(weights, first, strict=True)])

        return Groups(sizes, counts, ids, lambda number: Counts(kept[number].numpy()))

    def _counts(self, weights: Weights, sizes: Tensor, sparsity: float) -> Tensor:
        if not self.alone:
            return apportion(sizes.double() * sparsity, round(sparsity * weights.size), sizes)
        kept = [
            np.diff(np.arange(w.rows + 1) * (w.size - round(sparsity * w.size)) // w.rows)
            for w in weights
        ]
        return sizes - torch.from_numpy(np.concatenate(kept))


_WAY_OUT = "lower the sparsity, add the layer to ignore, or use budget='global'"


def _refuse_empty(what: str, sizes: Tensor, counts: Tensor, sparsity: float, way_out: str) -> None:
    if (counts >= sizes).any():
        size = int(sizes.reshape(-1)[0])
        raise ImpossibleRequestError(
            f"{what} has {size} weights; sparsity {sparsity} would leave none of them: {way_out}"
        )


@dataclass(frozen=True)
class NofM:
    """Budget with at most ``n`` non-zero weights in every ``m`` consecutive inputs of an output.

    "2:4" is NVIDIA's sense, and so is "1:4": one weight of four stays (75 % sparsity). Tools
    that read N:M as N *pruned* of M agree only for N = M / 2. The inputs of a Conv2d are counted
    in the order they are stored in, channel by channel and kernel position by position.

    Raises:
        ImpossibleRequestError: not 0 < n < m; or, when applied, a layer's inputs are not a
            multiple of m, or a sparsity other than 1 - n/m was asked.

    Example:
        >>> NofM.parse("1:4").sparsity
        0.75
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ImpossibleRequestError(
                f"mask_structure {self.n}:{self.m} must keep between 1 and M - 1 of every M"
            )

    @property
    def sparsity(self) -> float:
        """Share of weights that the structure prunes, 1 - n/m."""
        return 1 - self.n / self.m

    @classmethod
    def parse(cls, text: str) -> NofM:
        """Parse "N:M".

        Raises:
            ImpossibleRequestError: the text has another form.
        """
        match = re.fullmatch(r"(\d+):(\d+)", text.strip())
        if not match:
            raise ImpossibleRequestError(
                f"mask_structure {text!r} is not of the form N:M, for example 2:4"
            )
        return cls(int(match[1]), int(match[2]))

    def groups(self, weights: Weights, sparsity: float) -> Groups:
        for weight in weights:
            if not weight.kind.contracted:
                raise ImpossibleRequestError(
                    f"no product sums over the inputs of {weight.name!r} as it lies "
                    f"({weight.kind.why}), so that {self.n}:{self.m} means nothing there: add the "
                    "layer to ignore"
                )
            if weight.inputs % self.m:
                raise ImpossibleRequestError(
                    f"layer {weight.name!r} has {weight.inputs} inputs per output, not a multiple "
                    f"of {self.m}; {self.n}:{self.m} does not fit: add the layer to ignore"
                )
        if abs(sparsity - self.sparsity) > 1e-6:
            raise ImpossibleRequestError(
                f"mask_structure {self.n}:{self.m} means sparsity {self.sparsity:g}, "
                f"not {sparsity:g}; ask for that, or leave the sparsity out"
            )
        number = weights.size // self.m
        return Groups(
            torch.tensor(self.m).expand(number),
            torch.tensor(self.m - self.n).expand(number),
            lambda: torch.cat([w.runs(self.m) + w.offset // self.m for w in weights]),
            lambda _: Counts.n_of_m(self.n, self.m),
        )


#: Names on the command line.
BUDGETS: Mapping[str, Budget] = {"global": Global(), "layer": PerLayer(), "row": PerRow()}


def named(what: str, value: T | str, known: Mapping[str, T]) -> T:
    """``value``, or the strategy that ``known`` has by that name.

    Raises:
        ImpossibleRequestError: there is none of that name.
    """
    if not isinstance(value, str):
        return value
    if value not in known:
        raise ImpossibleRequestError(f"no {what} named {value!r}; there are: {', '.join(known)}")
    return known[value]


def groups_of(
    weights: Weights,
    sparsity: float | None,
    density: float | None,
    budget: Budget | str,
    mask_structure: NofM | str | None,
) -> Groups:
    """The exact counts that a request asks of ``weights``.

    Args:
        weights: the targeted ones.
        sparsity: share of them to prune, in [0, 1).
        density: 1 - sparsity, instead of it.
        budget: over which parts the count is exact, or its name in `BUDGETS`.
        mask_structure: `NofM`, or "N:M", instead of ``budget``.

    Raises:
        ImpossibleRequestError: both or neither of sparsity and density, a value outside [0, 1), no
            such budget, or a structure that does not fit.
    """
    structure = NofM.parse(mask_structure) if isinstance(mask_structure, str) else mask_structure
    if density is not None and sparsity is not None:
        raise ImpossibleRequestError(
            f"sparsity={sparsity} and density={density} are both given; "
            "density is 1 - sparsity: pass one of them"
        )
    asked = checked_sparsity(sparsity if density is None else 1 - density, structure)
    found = (structure or named("budget", budget, BUDGETS)).groups(weights, asked)
    return replace(found, asked=asked) if math.isnan(found.asked) else found


def checked_sparsity(sparsity: float | None, structure: NofM | None) -> float:
    """Return the sparsity to reach, in [0, 1).

    Raises:
        ImpossibleRequestError: outside [0, 1), or missing without a structure.
    """
    if sparsity is None:
        if structure is None:
            raise ImpossibleRequestError("say how sparse: sparsity=0.9 prunes 90 % of the weights")
        return structure.sparsity
    number = isinstance(sparsity, Real) and not isinstance(sparsity, bool)
    if not number or not 0 <= sparsity < 1:
        raise ImpossibleRequestError(
            f"sparsity must lie in [0, 1), the share of weights to prune, not {sparsity!r}"
        )
    return float(sparsity)


def prune_lowest(
    scores: Float[Tensor, " N"], kept: Bool[Tensor, " N"], groups: Groups, total: int
) -> Bool[Tensor, " N"]:
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


def state_zeros(num_zero: int, num_weights: int, groups: Groups) -> None:
    """Log a warning where weights are zero already; the mask counts what it prunes itself."""
    if not num_zero:
        return
    beyond = (
        "; that is more than was asked, and what the mask keeps may stay zero or move"
        if num_zero > groups.total
        else "; they are the first that the usual starts prune"
    )
    logger.warning(
        "%s of %s targeted weights (%.3g %%) are zero already%s",
        f"{num_zero:,}",
        f"{num_weights:,}",
        100 * num_zero / num_weights,
        beyond,
    )
