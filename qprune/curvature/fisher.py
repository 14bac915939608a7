"""Fisher matrices from per-sample gradients, gathered on the block only.

H = 1/m sum_s g_s g_s', g_s the gradient of the loss of sample s. With labels drawn from the
network's own output (`SampledFisher`), or with random signs over the classes
(`SketchedFisher`), its expectation is the Gauss-Newton matrix of the loss; with the loss itself
(`EmpiricalFisher`) it is the matrix of WoodFisher (Singh and Alistarh 2020, arXiv 2004.14340,
eq. 3) and of CBS (arXiv 2203.04466).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.curvature.expansion import Expansion
from qprune.errors import CalibrationError
from qprune.layers import Layers
from qprune.losses import Loss
from qprune.traces import Recorder, Samples, Trace, differentiating, forward, refuse_non_finite
from solvers import Dense, LowRank

# Traces of at most this many numbers are kept; larger ones are computed again for a round's blocks.
_KEEP_FLOATS = 1 << 28


_SampleLosses = Callable[[Tensor, Tensor], Tensor]


class PerSampleFisher(ABC):
    """H = 1/m sum_s g_s g_s'; a subclass says whose gradients the g_s are."""

    @abstractmethod
    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], _SampleLosses]:
        """For each pass anew: (outputs, targets) -> the numbers (m,) to be differentiated."""

    def expand(
        self,
        model: nn.Module,
        layers: Layers,
        samples: Samples,
        loss: Loss,
        *,
        batch_size: int,
        generator: torch.Generator,
    ) -> Expansion:
        """See `Curvature.expand`."""
        losses = self.losses(loss, generator)
        return _expand(model, layers, samples, loss, losses, batch_size)


@dataclass(frozen=True)
class SketchedFisher(PerSampleFisher):
    """The Gauss-Newton matrix of the loss, one gradient of random signs over classes a sample.

    The same expectation as `SampledFisher` at the same cost, with far less noise where the
    network is confident.
    """

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], _SampleLosses]:
        return _drawn(loss.sketched, generator)


@dataclass(frozen=True)
class SampledFisher(PerSampleFisher):
    """Per-sample gradients against labels drawn from the network's own output distribution."""

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], _SampleLosses]:
        return _drawn(loss.sampled, generator)


@dataclass(frozen=True)
class EmpiricalFisher(PerSampleFisher):
    """Per-sample gradients of the loss itself."""

    def losses(self, loss: Loss, generator: torch.Generator) -> Callable[[], _SampleLosses]:
        return lambda: loss.per_sample


def _drawn(
    losses: Callable[[Tensor, torch.Generator], Tensor], generator: torch.Generator
) -> Callable[[], _SampleLosses]:
    """Losses with random choices of their own, the same ones in every pass."""
    seed = int(torch.randint(2**62, (), generator=generator))

    def one_pass() -> _SampleLosses:
        # One stream over all batches of a pass: draws do not depend on their size.
        own = torch.Generator().manual_seed(seed)
        return lambda outputs, targets: losses(outputs, own)

    return one_pass


@dataclass(frozen=True, eq=False)
class _FisherBlocks:
    """Blocks of the Fisher matrix from kept or recomputed traces."""

    layers: Layers
    traces: Callable[[], Iterator[Trace]]
    sum_of_squares: Tensor
    num_samples: int

    def diagonal(self) -> Tensor:
        return self.sum_of_squares / self.num_samples

    def blocks(self, chosen: Sequence[Tensor]) -> list[Dense | LowRank]:
        # Traces that are too large to keep are made again: once for all blocks.
        together = torch.cat(list(chosen))
        columns = [trace.columns(self.layers, together) for trace in self.traces()]
        factor = torch.cat(columns).double() / self.num_samples**0.5
        return [
            LowRank(part.contiguous().cpu().numpy())
            for part in factor.split([len(indices) for indices in chosen], dim=1)
        ]


def _expand(
    model: nn.Module,
    layers: Layers,
    samples: Samples,
    loss: Loss,
    curvature_losses: Callable[[], _SampleLosses],
    batch_size: int,
) -> Expansion:
    kept: list[Trace] = []
    total = 0.0
    gradient = torch.zeros(layers.size, device=layers.device)
    squares = torch.zeros(layers.size, device=layers.device)
    floats = 0
    passes = _passes(model, layers, samples, loss, curvature_losses, batch_size, gradient)
    for trace, batch_loss in passes:
        total += batch_loss
        for part, square in zip(layers.split(squares), trace.squares(layers), strict=True):
            part.add_(square.flatten())
        floats += trace.num_floats
        if floats <= _KEEP_FLOATS:
            kept.append(trace)

    def recompute() -> Iterator[Trace]:
        again = _passes(model, layers, samples, loss, curvature_losses, batch_size, None)
        return (trace for trace, _ in again)

    traces = recompute if floats > _KEEP_FLOATS else lambda: iter(kept)
    blocks = _FisherBlocks(layers, traces, squares, len(samples))
    return Expansion(total / len(samples), gradient / len(samples), blocks.diagonal(), blocks)


def _passes(
    model: nn.Module,
    layers: Layers,
    samples: Samples,
    loss: Loss,
    curvature_losses: Callable[[], _SampleLosses],
    batch_size: int,
    gradient: Tensor | None,
) -> Iterator[tuple[Trace, float]]:
    """One (trace, summed loss) per batch; the summed gradient is added into ``gradient``."""
    losses_of = curvature_losses()
    for number, batch in enumerate(samples.batches(batch_size)):
        with differentiating(model, layers) as weights, Recorder(layers) as recorder:
            outputs = forward(model, batch.inputs)
            losses = loss.per_sample(outputs, batch.targets)
            refuse_non_finite(layers, recorder, losses.detach(), number)
            if not losses.requires_grad:
                raise CalibrationError(
                    "the loss does not depend on any targeted weight; look at targets and ignore"
                )
            if gradient is not None:
                parts = torch.autograd.grad(
                    losses.sum(), weights, retain_graph=True, allow_unused=True
                )
                for total, part in zip(layers.split(gradient), parts, strict=True):
                    if part is not None:
                        total.add_(part.flatten())
            sampled = losses_of(outputs, batch.targets)
            deltas = torch.autograd.grad(sampled.sum(), recorder.outputs(), allow_unused=True)
            trace = recorder.trace(deltas, len(batch))
        yield trace, losses.detach().double().sum().item()
