"""One forward and backward pass, seen from the targeted tensors.

A trace holds, per targeted tensor, what went in (inputs) and what the loss of each sample makes
of what came out (deltas). Every entry of a per-sample weight gradient is a sum of products
of the two, so that gradients at a block of weights, or their squares over a layer, need no
per-sample gradient of the whole model. A tensor is found by what it is, not by the module that
holds it: every call of a function of torch that takes it is seen, whoever makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from qprune.calls import Call, GivenCall, Use, seen, sum_of_squares
from qprune.derivable import derivable
from qprune.errors import CalibrationError, NonFiniteError, QpruneError
from qprune.inputs import AnyInputs, called, mapped, tensors_of, token_mask
from qprune.layers import Layer, Layers
from qprune.losses import Loss
from qprune.ranks import ALONE, Parts, Ranks, is_lost
from qprune.steps import Fault
from qprune.workers import PerThread

logger = logging.getLogger(__name__)

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and what the loss compares their outputs with.

    Attributes:
        inputs: shape (m, ...), or several tensors of that kind.
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
    """What every targeted tensor saw in one batch: calls per tensor, in order of use."""

    calls: tuple[tuple[Call, ...], ...]
    num_samples: int

    @property
    def num_floats(self) -> int:
        """Numbers held, for memory."""
        return sum(call.num_floats for calls in self.calls for call in calls)

    def multiplications(self, layers: Layers) -> int:
        """Multiplications that the calls took in the forward pass.

        Of a tensor that autograd alone sees, one for each of its weights and places of the
        others.
        """
        most = max((call.positions for calls in self.calls for call in calls), default=1)
        total = 0
        for layer, calls in zip(layers, self.calls, strict=True):
            for call in calls:
                places = most if isinstance(call, GivenCall) else call.positions
                total += self.num_samples * places * layer.size
        return total

    def squares(self, layers: Layers) -> Iterator[Tensor]:
        """Tensor by tensor, the sum over samples of squared per-sample gradients."""
        for layer, calls in zip(layers, self.calls, strict=True):
            if not calls:
                yield torch.zeros(layer.rows, layer.cols)
            else:
                yield calls[0].squares() if len(calls) == 1 else sum_of_squares(calls)

    def columns(self, layers: Layers, indices: Tensor) -> Tensor:
        """Per-sample gradients at flat ``indices`` (n,), shape (m, n)."""
        position = {id(layer): i for i, layer in enumerate(layers)}
        parts = [
            (where, call.columns(local))
            for layer, where, local in layers.locate(indices)
            for call in self.calls[position[id(layer)]]
        ]
        # Of the precision that the network computes in, even where no tensor is touched.
        known = [call for calls in self.calls for call in calls]
        dtype = known[0].columns(indices[:0]).dtype if known else torch.float32
        out = torch.zeros(self.num_samples, indices.numel(), dtype=dtype)
        for where, part in parts:
            out[:, where] += part
        return out


class Recorder(TorchFunctionMode):
    """Notes, inside, what the targeted tensors are applied to and what comes out.

    Attributes:
        layers: the targeted tensors.
        seen: per tensor, its uses in order: the way, the inputs, the outputs.
    """

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.layers = layers
        self.seen: list[list[tuple[Use, Tensor, Tensor]]] = [[] for _ in layers]
        self._index = {id(layer.parameter): i for i, layer in enumerate(layers)}
        self._handles: list[Any] = []

    def __enter__(self) -> Recorder:
        if self.layers.sharded:
            # Such a module has its whole weight, another tensor, only while it runs.
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
            # No weight asks for gradients: what is differentiated begins here.
            output.requires_grad_()
        self.seen[index].append((use.use, use.inputs.detach(), output))
        # A later in-place operation must not overwrite the output that is differentiated.
        return output.clone()

    def _whole(self, index: int):
        def hook(module: nn.Module, _: Any) -> None:
            self._index[id(module.weight)] = index

        return hook

    def outputs(self) -> list[Tensor]:
        """All noted outputs that can be differentiated, flat, in the order of the tensors."""
        return [out for uses in self.seen for _, _, out in uses if out.requires_grad]

    def rows(self, number: int, num_samples: int) -> tuple[int, ...] | None:
        """Rows of one sample in every use of a tensor; None where samples have no whole rows."""
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
        """The trace of what was noted.

        Args:
            deltas: the gradients of `outputs`.
            num_samples: of the batch.
            given: per-sample gradients (m, size) that count instead, by the tensor's number.

        Raises:
            CalibrationError: a tensor was applied to what are no whole rows of each sample.
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
        """Per tensor: the way, the inputs and the given gradients of `outputs`."""
        remaining = iter(deltas)
        found = [
            [(use, x, next(remaining)) for use, x, out in uses if out.requires_grad]
            for uses in self.seen
        ]
        return [[(u, x, d) for u, x, d in uses if d is not None] for uses in found]

    def gradients(self, deltas: Sequence[Tensor | None]) -> Parts:
        """Gradients by the weights, tensor by tensor, from the gradients of `outputs`.

        One at a time, and never all of them; None for a tensor that was not used.
        """
        pairs = zip(self.layers, self.uses(deltas), strict=True)
        return (_summed(layer, uses) for layer, uses in pairs)


def _wide(tensor: Tensor) -> Tensor:
    """Half precision in float32: squares of gradients would not be far enough from zero in it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _summed(layer: Layer, uses: Sequence[tuple[Use, Tensor, Tensor]]) -> Tensor | None:
    total = None
    for use, inputs, delta in uses:
        part = use.gradient(inputs, delta, layer.shape)
        total = part if total is None else total + part
    return total


@contextmanager
def differentiating(model: nn.Module, layers: Layers) -> Iterator[list[Tensor]]:
    """Evaluation mode with gradients for the targeted weights only; everything put back.

    Sharded weights are not asked for gradients; see `gradients_by_weight`.
    """
    weights = layers.parameters
    wanted = set() if layers.sharded else {id(weight) for weight in weights}
    before = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(m, m.training) for m in model.modules()]
    sparse = [m for m in model.modules() if isinstance(m, EMBEDDINGS) and m.sparse]
    for parameter, _ in before:
        # Integers cannot ask for gradients, and are not to be told that they need not.
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(id(parameter) in wanted)
    model.eval()
    for module in sparse:
        module.sparse = False  # Sparse gradients can be neither indexed nor added up here.
    try:
        with derivable():
            yield weights
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        for module in sparse:
            module.sparse = True


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
    own = PerThread(lambda: ranks.own(model))
    with torch.no_grad():
        return torch.cat(
            ranks.gather(lambda _, batch: forward(own(), batch), inputs.split(batch_size))
        )


def mean_loss(model: nn.Module, samples: Samples, loss: Loss, batch_size: int) -> float:
    """Mean loss over all samples, nats, accumulated in float64."""
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
    """The model's output tensor for one batch, zero at tokens that are padding.

    Of several outputs it is the one that `named_output` picks.

    Raises:
        CalibrationError: the model does not take such inputs, or returns no tensor per sample.
    """
    try:
        # Of a copy: a network may change its inputs in place, and the next pass needs them.
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
        # Nothing is asked of what the model says about padding.
        outputs = outputs.masked_fill(~mask[(...,) + (None,) * (outputs.ndim - 2)], 0)
    return outputs


class _Called(nn.Module):
    """A model that takes its inputs as one value, and gives the output that counts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: AnyInputs) -> Tensor:
        return forward(self.model, inputs)


def forward_with(model: nn.Module, tensors: Mapping[str, Tensor], inputs: AnyInputs) -> Tensor:
    """`forward` with other tensors in the place of some parameters and buffers, by their names."""
    named = {f"model.{name}": tensor for name, tensor in tensors.items()}
    return functional_call(_Called(model), named, (inputs,))


#: Names of the output that is compared, the first that is there.
OUTPUT_NAMES = ("logits", "out", "prediction_logits", "last_hidden_state", "output", "outputs")


def named_output(returned: Any) -> tuple[str, Tensor]:
    """The tensor that counts of what a model returned, and its name ("" where it has none).

    A tensor itself; of a mapping, an object or a named tuple the first of `OUTPUT_NAMES`, or its
    only tensor; of a plain tuple or list the first entry.

    Raises:
        CalibrationError: none can be named.
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
