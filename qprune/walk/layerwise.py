"""Pruning layer by layer: each matrix keeps its outputs, one transformer block after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qprune.cost import Needs
from qprune.data.calibration import plain
from qprune.errors import ImpossibleRequestError, NonFiniteError
from qprune.moving.compensate import Compensate
from qprune.network.groups import apportion, named
from qprune.network.patterns import Pattern
from qprune.network.transformer import block_weights, find_blocks
from qprune.network.weights import Weight, Weights
from qprune.objective.samples import Prepared
from qprune.results import LayerRecord
from qprune.steps.reconstruct import (
    ROWS,
    Moments,
    OneShot,
    Reconstruct,
    RowMethod,
    quadratic,
)
from qprune.walk.journal import Attempt, Limits
from qprune.walk.layer_cost import layer_cost
from qprune.walk.run import Run
from qprune.walk.schedule import Schedule
from qprune.walk.sensitivity import Felt, Sensitivity
from qprune.walk.state import Progress, State
from qprune.walk.streams import BlockPass, Streams, batch_of
from solvers import Ask
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.refit import Array

logger = logging.getLogger(__name__)

# Values that stay can make up for only some of what pruning the layers before did: masks chosen
# as if they made up for all of it, or for none, lose up to a quarter more at the network's end.
_DENSE_SHARE_HELD = 0.5


@dataclass(frozen=True)
class Layerwise:
    """A method: every matrix keeps its outputs; block by block, one block on the device at a time.

    Args:
        rows: how a matrix is pruned (`qprune.steps.reconstruct`), or a name in `ROWS`.
        shares: what the loss at the network's end feels of each matrix: it weighs the errors of
            outputs, and shares the count of the whole model among the layers. A budget or a mask
            structure that fixes every layer's count goes first. None = outputs count alike, and
            every layer gets the same share.
        offload: where activations wait: "cpu"; "device", the faster the farther that is from the
            host, but most of its memory; or a folder for temporary files.
        device: where blocks run and are solved; None = where the model is.
        batch_size: samples in one pass through a block; None = by their length, or as asked of a
            run that is nothing but this.
        compensate: whether kept values may move; None = as in the whole run.
        accept_share: share of the samples that is held back, for a method that follows.

    Raises:
        ImpossibleRequestError: no row method of that name.

    Example:
        >>> Layerwise("wanda", shares=None).rows
        OneShot(start='wanda')
    """

    rows: RowMethod | str = Reconstruct()
    shares: Sensitivity | None = Sensitivity()
    offload: str | Path = "cpu"
    device: str | torch.device | None = None
    batch_size: int | None = None
    compensate: bool | None = None
    accept_share: float = 0.0
    uses_loss = False
    on_host = False
    goes_on = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", named("row method", self.rows, ROWS))

    def find(
        self,
        model: nn.Module,
        targets: Sequence[Pattern] | Pattern | None,
        ignore: Sequence[Pattern] | Pattern,
    ) -> Weights:
        """See `qprune.walk.schedule.Method`: the matrices inside the model's blocks."""
        weights = block_weights(model, targets, ignore)
        if weights.sharded:
            raise ImpossibleRequestError(
                "Layerwise does not suit a sharded model, whose weights no rank holds; use "
                "Networkwise(), or shard nothing and let every rank hold the model"
            )
        return weights

    @contextmanager
    def passing(self, model: nn.Module) -> Generator[None]:
        """No cache of keys and values meanwhile."""
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        caching = getattr(config, "use_cache", False)
        if caching:
            config.use_cache = False
        try:
            yield
        finally:
            if caching:
                config.use_cache = True

    def completed(
        self, prepared: Prepared, compensate: Compensate | None, threads: int
    ) -> tuple[Layerwise, Compensate | None]:
        """See `qprune.walk.schedule.Method`."""
        moving = compensate is not None if self.compensate is None else self.compensate
        rows = self.row_method
        if isinstance(rows, Reconstruct):
            rows = replace(rows, num_threads=threads)
        usual = prepared.asked_batch_size or batch_of(plain(prepared.fit.inputs))
        size = self.batch_size or usual
        return replace(self, rows=rows, compensate=moving, batch_size=size), compensate

    @property
    def row_method(self) -> RowMethod:
        """The strategy itself, no name."""
        return named("row method", self.rows, ROWS)

    def schedule(self, run: Run) -> Schedule:
        """See `qprune.walk.schedule.Method`."""
        model = run.objective.model
        inputs = plain(run.objective.given_inputs)
        streams = Streams(
            model,
            find_blocks(model),
            run.weights,
            run.dense,
            inputs,
            device=torch.device(self.device or next(model.parameters()).device),
            offload=self.offload,
            keep_dense=self.row_method.dense_targets,
            ranks=run.objective.samples.ranks.serial,
        )
        shares, moving = self.shares, bool(self.compensate)
        counts, coupling = fixed_counts(run), 0.0
        if shares is not None and self.row_method.couples:
            coupling = shares.coupling
        felt: list[Felt] = []
        if shares is not None and (coupling or counts is None):
            felt = shares.felt(model, run.weights, inputs, run.seed)
        if counts is None:
            counts = shared_counts(run, shares, felt, moving=moving)
        together = [one.coupling(coupling) for one in felt]
        usual = run.objective.batch_size
        size = self.batch_size or usual
        actions = [
            PruneBlock(self, i, streams, counts, together, size, usual) for i in streams.indices
        ]
        return Schedule(actions, streams.close)

    def cost(
        self,
        prepared: Prepared,
        compensate: Compensate | None,
        ask: Ask,
        limits: Limits,
        executor: Any,
    ) -> Needs:
        """See `qprune.walk.schedule.Method`."""
        blocks = find_blocks(prepared.model)
        return layer_cost(self.row_method, prepared, blocks, self.offload, self.shares)

    def first_pass(self, run: Run) -> State | None:
        """None: it would have to do all of its work twice."""
        return None


@dataclass(frozen=True, eq=False)
class PruneBlock:
    """Every matrix of one transformer block is pruned to its count."""

    method: Layerwise
    index: int
    streams: Streams
    counts: Sequence[Counts]
    felt: Sequence[Tensor | None]
    batch_size: int
    usual_batch_size: int
    required = True
    ends_when_idle = False

    @torch.no_grad()
    def __call__(self, run: Run, state: State) -> State:
        step = run.journal.begin("block", 0, self.index)
        state = replace(state, mask=state.mask.clone())
        masks = run.weights.split(state.mask)
        before = sum(len(earlier.layers) for earlier in run.journal.steps)
        records: list[LayerRecord] = []
        # Where memory did not suffice, the run's batches are halved, and so are these.
        size = max(1, self.batch_size * run.objective.batch_size // self.usual_batch_size)
        with self.streams.at(self.index, size) as block:
            for weight, moments in self._with_moments(block, step):
                mask = masks[self.streams.number(weight)]
                seed = run.seed + before + len(records)
                with step.phase("solve"):
                    records.append(self._pruned(run, weight, moments, mask, seed))
        step.note(
            sparsity=run.sparsity(state),
            flips=sum(record.num_pruned for record in records),
            layers=tuple(records),
        )
        return state

    def _with_moments(self, block: BlockPass, step: Attempt) -> Iterator[tuple[Weight, Moments]]:
        """Every weight of the block in order of use, those that nothing reached at the end."""
        together = [weight for group in block.order.groups for weight in group]
        for group in block.order.groups if self.method.row_method.by_group else [together]:
            with step.phase("curvature"):
                moments = block.moments(group)
            for weight in group:
                yield weight, moments[weight.name]
        for weight in block.passage.inside:
            if weight not in together:
                yield weight, Moments(weight.name, weight.inputs, block.passage.device, False)

    def _pruned(
        self, run: Run, weight: Weight, moments: Moments, mask: Tensor, seed: int
    ) -> LayerRecord:
        """Prune one matrix in the model and in ``mask``, its part of the run's."""
        began = time.perf_counter(), time.process_time()
        if not moments.tokens:
            logger.warning("no token reached %s: pruned by the size of its weights", weight.name)
        rows, moving = self.method.row_method, bool(self.method.compensate)
        weights = weight.read()
        goal = quadratic(moments, weights, rows.damping, 1.0 if moving else _DENSE_SHARE_HELD)
        number = self.streams.number(weight)
        felt = self.felt[number] if self.felt and moments.tokens else None
        together = None if felt is None else _array(felt.to(goal.gram))
        problem = RowProblem(_array(goal.gram), _array(goal.targets), self.counts[number], together)
        method = rows if moments.tokens else OneShot("magnitude")
        solved = run.once(lambda: method.solve(problem, compensate=moving, seed=seed))
        kept = torch.as_tensor(solved.mask, device=weights.device)
        values = torch.as_tensor(solved.values, device=weights.device) if moving else weights
        weight.write(torch.where(kept, values.to(weights), 0.0))
        mask.view(weight.shape).copy_(weight.kind.layout.back(kept, weight.shape))
        error = problem.objectives(_array(weight.read().to(goal.gram)))
        energy = float(problem.objectives(0.0 * problem.targets).sum())
        return LayerRecord(
            name=weight.name,
            shape=(weight.rows, weight.inputs),
            num_weights=weight.size,
            num_pruned=weight.size - int(kept.sum()),
            parameter=weight.parameter_name,
            error=float(error.sum()) / energy if energy else 0.0,
            tokens=moments.tokens,
            seconds=time.perf_counter() - began[0],
            cpu_seconds=time.process_time() - began[1],
        )

    def undone(self, run: Run, progress: Progress, error: NonFiniteError) -> State:
        """The counts need it: it cannot be left out."""
        raise error


def fixed_counts(run: Run) -> list[Counts] | None:
    """The exact counts of every weight where the run's groups fix them; else None."""
    found = [run.groups.of_weight(number) for number in range(len(run.weights))]
    fixed = [counts for counts in found if counts is not None]
    return fixed if len(fixed) == len(found) else None


def shared_counts(
    run: Run, shares: Sensitivity | None, felt: Sequence[Felt], *, moving: bool
) -> list[Counts]:
    """The exact counts of every weight where the run's groups leave them open; they add up.

    Args:
        run: the run.
        shares: how the model's count is shared among the layers; None = alike.
        felt: what the loss feels of every weight, where ``shares`` are given.
        moving: kept values move.
    """
    weights, groups = run.weights, run.groups
    sizes = torch.tensor([weight.size for weight in weights])
    sparsity = groups.total / weights.size
    wanted = dict.fromkeys((weight.name for weight in weights), sparsity)
    if shares is not None:
        wanted = shares.shares(weights, felt, sparsity, run.seed, moving=moving)
    numbers = torch.tensor(list(wanted.values()), dtype=torch.float64) * sizes
    # The threshold hits the count up to ties and sampling; the rest is scaled away.
    numbers *= groups.total / float(numbers.sum())
    counts = apportion(numbers, groups.total, sizes - 1)
    return [Counts(int(size - count)) for size, count in zip(sizes, counts, strict=True)]


def _array(tensor: Tensor) -> Array:
    """For the row solvers: numpy on the host, the tensor itself on a device."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor
