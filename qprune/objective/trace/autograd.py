"""Per-sample gradients of all targeted tensors: from a trace, or by autograd itself.

Autograd is used in one of three ways, the fastest first. All take the derivatives of the losses
by the outputs, and return the gradients of every sample's loss by some tensors: the sample's
transposed Jacobian times its derivative.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from qprune.data.inputs import AnyInputs, mapped, tensors_of
from qprune.network.weights import Weights
from qprune.objective.trace.recorder import Recorder, Trace, forward, forward_with

# Largest number of gradient entries in one vectorised pass; it limits the samples at once.
_CHUNK_FLOATS = 1 << 24


class Way(Protocol):
    """Protocol of a way to get per-sample gradients from autograd."""

    @property
    def name(self) -> str:
        """Short description."""
        ...

    def gradients(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        inputs: AnyInputs,
        outputs: Tensor,
        deltas: Tensor,
    ) -> list[Tensor]:
        """Return gradients of each sample's loss, shape (m, size) for each parameter.

        Args:
            model: inside `qprune.objective.trace.recorder.differentiating`.
            parameters: parameters by name.
            inputs: inputs of m samples.
            outputs: the model's outputs for them, with their graph.
            deltas: derivative of every sample's loss by its outputs, of their shape.
        """
        ...


@dataclass(frozen=True)
class Vectorised:
    """All samples in one pass (torch.func.vmap), which some networks do not support."""

    name: str = "vectorised"

    def gradients(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        inputs: AnyInputs,
        outputs: Tensor,
        deltas: Tensor,
    ) -> list[Tensor]:
        fixed = {name: parameter.detach() for name, parameter in parameters.items()}

        def one(delta: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            remaining = iter(tensors)
            sample = mapped(inputs, lambda _: next(remaining)[None])
            _, pull, *_ = vjp(lambda values: forward_with(model, values, sample), fixed)
            found = pull(delta[None])[0]
            return tuple(found[name] for name in fixed)

        size = max(1, _CHUNK_FLOATS // sum(p.numel() for p in fixed.values()))
        # No second graph: other tensors of the network require gradients, too.
        with torch.no_grad(), warnings.catch_warnings():
            # torch warns of operations that it does not vectorise.
            warnings.simplefilter("ignore")
            found = vmap(one, chunk_size=size)(deltas.detach(), *tensors_of(inputs))
        return [gradient.flatten(1) for gradient in found]


@dataclass(frozen=True)
class OneByOne:
    """One pass for each sample."""

    name: str = "one sample at a time"

    def gradients(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        inputs: AnyInputs,
        outputs: Tensor,
        deltas: Tensor,
    ) -> list[Tensor]:
        def alone() -> Iterator[tuple[Tensor, Tensor]]:
            for number in range(len(inputs)):
                at = slice(number, number + 1)
                yield forward(model, inputs[at]), deltas[at]

        return _stacked(alone(), list(parameters.values()), keep=False)


@dataclass(frozen=True)
class FromBatch:
    """One forward pass for all samples and one backward pass for each, where samples are mixed."""

    name: str = "one backward pass a sample"

    def gradients(
        self,
        model: nn.Module,
        parameters: dict[str, Tensor],
        inputs: AnyInputs,
        outputs: Tensor,
        deltas: Tensor,
    ) -> list[Tensor]:
        def parts() -> Iterator[tuple[Tensor, Tensor]]:
            for number in range(len(outputs)):
                part = torch.zeros_like(deltas)
                part[number] = deltas[number]
                yield outputs, part

        return _stacked(parts(), list(parameters.values()), keep=True)


#: The fastest first.
WAYS: tuple[Way, ...] = (Vectorised(), OneByOne(), FromBatch())


@dataclass(frozen=True)
class Traced:
    """Gradients of a tensor from the trace.

    Attributes:
        rows: rows of one sample, in every use of the tensor; the trace of a batch with other
            rows is not used.
    """

    rows: tuple[int, ...]

    @property
    def told(self) -> str:
        """Short description."""
        return "traced"


@dataclass(frozen=True)
class ByAutograd:
    """Gradients of a tensor by autograd.

    Attributes:
        way: way to ask autograd.
        reason: why the trace is not used.
    """

    way: Way
    reason: str

    @property
    def told(self) -> str:
        """Short description."""
        return f"by autograd, {self.way.name}: {self.reason}"


@dataclass(frozen=True)
class Unreached:
    """No gradient: the outputs do not depend on the tensor.

    Attributes:
        reason: short reason.
    """

    reason: str

    @property
    def told(self) -> str:
        """Short description."""
        return self.reason


Path = Traced | ByAutograd | Unreached


def trace_of(
    model: nn.Module,
    layers: Weights,
    inputs: AnyInputs,
    outputs: Tensor,
    recorder: Recorder,
    losses: Tensor,
) -> Trace:
    """Return the trace of one batch, completed by autograd where a tensor's path needs it.

    Args:
        model: inside `qprune.objective.trace.recorder.differentiating`.
        layers: the targeted tensors, examined (`qprune.objective.trace.preflight`).
        inputs: inputs of m samples.
        outputs: the model's outputs for them.
        recorder: recorder of the same pass.
        losses: losses to differentiate, shape (m,), made from ``outputs``.
    """
    ways = _ways(layers, recorder, len(inputs))
    wanted = [*recorder.outputs(), *([outputs] if ways else [])]
    found = torch.autograd.grad(losses.sum(), wanted, retain_graph=bool(ways), allow_unused=True)
    if not ways:
        return recorder.trace(found, len(inputs))
    *deltas, delta = found
    given: dict[int, Tensor] = {}
    for way in dict.fromkeys(ways.values()):
        chosen = [number for number, own in ways.items() if own == way]
        named = {layers[n].parameter_name: layers[n].parameter for n in chosen}
        if delta is None:
            rows = [torch.zeros(len(inputs), tensor.numel()) for tensor in named.values()]
        else:
            rows = way.gradients(model, named, inputs, outputs, delta)
        given |= dict(zip(chosen, rows, strict=True))
    return recorder.trace(deltas, len(inputs), given)


def _ways(layers: Weights, recorder: Recorder, num_samples: int) -> dict[int, Way]:
    """Return the way of autograd for each tensor that needs it in this batch, by number."""
    found = {}
    for number, layer in enumerate(layers):
        if isinstance(layer.path, ByAutograd):
            found[number] = layer.path.way
        elif isinstance(layer.path, Traced) and layer.path.rows != recorder.rows(
            number, num_samples
        ):
            found[number] = OneByOne()
    return found


def _stacked(
    passes: Iterator[tuple[Tensor, Tensor]], parameters: Sequence[Tensor], keep: bool
) -> list[Tensor]:
    """Return the gradients of every pass (outputs, their deltas), one row each."""
    rows: list[list[Tensor]] = [[] for _ in parameters]
    for outputs, delta in passes:
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if outputs.requires_grad:
            found = torch.autograd.grad(
                outputs, parameters, delta, retain_graph=keep, allow_unused=True
            )
        for row, parameter, gradient in zip(rows, parameters, found, strict=True):
            row.append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
    return [torch.stack(row) for row in rows]
