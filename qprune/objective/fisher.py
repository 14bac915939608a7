"""Fisher matrices from per-sample gradients, gathered on the block only.

H = 1/m sum_s g_s g_s', g_s the gradient of the loss of sample s. With labels drawn from the
network's own output (`SampledFisher`), or with random signs over the classes
(`SketchedFisher`), its expectation is the Gauss-Newton matrix of the loss; with the loss itself
(`EmpiricalFisher`) it is the matrix of WoodFisher (Singh and Alistarh 2020, arXiv 2004.14340,
eq. 3) and of CBS (arXiv 2203.04466).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from qprune.distributed.ranks import Parts
from qprune.distributed.workers import PerThread
from qprune.errors import CalibrationError
from qprune.network.weights import Weights
from qprune.objective.curvature import BlockCurvature, Expansion, Part, weighted
from qprune.objective.losses import Loss
from qprune.objective.samples import Objective, SamplePart
from qprune.objective.trace.autograd import trace_of
from qprune.objective.trace.preflight import examined
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    Trace,
    differentiating,
    forward,
    gradients_by_weight,
    refuse_non_finite,
)
from solvers import Dense, LowRank

#: Traces of at most this many numbers are kept; larger ones are recomputed for a round's blocks.
KEEP_FLOATS = 1 << 28


class SampleLosses(Protocol):
    """Losses whose gradients a pass takes, batch after batch."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses (m,) of the next batch, to be differentiated."""
        ...

    def skip(self, outputs: Tensor) -> None:
        """Skip a batch with outputs of that shape, which another rank or thread passes."""
        ...


class PerSampleFisher(ABC):
    """Base of the Fisher matrices H = 1/m sum_s g_s g_s'; a subclass chooses the gradients g_s."""

    @abstractmethod
    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], SampleLosses]:
        """Return a function that makes the losses of one pass."""

    def expand(self, objective: Objective, generator: torch.Generator) -> Expansion:
        """See `Curvature.expand`."""
        if not objective.weights.examined:
            weights = examined(objective.model, objective.weights, objective.samples.inputs)
            objective = replace(objective, weights=weights)
        found = [
            _expand(
                replace(objective, samples=objective.samples.take(part.indices)),
                self.losses(objective.loss, generator),
                KEEP_FLOATS // len(objective.parts),
            )
            for part in objective.parts
        ]
        return _joined(objective.parts, found)


@dataclass(frozen=True)
class SketchedFisher(PerSampleFisher):
    """Estimate of the Gauss-Newton matrix: one gradient of random class signs per sample.

    The same expectation as `SampledFisher` at the same cost, with far less noise where the
    network is confident.

    Example:
        >>> import qprune
        >>> from torch import nn
        >>> model, inputs = nn.Linear(8, 4), torch.eye(8)
        >>> method = qprune.Networkwise(curvature=SketchedFisher(), stages=2, rounds=1)
        >>> run = qprune.prune(model, inputs, sparsity=0.5, method=method)
        >>> run.report.achieved_sparsity
        0.5
    """

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], SampleLosses]:
        return _drawn(loss.sketched, generator)


@dataclass(frozen=True)
class SampledFisher(PerSampleFisher):
    """Fisher matrix of gradients against labels drawn from the network's own distribution."""

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], SampleLosses]:
        return _drawn(loss.sampled, generator)


@dataclass(frozen=True)
class EmpiricalFisher(PerSampleFisher):
    """Fisher matrix of per-sample gradients of the loss itself."""

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], SampleLosses]:
        return lambda: _Given(loss)


@dataclass(frozen=True)
class _Given:
    """Losses of the samples themselves."""

    loss: Loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss.per_sample(outputs, targets)

    def skip(self, outputs: Tensor) -> None:
        return


@dataclass(frozen=True)
class _Drawn:
    """Losses with random draws from one stream over a pass, independent of the batch size."""

    losses: Callable[..., Tensor]
    generator: torch.Generator

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, self.generator, targets)

    def skip(self, outputs: Tensor) -> None:
        with torch.no_grad():
            self.losses(outputs, self.generator)


def _drawn(losses: Callable[..., Tensor], generator: torch.Generator) -> Callable[[], SampleLosses]:
    """Return a function that makes losses with the same random draws in every pass."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return lambda: _Drawn(losses, torch.Generator().manual_seed(seed))


@dataclass(frozen=True, eq=False)
class _FisherBlocks:
    """Blocks of the Fisher matrix from kept or recomputed traces.

    Attributes:
        layers: the targeted weights.
        samples: those of the expansion.
        batches: all batches of them.
        trace: trace of a batch by number; another rank's batch only if that rank kept none.
        sum_of_squares: sum of squared per-sample gradients, shape (N,).
    """

    layers: Weights
    samples: Samples
    batches: Sequence[Samples]
    trace: Callable[[], Callable[[int], Trace]]
    sum_of_squares: Tensor

    def diagonal(self) -> Tensor:
        return self.sum_of_squares / len(self.samples)

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        # Traces too large to keep are recomputed, once for all blocks.
        together = torch.cat(list(chosen))
        trace = self.trace()
        columns = self.samples.ranks.gather(
            lambda number, _: trace(number).columns(self.layers, together), self.batches
        )
        factor = torch.cat(columns).double() / len(self.samples) ** 0.5
        return [
            LowRank(part.contiguous().cpu().numpy())
            for part in factor.split([len(indices) for indices in chosen], dim=1)
        ]


@dataclass(frozen=True, eq=False)
class _JoinedBlocks:
    """Blocks of the Fisher matrix from those of disjoint sets of samples.

    Attributes:
        shares: share of the samples in each set.
        parts: its Fisher matrix.
    """

    shares: Sequence[float]
    parts: Sequence[BlockCurvature]

    def diagonal(self) -> Tensor:
        return weighted(self.shares, [part.diagonal() for part in self.parts])

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        found = zip(*(part.blocks(chosen) for part in self.parts), strict=True)
        return [
            LowRank(
                np.concatenate(
                    [
                        part.factor * share**0.5
                        for part, share in zip(block, self.shares, strict=True)
                        if isinstance(part, LowRank)
                    ]
                )
            )
            for block in found
        ]


def _joined(parts: Sequence[SamplePart], found: Sequence[Expansion]) -> Expansion:
    """The expansion over all samples from those over disjoint sets of them."""
    sizes = [len(part.indices) for part in parts]
    shares = [size / sum(sizes) for size in sizes]
    curvature = _JoinedBlocks(shares, [expansion.curvature for expansion in found])
    ends = list(accumulate(sizes))
    return Expansion(
        loss=sum(share * expansion.loss for share, expansion in zip(shares, found, strict=True)),
        gradient=weighted(shares, [expansion.gradient for expansion in found]),
        diagonal=curvature.diagonal(),
        curvature=curvature,
        parts=tuple(
            Part(expansion.gradient, slice(end - size, end), part.half, part.given)
            for part, expansion, size, end in zip(parts, found, sizes, ends, strict=True)
        ),
    )


def _expand(
    objective: Objective, curvature_losses: Callable[[], SampleLosses], keep_floats: int
) -> Expansion:
    model, layers, samples = objective.model, objective.weights, objective.samples
    batches = list(samples.batches(objective.batch_size))
    gradient = torch.zeros(layers.size, device=layers.device, dtype=layers.dtype)
    squares = torch.zeros_like(gradient)
    ranks, floats = samples.ranks, [0] * len(batches)

    def a_pass(with_gradient: bool) -> PerThread[_Pass]:
        def make() -> _Pass:
            losses = objective.loss, curvature_losses()
            return _Pass(*ranks.own((model, layers)), batches, *losses, with_gradient)

        return PerThread(make)

    first = a_pass(with_gradient=True)

    def one(number: int, _: Samples) -> tuple[tuple[Trace | None, float], Parts]:
        trace, batch_loss, parts = first().batch(number)
        floats[number] = trace.num_floats
        kept = trace if sum(floats) <= keep_floats else None
        return (kept, batch_loss), chain(parts, trace.squares(layers))

    totals = [*layers.split(gradient), *layers.split(squares)]
    kept = ranks.accumulate(one, batches, totals)
    total = 0.0
    for batch_loss in ranks.gather(lambda number, _: kept[number][1], batches):
        total += batch_loss

    def recompute() -> Callable[[int], Trace]:
        again = a_pass(with_gradient=False)
        return lambda number: again().batch(number)[0]

    traces = {number: trace for number, (trace, _) in kept.items() if trace is not None}
    # Every rank must take part in a pass of a sharded model.
    again = ranks.any(sum(floats) > keep_floats)
    blocks = _FisherBlocks(
        layers, samples, batches, recompute if again else lambda: traces.__getitem__, squares
    )
    return Expansion(total / len(samples), gradient / len(samples), blocks.diagonal(), blocks)


@dataclass(eq=False)
class _Pass:
    """Pass over the batches of this rank and thread."""

    model: nn.Module
    layers: Weights
    batches: Sequence[Samples]
    loss: Loss
    losses: SampleLosses
    with_gradient: bool = True
    _drawn: int = field(default=0, init=False)

    def batch(self, number: int) -> tuple[Trace, float, Parts]:
        """Return (trace, summed loss, summed gradient by layer) of one batch."""
        layers, batch = self.layers, self.batches[number]
        with differentiating(self.model, layers) as weights:
            with Recorder(layers) as recorder:
                outputs = forward(self.model, batch.inputs)
            losses = self.loss.per_sample(outputs, batch.targets)
            if not losses.requires_grad:
                raise CalibrationError(
                    "the loss does not depend on any targeted weight; look at targets and ignore"
                )
            parts: Parts = ()
            if self.with_gradient:
                parts = gradients_by_weight(losses, weights, recorder, again=True)
            self._skip_to(number, outputs)
            sampled = self.losses(outputs, batch.targets)
            trace = trace_of(self.model, layers, batch.inputs, outputs, recorder, sampled)
            # After the pass, because every rank takes part in a sharded model's backward pass.
            refuse_non_finite(layers, recorder, losses.detach(), number)
        return trace, losses.detach().double().sum().item(), parts

    def _skip_to(self, number: int, outputs: Tensor) -> None:
        for batch in self.batches[self._drawn : number]:
            self.losses.skip(outputs.detach().new_zeros(len(batch), *outputs.shape[1:]))
        self._drawn = number + 1
