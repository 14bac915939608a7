"""Passes through one block: inputs of its matrices, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.distributed.ranks import ALONE, Ranks
from qprune.network.matrices import Matrix
from qprune.network.transformer import Call, Store
from qprune.objective.trace.taps import Enough, tapped
from qprune.steps.reconstruct import Moments


@dataclass(frozen=True, eq=False)
class Order:
    """Recorded order of use of a block's matrices.

    Attributes:
        groups: the matrices in order of use, those with the same input together.
        inputs: input of the first matrix of each group, by its name, where inputs were kept
            (never for routed tokens, which change after pruning).
        outputs: outputs of the block, batch by batch, where inputs were kept.
    """

    groups: list[list[Matrix]]
    inputs: dict[str, Store]
    outputs: Store | None


class Passage:
    """Block with the passes through it.

    Args:
        block: the block, on ``device``.
        calls: arguments of the block, batch by batch.
        inside: its matrices.
        device: device of the block.
        new_store: makes stores.
        ranks: processes, each with the same number of batches of its own.
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
        """Run the block to record the order of use and, on request, every input.

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
        """Return the moments of every matrix in ``group``, by name, from the present block.

        Matrices with the same input share them; a pass ends once all have been used.

        Args:
            hidden: the block's inputs, batch by batch.
            group: matrices.
            inputs: inputs of some of them in the dense network.

        Raises:
            NonFiniteError: NaN or Inf in an input; names the layer.
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
        """Return the outputs of the present block."""
        outputs = self.new_store()
        for index in range(len(self.calls)):
            outputs.append(self._call(index, hidden))
        return outputs

    def _call(self, index: int, hidden: Store) -> Tensor:
        return self.calls[index].of(self.block, hidden.get(index, self.device))

    def _empty(self, matrix: Matrix, with_dense: bool) -> Moments:
        return Moments(matrix.name, matrix.inputs, self.device, with_dense, self.ranks)
