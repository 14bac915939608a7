"""What a run is given and what it carries: checked once, before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qprune.augment import Augmentation, natural
from qprune.calibration import Calibration, as_calibration
from qprune.compensate import Compensation
from qprune.curvature import CURVATURES
from qprune.curvature.expansion import Curvature, Expansion
from qprune.effort import Effort, effort_for
from qprune.errors import CalibrationError, ImpossibleRequestError, NonFiniteError
from qprune.journal import Journal
from qprune.layers import Layers, find_layers
from qprune.losses import Loss
from qprune.masks import prune_lowest
from qprune.request import Request
from qprune.scores import STARTS, Situation, Start
from qprune.solve import Border
from qprune.sparsity import BUDGETS, Groups, KeepNofM, checked_sparsity
from qprune.steps import Observer
from qprune.traces import (
    Recorder,
    Samples,
    Trace,
    forward,
    mean_loss,
    outputs_of,
    refuse_non_finite,
)
from qprune.trust import Trust

T = TypeVar("T")

# A batch is as large as keeps its traced activations below this many numbers.
_BATCH_FLOATS = 1 << 27
_MAX_BATCH = 4096
# Variables per block where the model has as many weights.
_BLOCK_SIZE = 1024


@dataclass(frozen=True, eq=False)
class State:
    """Where a run is.

    Attributes:
        values: weights, shape (N,), exactly 0 where pruned.
        mask: True = kept, shape (N,).
        trust: how far the quadratic model is believed.
        resting: number of the first round in which a weight is offered again, shape (N,).
    """

    values: Tensor
    mask: Tensor
    trust: Trust
    resting: Tensor


@dataclass(frozen=True, eq=False)
class Setting:
    """A run's fixed surroundings: the request made concrete.

    Attributes:
        request: as given.
        effort: how much work, where the request left it open.
        model: holds the current weights.
        layers: the targeted weights.
        groups: where counts are exact.
        sparsity: share of weights to prune.
        dense: the state before anything was pruned.
        fit: samples to fit on, augmented ones included.
        accept: samples to judge on.
        start, curvature: strategies.
        compensation: how kept weights move; None = mask only.
        border: to the sampler.
        block_size: variables per block.
        batch_size: samples per forward pass.
        generator: of all random choices outside the sampler.
        journal: the steps so far.
        executor: solves blocks with ``map``; None = one after the other.
    """

    request: Request
    effort: Effort
    model: nn.Module
    layers: Layers
    groups: Groups
    sparsity: float
    dense: State
    fit: Samples
    accept: Samples
    start: Start
    curvature: Curvature
    compensation: Compensation | None
    border: Border
    block_size: int
    batch_size: int
    generator: torch.Generator
    journal: Journal
    executor: Any

    @property
    def final_compensations(self) -> int:
        """Compensations after the last block."""
        return self.compensation.final_steps if self.compensation else 0

    def draw(self) -> Samples:
        """The samples of one expansion, a fresh draw where there are more than one takes."""
        size = self.effort.samples_per_step
        if len(self.fit) <= size:
            return self.fit
        chosen = torch.randperm(len(self.fit), generator=self.generator)[:size]
        return self.fit.take(chosen.sort().values)

    def refitted_loss(self, samples: Samples) -> Loss:
        """The loss, fitted to the current outputs where it has something to fit."""
        outputs = outputs_of(self.model, samples.inputs, self.batch_size)
        return self.request.loss.refit(
            outputs, samples.targets, values_move=self.compensation is not None
        )

    def expand(self, samples: Samples, loss: Loss) -> Expansion:
        """The second-order expansion of the loss at the current weights."""
        expansion = self.curvature.expand(
            self.model,
            self.layers,
            samples,
            loss,
            batch_size=self.batch_size,
            generator=self.generator,
        )
        for what, vector in (("gradient", expansion.gradient), ("curvature", expansion.diagonal)):
            if not torch.isfinite(vector).all():
                at = int(torch.nonzero(~torch.isfinite(vector))[0])
                layer, _, _ = self.layers.locate(torch.tensor([at]))[0]
                raise NonFiniteError(
                    f"the {what} of layer {layer.name!r} holds NaN or Inf; look at the loss"
                )
        damping = self.request.damping * float(expansion.diagonal.mean())
        return replace(expansion, damping=damping)

    def judge(self, loss: Loss) -> float:
        """Mean loss on the acceptance split at the model's current weights, nats.

        Not a number after a move that breaks the network; see `require_finite`.
        """
        return mean_loss(self.model, self.accept, loss, self.batch_size)

    def require_finite(self, loss: Loss) -> None:
        """Refuse NaN or Inf on the acceptance split.

        Raises:
            NonFiniteError: with batch and layer.
        """
        for number, batch in enumerate(self.accept.batches(self.batch_size)):
            with torch.no_grad(), Recorder(self.layers) as recorder:
                losses = loss.per_sample(forward(self.model, batch.inputs), batch.targets)
                refuse_non_finite(self.layers, recorder, losses, number)

    def scores(self, weights: Tensor, samples: Samples, expansion: Expansion) -> Tensor:
        """What the start thinks of every weight at the model's current weights."""
        return self.start.scores(
            Situation(
                self.model,
                self.layers,
                samples,
                weights,
                expansion,
                self.batch_size,
                self.generator,
            )
        )

    def pruned_at_once(self) -> State:
        """The first pass alone, straight from the dense network; random choices untouched."""
        state = self.generator.get_state()
        samples = self.draw()
        expansion = self.expand(samples, self.request.loss)
        scores = self.scores(self.dense.values, samples, expansion)
        self.generator.set_state(state)
        mask = prune_lowest(scores, self.dense.mask, self.groups, self.groups.total)
        return replace(self.dense, values=self.dense.values * mask, mask=mask)


def prepare(
    request: Request,
    model: nn.Module,
    calibration: Any,
    observers: Sequence[Observer],
    executor: Any,
    should_stop: Callable[[], bool] | None = None,
) -> Setting:
    """Check the request against model and data, and make it concrete.

    Raises:
        QpruneError, solvers.SolverError: see `qprune.errors`; nothing has been touched.
    """
    request.check()
    structure = request.mask_structure
    if isinstance(structure, str):
        structure = KeepNofM.parse(structure)
    sparsity = checked_sparsity(_asked_sparsity(request), structure)
    layers = find_layers(model, request.targets, request.ignore)
    budget = structure or _named("budget", request.budget, BUDGETS)
    groups = budget.groups(layers, sparsity)
    block_size = _block_size(request, layers)
    border = Border.to(request.sampler, request.sampler_options)
    generator = torch.Generator().manual_seed(request.seed)
    compensation = request.compensate
    if isinstance(compensation, bool):
        compensation = Compensation() if compensation else None
    fit, accept = as_calibration(calibration).split(request.accept_share, generator)
    seen = _seen(model, layers, fit)
    effort = request.effort(effort_for(seen.multiplications))
    batch_size = request.batch_size or max(
        1, min(_MAX_BATCH, _BATCH_FLOATS // max(1, seen.num_floats))
    )
    values = layers.read()
    dense = State(
        values,
        torch.ones(layers.size, dtype=torch.bool),
        Trust(),
        torch.zeros(layers.size, dtype=torch.int32),
    )
    augment = _augmentation(request, fit)
    return Setting(
        request=request,
        effort=effort,
        model=model,
        layers=layers,
        groups=groups,
        sparsity=sparsity,
        dense=dense,
        fit=_samples(model, request.loss, fit, batch_size, augment, generator),
        accept=_samples(model, request.loss, accept, batch_size, None, generator),
        start=_named("start", request.start, STARTS),
        curvature=_named("curvature", request.curvature, CURVATURES),
        compensation=compensation.completed(effort) if compensation else None,
        border=border,
        block_size=block_size,
        batch_size=batch_size,
        generator=generator,
        journal=Journal(observers, request.max_seconds, request.max_steps, should_stop),
        executor=executor,
    )


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; on any error every parameter and buffer is put back."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                tensor.copy_(before[name])
        raise
    finally:
        for module, mode in modes:
            module.training = mode


def _asked_sparsity(request: Request) -> float | None:
    if request.density is None:
        return request.sparsity
    if request.sparsity is not None:
        raise ImpossibleRequestError(
            f"sparsity={request.sparsity} and density={request.density} are both given; "
            "density is 1 - sparsity: pass one of them"
        )
    return 1 - request.density


def _block_size(request: Request, layers: Layers) -> int:
    if request.block_size is None:
        return min(_BLOCK_SIZE, layers.size)
    if request.block_size > layers.size:
        raise ImpossibleRequestError(
            f"block_size {request.block_size} is more than the model's {layers.size} targeted "
            "weights; choose a smaller block"
        )
    return request.block_size


def _named(what: str, value: T | str, known: Mapping[str, T]) -> T:
    if not isinstance(value, str):
        return value
    if value not in known:
        raise ImpossibleRequestError(f"no {what} named {value!r}; there are: {', '.join(known)}")
    return known[value]


def _augmentation(request: Request, fit: Calibration) -> Augmentation | None:
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


def _samples(
    model: nn.Module,
    loss: Loss,
    data: Calibration,
    batch_size: int,
    augment: Augmentation | None,
    generator: torch.Generator,
) -> Samples:
    inputs, copies = data.inputs, 1
    if augment is not None:
        inputs = torch.cat([inputs, augment(inputs, generator)])
        copies = len(inputs) // len(data)
    if not loss.needs_labels:
        return Samples(inputs, outputs_of(model, inputs, batch_size))
    if data.labels is None:
        raise CalibrationError(
            f"{type(loss).__name__} needs labels, but the calibration data have none; pass "
            "(inputs, labels), or use loss=DenseOutputs()"
        )
    return Samples(inputs, data.labels.repeat(copies, *[1] * (data.labels.ndim - 1)))


def _seen(model: nn.Module, layers: Layers, data: Calibration) -> Trace:
    """What the targeted layers see of one sample, for what a pass costs and holds."""
    with torch.no_grad(), Recorder(layers) as recorder:
        forward(model, data.inputs[:1])
        outputs = [torch.zeros_like(output) for output in recorder.outputs()]
        return recorder.trace(outputs, 1)
