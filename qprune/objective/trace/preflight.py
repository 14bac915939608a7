"""Check before pruning that per-sample gradients are right, tensor by tensor.

On one batch of a few unequal samples, autograd's own gradients of every sample are compared with
those of the trace, for every targeted tensor. A tensor whose trace differs (a function that the
trace does not cover, rows that are not samples) is left to autograd; one that no gradient reaches
is reported, so that it is not taken for worthless. A sample's outputs must not depend on the
other samples of its batch, nor on chance.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from qprune.data.inputs import AnyInputs, tensors_of
from qprune.errors import CalibrationError, LeftDenseWarning, QpruneError
from qprune.network.weights import Weight, Weights
from qprune.objective.trace.autograd import (
    WAYS,
    ByAutograd,
    FromBatch,
    Path,
    Traced,
    Unreached,
    Way,
)
from qprune.objective.trace.functions import Use
from qprune.objective.trace.recorder import (
    Recorder,
    differentiating,
    forward,
    out_of_memory,
    refuse_non_finite,
)

logger = logging.getLogger(__name__)

# Samples of the batch; lengths of sequences are rarely multiples of it.
_SAMPLES = 5
# Samples searched for unequal ones, and for one that reaches a tensor.
_LOOKED_AT, _REACHED_AT = 64, 1024
# Largest number of gradients compared per tensor; of more, a random choice.
_ALL, _SOME = 1_000_000, 100_000
# Tolerance for rounding, as a share of the largest gradient of a sample. Half precision
# rounds each product; a wrong order of samples differs by about one.
_ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4}
_ROUNDING_OF_HALVES = 5e-2


def examined(model: nn.Module, layers: Weights, inputs: AnyInputs) -> Weights:
    """Return the tensors with the path of each one's per-sample gradients.

    Args:
        model: any module.
        layers: targeted tensors.
        inputs: samples; a few of them are passed.

    Raises:
        CalibrationError: the outputs depend on none of the tensors, on chance, or on other
            samples of the batch.
        NonFiniteError: NaN or Inf in the network's values.
    """
    inputs = _unequal(inputs)
    with differentiating(model, layers) as weights:
        recorder = Recorder(layers)
        with recorder:
            outputs = forward(model, inputs)
        refuse_non_finite(layers, recorder, outputs.detach(), 0)
        _refuse_mixing(model, inputs, outputs.detach())
        if layers.sharded:
            # Their gradients are added up over the ranks, and have no samples to compare.
            rows = (recorder.rows(n, len(inputs)) for n in range(len(layers)))
            return _with_paths(layers, [Traced(r or ()) for r in rows])
        if not outputs.requires_grad:
            raise CalibrationError(
                "the loss does not depend on any targeted weight; look at targets and ignore"
            )
        # A random weighting of all outputs, so that no gradient vanishes by chance.
        generator = torch.Generator().manual_seed(0)
        deltas = torch.randn(outputs.shape, generator=generator).to(outputs)
        truth = _Truth.of(layers, weights, outputs, deltas, generator)
        paths = _paths(model, layers, inputs, outputs, deltas, recorder, truth)
    return _with_paths(layers, paths)


def _with_paths(layers: Weights, paths: Sequence[Path]) -> Weights:
    items = [replace(layer, path=path) for layer, path in zip(layers, paths, strict=True)]
    return Weights(tuple(items), layers.coverage)


class _Truth:
    """Autograd's gradients of every sample at the compared entries.

    Attributes:
        at: per tensor, flat positions (k,).
        gradients: per tensor, shape (m, k); None where the outputs do not depend on it.
    """

    def __init__(self, at: list[Tensor], gradients: list[Tensor | None]) -> None:
        self.at, self.gradients = at, gradients

    @classmethod
    def of(
        cls,
        layers: Weights,
        weights: Sequence[Tensor],
        outputs: Tensor,
        deltas: Tensor,
        generator: torch.Generator,
    ) -> _Truth:
        """Compute them by one backward pass per sample; only the compared entries are kept."""
        at = [
            torch.arange(layer.size)
            if layer.size <= _ALL
            else torch.randint(layer.size, (_SOME,), generator=generator).unique()
            for layer in layers
        ]
        rows: list[list[Tensor | None]] = [[] for _ in layers]
        for number in range(len(outputs)):
            part = torch.zeros_like(deltas)
            part[number] = deltas[number]
            found = torch.autograd.grad(
                outputs, weights, part, retain_graph=True, allow_unused=True
            )
            for row, where, gradient in zip(rows, at, found, strict=True):
                row.append(None if gradient is None else gradient.reshape(-1)[where])
        stacked = [None if None in row else torch.stack(row) for row in rows]  # type: ignore
        return cls(at, stacked)

    def holds(self, number: int, columns: Tensor) -> bool:
        """Return True if ``columns`` (m, k) are the gradients of tensor ``number``."""
        truth = self.gradients[number]
        if truth is None:
            return False
        rounding = _ROUNDING.get(truth.dtype, _ROUNDING_OF_HALVES)
        difference = (columns - truth).double().norm(dim=1).max()
        return bool(difference <= rounding * truth.double().norm(dim=1).max())

    def reached(self, number: int) -> bool:
        """Return True if any gradient of a tensor is not zero."""
        truth = self.gradients[number]
        return truth is not None and bool(truth.any())


def _paths(
    model: nn.Module,
    layers: Weights,
    inputs: AnyInputs,
    outputs: Tensor,
    deltas: Tensor,
    recorder: Recorder,
    truth: _Truth,
) -> list[Path]:
    paths: list[Path | None] = []
    doubts: dict[int, str] = {}
    pairs = zip(
        _uses(recorder, outputs, deltas),
        _uses_backwards(model, layers, inputs, deltas),
        strict=True,
    )
    for number, (layer, (uses, backwards)) in enumerate(zip(layers, pairs, strict=True)):
        rows = recorder.rows(number, len(inputs))
        if not truth.reached(number):
            reason = _reason_unreached(layer, recorder, number, len(inputs))
            paths.append(Unreached(reason))
        elif not uses:
            doubts[number] = "used by a function that is not traced"
        elif rows is None:
            doubts[number] = "its rows are not those of whole samples"
        else:
            at, count = truth.at[number], len(inputs)
            if truth.holds(number, _columns(uses, at, count)) and truth.holds(
                number, _columns(backwards, at, count).flip(0)
            ):
                paths.append(Traced(rows))
            else:
                doubts[number] = "its trace differs from autograd's gradients"
        if number in doubts:
            paths.append(None)
    if doubts:
        way = _way(model, layers, inputs, outputs, deltas, truth, list(doubts))
        for number, reason in doubts.items():
            paths[number] = ByAutograd(way, reason)
    return [path for path in paths if path is not None]


def _uses(
    recorder: Recorder, outputs: Tensor, deltas: Tensor
) -> list[list[tuple[Use, Tensor, Tensor]]]:
    """Return per tensor its uses in the pass, with the derivative by each output."""
    noted = recorder.outputs()
    found = noted and torch.autograd.grad(
        outputs, noted, deltas, retain_graph=True, allow_unused=True
    )
    return recorder.uses(found)


def _uses_backwards(
    model: nn.Module, layers: Weights, inputs: AnyInputs, deltas: Tensor
) -> list[list[tuple[Use, Tensor, Tensor]]]:
    """Return `_uses` of the same samples in reverse order.

    A network that sorts its samples, by length or by expert, cannot leave both orders unchanged.
    """
    order = torch.arange(len(inputs)).flip(0)
    with Recorder(layers) as recorder:
        outputs = forward(model, inputs[order])
    return _uses(recorder, outputs, deltas[order])


def _columns(uses: list[tuple[Use, Tensor, Tensor]], at: Tensor, num_samples: int) -> Tensor:
    """Return per-sample gradients of one tensor at ``at`` (k,) by its trace, shape (m, k)."""
    parts = [
        use.call(inputs, delta, num_samples).columns(at)
        for use, inputs, delta in uses
        if use.rows(inputs) % num_samples == 0
    ]
    return torch.stack(parts).sum(0) if parts else torch.zeros(num_samples, len(at))


def _way(
    model: nn.Module,
    layers: Weights,
    inputs: AnyInputs,
    outputs: Tensor,
    deltas: Tensor,
    truth: _Truth,
    numbers: list[int],
) -> Way:
    """Return the fastest way that gives autograd's gradients."""
    named = {layers[n].parameter_name: layers[n].parameter for n in numbers}
    for way in WAYS[:-1]:
        try:
            found = way.gradients(model, named, inputs, outputs, deltas)
        except Exception as error:
            # The network may raise any error under vmap.
            if out_of_memory(error):
                raise
            logger.debug("per-sample gradients %s fail: %s", way.name, error)
            continue
        pairs = zip(numbers, found, strict=True)
        if all(truth.holds(n, gradients[:, truth.at[n]]) for n, gradients in pairs):
            return way
    return FromBatch()


def _reason_unreached(layer: Weight, recorder: Recorder, number: int, samples: int) -> str:
    uses = recorder.seen[number]
    if not uses:
        return "not used in the forward pass, or without gradients"
    if not any(output.requires_grad for _, _, output in uses):
        return "used without gradients (torch.no_grad or detach)"
    return "without any gradient: the outputs do not depend on it"


def reached(model: nn.Module, layers: Weights, inputs: AnyInputs, batch_size: int) -> Weights:
    """Return the tensors that some sample's gradient reaches; the others stay dense, by name.

    Args:
        model: any module.
        layers: examined tensors.
        inputs: all samples; searched until every tensor is reached, at most 1,024.
        batch_size: samples per pass.

    Raises:
        ImpossibleRequestError: no sample reaches any of the tensors.
    """
    waiting = {n: layer for n, layer in enumerate(layers) if isinstance(layer.path, Unreached)}
    if not waiting or layers.sharded:
        return layers
    items, looked = list(layers), 0
    for batch in inputs[:_REACHED_AT].split(batch_size):
        looked += len(batch)
        with differentiating(model, layers):
            outputs = forward(model, batch)
            deltas = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0))
            some = [layer.parameter for layer in waiting.values()]
            found = torch.autograd.grad(outputs, some, deltas.to(outputs), allow_unused=True)
        for number, gradient in zip(list(waiting), found, strict=True):
            if gradient is not None and gradient.any():
                path = ByAutograd(WAYS[1], "only some samples reach it")
                items[number] = replace(waiting.pop(number), path=path)
        if not waiting:
            break
    told = {
        layer.parameter_name: f"{layer.path.reason}, on {looked} calibration samples"
        for layer in waiting.values()
    }
    return (
        Weights(tuple(items), layers.coverage).without(told)
        if told
        else Weights(tuple(items), layers.coverage)
    )


def _unequal(inputs: AnyInputs) -> AnyInputs:
    """Return a few samples, distinct as far as possible."""
    chosen: list[int] = []
    tensors = tensors_of(inputs[:_LOOKED_AT])
    for number in range(len(tensors[0])):
        if not any(all(torch.equal(t[number], t[other]) for t in tensors) for other in chosen):
            chosen.append(number)
        if len(chosen) == _SAMPLES:
            break
    rest = [n for n in range(len(tensors[0])) if n not in chosen]
    return inputs[torch.tensor([*chosen, *rest[: max(0, 4 - len(chosen))]])]


def _refuse_mixing(model: nn.Module, inputs: AnyInputs, outputs: Tensor) -> None:
    """Refuse networks whose outputs for a sample are not a function of that sample.

    Raises:
        CalibrationError: they are random, or depend on the rest of the batch.
    """
    largest = float(outputs.abs().max())
    rounding = 10 * _ROUNDING.get(outputs.dtype, _ROUNDING_OF_HALVES) * largest
    with torch.no_grad():
        again = forward(model, inputs)
        if float((again - outputs).abs().max()) > rounding:
            raise CalibrationError(
                "the network is random: two passes over the same samples give different outputs; "
                "switch that off in evaluation mode (dropout and noise must ask self.training)"
            )
        order = torch.arange(len(inputs)).flip(0)[: math.ceil(len(inputs) / 2)]
        try:
            fewer = forward(model, inputs[order])
        except QpruneError:
            return  # The network accepts only this batch size.
    difference = float((fewer - outputs[order]).abs().max()) if len(order) else 0.0
    if fewer.shape != outputs[order].shape or difference > rounding:
        raise CalibrationError(
            "the outputs of a sample depend on the other samples in its batch (they differ by "
            f"{difference:.3g} of {largest:.3g}): is the first dimension of the inputs the sample? "
            "For time-major inputs pass forward=lambda model, batch: ... that turns them; batch "
            "norms need running statistics"
        )


def state_coverage(weights: Weights) -> None:
    """Log one line of what is targeted, and what has a slow path to its gradients.

    Warns (`LeftDenseWarning`) where something stays dense that nobody named.
    """
    coverage = weights.coverage
    assert coverage is not None
    logger.info("%s", coverage)
    if coverage.unasked:
        share = 100 * sum(tensor.size for tensor in coverage.unasked) / coverage.parameters
        warnings.warn(
            f"{share:.3g} % of the model's parameters are left dense: "
            f"{coverage.listed(coverage.unasked)}; name them in targets to prune them, or in "
            "ignore to leave them without this warning",
            LeftDenseWarning,
            stacklevel=2,
        )
    by_way: dict[str, list[str]] = {}
    for weight in weights:
        if isinstance(weight.path, ByAutograd):
            by_way.setdefault(weight.path.way.name, []).append(
                f"{weight.name} ({weight.path.reason})"
            )
    for way, names in by_way.items():
        logger.info("per-sample gradients by autograd, %s, which is slower: %s", way, names)
