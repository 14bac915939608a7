"""Activations, dense and pruned, from block to block; they can be made again at any block."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, tensors_of
from qprune.distributed.ranks import ALONE, Ranks
from qprune.errors import ImpossibleRequestError
from qprune.moving.guards import Dense
from qprune.moving.residuals import Remainder, Stream, streams_of, zeroed
from qprune.network.transformer import Call, Entry, Named, Store, enter, stacks_of, stores
from qprune.network.weights import Weight, Weights
from qprune.objective.trace.taps import Enough, tapped
from qprune.steps.reconstruct import Moments

# Tokens that pass through a block at once.
_BATCH_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Order:
    """The weights of a block as a pass through it used them.

    Attributes:
        groups: the weights in order of use, those with the same input together.
        inputs: what went into the first of each group, by its name, where inputs were kept
            (never where tokens are routed: after pruning, others come).
        outputs: the block's, batch by batch, where inputs were kept.
    """

    groups: list[list[Weight]]
    inputs: dict[str, Store]
    outputs: Store | None


class Passage:
    """Block with the passes through it.

    Args:
        block: on the device where it is to run.
        calls: what it is called with, batch by batch.
        inside: its weights.
        device: where it is.
        new_store: makes stores.
        ranks: processes, each with the same number of batches of its own.
    """

    def __init__(
        self,
        block: nn.Module,
        calls: Sequence[Call],
        inside: Sequence[Weight],
        device: torch.device,
        new_store: Callable[[], Store],
        ranks: Ranks = ALONE,
    ) -> None:
        self.block, self.calls, self.inside = block, calls, inside
        self.device, self.new_store, self.ranks = device, new_store, ranks
        self._rest: Remainder | None = None

    def order(self, hidden: Store, keep_inputs: bool) -> Order:
        """Run the block to record the order of use and, on request, every input.

        Args:
            hidden: the block's inputs, batch by batch.
            keep_inputs: keep inputs and outputs of all batches; else one batch is enough (all,
                where tokens are routed to experts).
        """
        outputs = self.new_store() if keep_inputs else None
        groups: list[list[Weight]] = []
        inputs: dict[str, Store] = {}
        seen: set[str] = set()
        last: list[Tensor] = []

        def see(weight: Weight, x: Tensor) -> None:
            if weight.name not in seen:
                seen.add(weight.name)
                if last and last[0] is x and not weight.routed:
                    groups[-1].append(weight)
                    return
                groups.append([weight])
                if keep_inputs and not weight.routed:
                    inputs[weight.name] = self.new_store()
            if weight.name in inputs:
                inputs[weight.name].append(x)
            last[:] = [x]

        for index in range(len(self.calls)):
            last.clear()
            with tapped(self.inside, see):
                output = self._call(index, hidden)
            if outputs is not None:
                outputs.append(output)
            elif not any(weight.routed for weight in self.inside):
                break
        return Order(groups, inputs, outputs)

    def streams(self, order: Order, hidden: Store) -> dict[str, Stream]:
        """The residual streams that matrices of the dense block add to; see `streams_of`.

        Args:
            order: with inputs and outputs, else there are none; loses inputs that none needs.
            hidden: the block's inputs, batch by batch.
        """
        if order.outputs is None or not len(order.outputs):
            return {}
        found = streams_of(
            lambda index: self._call(index, hidden),
            order.groups,
            order.inputs,
            hidden,
            order.outputs,
            self.device,
            self.ranks,
        )
        for name in found:
            del order.inputs[name]  # `Stream.dense` has what it needs of them.
        return found

    def moments(
        self,
        hidden: Store,
        group: Sequence[Weight],
        inputs: Mapping[str, Store],
        stream: Stream | None = None,
    ) -> dict[str, Moments]:
        """Moments of every weight in ``group``, by name, from the block as it is now.

        Matrices with the same input share them; a pass ends once all have been used.

        Args:
            hidden: the block's inputs, batch by batch.
            group: matrices.
            inputs: inputs of some of them in the dense network.
            stream: that the only matrix of the group adds to.

        Raises:
            NonFiniteError: NaN or Inf in an input; names the layer.
        """
        if stream is not None:
            (weight,) = group
            return {weight.name: self._with_stream(hidden, weight, stream)}
        result: dict[str, Moments] = {}
        wanted = {weight.name for weight in group}
        routed = any(weight.routed for weight in group)
        uses: dict[str, int] = {}
        last: list[tuple[Tensor, Moments]] = []
        seen: set[str] = set()

        def see(weight: Weight, x: Tensor) -> None:
            name = weight.name
            seen.add(name)
            if last and last[0][0] is x and not weight.routed:
                result[name] = last[0][1]
            else:
                if name not in result:
                    result[name] = self._empty(weight, name in inputs)
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

    def _with_stream(self, hidden: Store, weight: Weight, stream: Stream) -> Moments:
        moments = Moments(
            weight.name, weight.inputs, self.device, False, self.ranks, adding=weight.rows
        )
        rest = Remainder(weight, self.new_store(), self.new_store())
        seen: list[Tensor] = []

        def see(_: Weight, x: Tensor) -> None:
            seen.append(x)
            if not stream.at_end:
                raise Enough

        for index in range(len(self.calls)):
            seen.clear()
            now = hidden.get(index, self.device)
            with suppress(Enough), tapped([weight], see), zeroed(weight):
                now = self.calls[index].of(self.block, now)
            moments.add(seen[0], wanted=stream.dense(index) - now)
            if stream.exact:
                rest.without.append(now)
                rest.inputs.append(seen[0])
        moments.close()
        self._rest = rest if stream.exact else None
        return moments

    def outputs(self, hidden: Store) -> Store:
        """The outputs of the present block, behind which nothing changes any more."""
        rest, self._rest = self._rest, None
        if rest is None:
            return self.forward(hidden)
        outputs = self.new_store()
        for index in range(len(self.calls)):
            outputs.append(rest.output(index, self.device))
        return outputs

    def forward(self, hidden: Store) -> Store:
        """Return the outputs of the present block."""
        outputs = self.new_store()
        for index in range(len(self.calls)):
            outputs.append(self._call(index, hidden))
        return outputs

    def _call(self, index: int, hidden: Store) -> Tensor:
        return self.calls[index].of(self.block, hidden.get(index, self.device))

    def _empty(self, weight: Weight, with_dense: bool) -> Moments:
        return Moments(weight.name, weight.inputs, self.device, with_dense, self.ranks)


@dataclass(frozen=True, eq=False)
class BlockPass:
    """One block ready to be pruned.

    Attributes:
        passage: passes through it.
        order: the dense block's weights in order of use.
        current: the pruned network's inputs to it, batch by batch.
        streams: that some of its matrices add to, by their names.
    """

    passage: Passage
    order: Order
    current: Store
    streams: dict[str, Stream]

    def moments(self, group: Sequence[Weight]) -> dict[str, Moments]:
        """Second moments of the inputs of every weight in ``group``, by name."""
        stream = self.streams.pop(group[0].name, None) if len(group) == 1 else None
        found = self.passage.moments(self.current, group, self.order.inputs, stream)
        for weight in group:
            self.order.inputs.pop(weight.name, None)  # Their place is needed, as the stream's.
        return found


@dataclass(eq=False)
class _Position:
    """The activations in front of one block of a stack.

    Attributes:
        entry: of the stack.
        index: number of the block within its stack.
        batch_size: that the batches were cut by.
        dense, current: inputs to the block in the dense and in the pruned network.
    """

    entry: Entry
    index: int
    batch_size: int
    dense: Store
    current: Store


class Streams:
    """The activations of all samples, in front of the block that comes next.

    The samples flow through the dense block and through the pruned one side by side; both outputs
    wait off the device for the next block. Where they are not in front of the block that is asked
    for, as in a resumed run, they are made by passes through the blocks before it.

    Args:
        model: a transformer.
        blocks: its blocks.
        weights: the targeted ones.
        dense: their values before anything was pruned.
        inputs: all calibration samples.
        device: where blocks run.
        offload: where activations wait: "cpu", "device", or a folder for temporary files.
        keep_dense: pass through the dense block as well.
        ranks: processes that share the samples.

    Raises:
        ImpossibleRequestError: there is no such folder.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Named],
        weights: Weights,
        dense: Dense,
        inputs: AnyInputs,
        *,
        device: torch.device,
        offload: str | Path = "cpu",
        keep_dense: bool = True,
        ranks: Ranks = ALONE,
    ) -> None:
        self._model, self._blocks, self._dense = model, blocks, dense
        self._inputs, self._device, self._ranks = inputs, device, ranks
        self._keep_dense = keep_dense
        self._stack = ExitStack()
        self._new_store = self._stack.enter_context(stores(offload))
        inside: list[list[Weight]] = [[] for _ in blocks]
        for weight in weights:
            inside[_block_of(weight, blocks)].append(weight)
        self.inside = inside
        # A decoder's blocks are entered behind the encoder as it is by then: pruned.
        self._stacks = [stack for stack in stacks_of(blocks) if any(inside[i] for i in stack)]
        self._place: _Position | None = None
        self._number = {id(weight): number for number, weight in enumerate(weights)}

    @property
    def indices(self) -> list[int]:
        """The blocks that are pruned or passed, in order: each stack to its last target."""
        return [index for stack in self._stacks for index in self._walked(stack)]

    def number(self, weight: Weight) -> int:
        """Number of a weight among all targeted ones."""
        return self._number[id(weight)]

    def close(self) -> None:
        """Remove what waits in files."""
        self._place = None
        self._stack.close()

    @contextmanager
    def at(self, index: int, batch_size: int) -> Generator[BlockPass]:
        """Block ``index`` on the device; afterwards the activations are behind it.

        Args:
            index: number of the block.
            batch_size: samples in one pass.

        Raises:
            QpruneError: the samples do not pass.
        """
        stack = next(stack for stack in self._stacks if index in stack)
        place = self._reached(stack, stack.index(index), batch_size)
        self._place = None  # Should something go wrong, they are made again.
        with self._on_device(index, place) as passage:
            order = passage.order(place.dense, self._keep_dense)
            yield BlockPass(passage, order, place.current, passage.streams(order, place.dense))
            if index != self._walked(stack)[-1]:
                current = passage.outputs(place.current)
                dense = order.outputs or current
                place = _Position(place.entry, place.index + 1, batch_size, dense, current)
                self._place = place

    def _walked(self, stack: Sequence[int]) -> Sequence[int]:
        last = max(place for place, index in enumerate(stack) if self.inside[index])
        return stack[: last + 1]

    def _reached(self, stack: Sequence[int], within: int, batch_size: int) -> _Position:
        """The activations in front of a block, from where they are or from the start."""
        place = self._place
        behind = within and place is not None and place.batch_size == batch_size
        if place is not None and behind and place.index == within:
            return place
        batches = _own(self._inputs.split(batch_size), self.inside, self._ranks)
        blocks = [self._blocks[index] for index in stack]
        entry = enter(self._model, blocks, batches, self._new_store)
        place = _Position(entry, 0, batch_size, entry.hidden, entry.hidden)
        for index in stack[:within]:
            place = self._passed(index, place)
        return place

    def _passed(self, index: int, place: _Position) -> _Position:
        """Behind a block that is pruned already: through it as it was, and as it is."""
        with self._on_device(index, place) as passage:
            dense = place.dense
            if self._keep_dense:
                with self._dense_again(index):
                    dense = passage.forward(place.dense)
            current = passage.forward(place.current)
        after = dense if self._keep_dense else current
        return _Position(place.entry, place.index + 1, place.batch_size, after, current)

    @contextmanager
    def _on_device(self, index: int, place: _Position) -> Generator[Passage]:
        block = self._blocks[index][1]
        home = next(block.parameters()).device
        block.to(self._device)
        calls, inside = place.entry.calls[place.index], self.inside[index]
        try:
            yield Passage(block, calls, inside, self._device, self._new_store, self._ranks)
        finally:
            block.to(home)

    @contextmanager
    def _dense_again(self, index: int) -> Generator[None]:
        pruned = [weight.part(weight.parameter.detach()).clone() for weight in self.inside[index]]
        try:
            for weight in self.inside[index]:
                dense = self._dense.tensors[self.number(weight)]
                weight.part(weight.parameter).copy_(dense)
            yield
        finally:
            for weight, values in zip(self.inside[index], pruned, strict=True):
                weight.part(weight.parameter).copy_(values)


def batch_of(samples: AnyInputs) -> int:
    """Samples in one pass: some thousand tokens, or some images."""
    first = tensors_of(samples)[0]
    length = first.shape[1] if first.ndim == 2 else 256
    return max(1, _BATCH_TOKENS // length)


def _block_of(weight: Weight, blocks: Sequence[Named]) -> int:
    return next(
        number
        for number, (name, _) in enumerate(blocks)
        if weight.parameter_name.startswith(f"{name}.")
    )


def _own(
    batches: Sequence[AnyInputs], inside: Sequence[Sequence[Weight]], ranks: Ranks
) -> Sequence[AnyInputs]:
    """This rank's batches.

    Raises:
        ImpossibleRequestError: the ranks would not all do the same at the same time.
    """
    if len(batches) % ranks.size:
        raise ImpossibleRequestError(
            f"{len(batches)} batches of samples cannot be shared evenly among {ranks.size} ranks; "
            "pass another batch_size, or other samples"
        )
    routed = next((weight.name for block in inside for weight in block if weight.routed), None)
    if ranks.size > 1 and routed:
        raise ImpossibleRequestError(
            f"tokens are routed to {routed!r}, other ones on every rank; prune a mixture of "
            "experts by one process, or leave its experts out"
        )
    return batches[ranks.rank :: ranks.size]
