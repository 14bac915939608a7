"""What a run is given and what it carries: checked once, before anything is touched."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from qprune.cost import Effort, Estimate, effort_for
from qprune.data.calibration import Calibration, as_calibration, plain
from qprune.data.inputs import AnyInputs
from qprune.distributed.ranks import ALONE, FirstSolves, Ranks
from qprune.distributed.sharding import refuse_other_shardings
from qprune.distributed.workers import Workers, workers_for
from qprune.errors import ImpossibleRequestError, LeftDenseWarning, NonFiniteError
from qprune.network.groups import BUDGETS, Groups, KeepNofM, checked_sparsity, prune_lowest
from qprune.network.weights import Layers, find_layers
from qprune.objective import CURVATURES, EmpiricalFisher, SampledFisher, SketchedFisher
from qprune.objective.curvature import Curvature, Expansion
from qprune.objective.fisher import PerSampleFisher
from qprune.objective.losses import Loss
from qprune.objective.samples import (
    DenseNetwork,
    augmentation_for,
    counted_samples,
    loss_for,
    sample_size,
    splits_of,
)
from qprune.objective.trace.autograd import ByAutograd
from qprune.objective.trace.preflight import examined, reached
from qprune.objective.trace.recorder import (
    Recorder,
    Samples,
    differentiating,
    forward,
    mean_loss,
    outputs_of,
    refuse_non_finite,
)
from qprune.results import Observer
from qprune.steps.accept import Trust
from qprune.steps.compensate import Compensate, Compensation
from qprune.steps.distill import Distillation
from qprune.steps.solve import BlockObserver
from qprune.steps.start import STARTS, Pruner, Situation, Start
from qprune.walk.estimate import Plan
from qprune.walk.journal import Journal
from qprune.walk.request import Request
from solvers import Ask

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A batch is as large as keeps its traced activations below this many numbers.
_BATCH_FLOATS = 1 << 27
_MAX_BATCH = 4096
# Samples on which a copy of the model is compared with the model.
_PROBED = 4
# Samples of one pass that looks for gradients of a tensor that the first samples do not reach.
_LOOKED_THROUGH = 32
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
        calibration: inputs of the samples to fit on as they were given, none augmented.
        start, curvature: strategies.
        compensation: how kept weights move; None = mask only.
        border: to the sampler.
        block_size: variables per block.
        batch_size: samples per forward pass.
        generator: of all random choices outside the sampler.
        journal: the steps so far.
        executor: solves blocks with ``map``; None = one after the other.
        observe_blocks: called with every problem that the sampler has answered.
        estimate: what the run was said to need; None where nobody asked, or nobody knows.
        ranks: who passes which batch of samples.
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
    calibration: AnyInputs
    start: Start | Pruner
    curvature: Curvature
    compensation: Compensate | None
    border: Ask
    block_size: int
    batch_size: int
    generator: torch.Generator
    journal: Journal
    executor: Any
    observe_blocks: tuple[BlockObserver, ...] = ()
    estimate: Estimate | None = None
    ranks: Ranks = ALONE

    @property
    def final_compensations(self) -> int:
        """Compensations after the last block."""
        return self.compensation.final_steps if self.compensation else 0

    def draw(self, number: int | None = None) -> Samples:
        """``number`` samples (default: of one expansion), a fresh draw where there are more."""
        size = number or self.effort.samples_per_step
        if len(self.fit) <= size:
            return self.fit
        chosen = torch.randperm(len(self.fit), generator=self.generator)[:size]
        return self.fit.take(chosen.sort().values)

    def refitted_loss(self, samples: Samples) -> Loss:
        """The loss, fitted to the current outputs where it has something to fit."""
        loss = self.request.loss
        if not loss.fits(values_move=self.compensation is not None):
            return loss
        outputs = outputs_of(self.model, samples.inputs, self.batch_size, self.ranks)
        return loss.refit(outputs, samples.targets)

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
                outputs = forward(self.model, batch.inputs)
            losses = loss.per_sample(outputs, batch.targets)
            refuse_non_finite(self.layers, recorder, losses, number)

    def scores(
        self, start: Start, weights: Tensor, samples: Samples, expansion: Expansion
    ) -> Tensor:
        """What ``start`` thinks of every weight at the model's current weights."""
        return start.scores(
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

    def pruned_by(self, start: Pruner) -> State:
        """What ``start`` makes of the dense network; the model then holds it.

        Raises:
            ImpossibleRequestError: its counts are not the run's.
        """
        self.layers.write(self.dense.values)
        seed = self.request.seed
        mask = start.prune(self.model, self.layers, self.groups, plain(self.calibration), seed)
        counts = self.groups.sizes_of(~mask)
        if not torch.equal(counts, self.groups.counts):
            at = int(torch.nonzero(counts != self.groups.counts)[0])
            raise ImpossibleRequestError(
                f"the start pruned {int(counts[at])} weights where the budget prunes "
                f"{int(self.groups.counts[at])} (part {at}); use budget='global' or 'layer', or "
                "the same mask_structure for both"
            )
        values = torch.where(mask, self.layers.read(), 0.0)
        self.layers.write(values)
        return replace(self.dense, values=values, mask=mask)

    def pruned_at_once(self) -> State:
        """The first pass alone, straight from the dense network; random choices untouched."""
        state = self.generator.get_state()
        assert not isinstance(self.start, Pruner)
        samples = self.draw()
        expansion = self.expand(samples, self.request.loss)
        scores = self.scores(self.start, self.dense.values, samples, expansion)
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
    foresee: Callable[[Plan], Estimate | None] | None = None,
    ranks: Ranks = ALONE,
    threads: int = 1,
) -> Setting:
    """Check the request against model and data, and make it concrete.

    Args:
        request: what is asked.
        model: dense.
        calibration: all the data that the method sees.
        observers: called with every step.
        executor: see `Setting`.
        should_stop: see `qprune.walk.journal.Journal`.
        foresee: says what the run needs, before anything large is made, and may refuse it.
        ranks: who passes which batch of samples.
        threads: that pass batches at once, where there is one rank.

    Raises:
        QpruneError, solvers.SolverError: see `qprune.errors`; nothing has been touched.
    """
    request.check()
    # Its clock runs from here on: samples that the network itself makes can take their time.
    journal = Journal(observers, request.max_seconds, request.max_steps, should_stop, ranks)
    structure = request.mask_structure
    if isinstance(structure, str):
        structure = KeepNofM.parse(structure)
    sparsity = checked_sparsity(_asked_sparsity(request), structure)
    layers = find_layers(model, request.targets, request.ignore)
    # What is wrong with the request is said before the network is passed once.
    budget = structure or _named("budget", request.budget, BUDGETS)
    budget.groups(layers, sparsity)
    _block_size(request, layers)
    _named("curvature", request.curvature, CURVATURES)
    start = _named("start", request.start, STARTS)
    border = Ask.to(request.sampler, request.sampler_options, request.care)
    generator = torch.Generator().manual_seed(request.seed)
    data = as_calibration(calibration, model)
    request = _with_loss_for(model, data, request)
    data = counted_samples(data, request.loss)
    fit, accept = data.split(request.accept_share, generator)
    layers = reached(model, examined(model, layers, fit.inputs), fit.inputs, _LOOKED_THROUGH)
    _state_coverage(layers)
    groups = budget.groups(layers, sparsity)
    block_size = _block_size(request, layers)
    compensation = _compensation(request, model, layers, fit.inputs)
    seen = sample_size(model, layers, fit)
    effort = request.effort(effort_for(seen.multiplications))
    if isinstance(start, Pruner):
        effort = _in_one_stage(effort, request)
    batch_size = request.batch_size or max(1, min(_MAX_BATCH, _BATCH_FLOATS // max(1, seen.floats)))
    values = layers.read()
    dense = State(
        values,
        torch.ones(layers.size, dtype=torch.bool),
        Trust(),
        torch.zeros(layers.size, dtype=torch.int32),
    )
    _state_zeros(values, groups)
    if ranks.size == 1:
        ranks = workers_for(threads, (model, layers), partial(_gradients, fit.inputs[:_PROBED]))
    network = DenseNetwork(model, seen.outputs, batch_size, ranks)
    augment = augmentation_for(request, fit)
    if min(len(fit), effort.samples_per_step) <= (ranks.size - 1) * batch_size:
        logger.warning(
            "%d ranks share batches of %d samples and some get none; pass a smaller batch_size",
            ranks.size,
            batch_size,
        )
    curvature = _named("curvature", request.curvature, CURVATURES)
    compensation = compensation.completed(effort) if compensation else None
    if layers.sharded:
        _refuse_sharded(layers, ranks, start, curvature, compensation)
    estimate = None
    # One rank knows its own machine only, and a refusal by one would leave the others waiting.
    if foresee is not None and ranks.size == 1:
        estimate = foresee(
            Plan(
                request=request,
                effort=effort,
                model=model,
                layers=layers,
                fit=fit,
                num_accepted=len(accept),
                augment=augment,
                sample=seen,
                start=start,
                curvature=curvature,
                compensation=compensation,
                border=border,
                block_size=block_size,
                batch_size=batch_size,
                threads=threads if isinstance(ranks, Workers) else 1,
            )
        )
    (fitted, accepted), batch_size = splits_of(
        ((fit, augment), (accept, None)), request.loss, network, generator, journal.fault
    )
    return Setting(
        request=request,
        effort=effort,
        model=model,
        layers=layers,
        groups=groups,
        sparsity=sparsity,
        dense=dense,
        fit=fitted,
        accept=accepted,
        calibration=fit.inputs,
        start=start,
        curvature=curvature,
        compensation=compensation,
        border=border,
        block_size=block_size,
        batch_size=batch_size,
        generator=generator,
        journal=journal,
        executor=executor if ranks.size == 1 else FirstSolves(ranks, executor),
        estimate=estimate,
        ranks=ranks,
    )


def _gradients(inputs: AnyInputs, things: tuple[nn.Module, Layers]) -> Sequence[Tensor | None]:
    """Gradients of a number that hangs on all outputs, by every targeted weight."""
    model, layers = things
    with differentiating(model, layers) as weights:
        number = forward(model, inputs).double().square().sum()
        return torch.autograd.grad(number, weights, allow_unused=True)


def _with_loss_for(model: nn.Module, data: Calibration, request: Request) -> Request:
    """The request with its loss, and the curvature that goes with it, decided."""
    loss = loss_for(request.loss, model, data)
    logger.info("loss: %s", loss)
    curvature = _named("curvature", request.curvature, CURVATURES)
    if not loss.has_distribution and isinstance(curvature, SketchedFisher | SampledFisher):
        curvature = EmpiricalFisher()
        logger.info("a loss of one's own has no distribution: the curvature is %s", curvature)
    return replace(request, loss=loss, curvature=curvature)


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; on any error every parameter and buffer is put back."""
    # Buffers that the state dict leaves out change, too.
    held = dict([*model.named_parameters(), *model.named_buffers()])
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in held.items():
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


def _compensation(
    request: Request, model: nn.Module, layers: Layers, inputs: AnyInputs
) -> Compensate | None:
    """How kept weights are moved in this network; None = not at all."""
    asked = request.compensate
    if not asked:
        return None
    wanted = Compensation() if asked is True else asked
    if isinstance(wanted, Compensation) and not getattr(request.loss, "curved", True):
        logger.warning(
            "the loss %s has no second derivative, so that second-order steps cannot move kept "
            "weights: moving them by Distillation()",
            request.loss,
        )
        return Distillation()
    suited = wanted.suited(model, layers, inputs)
    if suited is None:
        logger.warning(
            "the network has no second derivatives, so that kept weights cannot be moved by "
            "%s: moving them by Distillation()",
            type(wanted).__name__,
        )
        return Distillation()
    return suited


def _state_coverage(layers: Layers) -> None:
    """One line of what is targeted; a warning where something stays dense that nobody named."""
    coverage = layers.coverage
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
    for layer in layers:
        if isinstance(layer.path, ByAutograd):
            by_way.setdefault(layer.path.way.name, []).append(f"{layer.name} ({layer.path.reason})")
    for way, names in by_way.items():
        logger.info("per-sample gradients by autograd, %s, which is slower: %s", way, names)


def _state_zeros(values: Tensor, groups: Groups) -> None:
    """A warning where weights are zero already; the mask counts what it prunes itself."""
    zeros = int((values == 0).sum())
    if not zeros:
        return
    beyond = (
        "; that is more than was asked, and what the mask keeps may stay zero or move"
        if zeros > groups.total
        else "; they are the first that the usual starts prune"
    )
    logger.warning(
        "%s of %s targeted weights (%.3g %%) are zero already%s",
        f"{zeros:,}",
        f"{len(values):,}",
        100 * zeros / len(values),
        beyond,
    )


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


def _refuse_sharded(
    layers: Layers,
    ranks: Ranks,
    start: Start | Pruner,
    curvature: Curvature,
    compensation: Compensate | None,
) -> None:
    """Refuse what reads weights that a sharded model does not hold while it runs."""
    for layer in layers:
        if not isinstance(layer.module, nn.Linear | nn.Conv2d):
            raise ImpossibleRequestError(
                f"{layer.name!r} belongs to a {type(layer.module).__name__}; of a sharded model, "
                "qprune prunes Linear and Conv2d: add it to ignore, or shard nothing"
            )
        refuse_other_shardings(layer.name, layer.parameter, ranks.size)
    for what, given, supported in (
        ("start", not isinstance(start, Pruner), "a start that scores, such as DiagonalFisher()"),
        ("curvature", isinstance(curvature, PerSampleFisher), "a Fisher matrix"),
        ("compensate", isinstance(compensation, Compensation | None), "Compensation(), or False"),
    ):
        if not given:
            raise ImpossibleRequestError(
                f"{what} does not suit a sharded model; it takes {supported}, or shard nothing "
                "and let every rank hold the model"
            )


def _in_one_stage(effort: Effort, request: Request) -> Effort:
    """A start that moves values itself prunes once, straight to the sparsity."""
    if (request.stages or 1) != 1:
        raise ImpossibleRequestError(
            f"{type(request.start).__name__} prunes in one stage, not in {request.stages}; leave "
            "stages out"
        )
    return replace(effort, stages=1)
