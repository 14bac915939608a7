"""Traces: inputs and derivatives of the targeted tensors in one forward and backward pass.

A trace holds, per targeted tensor, its inputs and the derivatives of each sample's loss by its
outputs (deltas). Every entry of a per-sample weight gradient is a sum of products
of the two, so that gradients at a block of weights, or their squares over a layer, need no
per-sample gradient of the whole model. A tensor is found by identity, not by the module that
holds it: every call of a torch function that takes it is recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from qprune.data.inputs import AnyInputs, called, mapped, tensors_of, token_mask
from qprune.distributed.ranks import ALONE, Parts, Ranks, is_lost
from qprune.distributed.workers import PerThread
from qprune.errors import CalibrationError, NonFiniteError, QpruneError
from qprune.network.layouts import evaluation_mode
from qprune.network.weights import Weight, Weights
from qprune.objective.losses import Loss
from qprune.objective.trace.derivable import derivable
from qprune.objective.trace.functions import Call, GivenCall, Use, seen, sum_of_squares
from qprune.results import Fault

logger = logging.getLogger(__name__)

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs with the targets of their outputs.

    Attributes:
        inputs: shape (m, ...), or several tensors of that kind.
        answers: targets, shape (m, ...); or a function of inputs that computes them on demand,
            since the dense logits of many tokens over a large vocabulary exceed memory.
        ranks: processes that share the batches; every rank has all the samples.
    """

    inputs: AnyInputs
    answers: Tensor | Callable[[AnyInputs], Tensor]
    ranks: Ranks = ALONE

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> Tensor:
        """Targets of the outputs, shape (m, ...)."""
        return self.answers if isinstance(self.answers, Tensor) else self.answers(self.inputs)

    def take(self, indices: Tensor) -> Samples:
        """Return the samples at ``indices``."""
        answers = self.answers[indices] if isinstance(self.answers, Tensor) else self.answers
        return Samples(self.inputs[indices], answers, self.ranks)

    def spread(self, number: int) -> Samples:
        """Return at most ``number`` of the samples, evenly spaced."""
        if len(self) <= number:
            return self
        return self.take(torch.arange(number) * len(self) // number)

    def batches(self, size: int) -> Iterator[Samples]:
        """Yield consecutive batches of at most ``size`` samples, each for one rank."""
        for indices in torch.arange(len(self)).split(size):
            first, last = int(indices[0]), int(indices[-1]) + 1
            answers = self.answers
            if isinstance(answers, Tensor):
                answers = answers[first:last]
            yield Samples(self.inputs[first:last], answers)


@dataclass(frozen=True, eq=False)
class Trace:
    """Trace of one batch: calls per tensor, in order of use."""

    calls: tuple[tuple[Call, ...], ...]
    num_samples: int

    @property
    def num_floats(self) -> int:
        """Count of numbers held in memory."""
        return sum(call.num_floats for calls in self.calls for call in calls)

    def multiplications(self, layers: Weights) -> int:
        """Return the multiplications of the calls in the forward pass.

        A tensor without recorded calls counts one per weight and position of the other
        tensors.
        """
        most = max((call.positions for calls in self.calls for call in calls), default=1)
        total = 0
        for layer, calls in zip(layers, self.calls, strict=True):
            for call in calls:
                places = most if isinstance(call, GivenCall) else call.positions
                total += self.num_samples * places * layer.size
        return total

    def squares(self, layers: Weights) -> Iterator[Tensor]:
        """Yield per tensor the sum over samples of squared per-sample gradients."""
        for layer, calls in zip(layers, self.calls, strict=True):
            if not calls:
                yield torch.zeros(layer.rows, layer.inputs)
            else:
                yield calls[0].squares() if len(calls) == 1 else sum_of_squares(calls)

    def columns(self, layers: Weights, indices: Tensor) -> Tensor:
        """Return per-sample gradients at flat ``indices`` (n,), shape (m, n)."""
        position = {id(layer): i for i, layer in enumerate(layers)}
        parts = [
            (where, call.columns(local))
            for layer, where, local in layers.locate(indices)
            for call in self.calls[position[id(layer)]]
        ]
        # In the network's precision, even where no tensor has an index.
        known = [call for calls in self.calls for call in calls]
        dtype = known[0].columns(indices[:0]).dtype if known else torch.float32
        out = torch.zeros(self.num_samples, indices.numel(), dtype=dtype)
        for where, part in parts:
            out[:, where] += part
        return out


class Recorder(TorchFunctionMode):
    """Context that records inputs and outputs of the targeted tensors.

    Attributes:
        layers: the targeted tensors.
        seen: per tensor, its uses in order: kind of use, inputs, outputs.
    """

    def __init__(self, layers: Weights) -> None:
        super().__init__()
        self.layers = layers
        self.seen: list[list[tuple[Use, Tensor, Tensor]]] = [[] for _ in layers]
        self._index = {id(layer.parameter): i for i, layer in enumerate(layers)}
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        if self.layers.sharded:
            # A sharded module has its whole weight, another tensor, only while it runs.
            self._handles = [
                layer.module.register_forward_pre_hook(self._whole(i))
                for i, layer in enumerate(self.layers)
            ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        use = seen(func, args, kwargs or {})
        index = None if use is None else self._index.get(id(use.weight))
        if use is None or index is None:
            return output
        if self.layers.sharded and torch.is_grad_enabled() and not output.requires_grad:
            # No weight requires gradients, so the graph begins here.
            output.requires_grad_()
        self.seen[index].append((use.use, use.inputs.detach(), output))
        # A copy, since a later in-place operation must not overwrite the output.
        return output.clone()

    def _whole(self, index: int):
        def hook(module: nn.Module, _: Any) -> None:
            self._index[id(module.weight)] = index

        return hook

    def outputs(self) -> list[Tensor]:
        """Return all differentiable recorded outputs, flat, in the order of the tensors."""
        return [out for uses in self.seen for _, _, out in uses if out.requires_grad]

    def rows(self, number: int, num_samples: int) -> tuple[int, ...] | None:
        """Return the rows of one sample in every use of a tensor; None if not a whole number."""
        lengths = [use.rows(inputs) for use, inputs, _ in self.seen[number]]
        if any(length % num_samples for length in lengths):
            return None
        return tuple(length // num_samples for length in lengths)

    def trace(
        self,
        deltas: Sequence[Tensor | None],
        num_samples: int,
        given: Mapping[int, Tensor] | None = None,
    ) -> Trace:
        """Return the trace of the recorded uses.

        Args:
            deltas: the gradients of `outputs`.
            num_samples: samples of the batch.
            given: per-sample gradients (m, size) to use instead, by the tensor's number.

        Raises:
            CalibrationError: a tensor was applied to inputs without whole rows per sample.
        """
        given = given or {}
        calls: list[tuple[Call, ...]] = []
        for number, uses in enumerate(self.uses(deltas)):
            if number in given:
                calls.append((GivenCall(_wide(given[number])),))
                continue
            for use, inputs, _ in uses:
                if use.rows(inputs) % num_samples:
                    raise CalibrationError(
                        f"layer {self.layers[number].name!r} got inputs of shape "
                        f"{tuple(inputs.shape)} for {num_samples} samples; the first dimension "
                        "must be the sample"
                    )
            calls.append(
                tuple(use.call(_wide(x), _wide(delta), num_samples) for use, x, delta in uses)
            )
        return Trace(tuple(calls), num_samples)

    def uses(self, deltas: Sequence[Tensor | None]) -> list[list[tuple[Use, Tensor, Tensor]]]:
        """Return per tensor its uses, inputs and the given gradients of `outputs`."""
        remaining = iter(deltas)
        found = [
            [(use, x, next(remaining)) for use, x, out in uses if out.requires_grad]
            for uses in self.seen
        ]
        return [[(u, x, d) for u, x, d in uses if d is not None] for uses in found]

    def gradients(self, deltas: Sequence[Tensor | None]) -> Parts:
        """Yield gradients by the weights, tensor by tensor, from the gradients of `outputs`.

        One at a time, to save memory; None for a tensor that was not used.
        """
        pairs = zip(self.layers, self.uses(deltas), strict=True)
        return (_summed(layer, uses) for layer, uses in pairs)


def _wide(tensor: Tensor) -> Tensor:
    """Return half precision as float32, since squares of gradients would underflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _summed(layer: Weight, uses: Sequence[tuple[Use, Tensor, Tensor]]) -> Tensor | None:
    total = None
    for use, inputs, delta in uses:
        part = use.gradient(inputs, delta, layer.shape)
        total = part if total is None else total + part
    return total


@contextmanager
def differentiating(model: nn.Module, layers: Weights) -> Generator[list[Tensor]]:
    """Set evaluation mode and gradients for the targeted weights only within the context.

    Sharded weights get no gradients; see `gradients_by_weight`.
    """
    weights = layers.parameters
    wanted = set() if layers.sharded else {id(weight) for weight in weights}
    before = [(p, p.requires_grad) for p in model.parameters()]
    sparse = [m for m in model.modules() if isinstance(m, EMBEDDINGS) and m.sparse]
    for parameter, _ in before:
        # Integer tensors cannot require gradients; setting the flag would raise.
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(id(parameter) in wanted)
    for module in sparse:
        module.sparse = False  # Sparse gradients can be neither indexed nor summed here.
    try:
        with evaluation_mode(model), derivable():
            yield weights
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
        for module in sparse:
            module.sparse = True


def recorder_if_needed(layers: Weights) -> AbstractContextManager[Recorder | None]:
    """Return a recorder if `gradients_by_weight` needs one."""
    return Recorder(layers) if layers.sharded else nullcontext()


def gradients_by_weight(
    losses: Tensor, weights: Sequence[Tensor], recorder: Recorder | None, *, again: bool
) -> Parts:
    """Return the gradient of the summed losses by every targeted weight, in layer order.

    Args:
        losses: shape (m,), made inside `differentiating`.
        weights: the weights that it yielded.
        recorder: recorder of the same pass.
        again: keep the graph for another differentiation.
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
    """Return the model's outputs on all inputs, without gradients, shape (m, ...)."""
    own = PerThread(lambda: ranks.own(model))
    with torch.no_grad():
        return torch.cat(
            ranks.gather(lambda _, batch: forward(own(), batch), inputs.split(batch_size))
        )


def mean_loss(model: nn.Module, samples: Samples, loss: Loss, batch_size: int) -> float:
    """Return the mean loss over all samples, nats, accumulated in float64."""
    own = PerThread(lambda: samples.ranks.own(model))

    def summed(_: int, batch: Samples) -> float:
        losses = loss.per_sample(forward(own(), batch.inputs), batch.targets)
        return losses.double().sum().item()

    total = 0.0
    with torch.no_grad():
        for part in samples.ranks.gather(summed, list(samples.batches(batch_size))):
            total += part
    return total / len(samples)


def forward(model: nn.Module, inputs: AnyInputs) -> Tensor:
    """Return the model's output tensor for one batch, zero at padding tokens.

    Among several outputs it is the one that `named_output` picks.

    Raises:
        CalibrationError: the model does not take such inputs, or returns no tensor per sample.
    """
    try:
        # On a copy: a network may change its inputs in place, and the next pass needs them.
        returned = called(model, mapped(inputs, torch.clone))
    except Exception as error:
        if isinstance(error, QpruneError) or out_of_memory(error) or is_lost(error):
            raise
        given = " and ".join(f"{tuple(t.shape)} ({t.dtype})" for t in tensors_of(inputs))
        raise CalibrationError(
            f"the model does not take calibration inputs of shape {given}: "
            f"{' '.join(str(error).split())}"
        ) from error
    _, outputs = named_output(returned)
    if not outputs.ndim or len(outputs) != len(inputs):
        raise CalibrationError(
            f"the model must return one output per sample, first dimension; for {len(inputs)} "
            f"samples it returned {tuple(outputs.shape)}: pass forward=lambda model, batch: ... "
            "that puts the samples first"
        )
    mask = token_mask(inputs)
    if mask is not None and outputs.ndim > 2 and outputs.shape[:2] == mask.shape:
        # Outputs at padding have no effect.
        outputs = outputs.masked_fill(~mask[(...,) + (None,) * (outputs.ndim - 2)], 0)
    return outputs


class _Called(nn.Module):
    """Wrapper of a model with one input value and one output tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: AnyInputs) -> Tensor:
        return forward(self.model, inputs)


def forward_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: AnyInputs) -> Tensor:
    """Call `forward` with some parameters and buffers replaced, by name."""
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Called(model), named, (inputs,))


#: Names of the compared output; the first one present is used.
OUTPUT_NAMES = ("logits", "out", "prediction_logits", "last_hidden_state", "output", "outputs")


def named_output(returned: Any) -> tuple[str, Tensor]:
    """Return the compared tensor among a model's outputs, and its name ("" if it has none).

    A tensor itself; from a mapping, an object or a named tuple the first of `OUTPUT_NAMES`, or its
    only tensor; from a plain tuple or list the first entry.

    Raises:
        CalibrationError: the outputs are ambiguous.
    """
    if isinstance(returned, Tensor):
        return "", returned
    named = _by_name(returned)
    tensors = [name for name, value in named.items() if isinstance(value, Tensor)]
    known = [name for name in OUTPUT_NAMES if name in tensors]
    if known or len(tensors) == 1:
        name = (known or tensors)[0]
        return name, named[name]
    first = returned[0] if not named and isinstance(returned, tuple | list) and returned else None
    if isinstance(first, Tensor) and first.ndim:
        return "the first", first
    found = ", ".join(map(repr, tensors)) or "no tensor"
    raise CalibrationError(
        f"the model returns a {type(returned).__name__} with {found}, and none of it is the output "
        "by name; wrap it: pass forward=lambda model, batch: model(batch)['the name']"
    )


def _by_name(returned: Any) -> Mapping[str, Any]:
    if isinstance(returned, Mapping):
        return returned
    if hasattr(returned, "_fields"):
        return returned._asdict()
    if is_dataclass(returned):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    return {name: getattr(returned, name) for name in OUTPUT_NAMES if hasattr(returned, name)}


def out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error; torch's CPU allocator has no type for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def halved(batch_size: int, error: BaseException) -> tuple[int, Fault]:
    """Return half the batch size after an out-of-memory error, and the fault to record.

    Raises:
        BaseException: ``error`` itself, if it is another error or the batch has one sample.
    """
    if not out_of_memory(error) or batch_size == 1:
        raise error
    what = " ".join(str(error).split())
    remedy = f"batch size {batch_size // 2}"
    logger.warning("out of memory (%s): going on with %s", what, remedy)
    return batch_size // 2, Fault("out of memory", what, remedy)


def refuse_non_finite(layers: Weights, recorder: Recorder, losses: Tensor, batch: int) -> None:
    """Raise for NaN or Inf in a batch's losses, naming the first layer that has it.

    Raises:
        NonFiniteError: with batch and layer.
    """
    if torch.isfinite(losses).all():
        return
    for layer, uses in zip(layers, recorder.seen, strict=True):
        for _, inputs, outputs in uses:
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
