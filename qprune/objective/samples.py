"""The mean loss over samples as a function of the targeted weights, and how it is prepared."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from qprune.data.augment import Augmentation
from qprune.data.calibration import Calibration
from qprune.data.images import SuitedImages, natural
from qprune.data.inputs import AnyInputs, Inputs, called, mapped
from qprune.data.outputs import Real
from qprune.distributed.ranks import ALONE, Parts, Ranks
from qprune.distributed.sharding import is_sharded
from qprune.distributed.workers import PerThread, workers_for
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.network.weights import Weights
from qprune.objective.losses import DenseOutputs, Loss
from qprune.objective.trace.autograd import ByAutograd
from qprune.objective.trace.preflight import examined, reached, state_coverage
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    differentiating,
    forward,
    gradients_by_weight,
    halved,
    mean_loss,
    named_output,
    outputs_of,
    recorder_if_needed,
    refuse_non_finite,
)
from qprune.results import Fault

if TYPE_CHECKING:
    from jaxtyping import Float, Int64

logger = logging.getLogger(__name__)

# Number of samples used to recognise outputs; fewer where they are large.
_LOOKED_AT, _LOOKED_AT_TOGETHER, _LOOKED_AT_FLOATS = 32, 8, 1 << 22

#: Names of outputs that are no logits.
HIDDEN_STATES = ("last_hidden_state",)

#: Dense outputs of at most this many numbers are kept; larger ones are computed when needed.
KEEP_OUTPUTS = 1 << 26


# A batch is as large as keeps its traced activations below this many numbers.
_BATCH_FLOATS = 1 << 27
_MAX_BATCH = 4096
# Samples on which a copy of the model is compared with the model.
_PROBED = 4
# Samples of one pass that looks for gradients of a tensor that the first samples do not reach.
_LOOKED_THROUGH = 32


# With fewer given samples halves say nothing.
_FEWEST_HALVED = 16


@dataclass(frozen=True, eq=False)
class SamplePart:
    """Some of the samples of an objective.

    Attributes:
        indices: of the samples, ascending, shape (k,).
        half: 0 or 1.
        given: True if they were given, False if made from given ones.
    """

    indices: Int64[Tensor, " k"]
    half: int
    given: bool


@dataclass(frozen=True, eq=False)
class Objective:
    """The mean loss of a model over samples, as a function of its targeted weights.

    Attributes:
        model: holds the current weights.
        weights: the targeted ones.
        samples: inputs, and what the loss compares their outputs with.
        loss: of one sample, nats.
        batch_size: samples in one pass.
        given: how many of all samples, from the first on, were given and not made from others.
        numbers: of the samples among all of them, shape (m,); None = these are all.
    """

    model: nn.Module
    weights: Weights
    samples: Samples
    loss: Loss
    batch_size: int
    given: int = 0
    numbers: Int64[Tensor, " m"] | None = None

    @property
    def given_inputs(self) -> AnyInputs:
        """The inputs that were given, none of those that were made from others."""
        number = self.given if self.numbers is None else int((self.numbers < self.given).sum())
        return self.samples.inputs[:number]

    @cached_property
    def parts(self) -> tuple[SamplePart, ...]:
        """Two halves, each in what was given and what was made from it; one part if too few.

        A sample is in the half of the one that it was made from, so that nothing in one half is
        known to the other, but for the lesser share of a blend.
        """
        numbers = torch.arange(len(self.samples)) if self.numbers is None else self.numbers
        if self.given < _FEWEST_HALVED:
            return (SamplePart(torch.arange(len(numbers)), 0, True),)
        order = torch.randperm(self.given, generator=torch.Generator().manual_seed(0))
        half, given = order[numbers % self.given] % 2, numbers < self.given
        parts = (
            SamplePart(torch.nonzero((half == side) & (given == kind))[:, 0], side, kind)
            for side in (0, 1)
            for kind in (True, False)
        )
        return tuple(part for part in parts if len(part.indices))

    def value(self) -> float:
        """Mean loss at the model's current weights, nats; NaN where the network is broken."""
        return mean_loss(self.model, self.samples, self.loss, self.batch_size)

    def drawn(self, number: int, generator: torch.Generator) -> Objective:
        """The same over ``number`` samples drawn without replacement; all where there are fewer."""
        if len(self.samples) <= number:
            return self
        chosen = torch.randperm(len(self.samples), generator=generator)[:number].sort().values
        numbers = chosen if self.numbers is None else self.numbers[chosen]
        return replace(self, samples=self.samples.take(chosen), numbers=numbers)

    def refitted(self, values_move: bool) -> Objective:
        """With the loss fitted to the current outputs, where it has something to fit.

        Args:
            values_move: whether kept values can make up for what is fitted.
        """
        if not self.loss.fits(values_move=values_move):
            return self
        outputs = outputs_of(self.model, self.samples.inputs, self.batch_size, self.samples.ranks)
        return replace(self, loss=self.loss.refit(outputs, self.samples.targets))

    def gradient(self) -> Float[Tensor, " N"]:
        """Gradient at the model's current weights by all targeted weights, shape (N,)."""
        with self.differentiable() as gradient:
            return gradient(self.samples)

    @contextmanager
    def differentiable(
        self, others: Sequence[nn.Parameter] = (), precision: torch.dtype | None = None
    ) -> Generator[Callable[[Samples], Tensor]]:
        """The function samples -> gradient (N,) of their mean loss, for many calls in a row.

        The model is made ready once; its weights may be changed between the calls.

        Args:
            others: parameters that are not targeted; their gradients follow those of the weights.
            precision: of the passes, by torch's autocast; None = as the model is.
        """
        home, sizes = self.weights, [tensor.numel() for tensor in others]

        def gradient(samples: Samples) -> Tensor:
            size = home.size + sum(sizes)
            total = torch.zeros(size, device=home.device, dtype=home.dtype)
            # A thread's copy of the model has the modes, the flags and the weights of this call.
            own = PerThread(lambda: samples.ranks.own((self.model, home, others)))

            def one(_: int, batch: Samples) -> tuple[None, Parts]:
                model, weights, beside = own()
                cast = torch.autocast(home.device.type, precision, enabled=precision is not None)
                with cast, recorder_if_needed(weights) as recorder:
                    outputs = forward(model, batch.inputs)
                losses = self.loss.per_sample(
                    outputs if precision is None else outputs.float(), batch.targets
                )
                tensors = [*weights.parameters, *beside]
                return None, gradients_by_weight(losses, tensors, recorder, again=False)

            batches = list(samples.batches(self.batch_size))
            totals = [*home.split(total[: home.size]), *total[home.size :].split(sizes)]
            samples.ranks.accumulate(one, batches, totals if sizes else home.split(total))
            return total / len(samples)

        with differentiating(self.model, home):
            for tensor in others:
                tensor.requires_grad_()
            yield gradient

    def require_finite(self) -> None:
        """Refuse NaN or Inf at the current weights.

        Raises:
            NonFiniteError: with batch and layer.
        """
        for number, batch in enumerate(self.samples.batches(self.batch_size)):
            with torch.no_grad(), Recorder(self.weights) as recorder:
                outputs = forward(self.model, batch.inputs)
            losses = self.loss.per_sample(outputs, batch.targets)
            refuse_non_finite(self.weights, recorder, losses, number)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model and its data, looked at before anything large is made.

    Attributes:
        model: dense.
        weights: the targeted ones, with how their gradients are found.
        loss: decided.
        fit, held_out: samples to fit on, as they were given, and to judge on.
        augment: makes more samples to fit on; None = nothing does.
        sample: what the pass of one sample costs and holds.
        batch_size: samples in one pass.
        ranks: which process or thread passes which batch.
        asked_batch_size: of a run without a loss, as asked; None = it is left open.
    """

    model: nn.Module
    weights: Weights
    loss: Loss
    fit: Calibration
    held_out: Calibration
    augment: Augmentation | None
    sample: SampleSize
    batch_size: int
    ranks: Ranks
    asked_batch_size: int | None = None

    def objectives(
        self, generator: torch.Generator, note: Callable[[Fault], None]
    ) -> tuple[Objective, Objective]:
        """The objective to fit on and the one to judge on; makes samples and dense outputs.

        Args:
            generator: for augmentations.
            note: called with what was done where memory did not suffice.
        """
        network = DenseNetwork(self.model, self.sample.outputs, self.batch_size, self.ranks)
        splits = ((self.fit, self.augment), (self.held_out, None))
        made, size = splits_of(splits, self.loss, network, generator, note)
        fit, judge = (
            Objective(self.model, self.weights, samples, self.loss, size, len(data))
            for samples, (data, _) in zip(made, splits, strict=True)
        )
        return fit, judge


@dataclass(frozen=True, eq=False)
class PreparedInputs(Prepared):
    """A model and its data for a method that never reads the loss: no dense outputs are made."""

    def objectives(
        self, generator: torch.Generator, note: Callable[[Fault], None]
    ) -> tuple[Objective, Objective]:
        """The samples without answers, twice."""
        inputs, size = self.fit.inputs, self.batch_size
        samples = Samples(inputs, _no_answers, self.ranks)
        made = Objective(self.model, self.weights, samples, self.loss, size, len(inputs))
        return made, made


def prepared_inputs(
    model: nn.Module,
    weights: Weights,
    data: Calibration,
    loss: Loss,
    accept_share: float,
    augment: Augmentation | str | None,
    batch_size: int | None,
    generator: torch.Generator,
    ranks: Ranks,
    threads: int,
) -> PreparedInputs:
    """The inputs alone, for a method that never reads the loss; arguments as in `prepared`."""
    state_coverage(weights)
    return PreparedInputs(
        model=model,
        weights=weights,
        loss=loss,
        fit=data,
        held_out=data,
        augment=None,
        sample=SampleSize(0, 0, 0),
        batch_size=batch_size or _MAX_BATCH,
        ranks=ranks,
        asked_batch_size=batch_size,
    )


def _no_answers(inputs: AnyInputs) -> Tensor:
    raise AssertionError("a method without a loss asks for no answers")


def prepared(
    model: nn.Module,
    weights: Weights,
    data: Calibration,
    loss: Loss,
    accept_share: float,
    augment: Augmentation | str | None,
    batch_size: int | None,
    generator: torch.Generator,
    ranks: Ranks,
    threads: int,
) -> Prepared:
    """Look at the model on a few samples: its loss, its gradients, the size of a pass.

    Args:
        model: dense.
        weights: the targeted ones.
        data: all that the run may see.
        loss: as asked.
        accept_share: share of the samples to judge on.
        augment: as asked.
        batch_size: as asked; None = by the size of the activations.
        generator: splits the samples.
        ranks: which process passes which batch.
        threads: that pass batches at once, where there is one process.

    Raises:
        QpruneError: model, data, loss and augmentation do not suit one another.
    """
    loss = loss_for(loss, model, data)
    logger.info("loss: %s", loss)
    data = counted_samples(data, loss)
    fit, held_out = data.split(accept_share, generator)
    weights = examined(model, weights, fit.inputs)
    weights = reached(model, weights, fit.inputs, _LOOKED_THROUGH)
    state_coverage(weights)
    sample = sample_size(model, weights, fit)
    if ranks.size == 1:
        probed = fit.inputs[:_PROBED]
        ranks = workers_for(threads, (model, weights), partial(_probe_gradients, probed))
    return Prepared(
        model=model,
        weights=weights,
        loss=loss,
        fit=fit,
        held_out=held_out,
        augment=augmentation_for(augment, loss, fit, partial(_felt, model, loss)),
        sample=sample,
        batch_size=batch_size or max(1, min(_MAX_BATCH, _BATCH_FLOATS // max(1, sample.floats))),
        ranks=ranks,
    )


def _probe_gradients(
    inputs: AnyInputs, things: tuple[nn.Module, Weights]
) -> Sequence[Tensor | None]:
    """Gradients of a number that depends on all outputs, by every targeted weight."""
    model, weights = things
    with differentiating(model, weights) as tensors:
        number = forward(model, inputs).double().square().sum()
        return torch.autograd.grad(number, tensors, allow_unused=True)


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


def _felt(model: nn.Module, loss: Loss, changed: Tensor, inputs: Tensor) -> float:
    """Mean loss of the outputs on ``changed`` against those on ``inputs``."""
    if loss.needs_labels:
        loss = DenseOutputs(kind=getattr(loss, "kind", None))
    found, expected = (outputs_of(model, x, _LOOKED_AT_TOGETHER) for x in (changed, inputs))
    return float(loss.per_sample(found, expected).mean())


def augmentation_for(
    augment: Augmentation | str | None,
    loss: Loss,
    fit: Calibration,
    felt: Callable[[Tensor, Tensor], float],
) -> Augmentation | None:
    """The augmentation that was asked for, or that suits the data by itself.

    For ``felt`` see `qprune.data.images.SuitedImages.chosen`.

    Raises:
        ImpossibleRequestError: no such augmentation, or one that does not fit the loss.
        CalibrationError: the inputs are no images, where those are to be changed.
    """
    if isinstance(augment, str):
        if augment != "auto":
            raise ImpossibleRequestError(
                f"augment must be 'auto', None or an object such as Mixup(), not {augment!r}"
            )
        augment = natural(fit.inputs)
        if augment is not None and loss.needs_labels and not augment.keeps_labels:
            augment = None
    if isinstance(augment, SuitedImages) and isinstance(fit.inputs, Tensor):
        augment = augment.chosen(fit.inputs, felt, blends=not loss.needs_labels)
    logger.info("augmentation: %s", augment)
    if augment is not None and loss.needs_labels and not augment.keeps_labels:
        raise ImpossibleRequestError(
            f"samples of {type(augment).__name__} have no labels; use loss=DenseOutputs(), "
            "or augment=None"
        )
    return augment
