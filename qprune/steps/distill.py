"""Distillation: kept weights follow the dense network's outputs by many small first-order steps.

A second-order step sees one expansion of a few samples and moves once. Where samples can be made
at will, as a language model writes its own text (`qprune.data.augment`), many cheap steps over
fresh samples go further for the same work. The optimiser is Adam (Kingma and Ba, arXiv 1412.6980);
the objective is that of Hinton et al. (arXiv 1503.02531) with the mask held, and whether a result
is taken is decided on the acceptance split, as for every other step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qprune.cost import Effort
from qprune.data.inputs import AnyInputs
from qprune.errors import ImpossibleRequestError
from qprune.network.weights import Weights
from qprune.objective.losses import Loss
from qprune.objective.samples import Objective
from qprune.objective.trace.recorder import differentiating, forward
from qprune.steps.compensate import Compensate, Compensation, MoveCost

# Number of parts of a batch, the same for any number of threads.
logger = logging.getLogger(__name__)

_PARTS = 8


@dataclass(frozen=True)
class Distillation:
    """Compensation by distillation; an implementation of `qprune.steps.compensate.Compensate`.

    Args:
        steps: optimiser steps in one call.
        samples_per_step: samples of one optimiser step.
        rate: peak length of a step, as a share of the root mean square of a layer's kept
            weights, so that one number suits models of any size.
        warmup: share of the steps over which the rate rises; then it falls along half a cosine.
        candidates: number of candidates offered in one call.
        final_steps: further calls after the last block.
        at_end: no calls before them.
        observe: progress callback: (optimiser steps done, steps in one call).

    Raises:
        ImpossibleRequestError: a number is out of range.

    Example:
        >>> Distillation(steps=100, samples_per_step=8).num_samples
        800
    """

    steps: int = 128
    samples_per_step: int = 8
    rate: float = 0.01
    warmup: float = 0.05
    candidates: int = 4
    final_steps: int = 0
    at_end: bool = False
    observe: Callable[[int, int], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("steps", "samples_per_step", "candidates"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ImpossibleRequestError(
                    f"{name} of Distillation must be a whole number of at least 1, not {value!r}"
                )
        if not 0 < self.rate < math.inf:
            raise ImpossibleRequestError(f"rate must be positive, not {self.rate!r}")

    @property
    def num_samples(self) -> int:
        """Number of samples that one call uses; a smaller set is used repeatedly."""
        return self.steps * self.samples_per_step

    def completed(self, effort: Effort) -> Distillation:
        """Return self: no field has a default that depends on effort."""
        return self

    def suited(self, model: nn.Module, layers: Weights, inputs: AnyInputs) -> Distillation:
        """Return self: a gradient is all that distillation needs."""
        return self

    def cost(self, drawn: int) -> MoveCost:
        """See `Compensate.cost`: the optimiser's two moments, gradients, the beginning."""
        return MoveCost(self.num_samples, self.samples_per_step, self.candidates, 40)

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
        began = layers.read()
        marks = {self.steps * (number + 1) // self.candidates for number in range(self.candidates)}
        order = _visits(len(samples), self.samples_per_step, generator)
        masks = layers.split(kept)
        # Small steps would be lost to rounding in half precision: they are taken in float32.
        masters = [_master(layer.parameter) for layer in layers]
        groups = [
            {"params": [master], "lr": self.rate * _size(part, mask)}
            for master, part, mask in zip(masters, layers.split(began), masks, strict=True)
        ]
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)
        for step in range(1, self.steps + 1):
            some = replace(
                objective,
                samples=samples.take(next(order)),
                batch_size=_parts_of(objective.batch_size),
            )
            gradient = some.gradient()
            for master, part in zip(masters, layers.split(gradient), strict=True):
                master.grad = part.view_as(master).to(master)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                pairs = zip(masters, layers.parameters, masks, strict=True)
                for master, weight, mask in pairs:
                    weight.copy_(master.mul_(mask.view_as(master)))
            if self.observe is not None:
                self.observe(step, self.steps)
            if step in marks:
                values = layers.read()
                yield values - began
                layers.write(values)

    def _share(self, step: int) -> float:
        """Return the share of the peak rate at ``step``, counted from 0."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, self.steps - rise)))


def _master(weight: Tensor) -> Tensor:
    """Return the weight itself, or a float32 copy of one in half precision."""
    if weight.dtype.itemsize >= 4:
        return weight
    return weight.detach().float().requires_grad_()


def _parts_of(batch_size: int) -> int:
    """Return the samples passed at once; fewer than a batch, so that threads and ranks share it."""
    return max(1, batch_size // _PARTS)


def _size(weights: Tensor, kept: Tensor) -> float:
    """Return the root mean square of the kept weights."""
    return float((weights.square().sum() / kept.sum().clamp(min=1)).sqrt())


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
    wanted = Compensation() if asked is True else asked
    if isinstance(wanted, Compensation) and not getattr(loss, "curved", True):
        logger.warning(
            "the loss %s has no second derivative, so that second-order steps cannot move kept "
            "weights: moving them by Distillation()",
            loss,
        )
        return Distillation()
    suited = wanted.suited(model, weights, inputs)
    if suited is None:
        logger.warning(
            "the network has no second derivatives, so that kept weights cannot be moved by "
            "%s: moving them by Distillation()",
            type(wanted).__name__,
        )
        return Distillation()
    return suited
