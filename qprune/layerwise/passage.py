"""The passes through one block: what goes into its matrices, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.layerwise.blocks import Call
from qprune.layerwise.matrices import Matrix
from qprune.layerwise.statistics import Moments
from qprune.layerwise.store import Store
from qprune.layerwise.taps import Enough, tapped
from qprune.ranks import ALONE, Ranks


@dataclass(frozen=True, eq=False)
class Order:
    """What a pass through a block showed.

    Attributes:
        groups: the matrices in order of use, those with the same input together.
        inputs: what went into the first of each group, by its name, where inputs were kept
            (never where tokens are routed: after pruning, others come).
        outputs: the block's, batch by batch, where inputs were kept.
    """

    groups: list[list[Matrix]]
    inputs: dict[str, Store]
    outputs: Store | None


class Passage:
    """One block and the passes through it.

    Args:
        block: on the device where it is to run.
        calls: what it is called with, batch by batch.
        inside: its matrices.
        device: where it is.
        new_store: makes stores.
        ranks: of which each has as many batches of its own.
    """

    def __init__(
        self,
        block: nn.Module,
        calls: Sequence[Call],
        inside: Sequence[Matrix],
        device: torch.device,
        new_store: Callable[[], Store],
        ranks: Ranks = ALONE,
    ) -> None:
        self.block, self.calls, self.inside = block, calls, inside
        self.device, self.new_store, self.ranks = device, new_store, ranks

    def order(self, hidden: Store, keep_inputs: bool) -> Order:
        """Run the block as it is, to see the order of use and, on request, every input.

        Args:
            hidden: the block's inputs, batch by batch.
            keep_inputs: keep inputs and outputs of all batches; else one batch is enough (all,
                where tokens are routed to experts).
        """
        outputs = self.new_store() if keep_inputs else None
        groups: list[list[Matrix]] = []
        inputs: dict[str, Store] = {}
        seen: set[str] = set()
        last: list[Tensor] = []

        def see(matrix: Matrix, x: Tensor) -> None:
            if matrix.name not in seen:
                seen.add(matrix.name)
                if last and last[0] is x and not matrix.routed:
                    groups[-1].append(matrix)
                    return
                groups.append([matrix])
                if keep_inputs and not matrix.routed:
                    inputs[matrix.name] = self.new_store()
            if matrix.name in inputs:
                inputs[matrix.name].append(x)
            last[:] = [x]

        for index in range(len(self.calls)):
            last.clear()
            with tapped(self.inside, see):
                output = self._call(index, hidden)
            if outputs is not None:
                outputs.append(output)
            elif not any(matrix.routed for matrix in self.inside):
                break
        return Order(groups, inputs, outputs)

    def moments(
        self, hidden: Store, group: Sequence[Matrix], inputs: Mapping[str, Store]
    ) -> dict[str, Moments]:
        """Moments of every matrix in ``group``, by name, from the block as it is now.

        Matrices with the same input share them; a pass ends as soon as all have been seen.

        Args:
            hidden: the block's inputs, batch by batch.
            group: which matrices.
            inputs: what the dense network fed into some of them.

        Raises:
            NonFiniteError: NaN or Inf on the way; names the layer.
        """
        result: dict[str, Moments] = {}
        wanted = {matrix.name for matrix in group}
        routed = any(matrix.routed for matrix in group)
        uses: dict[str, int] = {}
        last: list[tuple[Tensor, Moments]] = []
        seen: set[str] = set()

        def see(matrix: Matrix, x: Tensor) -> None:
            name = matrix.name
            seen.add(name)
            if last and last[0][0] is x and not matrix.routed:
                result[name] = last[0][1]
            else:
                if name not in result:
                    result[name] = self._empty(matrix, name in inputs)
                use = uses[name] = uses.get(name, -1) + 1
                dense = inputs[name].get(use, self.device) if name in inputs else None
                result[name].add(x, dense)
                last[:] = [(x, result[name])]
            if seen == wanted and not routed:
                raise Enough

        for index in range(len(self.calls)):
            last.clear()
            seen.clear()
            with suppress(Enough), tapped(group, see):
                self._call(index, hidden)
        for moments in dict.fromkeys(result.values()):
            moments.close()
        return {m.name: result.get(m.name) or self._empty(m, False) for m in group}

    def forward(self, hidden: Store) -> Store:
        """The block's outputs as it is now."""
        outputs = self.new_store()
        for index in range(len(self.calls)):
            outputs.append(self._call(index, hidden))
        return outputs

    def _call(self, index: int, hidden: Store) -> Tensor:
        return self.calls[index].of(self.block, hidden.get(index, self.device))

    def _empty(self, matrix: Matrix, with_dense: bool) -> Moments:
        return Moments(matrix.name, matrix.inputs, self.device, with_dense, self.ranks)
