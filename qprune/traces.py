"""One forward and backward pass, seen from the targeted layers.

A trace holds, per targeted layer, what went in (inputs) and what the loss of each sample makes
of what came out (deltas). Every entry of a per-sample weight gradient is a sum of products
of the two, so that gradients at a block of weights, or their squares over a layer, need no
per-sample gradient of the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qprune.errors import CalibrationError, NonFiniteError
from qprune.layers import Layer, Layers
from qprune.losses import Loss


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs (m, ...) and what the loss compares their outputs with, targets (m, ...)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor) -> Samples:
        """The samples at ``indices``."""
        return Samples(self.inputs[indices], self.targets[indices])

    def batches(self, size: int) -> Iterator[Samples]:
        """Consecutive batches of at most ``size`` samples."""
        for inputs, targets in zip(self.inputs.split(size), self.targets.split(size), strict=True):
            yield Samples(inputs, targets)


@dataclass(frozen=True, eq=False)
class Call:
    """One use of one layer in one batch, as a matrix product per channel group.

    Attributes:
        inputs: shape (m, groups, tokens, cols).
        deltas: shape (m, groups, tokens, rows // groups), d loss_s / d output.
    """

    inputs: Tensor
    deltas: Tensor

    def gradients(self) -> Tensor:
        """Per-sample weight gradients, shape (m, rows, cols)."""
        full = self.deltas.transpose(-1, -2) @ self.inputs
        return full.flatten(1, 2)

    def squares(self) -> Tensor:
        """Sum over samples of squared per-sample gradients, shape (rows, cols)."""
        if self.inputs.shape[2] == 1:
            deltas, inputs = self.deltas[:, :, 0] ** 2, self.inputs[:, :, 0] ** 2
            return torch.einsum("mgr,mgc->grc", deltas, inputs).flatten(0, 1)
        rows, cols = self.deltas.shape[1] * self.deltas.shape[3], self.inputs.shape[3]
        total = self.deltas.new_zeros(rows, cols)
        for i, d in zip(*self._chunks(rows * cols), strict=True):
            total += Call(i, d).gradients().square_().sum(0)
        return total

    def columns(self, local: Tensor) -> Tensor:
        """Per-sample gradients at flat positions ``local`` (k,) of the weight, shape (m, k)."""
        cols = self.inputs.shape[-1]
        rows_per_group = self.deltas.shape[-1]
        row, col = local // cols, local % cols
        group, row = row // rows_per_group, row % rows_per_group
        if self.inputs.shape[2] == 1:
            return self.deltas[:, group, 0, row] * self.inputs[:, group, 0, col]
        weights = self.deltas.shape[1] * rows_per_group * cols
        if local.numel() * 16 > weights:
            # A matrix product over everything beats gathering a large part of it.
            return torch.cat(
                [
                    Call(i, d).gradients().flatten(1)[:, local]
                    for i, d in zip(*self._chunks(weights), strict=True)
                ]
            )
        per_sample = self.inputs.shape[2] * local.numel()
        return torch.cat(
            [
                torch.einsum(
                    "mtk,mtk->mk",
                    d[:, group, :, row].movedim(0, -1),
                    i[:, group, :, col].movedim(0, -1),
                )
                for i, d in zip(*self._chunks(per_sample), strict=True)
            ]
        )

    def _chunks(self, floats_per_sample: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        size = max(1, _CHUNK_FLOATS // max(1, floats_per_sample))
        return self.inputs.split(size), self.deltas.split(size)


_CHUNK_FLOATS = 1 << 24


@dataclass(frozen=True, eq=False)
class Trace:
    """What every targeted layer saw in one batch: calls per layer, in order of use."""

    calls: tuple[tuple[Call, ...], ...]
    num_samples: int

    def squares(self, layers: Layers) -> list[Tensor]:
        """Per layer, the sum over samples of squared per-sample gradients, (rows, cols)."""
        return [
            _joined(calls).squares() if calls else torch.zeros(layer.rows, layer.cols)
            for layer, calls in zip(layers, self.calls, strict=True)
        ]

    def columns(self, layers: Layers, indices: Tensor) -> Tensor:
        """Per-sample gradients at flat ``indices`` (n,), shape (m, n)."""
        reference = next(call for calls in self.calls for call in calls)
        out = reference.deltas.new_zeros(self.num_samples, indices.numel())
        position = {id(layer): i for i, layer in enumerate(layers)}
        for layer, where, local in layers.locate(indices):
            for call in self.calls[position[id(layer)]]:
                out[:, where] += call.columns(local)
        return out


def _joined(calls: Sequence[Call]) -> Call:
    """Several uses in one pass as one: a sample's gradient sums over uses as over tokens."""
    if len(calls) == 1:
        return calls[0]
    inputs, deltas = zip(*((call.inputs, call.deltas) for call in calls), strict=True)
    return Call(torch.cat(inputs, 2), torch.cat(deltas, 2))


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
                    _call(layer, inputs, delta, num_samples)
                    for (inputs, _), delta in zip(uses, remaining, strict=False)
                    if delta is not None
                )
                if uses
                else ()
            )
        return Trace(tuple(calls), num_samples)


def _call(layer: Layer, inputs: Tensor, deltas: Tensor, num_samples: int) -> Call:
    if len(inputs) % num_samples:
        raise CalibrationError(
            f"layer {layer.name!r} got inputs of shape {tuple(inputs.shape)} for {num_samples} "
            "samples; the first dimension must be the sample"
        )
    if isinstance(layer.module, nn.Conv2d):
        return _conv_call(layer.module, inputs, deltas, num_samples)
    return Call(
        inputs.reshape(num_samples, 1, -1, layer.cols),
        deltas.reshape(num_samples, 1, -1, layer.rows),
    )


def _conv_call(conv: nn.Conv2d, inputs: Tensor, deltas: Tensor, num_samples: int) -> Call:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = functional.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
    unfolded = functional.unfold(
        padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride
    )
    images, _, positions = unfolded.shape

    def by_token(columns: Tensor) -> Tensor:
        """(images, channels, positions) as (m, groups, images of a sample * positions, c)."""
        parts = columns.reshape(
            num_samples, -1, conv.groups, columns.shape[1] // conv.groups, positions
        )
        return parts.permute(0, 2, 1, 4, 3).flatten(2, 3)

    return Call(by_token(unfolded), by_token(deltas.reshape(images, -1, positions)))


@contextmanager
def differentiating(model: nn.Module, layers: Layers) -> Iterator[list[Tensor]]:
    """Evaluation mode with gradients for the targeted weights only; everything put back."""
    weights = [layer.module.weight for layer in layers]
    wanted = {id(weight) for weight in weights}
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


def outputs_of(model: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """The model's outputs on all inputs, without gradients, shape (m, ...)."""
    with torch.no_grad():
        return torch.cat([forward(model, batch) for batch in inputs.split(batch_size)])


def mean_loss(model: nn.Module, samples: Samples, loss: Loss, batch_size: int) -> float:
    """Mean loss over all samples, nats, accumulated in float64."""
    total = 0.0
    with torch.no_grad():
        for batch in samples.batches(batch_size):
            losses = loss.per_sample(forward(model, batch.inputs), batch.targets)
            total += losses.double().sum().item()
    return total / len(samples)


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """The model's output tensor for one batch (``.logits`` where it returns an object).

    Raises:
        CalibrationError: the model does not take such inputs, or returns no tensor per sample.
    """
    try:
        outputs = model(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"the model does not take calibration inputs of shape {tuple(inputs.shape)} and "
            f"type {inputs.dtype}: {error}"
        ) from error
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or len(outputs) != len(inputs):
        raise CalibrationError("the model must return one output per sample, first dimension")
    return outputs


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
