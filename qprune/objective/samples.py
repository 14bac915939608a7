"""Samples of a run: splits to fit and to accept on, with the dense network's outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from qprune.data.augment import Augmentation, natural
from qprune.data.calibration import Calibration
from qprune.data.inputs import AnyInputs, Inputs, called, mapped
from qprune.data.outputs import Real
from qprune.distributed.ranks import ALONE, Ranks
from qprune.distributed.sharding import is_sharded
from qprune.distributed.workers import PerThread
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.network.weights import Weights
from qprune.objective.losses import Loss
from qprune.objective.trace.autograd import ByAutograd
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    differentiating,
    forward,
    halved,
    named_output,
    outputs_of,
)
from qprune.results import Fault
from qprune.walk.request import Request

logger = logging.getLogger(__name__)

# Number of samples used to recognise outputs; fewer where they are large.
_LOOKED_AT, _LOOKED_AT_TOGETHER, _LOOKED_AT_FLOATS = 32, 8, 1 << 22

#: Names of outputs that are no logits.
HIDDEN_STATES = ("last_hidden_state",)

#: Dense outputs of at most this many numbers are kept; larger ones are computed when needed.
KEEP_OUTPUTS = 1 << 26


@dataclass(frozen=True)
class SampleSize:
    """Cost and memory of one sample's pass.

    Attributes:
        multiplications: multiplications of the targeted layers.
        floats: numbers in the trace and the outputs.
        outputs: numbers in the outputs.
    """

    multiplications: int
    floats: int
    outputs: int


def sample_size(model: nn.Module, layers: Weights, data: Calibration) -> SampleSize:
    """Measure it on the first two samples, since some networks take no batch of one."""
    inputs = data.inputs[:2]
    number = len(inputs)
    with differentiating(model, layers), Recorder(layers) as recorder:
        made = forward(model, inputs).numel() // number
    given = {
        index: torch.empty(number, layer.size, device="meta")
        for index, layer in enumerate(layers)
        if isinstance(layer.path, ByAutograd)
    }
    trace = recorder.trace([output.detach() for output in recorder.outputs()], number, given)
    floats = trace.num_floats // number + made
    return SampleSize(trace.multiplications(layers) // number, floats, made)


@dataclass(frozen=True, eq=False)
class DenseNetwork:
    """Network before pruning.

    Attributes:
        model: the dense model.
        outputs: numbers in one sample's outputs.
        batch_size: samples per forward pass.
        ranks: processes that share the batches.
    """

    model: nn.Module
    outputs: int
    batch_size: int
    ranks: Ranks = ALONE

    @cached_property
    def _copy(self) -> nn.Module:
        return copy.deepcopy(self.model).eval().requires_grad_(False)

    def answers(self, inputs: AnyInputs) -> Tensor | Callable[[AnyInputs], Tensor]:
        """Return its outputs; if too many to keep, a function that computes them from a copy.

        Raises:
            ImpossibleRequestError: they are too many, and a sharded model cannot be copied.
        """
        if len(inputs) * self.outputs <= KEEP_OUTPUTS:
            return outputs_of(self.model, inputs, self.batch_size, self.ranks)
        if any(is_sharded(parameter) for parameter in self.model.parameters()):
            raise ImpossibleRequestError(
                f"the dense outputs of {len(inputs)} samples are {len(inputs) * self.outputs} "
                f"numbers (limit {KEEP_OUTPUTS}), and a sharded model cannot be copied to make "
                "them when needed; pass fewer or shorter samples, or loss=Labels()"
            )
        dense = self._copy  # Copied now, while the model is dense.
        own = PerThread(lambda: self.ranks.own(dense))
        return lambda inputs: outputs_of(own(), inputs, self.batch_size)


def loss_for(loss: Loss, model: nn.Module, data: Calibration) -> Loss:
    """Return the loss resolved by the model's outputs on some samples.

    Raises:
        CalibrationError, ImpossibleRequestError: the loss does not fit them.
    """
    with torch.no_grad():
        few = data.take(torch.arange(min(2, len(data)))).inputs
        floats = forward(model, few).numel() // len(few)
        name, _ = named_output(called(model, mapped(few, torch.clone)))
        number = max(1, min(len(data), _LOOKED_AT, _LOOKED_AT_FLOATS // max(1, floats)))
        some = data.take(torch.arange(number) * len(data) // number)
        outputs = outputs_of(model, some.inputs, _LOOKED_AT_TOGETHER)
    if name:
        logger.info("the model's output %s is compared", name)
    if name in HIDDEN_STATES and getattr(loss, "kind", loss) is None:
        loss = replace(loss, kind=Real())  # pyright: ignore
    return loss.resolved(outputs, some.labels)


def counted_samples(data: Calibration, loss: Loss) -> Calibration:
    """Return the samples with a label that counts, where the loss needs labels.

    A sample without one has no loss, and would only lower the mean.

    Raises:
        CalibrationError: there is no such sample.
    """
    ignored = getattr(loss, "ignored", None)
    if not loss.needs_labels or data.labels is None or ignored is None:
        return data
    if data.labels.is_floating_point():
        return data
    counts = (data.labels.reshape(len(data), -1) != ignored).any(1)
    if bool(counts.all()):
        return data
    if not bool(counts.any()):
        raise CalibrationError(
            f"all {len(data)} calibration samples have no label but {ignored}, which does not "
            "count; pass labels, or loss='dense'"
        )
    logger.info(
        "%d of %d samples are left out: all of their labels are %d, which does not count",
        int((~counts).sum()),
        len(data),
        ignored,
    )
    return data.take(torch.nonzero(counts)[:, 0])


def splits_of(
    splits: Sequence[tuple[Calibration, Augmentation | None]],
    loss: Loss,
    network: DenseNetwork,
    generator: torch.Generator,
    note: Callable[[Fault], None],
) -> tuple[list[Samples], int]:
    """Return the samples of every split, and the batch size that fits memory.

    Args:
        splits: data of each split, with its augmentation.
        loss: decides between labels and the network's outputs as targets.
        network: dense network; its batch is halved when memory runs out.
        generator: for augmentations.
        note: callback for each halving.

    Raises:
        CalibrationError: the loss needs labels, and there are none.
    """
    state = generator.get_state()
    while True:
        try:
            made = [samples_of(data, loss, more, network, generator) for data, more in splits]
            return made, network.batch_size
        except (RuntimeError, MemoryError) as error:
            batch_size, fault = halved(network.batch_size, error)
        note(fault)
        network = replace(network, batch_size=batch_size)
        generator.set_state(state)


def samples_of(
    data: Calibration,
    loss: Loss,
    augment: Augmentation | None,
    network: DenseNetwork,
    generator: torch.Generator,
) -> Samples:
    """Return the samples of one split, augmented ones after the given ones.

    Raises:
        CalibrationError: the loss needs labels, and there are none.
    """
    inputs, copies = data.inputs, 1
    if augment is not None:
        if isinstance(inputs, Inputs):
            raise ImpossibleRequestError(
                f"{type(augment).__name__} makes samples of one tensor, and these are more, or "
                "are passed by name; use augment=None"
            )
        inputs = torch.cat([inputs, augment(inputs, generator)])
        copies = len(inputs) // len(data)
    if not loss.needs_labels:
        return Samples(inputs, network.answers(inputs), network.ranks)
    if data.labels is None:
        raise CalibrationError(
            f"{type(loss).__name__} needs labels, but the calibration data have none; pass "
            "(inputs, labels), or use loss='dense'"
        )
    labels = data.labels.repeat(copies, *[1] * (data.labels.ndim - 1))
    return Samples(inputs, labels, network.ranks)


def augmentation_for(request: Request, fit: Calibration) -> Augmentation | None:
    """Return the requested augmentation, or the default one for the data.

    Raises:
        ImpossibleRequestError: no such augmentation, or one that does not fit the loss.
    """
    augment = request.augment
    if isinstance(augment, str):
        if augment != "auto":
            raise ImpossibleRequestError(
                f"augment must be 'auto', None or an object such as Mixup(), not {augment!r}"
            )
        augment = natural(fit.inputs)
        suits = augment is None or augment.keeps_labels or not request.loss.needs_labels
        return augment if suits else None
    if augment is not None and request.loss.needs_labels and not augment.keeps_labels:
        raise ImpossibleRequestError(
            f"samples of {type(augment).__name__} have no labels; use loss=DenseOutputs(), "
            "or augment=None"
        )
    return augment
