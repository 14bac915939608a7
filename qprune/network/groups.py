"""Budgets: exact integer counts over the model, per layer, per row, or N of every M.

Masks of kept weights: one flat bool vector over all targeted weights, True = kept.

Budgets: the exact counts of one matrix for a sparsity or a structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError
from qprune.network.matrices import Matrix
from qprune.network.weights import Layers
from solvers.rows.counts import Counts


@dataclass(frozen=True, eq=False)
class Groups:
    """Partition of all targeted weights, with the number to prune in each part.

    Attributes:
        ids: shape (N,), the group 0..g-1 of every weight; None when there is one group.
        sizes: shape (g,), weights per group.
        counts: shape (g,), weights to prune per group at the end.
    """

    ids: Tensor | None
    sizes: Tensor
    counts: Tensor

    @property
    def total(self) -> int:
        """Number of weights pruned at the end."""
        return int(self.counts.sum())

    def of(self, indices: Tensor) -> Tensor:
        """Return the group of each flat index."""
        return torch.zeros_like(indices) if self.ids is None else self.ids[indices]

    def sizes_of(self, chosen: Tensor) -> Tensor:
        """Return the number of True entries of a bool vector (N,) in each group, shape (g,)."""
        if self.ids is None:
            return chosen.sum()[None]
        return torch.zeros_like(self.sizes).index_add_(0, self.ids, chosen.to(self.sizes.dtype))


def apportion(wanted: Tensor, total: int, limit: Tensor) -> Tensor:
    """Round ``wanted`` (g,) to integers of sum ``total``, each at most its ``limit``."""
    whole = torch.minimum((wanted + 1e-9).floor().long(), limit)
    missing = total - int(whole.sum())
    if missing > 0:
        room = torch.where(whole < limit, wanted - whole, -torch.inf)
        whole[room.argsort(descending=True, stable=True)[:missing]] += 1
    return whole


class Budget(Protocol):
    """Protocol of a budget: the parts of the model with exact counts."""

    def groups(self, layers: Layers, sparsity: float) -> Groups:
        """Return the partition and its counts, which sum to round(sparsity * N)."""
        ...


@dataclass(frozen=True)
class Global:
    """Budget with one count over all targeted weights; each layer finds its own sparsity."""

    def groups(self, layers: Layers, sparsity: float) -> Groups:
        sizes, counts = (torch.tensor([n]) for n in (layers.size, round(sparsity * layers.size)))
        _refuse_empty("the model", sizes, counts, sparsity, "lower the sparsity")
        return Groups(None, sizes, counts)


@dataclass(frozen=True)
class PerLayer:
    """Budget with the same sparsity in every layer.

    Example:
        >>> from torch import nn
        >>> from qprune.network.weights import find_layers
        >>> layers = find_layers(nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)))
        >>> PerLayer().groups(layers, 0.5).counts.tolist()
        [10, 5]
    """

    def groups(self, layers: Layers, sparsity: float) -> Groups:
        sizes = torch.tensor([layer.size for layer in layers])
        ids = torch.repeat_interleave(torch.arange(len(layers)), sizes)
        counts = apportion(sizes.double() * sparsity, round(sparsity * layers.size), sizes)
        for layer, size, count in zip(layers, sizes, counts, strict=True):
            _refuse_empty(f"layer {layer.name!r}", size, count, sparsity, _WAY_OUT)
        return Groups(ids, sizes, counts)


@dataclass(frozen=True)
class PerRow:
    """Budget with the same sparsity for every output of every layer."""

    def groups(self, layers: Layers, sparsity: float) -> Groups:
        sizes = torch.cat([torch.full((layer.rows,), layer.cols) for layer in layers])
        rows = [layer.rows for layer in layers]
        first = [sum(rows[:number]) for number in range(len(rows))]
        ids = torch.cat([layer.row_ids() + n for layer, n in zip(layers, first, strict=True)])
        counts = apportion(sizes.double() * sparsity, round(sparsity * layers.size), sizes)
        for layer, size, count in zip(layers, sizes.split(rows), counts.split(rows), strict=True):
            _refuse_empty(f"a row of layer {layer.name!r}", size, count, sparsity, _WAY_OUT)
        return Groups(ids, sizes, counts)


_WAY_OUT = "lower the sparsity, add the layer to ignore, or use budget='global'"


def _refuse_empty(what: str, sizes: Tensor, counts: Tensor, sparsity: float, way_out: str) -> None:
    if (counts >= sizes).any():
        size = int(sizes.reshape(-1)[0])
        raise ImpossibleRequestError(
            f"{what} has {size} weights; sparsity {sparsity} would leave none of them: {way_out}"
        )


@dataclass(frozen=True)
class KeepNofM:
    """Budget with at most ``n`` non-zero weights in every ``m`` consecutive inputs of an output.

    "2:4" is NVIDIA's sense, and so is "1:4": one weight of four stays (75 % sparsity). Tools
    that read N:M as N *pruned* of M agree only for N = M / 2. The inputs of a Conv2d are counted
    in the order they are stored in, channel by channel and kernel position by position.

    Raises:
        ImpossibleRequestError: not 0 < n < m; or, when applied, a layer's inputs are not a
            multiple of m, or a sparsity other than 1 - n/m was asked.

    Example:
        >>> KeepNofM.parse("1:4").sparsity
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
    def parse(cls, text: str) -> KeepNofM:
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

    def groups(self, layers: Layers, sparsity: float) -> Groups:
        for layer in layers:
            if not layer.kind.contracted:
                raise ImpossibleRequestError(
                    f"no product sums over the inputs of {layer.name!r} ({layer.kind.why}): "
                    f"{self.n}:{self.m} does not apply; add the layer to ignore"
                )
            if layer.cols % self.m:
                raise ImpossibleRequestError(
                    f"layer {layer.name!r} has {layer.cols} inputs per output, not a multiple "
                    f"of {self.m}; {self.n}:{self.m} does not fit: add the layer to ignore"
                )
        if abs(sparsity - self.sparsity) > 1e-6:
            raise ImpossibleRequestError(
                f"mask_structure {self.n}:{self.m} means sparsity {self.sparsity:g}, "
                f"not {sparsity:g}; ask for that, or leave the sparsity out"
            )
        number = layers.size // self.m
        ids = torch.cat([layer.runs(self.m) + layer.offset // self.m for layer in layers])
        return Groups(ids, torch.full((number,), self.m), torch.full((number,), self.m - self.n))


#: Names on the command line.
BUDGETS: Mapping[str, Budget] = {"global": Global(), "layer": PerLayer(), "row": PerRow()}


def checked_sparsity(sparsity: float | None, structure: KeepNofM | None) -> float:
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


#: Scope of a matrix' exact count: each output row, or the whole matrix.
Scope = Literal["row", "layer"]


def budget_of(matrix: Matrix, sparsity: float, structure: KeepNofM | None, scope: Scope) -> Counts:
    """Return the counts of ``matrix``, whose sum is exact.

    Raises:
        ImpossibleRequestError: no weight would be left, or the structure does not fit the inputs.
    """
    if structure is not None:
        if matrix.inputs % structure.m:
            raise ImpossibleRequestError(
                f"layer {matrix.name!r} has {matrix.inputs} inputs, not a multiple of "
                f"{structure.m}; {structure.n}:{structure.m} does not fit: add it to ignore"
            )
        return Counts.n_of_m(structure.n, structure.m)
    kept = matrix.size - round(sparsity * matrix.size)
    if not kept:
        raise ImpossibleRequestError(
            f"layer {matrix.name!r} has {matrix.size} weights; sparsity {sparsity:g} would leave "
            "none of them: lower it, or add the layer to ignore"
        )
    if scope == "layer":
        return Counts(kept)
    # Remainders are spread evenly over the rows.
    return Counts(np.diff(np.arange(matrix.rows + 1) * kept // matrix.rows))


def sparsity_by_layer(
    matrices: Sequence[Matrix], sparsity: float, given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return the sparsity of every matrix by its name.

    Args:
        matrices: all targeted matrices.
        sparsity: default for matrices not in ``given``.
        given: sparsities by name.

    Raises:
        ImpossibleRequestError: an unknown name, or a value outside [0, 1).
    """
    result = {matrix.name: sparsity for matrix in matrices}
    for name, value in (given or {}).items():
        if name not in result:
            raise ImpossibleRequestError(
                f"layer_sparsity names {name!r}, which is not pruned; it takes names such as "
                f"{matrices[0].name!r}"
            )
        if not 0 <= value < 1:
            raise ImpossibleRequestError(
                f"layer_sparsity of {name!r} must lie in [0, 1), not {value!r}"
            )
        result[name] = value
    return result
