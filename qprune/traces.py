"""One forward and backward pass, seen from the targeted layers.

A trace holds, per targeted layer, what went in (inputs) and what the loss of each sample makes
of what came out (deltas). Every entry of a per-sample weight gradient is a sum of products
of the two, so that gradients at a block of weights, or their squares over a layer, need no
per-sample gradient of the whole model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qprune.calls import Call, make_call, sum_of_squares
from qprune.errors import CalibrationError, NonFiniteError
from qprune.inputs import AnyInputs, called, tensors_of
from qprune.layers import Layer, Layers
from qprune.losses import Loss
from qprune.ranks import ALONE, Parts, Ranks, is_lost
from qprune.sharding import weight_gradient
from qprune.steps import Fault

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and what the loss compares their outputs with.

    Attributes:
        inputs: shape (m, ...).
        answers: shape (m, ...); or a function of inputs that gives them when they are asked for,
            since the dense logits of many tokens over a large vocabulary fit into no memory.
        ranks: who passes which batch of them; every rank has all the samples.
    """

    inputs: AnyInputs
    answers: Tensor | Callable[[AnyInputs], Tensor]
    ranks: Ranks = ALONE

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> Tensor:
        """What the outputs are compared with, shape (m, ...)."""
        return self.answers if isinstance(self.answers, Tensor) else self.answers(self.inputs)

    def take(self, indices: Tensor) -> Samples:
        """The samples at ``indices``."""
        answers = self.answers[indices] if isinstance(self.answers, Tensor) else self.answers
        return Samples(self.inputs[indices], answers, self.ranks)

    def spread(self, number: int) -> Samples:
        """At most ``number`` of the samples, evenly spaced."""
        if len(self) <= number:
            return self
        return self.take(torch.arange(number) * len(self) // number)

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive batches of at most ``size`` samples, each for one rank."""
        for indices in torch.arange(len(self)).split(size):
            first, last = int(indices[0]), int(indices[-1]) + 1
            answers = self.answers
            if isinstance(answers, Tensor):
                answers = answers[first:last]
            yield Samples(self.inputs[first:last], answers)


@dataclass(frozen=True, eq=False)
class Trace:
    """What every targeted layer saw in one batch: calls per layer, in order of use."""

    calls: tuple[tuple[Call, ...], ...]
    num_samples: int

    @property
    def num_floats(self) -> int:
        """Numbers held, for memory."""
        return sum(c.inputs.numel() + c.deltas.numel() for calls in self.calls for c in calls)

    @property
    def multiplications(self) -> int:
        """Multiplications that the calls took in the forward pass."""
        return sum(c.deltas.numel() * c.shape[1] for calls in self.calls for c in calls)

    def squares(self, layers: Layers) -> Iterator[Tensor]:
        """Layer by layer, the sum over samples of squared per-sample gradients, (rows, cols)."""
        for layer, calls in zip(layers, self.calls, strict=True):
            if not calls:
                yield torch.zeros(layer.rows, layer.cols)
            else:
                yield calls[0].squares() if len(calls) == 1 else sum_of_squares(calls)

    def columns(self, layers: Layers, indices: Tensor) -> Tensor:
        """Per-sample gradients at flat ``indices`` (n,), shape (m, n)."""
        reference = next(call for calls in self.calls for call in calls)
        out = reference.deltas.new_zeros(self.num_samples, indices.numel())
        position = {id(layer): i for i, layer in enumerate(layers)}
        for layer, where, local in layers.locate(indices):
            for call in self.calls[position[id(layer)]]:
                out[:, where] += call.columns(local)
        return out


class Recorder:
    """Forward hooks that note the inputs and outputs of the targeted layers."""

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self.seen: list[list[tuple[Tensor, Tensor]]] = []

    def __enter__(self) -> Recorder:
        self.seen = [[] for _ in self.layers]
        self._handles = [
            layer.module.register_forward_hook(self._hook(i)) for i, layer in enumerate(self.layers)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.seen = []

    def _hook(self, index: int):
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if self.layers.sharded and torch.is_grad_enabled() and not output.requires_grad:
                # No weight asks for gradients: what is differentiated begins here.
                output.requires_grad_()
            self.seen[index].append((args[0].detach(), output))
            # A later in-place operation must not overwrite the output that is differentiated.
            return output.clone()

        return hook

    def outputs(self) -> list[Tensor]:
        """All noted outputs, flat, in layer order."""
        return [output for uses in self.seen for _, output in uses]

    def trace(self, deltas: Sequence[Tensor | None], num_samples: int) -> Trace:
        """The trace of the noted inputs and the given gradients of `outputs`."""
        remaining = iter(deltas)
        calls = []
        for layer, uses in zip(self.layers, self.seen, strict=True):
            calls.append(
                tuple(
                    make_call(layer, inputs, delta, num_samples)
                    for (inputs, _), delta in zip(uses, remaining, strict=False)
                    if delta is not None
                )
                if uses
                else ()
            )
        return Trace(tuple(calls), num_samples)

    def gradients(self, deltas: Sequence[Tensor | None]) -> Parts:
        """Gradients by the weights, layer by layer, from the gradients of `outputs`.

        One at a time, and never all of them; None for a layer that was not used.
        """
        remaining = iter(deltas)
        uses = [[(x, next(remaining)) for x, _ in seen] for seen in self.seen]
        return (_summed(layer, seen) for layer, seen in zip(self.layers, uses, strict=True))


def _summed(layer: Layer, uses: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor | None:
    total = None
    for inputs, delta in uses:
        if delta is not None:
            part = weight_gradient(layer.module, inputs, delta, layer.module.weight.shape)
            total = part if total is None else total + part
    return total


@contextmanager
def differentiating(model: nn.Module, layers: Layers) -> Iterator[list[Tensor]]:
    """Evaluation mode with gradients for the targeted weights only; everything put back.

    Sharded weights are not asked for gradients; see `gradients_by_weight`.
    """
    weights = [layer.module.weight for layer in layers]
    wanted = set() if layers.sharded else {id(weight) for weight in weights}
    before = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    model.eval()
    try:
        yield weights
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def recorder_if_needed(layers: Layers) -> AbstractContextManager[Recorder | None]:
    """A recorder where `gradients_by_weight` needs one."""
    return Recorder(layers) if layers.sharded else nullcontext()


def gradients_by_weight(
    losses: Tensor, weights: Sequence[Tensor], recorder: Recorder | None, *, again: bool
) -> Parts:
    """Gradient of the summed losses by every targeted weight, in layer order.

    Args:
        losses: shape (m,), made inside `differentiating`.
        weights: that it gave.
        recorder: of the same pass.
        again: whether something of the pass will be differentiated once more.
    """
    if recorder is None or not recorder.layers.sharded:
        return torch.autograd.grad(losses.sum(), weights, retain_graph=again, allow_unused=True)
    outputs = recorder.outputs()
    return recorder.gradients(
        torch.autograd.grad(losses.sum(), outputs, retain_graph=again, allow_unused=True)
    )


def outputs_of(
    model: nn.Module, inputs: AnyInputs, batch_size: int, ranks: Ranks = ALONE
) -> Tensor:
    """The model's outputs on all inputs, without gradients, shape (m, ...)."""
    with torch.no_grad():
        return torch.cat(
            ranks.gather(lambda _, batch: forward(model, batch), inputs.split(batch_size))
        )


def mean_loss(model: nn.Module, samples: Samples, loss: Loss, batch_size: int) -> float:
    """Mean loss over all samples, nats, accumulated in float64."""

    def summed(_: int, batch: Samples) -> float:
        losses = loss.per_sample(forward(model, batch.inputs), batch.targets)
        return losses.double().sum().item()

    total = 0.0
    with torch.no_grad():
        for part in samples.ranks.gather(summed, list(samples.batches(batch_size))):
            total += part
    return total / len(samples)


def forward(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """The model's output tensor for one batch (``.logits`` where it returns an object).

    Raises:
        CalibrationError: the model does not take such inputs, or returns no tensor per sample.
    """
    try:
        outputs = called(model, inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if out_of_memory(error) or is_lost(error):
            raise
        raise CalibrationError(
            f"the model does not take calibration inputs of shape "
            f"{tuple(tensors_of(inputs)[0].shape)} and type {tensors_of(inputs)[0].dtype}: {error}"
        ) from error
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or len(outputs) != len(inputs):
        raise CalibrationError("the model must return one output per sample, first dimension")
    return outputs


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory did not suffice; torch's CPU allocator has no own type."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def halved(batch_size: int, error: BaseException) -> tuple[int, Fault]:
    """Half the batch, for work that ran out of memory, and what to note of it.

    Raises:
        BaseException: ``error`` itself, where it is about something else or no batch is smaller.
    """
    if not out_of_memory(error) or batch_size == 1:
        raise error
    what = " ".join(str(error).split())
    remedy = f"batch size {batch_size // 2}"
    logger.warning("out of memory (%s): going on with %s", what, remedy)
    return batch_size // 2, Fault("out of memory", what, remedy)


def refuse_non_finite(layers: Layers, recorder: Recorder, losses: Tensor, batch: int) -> None:
    """Raise for NaN or Inf in a batch's losses, naming the first layer that has it.

    Raises:
        NonFiniteError: with batch and layer.
    """
    if torch.isfinite(losses).all():
        return
    for layer, uses in zip(layers, recorder.seen, strict=True):
        for inputs, outputs in uses:
            for what, tensor in (("inputs", inputs), ("outputs", outputs)):
                if not torch.isfinite(tensor).all():
                    raise NonFiniteError(
                        f"the {what} of layer {layer.name!r} hold NaN or Inf in calibration "
                        f"batch {batch}; look at the data and at that layer's weights"
                    )
    raise NonFiniteError(
        f"the loss is NaN or Inf in calibration batch {batch} though every layer is finite; "
        "look at the loss and its targets"
    )
