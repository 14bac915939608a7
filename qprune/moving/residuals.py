"""The matrices of a block that add to its residual stream, and what each of them should add.

What such a matrix writes is added to what the stream holds already, which pruning before it has
changed, too. So it can make up for more than its own inputs' error: its outputs are fitted to what
brings the stream to where it was in the dense network, W0 X0 + R0 - R with R the stream without
them. Whether a matrix is one is seen from a batch, so that no architecture has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qprune.distributed.ranks import ALONE, Ranks
from qprune.network.transformer import Store
from qprune.network.weights import Weight


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream where a matrix adds to it.

    Attributes:
        dense: the dense network's behind the matrix, without its bias, of a batch.
        at_end: the pruned one's in front of the matrix is the block's output while the matrix is
            zero, and ``dense`` has the bias as well; else it is the block's input.
        exact: that and the matrix' product add up to the block's output, to the bit.
    """

    dense: Callable[[int], Tensor]
    at_end: bool
    exact: bool = False


@dataclass(frozen=True, eq=False)
class Remainder:
    """A block's outputs but for the product of its last matrix: they need no other pass.

    Attributes:
        weight: the matrix.
        without: the outputs while it was zero, batch by batch.
        inputs: of the matrix.
    """

    weight: Weight
    without: Store
    inputs: Store

    def output(self, index: int, device: torch.device) -> Tensor:
        """The block's output for a batch, with the matrix as it is now."""
        without = self.without.get(index, device)
        product = functional.linear(self.inputs.get(index, device), self.weight.read())
        return without + product.view_as(without)


def streams_of(
    run: Callable[[int], Tensor],
    groups: Sequence[Sequence[Weight]],
    inputs: Mapping[str, Store],
    hidden: Store,
    outputs: Store,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> dict[str, Stream]:
    """The streams that matrices of a dense block add to, by the matrices' names.

    The last matrix adds to the block's output if that is linear in it with coefficient 1; one
    before it to the block's input if, without both, the output differs from that by a constant.
    The first batch of rank 0 shows it, so that all ranks take what one process takes.

    Args:
        run: the block's output for a batch, as it is now.
        groups: its matrices in order of use.
        inputs: of the first of each group, batch by batch.
        hidden: the block's inputs, batch by batch.
        outputs: the block's outputs.
        device: where to compute.
        ranks: processes, each with batches of its own.
    """
    adding = ranks.once(lambda: _adding(run, groups, inputs, hidden, outputs, device))
    found: dict[str, Stream] = {}
    for weight in (group[0] for group in groups if group[0].name in adding):
        at_end, exact = adding[weight.name]
        if at_end:
            stream = Stream(lambda index: outputs.get(index, device), True, exact)
        else:
            stream = _inner(weight, inputs[weight.name], hidden, device)
        found[weight.name] = stream
    return found


def _adding(
    run: Callable[[int], Tensor],
    groups: Sequence[Sequence[Weight]],
    inputs: Mapping[str, Store],
    hidden: Store,
    outputs: Store,
    device: torch.device,
) -> dict[str, tuple[bool, bool]]:
    """``at_end`` and ``exact`` (`Stream`) of each matrix that adds to a stream, by its name."""
    found: dict[str, tuple[bool, bool]] = {}
    rest, first = outputs.get(0, device), hidden.get(0, device)
    for group in reversed(groups):
        weight = group[0]
        if len(group) > 1 or weight.name not in inputs or weight.rows != rest.shape[-1]:
            continue
        added = functional.linear(inputs[weight.name].get(0, device), weight.read())
        if added.numel() != rest.numel():
            continue
        added = added.view_as(rest)
        without = rest - added
        if found:
            shift = (without - first).flatten(0, -2)
            if _close(shift, shift[:1].expand_as(shift), rest):
                found[weight.name] = False, False
                break
            continue
        with zeroed(weight):
            alone = run(0)
        if not _close(alone, without, rest):
            break
        exact = isinstance(weight.module, nn.Linear) and torch.equal(alone + added, rest)
        found[weight.name] = True, exact
        rest = without
    return found


@contextmanager
def zeroed(weight: Weight) -> Generator[None]:
    """The matrix is zero within the context."""
    values = weight.read()
    weight.write(torch.zeros_like(values))
    try:
        yield
    finally:
        weight.write(values)


def _inner(weight: Weight, inputs: Store, hidden: Store, device: torch.device) -> Stream:
    values = weight.read()

    def dense(index: int) -> Tensor:
        before = hidden.get(index, device)
        return before + functional.linear(inputs.get(index, device), values).view_as(before)

    return Stream(dense, False)


def _close(one: Tensor, other: Tensor, like: Tensor) -> bool:
    """True if they agree up to rounding of numbers of the size of ``like``."""
    allowed = torch.finfo(like.dtype).eps ** 0.5 * float(like.abs().max())
    return one.shape == other.shape and float((one - other).abs().max()) <= allowed
