"""The walk: first pass, then blocks that mix kept and pruned weights, until the sparsity is there.

stage -> first pass -> [ expand the loss -> select blocks -> formulate -> solve -> accept ->
compensate ] -> report
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qprune.cost import Estimate, require_end, require_fit
from qprune.data.augment import Augmentation
from qprune.data.calibration import Calibration, as_calibration
from qprune.data.inputs import Call
from qprune.distributed.placement import back_home, on_cpu
from qprune.distributed.ranks import ALONE, Ranks
from qprune.distributed.workers import checked_threads, limited_threads
from qprune.errors import ImpossibleRequestError
from qprune.network.admission import refuse_unstorable, refuse_wrapped
from qprune.network.groups import Budget, KeepNofM, mask_by_name
from qprune.network.patterns import Pattern, as_patterns
from qprune.objective import SketchedFisher
from qprune.objective.curvature import Curvature
from qprune.objective.loss_names import as_loss
from qprune.objective.losses import Loss
from qprune.objective.trace.derivable import derivable
from qprune.record.fingerprint import digest_of_tensors, fingerprint_of, require_named
from qprune.record.recording import Recording, recording
from qprune.results import LayerRecord, Observer, Report, Score
from qprune.steps.compensate import Compensate
from qprune.steps.formulate import Terms
from qprune.steps.select import Boundary, Select
from qprune.steps.solve import BlockObserver
from qprune.steps.start import DiagonalFisher, Pruner, Start
from qprune.walk.estimate import Plan, needs_of
from qprune.walk.request import Request
from qprune.walk.schedule import Progress, walk
from qprune.walk.setting import Setting, State, prepare, restored_on_error
from solvers import FaultPolicy
from solvers.host.machine import available_memory, peak_memory

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Pruned:
    """What `prune` returns.

    Attributes:
        model: the model that was passed in, pruned in place.
        mask: parameter name -> bool tensor of the parameter's shape, True = kept.
        report: what happened.
    """

    model: nn.Module
    mask: dict[str, Tensor]
    report: Report


def prune(
    model: nn.Module,
    calibration: Any,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    start: Start | Pruner | str = DiagonalFisher(),
    budget: Budget | str = "global",
    mask_structure: KeepNofM | str | None = None,
    targets: Sequence[Pattern] | Pattern | None = None,
    ignore: Sequence[Pattern] | Pattern = (),
    loss: Loss | Any = "dense",
    curvature: Curvature | str = SketchedFisher(),
    select: Select = Boundary(),
    sampler: Any = "relax",
    sampler_options: Mapping[str, Any] | None = None,
    care: FaultPolicy = FaultPolicy(),
    block_size: int | None = None,
    num_blocks: int = 1,
    stages: int | None = None,
    rounds: int | None = None,
    final_rounds: int | None = None,
    compensate: bool | Compensate = True,
    augment: Augmentation | str | None = "auto",
    terms: Terms | None = None,
    damping: float = 0.1,
    accept_share: float = 0.2,
    samples_per_step: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    forward: Call | None = None,
    num_calibration_samples: int | None = None,
    observe: Observer | Sequence[Observer] = (),
    observe_blocks: BlockObserver | Sequence[BlockObserver] = (),
    executor: Any = None,
    ranks: Ranks | None = None,
    threads: int | None = None,
    max_seconds: float | None = None,
    max_steps: int | None = None,
    max_memory: float | None = None,
    expect: Callable[[Estimate], None] | None = None,
    evaluate: Callable[[nn.Module], Score] | None = None,
    output_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Pruned:
    """Prune ``model`` in place.

    Args:
        model: any module; put in evaluation mode meanwhile.
        calibration: a `Calibration`, a tensor or array of inputs, an (inputs, labels) pair, a
            dict by the model's argument names, a data set, or a DataLoader or other iterable of
            such batches (`qprune.data.calibration.as_calibration`). All the data that the method
            sees.
        sparsity: share of targeted weights to be zero, in [0, 1).
        density: 1 - sparsity, instead of it.
        start: first pass; a strategy or its name in `qprune.steps.start.STARTS`. One that prunes by
            itself, such as `qprune.layerwise.LayerwiseStart`, is taken as it is, in one stage.
        budget: where the count is exact: "global", "layer", "row", or a strategy.
        mask_structure: "N:M" keeps at most N of every M consecutive inputs, instead of budget.
        targets: what to prune: classes, modules, parameters, by themselves or by name, or ``re:``
            patterns (`qprune.network.weights.find_layers`). None = every Linear and convolution,
            and the matrices of attention, LSTM, GRU and RNN. What is left dense is said in one
            line.
        ignore: the same, taken away again.
        loss: "dense" (keep to the dense outputs), "cross-entropy", "mse" or "bce" (against the
            labels); one of torch's losses, such as ``nn.MSELoss()``; `DenseOutputs`, `Labels`, or
            `PerSample` for one of your own. What the outputs are is recognised by sight where
            the loss leaves it open (`qprune.objective.recognise`), logged, and in the report.
        curvature: `SketchedFisher` (default), `SampledFisher`, `EmpiricalFisher`,
            `ExactHessian`, or a name.
        select: how blocks are chosen.
        sampler: a registered name (see ``qprune samplers``) or any object with
            ``sample(bqm, ...) -> SampleSet``.
        sampler_options: passed with every call, for example ``{"num_reads": 10}``.
        care: what to do about a sampler that hangs, crashes or answers nonsense.
        block_size: variables per block; default 1024, or all weights where there are fewer.
        num_blocks: disjoint blocks per expansion of the loss.
        stages: steps of the (cubic) way to the sparsity; 1 = one shot. Default 20; for a
            network whose passes are dear, 10 (see `qprune.cost`, also for the next two).
        rounds: expansions per stage; 0 = first pass alone. Default 4 or 1.
        final_rounds: expansions at the last stage; default 5 x rounds.
        compensate: whether kept weights move, or how: `qprune.steps.compensate.Compensation`
            (second order) or `qprune.steps.distill.Distillation`.
        augment: makes more samples to fit on (`qprune.data.augment`); "auto", with `DenseOutputs`,
            shifts images (m, c, h, w), blends other numbers, and leaves tokens alone (see
            `qprune.data.augment.OwnText` for these).
        terms: extra energy over a block's variables; see `qprune.steps.formulate`.
        damping: added to the curvature's diagonal, as a multiple of its mean.
        accept_share: share of the samples on which steps are judged, and never fitted.
        samples_per_step: at most this many samples per expansion. Default 2400 or 400.
        batch_size: samples per forward pass; default by the size of the activations.
        seed: one seed, one mask.
        forward: (model, batch) -> outputs, for batches that the model does not take as they
            are: it gets them in the structure that ``calibration`` gives, labels included.
        num_calibration_samples: the first so many are taken; None takes all, or 1024 of an
            iterator that does not say how many it has.
        observe: called with every `Step`.
        observe_blocks: called with every problem that the sampler has answered
            (`qprune.steps.solve.SolvedBlock`); a `qprune.record.blocks.BlockFolder` keeps them.
        executor: something with ``map``, as in `concurrent.futures`, to solve blocks with.
        ranks: processes that share the passes over the samples, each of which calls this with the
            same arguments: ``qprune.distributed.ranks.DataParallel()``, see there. The first one
            writes ``output_dir``. None = this process alone.
        threads: that pass batches and solve blocks at once; the mask does not depend on it, since
            torch and BLAS use one thread within each (as before afterwards). Each holds a batch
            and a copy of the model. Derivatives of a second-order `Compensation`, and
            `Distillation`, stay on one. None: `qprune.distributed.workers.DEFAULT_THREADS`.
        max_seconds: the run ends in time with the best mask at the asked sparsity.
        max_steps: the same by number of steps.
        max_memory: bytes that the process may hold; a run that needs more is refused before it
            starts. Default: what is in use and what is available; ``math.inf`` never refuses.
        expect: called with what the run needs before it starts; what it raises ends the run. The
            same is logged, and in the report.
        evaluate: model -> `Score` on test data; fills the report's dense, start and final.
        output_dir: folder for the journal and checkpoints of this run, so that it can be resumed.
        resume_from: the ``output_dir`` of a run that was stopped or killed. Everything else must
            be as it was then, the model dense; the mask is the one of a run never stopped. Only
            ``max_seconds`` and ``max_memory`` may change; the time spent before counts.
        should_stop: asked before every step; True ends the run as ``max_seconds`` does.

    Raises:
        QpruneError, solvers.SolverError: see `qprune.errors`; the model is then as it was.

    Example:
        >>> import torch, qprune
        >>> model = torch.nn.Linear(8, 4)
        >>> pruned = qprune.prune(model, torch.randn(64, 8), sparsity=0.5, stages=2)
        >>> int((model.weight == 0).sum())
        16
    """
    request = Request(
        sparsity=sparsity,
        density=density,
        start=start,
        budget=budget,
        mask_structure=mask_structure,
        targets=None if targets is None else as_patterns(targets, "targets"),
        ignore=as_patterns(ignore, "ignore"),
        loss=as_loss(loss),
        curvature=curvature,
        select=select,
        sampler=sampler,
        sampler_options=dict(sampler_options or {}),
        care=care,
        block_size=block_size,
        num_blocks=num_blocks,
        stages=stages,
        rounds=rounds,
        final_rounds=final_rounds,
        compensate=compensate,
        augment=augment,
        terms=terms,
        damping=damping,
        accept_share=accept_share,
        samples_per_step=samples_per_step,
        batch_size=batch_size,
        seed=seed,
        max_seconds=max_seconds,
        max_steps=max_steps,
        max_memory=max_memory,
    )
    observers = (observe,) if callable(observe) else tuple(observe)
    watchers = (observe_blocks,) if callable(observe_blocks) else tuple(observe_blocks)
    ranks = ranks or ALONE
    refuse_wrapped(model)
    if output_dir is not None or resume_from is not None:
        refuse_unstorable(model)
    threads = checked_threads(threads)
    with ExitStack() as stack:
        stack.enter_context(ranks.watched())
        stack.enter_context(limited_threads(1))
        home = stack.enter_context(on_cpu(model))
        stack.enter_context(restored_on_error(model))
        stack.enter_context(derivable())
        if executor is None and threads > 1 and isinstance(sampler, str):
            # An object of the user's own may not stand several callers.
            executor = stack.enter_context(ThreadPoolExecutor(threads))
        record = _recording(ranks, stack, output_dir, resume_from)
        data = as_calibration(
            calibration, model, forward=forward, num_samples=num_calibration_samples
        ).cpu()
        if output_dir is not None or resume_from is not None:
            require_named(data)
        foresee = partial(_stated, ranks=ranks, executor=executor, expect=expect)
        setting = prepare(
            request,
            model,
            data,
            (record.note, *observers),
            executor,
            should_stop,
            foresee,
            ranks,
            threads,
        )
        border = replace(setting.border, store=record.answers)
        setting = replace(setting, border=border, observe_blocks=watchers)
        progress = _begun(setting, data, record, output_dir or resume_from)
        if evaluate is not None:
            evaluate = partial(_evaluated, evaluate, threads, home)
        dense = _scored(model, evaluate)
        first = _first_pass_score(setting, evaluate)
        setting.layers.write(progress.state.values)
        state = walk(setting, progress, partial(record.keep, setting))
        stopped = setting.journal.stopped
        setting.layers.write(state.values)
        if ranks.size > 1:
            ranks.require_equal("outcome", digest_of_tensors({"w": state.values, "m": state.mask}))
        final = _scored(model, evaluate)
    report = Report(
        asked_sparsity=setting.sparsity,
        achieved_sparsity=1 - int(state.mask.sum()) / setting.layers.size,
        layers=_layer_records(setting, state),
        steps=tuple(setting.journal.steps),
        settings=setting.request.to_json() | asdict(setting.effort),
        seed=seed,
        loss=str(setting.request.loss),
        seconds=record.seconds,
        cpu_seconds=record.cpu_seconds,
        stopped=stopped,
        dense=dense,
        start=first,
        final=final,
        estimate=setting.estimate,
        peak_memory=int(peak_memory()),
        coverage=setting.layers.coverage,
        zeros_before=int((setting.dense.values == 0).sum()),
    )
    mask = mask_by_name(setting.layers, state.mask)
    return Pruned(model, {name: kept.to(home) for name, kept in mask.items()}, report)


def _stated(
    plan: Plan, *, ranks: Ranks, executor: Any, expect: Callable[[Estimate], None] | None
) -> Estimate | None:
    """What the run needs, logged and told.

    Raises:
        ImpossibleRequestError: it does not fit, on some rank, or does not end.
    """

    def own(*_: int) -> Estimate | None:
        expected = needs_of(plan, executor)
        if expected is not None:
            logger.info("%s", expected)
            if expect is not None:
                expect(expected)
            require_fit(expected, available_memory(), plan.request.max_memory)
            if plan.request.max_seconds is None and plan.request.max_steps is None:
                require_end(expected)
        return expected

    return ranks.gather(own, range(ranks.size))[ranks.rank]


def _recording(
    ranks: Ranks, stack: ExitStack, output_dir: str | Path | None, resume_from: str | Path | None
) -> Recording:
    """The first rank's recording; the others record nothing, and hear if it cannot be opened."""
    opened = [Recording(None)]
    ranks.once(lambda: opened.append(stack.enter_context(recording(output_dir, resume_from))))
    return opened[-1]


def _begun(
    setting: Setting, data: Calibration, record: Recording, folder: str | Path | None
) -> Progress:
    """Where the run stands, on every rank as on the first."""
    ranks = setting.ranks
    if ranks.size == 1 and folder is None:
        return record.begin(setting, None)
    present = fingerprint_of(setting, data)
    for what, value in (
        ("model", present.model),
        ("calibration data set", present.data),
        ("request", str(present.settings)),
        ("version of the code", str(present.code)),
    ):
        ranks.require_equal(what, value)
    progress = ranks.once(lambda: record.begin(setting, present))
    setting.generator.set_state(ranks.once(setting.generator.get_state))
    return progress


def _evaluated(
    evaluate: Callable[[nn.Module], Score], threads: int, home: torch.device, model: nn.Module
) -> Score:
    """The caller's own score: where the model was, and with all threads, as it decides nothing."""
    with limited_threads(threads), back_home(model, home):
        return evaluate(model)


def _scored(model: nn.Module, evaluate: Callable[[nn.Module], Score] | None) -> Score | None:
    """The model's score; whatever mode that leaves it in, it is in evaluation mode again.

    Raises:
        ImpossibleRequestError: it is no `Score`. The dense network is scored before anything else,
            so that this costs no run.
    """
    score = evaluate(model) if evaluate else None
    if score is not None and not isinstance(score, Score):
        raise ImpossibleRequestError(
            f"evaluate must return a qprune.Score, not {score!r} ({type(score).__name__}): for "
            "example qprune.Score(accuracy=0.93, loss=0.21); accuracy may be None"
        )
    model.eval()
    return score


def _first_pass_score(
    setting: Setting, evaluate: Callable[[nn.Module], Score] | None
) -> Score | None:
    """The score of the first pass alone, straight to the asked sparsity.

    None for a start that prunes by itself: it would have to do all of its work twice.
    """
    if evaluate is None or isinstance(setting.start, Pruner):
        return None
    setting.layers.write(setting.pruned_at_once().values)
    return _scored(setting.model, evaluate)


def _layer_records(setting: Setting, state: State) -> tuple[LayerRecord, ...]:
    layers = setting.layers
    parts = zip(layers, layers.split(state.mask), layers.split(state.values), strict=True)
    return tuple(
        LayerRecord(
            layer.name,
            tuple(layer.shape),
            layer.size,
            layer.size - int(kept.sum()),
            # As the model holds them, in which small ones may be zero.
            num_zero=int((values.to(layer.parameter.dtype) == 0).sum()),
            parameter=layer.parameter_name,
            input_groups=layer.kind.layout.input_groups,
            gradients=layer.path.told if layer.path is not None else "",
        )
        for layer, kept, values in parts
    )
