"""Distillation: kept weights follow the dense network's outputs by many small first-order steps.

A second-order step sees one expansion of a few samples and moves once. Where samples can be made
at will, as a language model writes its own text (`qprune.data.augment`), many cheap steps over
fresh samples go further for the same work (`qprune.moving.adam`). The objective is that of Hinton
et al. (arXiv 1503.02531) with the mask held, and whether a result is taken is decided on the
acceptance split, as for every other step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from qprune.cost import THOROUGH, Effort
from qprune.data.inputs import AnyInputs
from qprune.errors import ImpossibleRequestError, QpruneError
from qprune.moving.adam import Adam
from qprune.moving.compensate import Compensate, Compensation, MoveCost, as_compensate
from qprune.network.layouts import evaluation_mode
from qprune.network.statistics import (
    by_batch,
    free_affine_of,
    norms_of,
    statistics_of,
    take_again,
    write_statistics,
)
from qprune.network.weights import Weights
from qprune.objective.losses import Loss
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import Samples, differentiating, forward, outputs_of

logger = logging.getLogger(__name__)

# Number of parts of a batch, the same for any number of threads.
_PARTS = 8
# Fewer samples than this have no mean and variance of use to BatchNorm.
_NORMALISED = 16
# Change of the dense outputs by new statistics, as a share of their spread, that does no harm.
_ALIKE = 0.2
# Samples of its running statistics, and those of one pass.
_COUNTED, _COUNTED_AT_ONCE = 1024, 128


@dataclass(frozen=True)
class Distillation:
    """Compensation by distillation; an implementation of `qprune.moving.compensate.Compensate`.

    The rate stays at its peak after the first pass of every stage but the last, and falls along
    half a cosine to zero after that one, over a longer call. Passes are normalised by the
    statistics of their own batch where BatchNorm keeps running ones; those are taken again before a
    candidate is judged, and scales and shifts move too, but for frozen ones.

    Args:
        steps: optimiser steps in one call; None = by the network's size (`qprune.cost`).
        samples_per_step: samples of one optimiser step; None = by the network's size.
        rate: peak length of a step, as a share of the root mean square of a layer's kept
            weights, so that one number suits models of any size.
        warmup: share of the steps over which the rate rises.
        candidates: number of candidates offered in one call.
        final_steps: further calls after the last block.
        at_end: no calls before them.
        last: steps after the first pass of the last stage, as a multiple of those of all stages.
        end: share of the peak rate at which a call ends.
        between: the same after the first pass of every stage but the last; one = it stays.
        by_batch: whether that is done to BatchNorm; None = where the dense network hardly minds
            that the running statistics are taken again on the calibration samples.
        precision: of the passes, such as ``torch.bfloat16``, where the processor has it about
            twice as fast; weights stay in float32. None = as the model is.
        observe: progress callback: (optimiser steps done, steps in one call).

    Raises:
        ImpossibleRequestError: a number is out of range.

    Example:
        >>> Distillation(steps=100, samples_per_step=8).at(stage=4, stages=5).steps
        750
    """

    steps: int | None = None
    samples_per_step: int | None = None
    rate: float = 0.02
    warmup: float = 0.05
    candidates: int = 4
    final_steps: int = 0
    at_end: bool = False
    last: float = 1.5
    end: float = 0.0
    between: float = 1.0
    by_batch: bool | None = None
    precision: torch.dtype | None = None
    observe: Callable[[int, int], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("steps", "samples_per_step", "candidates"):
            value = getattr(self, name)
            if value is None and name != "candidates":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ImpossibleRequestError(
                    f"{name} of Distillation must be a whole number of at least 1, not {value!r}"
                )
        for name in ("rate", "last"):
            if not 0 < getattr(self, name) < math.inf:
                raise ImpossibleRequestError(
                    f"{name} must be positive, not {getattr(self, name)!r}"
                )
        for name in ("warmup", "end", "between"):
            if not 0 <= getattr(self, name) <= 1:
                raise ImpossibleRequestError(
                    f"{name} of Distillation is a share, from 0 to 1, not {getattr(self, name)!r}"
                )
        if self.precision not in (None, torch.bfloat16, torch.float16):
            raise ImpossibleRequestError(
                "precision of Distillation must be torch.bfloat16, torch.float16 or None, not "
                f"{self.precision!r}"
            )

    @property
    def num_samples(self) -> int:
        """Number of samples that one call uses; a smaller set is used repeatedly."""
        steps, samples_per_step = self._sizes
        return steps * samples_per_step

    @property
    def _sizes(self) -> tuple[int, int]:
        """(steps, samples of one); those of a small network where nothing is known of it."""
        return self.steps or THOROUGH.moves, self.samples_per_step or THOROUGH.samples_per_move

    def completed(self, effort: Effort) -> Distillation:
        """Return a copy with the defaults of ``effort`` for all that is None."""
        return replace(
            self,
            steps=self.steps or effort.moves,
            samples_per_step=self.samples_per_step or effort.samples_per_move,
        )

    def at(self, stage: int, stages: int) -> Distillation:
        """See `Compensate.at`: one schedule over all stages."""
        if stages == 1:
            return self
        if stage < stages - 1:
            return replace(self, end=self.between, candidates=1)
        return replace(self, steps=max(1, round(self.last * stages * self._sizes[0])))

    def suited(self, model: nn.Module, layers: Weights, inputs: AnyInputs) -> Distillation:
        """Return a copy that knows whether BatchNorm's statistics may follow the batches."""
        known, some = statistics_of(model), inputs[:_COUNTED]
        if self.by_batch is not None or known is None or len(some) < _NORMALISED or layers.sharded:
            return replace(self, by_batch=self.by_batch or False)
        expected = outputs_of(model, some, _COUNTED_AT_ONCE)
        _retake(model, some)
        found = outputs_of(model, some, _COUNTED_AT_ONCE)
        write_statistics(model, known)
        change, spread = (
            float((one - expected).double().square().mean()) for one in (found, expected.roll(1, 0))
        )
        logger.info(
            "BatchNorm's statistics of the samples change outputs by %.1e of their spread",
            change / spread if spread else 0.0,
        )
        return replace(self, by_batch=change <= _ALIKE * spread)

    def cost(self, drawn: int) -> MoveCost:
        """See `Compensate.cost`: values, moments, rates, gradients, the beginning."""
        return MoveCost(self.num_samples, self._sizes[1], self.candidates, 40)

    def probe(self, objective: Objective) -> object:
        """See `Compensate.probe`: one backward pass."""
        samples, loss = objective.samples, objective.loss
        with differentiating(objective.model, objective.weights) as weights:
            losses = loss.per_sample(forward(objective.model, samples.inputs), samples.targets)
            return torch.autograd.grad(losses.sum(), weights, allow_unused=True)

    def moves(
        self, objective: Objective, kept: Tensor, generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Candidate moves of all targeted weights, shape (N,), zero where pruned."""
        layers, samples = objective.weights, objective.samples
        steps, samples_per_step = self._sizes
        passes = _Passes.of(objective, samples_per_step, self)
        order = _visits(len(samples), samples_per_step, generator)
        began = layers.read()
        adam = Adam.at(began, layers, kept, passes.others, self.rate)
        marks = [steps * number // self.candidates for number in range(self.candidates + 1)]
        for first, last in pairwise(marks):
            with passes.gradients() as gradient:
                for step in range(first, last):
                    adam.step(gradient(next(order)), self._share(step, steps))
                    passes.write(adam.values)
                    if self.observe is not None:
                        self.observe(step + 1, steps)
            if first < last:
                passes.take_statistics_again()
                yield adam.values[: layers.size].to(began) - began
                passes.write(adam.values)

    def _share(self, step: int, steps: int) -> float:
        """Return the share of the peak rate at ``step`` of ``steps``, counted from 0."""
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return (step + 1) / rise
        fallen = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
        return self.end + (1 - self.end) * fallen


@dataclass(frozen=True, eq=False)
class _Passes:
    """Passes over the samples of a step: in equal parts, so that threads and ranks share them.

    Attributes:
        objective: with the size of a part.
        by_batch: whether BatchNorm takes the statistics of a part.
        channels_last: whether images are passed with their channels last in memory.
        others: BatchNorm's scales and shifts, which move too.
        precision: see `Distillation`.
    """

    objective: Objective
    by_batch: bool
    channels_last: bool
    others: Sequence[nn.Parameter]
    precision: torch.dtype | None

    @classmethod
    def of(cls, objective: Objective, samples_per_step: int, asked: Distillation) -> _Passes:
        """Suited to the network; the same for any number of threads."""
        size = max(1, objective.batch_size // _PARTS)
        number = min(samples_per_step, len(objective.samples))
        by_batch = bool(asked.by_batch and norms_of(objective.model)) and number >= _NORMALISED
        if by_batch:
            size = max(size, min(objective.batch_size, 2 * _NORMALISED))
            size = math.ceil(number / max(1, number // size))
        return cls(
            objective=replace(objective, batch_size=size),
            by_batch=by_batch,
            channels_last=_takes_channels_last(objective),
            others=free_affine_of(objective.model) if by_batch else (),
            precision=asked.precision,
        )

    @contextmanager
    def gradients(self) -> Generator[Callable[[Tensor], Tensor]]:
        """The function indices of samples -> gradient by weights and others."""
        samples, model = self.objective.samples, self.objective.model
        ready = self.objective.differentiable(self.others, self.precision)
        with ready as gradient, ExitStack() as stack:
            if self.by_batch:
                stack.enter_context(by_batch(model))
            yield lambda indices: gradient(self._laid_out(samples.take(indices)))

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Set the weights and the others from one vector."""
        weights = self.objective.weights
        weights.write(values[: weights.size])
        parts = values[weights.size :].split([tensor.numel() for tensor in self.others])
        for tensor, part in zip(self.others, parts if self.others else (), strict=True):
            tensor.copy_(part.view_as(tensor))

    def take_statistics_again(self) -> None:
        """Take BatchNorm's running statistics at the model's weights, where they are not used."""
        if self.by_batch:
            given = self.objective.given_inputs
            few = len(given) < _COUNTED_AT_ONCE
            _retake(self.objective.model, self.objective.samples.inputs if few else given)

    def _laid_out(self, samples: Samples) -> Samples:
        if not self.channels_last:
            return samples
        inputs = cast(Tensor, samples.inputs).contiguous(memory_format=torch.channels_last)
        return replace(samples, inputs=inputs)


def _retake(model: nn.Module, inputs: AnyInputs) -> None:
    """Take BatchNorm's running statistics again on some of ``inputs``, in equal batches."""
    number = min(len(inputs), _COUNTED)
    inputs = inputs[torch.arange(number) * len(inputs) // number]
    parts = max(1, len(inputs) // _COUNTED_AT_ONCE)
    batches = [inputs[indices] for indices in torch.arange(len(inputs)).chunk(parts)]
    with evaluation_mode(model):
        take_again(model, partial(forward, model), batches)


def _takes_channels_last(objective: Objective) -> bool:
    """True if the network gives the same for images with their channels last in memory.

    Convolutions are faster so; but a network that takes views of its activations may refuse them.
    """
    inputs, model = objective.samples.inputs[:2], objective.model
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] == 1:
        return False
    try:
        with torch.no_grad(), evaluation_mode(model):
            expected = forward(model, inputs)
            found = forward(model, inputs.contiguous(memory_format=torch.channels_last))
    except (QpruneError, RuntimeError):
        return False
    return torch.allclose(expected, found, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _visits(number: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield ``size`` sample indices at a time: all in random order before any repeats."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(number, generator=generator)])
        taken, waiting = waiting[:size], waiting[size:]
        yield taken


def compensation_for(
    asked: bool | Compensate, model: nn.Module, weights: Weights, inputs: AnyInputs, loss: Loss
) -> Compensate | None:
    """The compensation that suits a network and a loss; None = kept weights stay.

    Args:
        asked: True for `Compensation`, False for none, or a strategy.
        model: dense.
        weights: the targeted ones.
        inputs: calibration samples; some of them are passed.
        loss: of the run.
    """
    if not asked:
        return None
    wanted = Compensation() if asked is True else as_compensate(asked)
    if isinstance(wanted, Compensation) and not getattr(loss, "curved", True):
        reason = f"the loss {loss} has no second derivative, so that second-order steps cannot move"
    else:
        suited = wanted.suited(model, weights, inputs)
        if suited is not None:
            return suited
        name = type(wanted).__name__
        reason = f"the network has no second derivatives, so that {name} cannot move"
    logger.warning("%s kept weights: moving them by Distillation()", reason)
    return Distillation().suited(model, weights, inputs)
