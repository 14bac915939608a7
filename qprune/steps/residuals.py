"""The matrices of a block that add to its residual stream, and what the stream lacks there.

What such a matrix writes is added to what the stream holds already, which pruning before it has
changed, too. So it can make up for more than its own inputs' error: its outputs are fitted to those
of the dense matrix plus what the stream lacks, W0 X0 + (R0 - R) with R the stream without them.
Whether a matrix is one is seen from a batch, so that no architecture has to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from qprune.network.transformer import Store
from qprune.network.weights import Weight


@dataclass(frozen=True, eq=False)
class Stream:
    """The residual stream where a matrix adds to it, without what it adds.

    Attributes:
        dense: in the dense network, of a batch.
        at_end: in the pruned one it is the block's output while the matrix is zero; else it is the
            block's input.
    """

    dense: Callable[[int], Tensor]
    at_end: bool


def streams_of(
    run: Callable[[int], Tensor],
    groups: Sequence[Sequence[Weight]],
    inputs: Mapping[str, Store],
    hidden: Store,
    outputs: Store,
    device: torch.device,
) -> dict[str, Stream]:
    """The streams that matrices of a dense block add to, by the matrices' names.

    The last matrix adds to the block's output if that is linear in it with coefficient 1; one
    before it to the block's input if, without both, the output differs from that by a constant.

    Args:
        run: the block's output for a batch, as it is now.
        groups: its matrices in order of use.
        inputs: of the first of each group, batch by batch.
        hidden: the block's inputs, batch by batch.
        outputs: the block's outputs.
        device: where to compute.
    """
    found: dict[str, Stream] = {}
    rest, first = outputs.get(0, device), hidden.get(0, device)
    for group in reversed(groups):
        weight = group[0]
        if len(group) > 1 or weight.name not in inputs or weight.rows != rest.shape[-1]:
            continue
        added = inputs[weight.name].get(0, device) @ weight.read().T
        if added.numel() != rest.numel():
            continue
        without = rest - added.view_as(rest)
        if found:
            shift = (without - first).flatten(0, -2)
            if _close(shift, shift[:1].expand_as(shift), rest):
                found[weight.name] = Stream(lambda index: hidden.get(index, device), False)
                break
            continue
        with zeroed(weight):
            if not _close(run(0), without, rest):
                break
        found[weight.name] = _last(weight, inputs[weight.name], outputs, device)
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


def _last(weight: Weight, inputs: Store, outputs: Store, device: torch.device) -> Stream:
    values = weight.read()

    def dense(index: int) -> Tensor:
        whole = outputs.get(index, device)
        return whole - (inputs.get(index, device) @ values.T).view_as(whole)

    return Stream(dense, True)


def _close(one: Tensor, other: Tensor, like: Tensor) -> bool:
    """True if they agree up to rounding of numbers of the size of ``like``."""
    allowed = torch.finfo(like.dtype).eps ** 0.5 * float(like.abs().max())
    return one.shape == other.shape and float((one - other).abs().max()) <= allowed
