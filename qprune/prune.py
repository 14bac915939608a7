"""The walk: which weights, how many of them, on which samples; then every action in its order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn

from qprune.cost import estimate, require_end, require_fit
from qprune.data.augment import Augmentation
from qprune.data.calibration import Calibration, as_calibration
from qprune.data.inputs import Call
from qprune.distributed.placement import back_home, device_of, on_cpu
from qprune.distributed.ranks import ALONE, FirstSolves, Ranks
from qprune.distributed.sharding import whole
from qprune.distributed.workers import checked_threads, limited_threads
from qprune.errors import ImpossibleRequestError, QpruneError
from qprune.models.save import save_model
from qprune.moving.compensate import Compensate, Compensation, as_compensate
from qprune.moving.distill import compensation_for
from qprune.moving.guards import restored_on_error
from qprune.network.admission import refuse_unstorable, refuse_wrapped
from qprune.network.groups import Budget, NofM, groups_of, state_zeros
from qprune.network.patterns import Pattern
from qprune.network.weights import Weight
from qprune.objective.loss_names import as_loss
from qprune.objective.losses import Loss
from qprune.objective.samples import Prepared, prepared, prepared_inputs
from qprune.objective.trace.derivable import derivable
from qprune.objective.trace.recorder import out_of_memory
from qprune.record.checkpoint import Begun
from qprune.record.fingerprint import (
    digest_of_tensors,
    fingerprint_of,
    require_named,
)
from qprune.record.folder import RunFolder, opened, saving
from qprune.results import Estimate, LayerRecord, Observer, Report, Score
from qprune.steps.solve import BlockObserver
from qprune.walk.journal import Journal, Limits
from qprune.walk.networkwise import Networkwise
from qprune.walk.run import Run
from qprune.walk.schedule import CompleteMethod, InOrder, Method, as_method, carry_out, described
from qprune.walk.state import State
from solvers import Ask, FaultPolicy
from solvers.host.machine import available_memory, peak_memory
from solvers.host.ranges import Number, Seed, checked

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned model, its mask, and the report of the run.

    Attributes:
        model: the model that was passed in, pruned in place.
        mask: parameter name -> bool tensor of the parameter's shape, True = kept.
        report: what happened.
    """

    model: nn.Module
    mask: dict[str, Tensor]
    report: Report

    def save(self, folder: str | Path) -> None:
        """Write weights, mask and report as `qprune prune --output` does, without its settings.

        Args:
            folder: a new one, or the ``output_dir`` of the run. A transformers model is written
                as its `save_pretrained` does.

        Raises:
            RunFolderError: it holds another outcome, or cannot be written.

        Example:
            >>> import pathlib, tempfile, torch, qprune
            >>> linear = torch.nn.Linear(8, 4)
            >>> pruned = qprune.prune(linear, torch.randn(64, 8), sparsity=0.5)
            >>> with tempfile.TemporaryDirectory() as place:
            ...     pruned.save(place)
            ...     "mask.safetensors" in {path.name for path in pathlib.Path(place).iterdir()}
            True
        """
        with saving(Path(folder), self.report.steps) as place:
            if hasattr(self.model, "save_pretrained"):
                written = save_model(place.path, self.model, self.mask)
                place.finish(self.report, beside=written)
            else:
                place.save(self.model, self.mask, self.report)


def prune(
    model: nn.Module,
    calibration: Any,
    *,
    sparsity: float | None = None,
    density: float | None = None,
    mask_structure: NofM | str | None = None,
    budget: Budget | str = "global",
    targets: Sequence[Pattern] | Pattern | None = None,
    ignore: Sequence[Pattern] | Pattern = (),
    method: Method | Sequence[Method] = Networkwise(),
    sampler: Any = "relax",
    sampler_options: Mapping[str, Any] | None = None,
    on_fault: FaultPolicy = FaultPolicy(),
    compensate: bool | Compensate = True,
    loss: Loss | nn.Module | str = "dense",
    augment: Augmentation | str | None = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    forward: Call | None = None,
    num_calibration_samples: int | None = None,
    limits: Limits = Limits(),
    observe: Observer | Sequence[Observer] = (),
    observe_blocks: BlockObserver | Sequence[BlockObserver] = (),
    evaluate: Callable[[nn.Module], Score] | None = None,
    executor: Any = None,
    ranks: Ranks = ALONE,
    threads: int | None = None,
    output_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    **moved: object,
) -> Pruned:
    """Prune ``model`` in place.

    Args:
        model: any module; in evaluation mode meanwhile.
        calibration: a `Calibration`, a tensor or array of inputs, an (inputs, labels) pair, a
            dict by the model's argument names, a data set, or a DataLoader or other iterable of
            such batches (`qprune.data.calibration.as_calibration`). All the data of the run.
        sparsity: share of targeted weights to be zero, in [0, 1).
        density: 1 - sparsity, instead of it.
        mask_structure: "N:M" keeps at most N of every M consecutive inputs, instead of budget.
        budget: over what the count is exact: "global", "layer", "row", or a strategy.
        targets: what to prune: classes, modules, parameters, by themselves or by name, or ``re:``
            patterns (`qprune.network.weights.find_weights`). None = every Linear and convolution,
            and the matrices of attention, LSTM, GRU and RNN. Coverage is logged in one line.
        ignore: the same, taken away again.
        method: `Networkwise` (blocks across all layers, by the loss at the network's end),
            `Layerwise` (transformers, one block after the other), or several in a row, such as
            ``(Layerwise(), Networkwise(start=None, rounds=1))``.
        sampler: a registered name (see ``qprune samplers``) or any object with
            ``sample(bqm, ...) -> SampleSet``.
        sampler_options: passed with every call, for example ``{"num_reads": 10}``.
        on_fault: retry and fallback for a sampler that hangs, crashes or returns nonsense.
        compensate: whether kept weights move, or how: `Compensation` (second order) or
            `Distillation`.
        loss: "dense" (keep to the dense outputs), "cross-entropy", "mse" or "bce" (against the
            labels); one of torch's losses, such as ``nn.MSELoss()``; `DenseOutputs`, `Labels`, or
            `PerSample` for one of your own. Where the loss leaves the kind of the outputs open, it
            is recognised (`qprune.objective.recognise`), logged, and in the report.
        augment: makes more samples to fit on (`qprune.data.augment`); "auto", with `DenseOutputs`,
            shifts images (m, c, h, w), and mirrors them where the dense network bears it (see
            `SuitedImages` for more), blends other numbers, and leaves tokens alone (see `OwnText`
            for these). The report's settings say what was used.
        batch_size: samples per forward pass; None = by the size of the activations.
        seed: of all random choices; one seed, one mask.
        forward: (model, batch) -> outputs, for batches that the model does not take as they
            are: it gets them in the structure of ``calibration``, labels included.
        num_calibration_samples: the first so many are taken; None takes all, or 1024 of an
            iterator without a length.
        limits: time, steps and memory; a stop from outside.
        observe: called with every `Step`.
        observe_blocks: called with every problem that the sampler has answered
            (`qprune.steps.solve.SolvedBlock`); a `qprune.record.blocks.BlockFolder` keeps them.
        evaluate: model -> `Score` on test data; fills the report's dense, start and final.
        executor: something with ``map``, as in `concurrent.futures`, to solve blocks with.
        ranks: processes that share the passes over the samples, each of which calls this with the
            same arguments: ``DataParallel()``. The first one writes ``output_dir``.
        threads: that pass batches and solve blocks at once; the mask does not depend on it, since
            torch and BLAS use one thread within each (as before afterwards). Each holds a batch
            and a copy of the model. Derivatives of a second-order `Compensation`, and
            `Distillation`, stay on one. None: `qprune.distributed.workers.DEFAULT_THREADS`.
        output_dir: folder for the journal and checkpoints of this run, so that it can be resumed.
        resume_from: the ``output_dir`` of a run that was stopped or killed. Everything else must
            be as it was then, the model dense; the mask is the one of a run never stopped. Only
            time and memory in ``limits`` may change; the time spent before counts.
        **moved: keywords of earlier versions, refused with where they went.

    Raises:
        QpruneError, solvers.SolverError: see `qprune.errors`; the model is then as it was.

    Example:
        >>> import torch, qprune
        >>> model = torch.nn.Linear(8, 4)
        >>> method = qprune.Networkwise(stages=2)
        >>> pruned = qprune.prune(model, torch.randn(64, 8), sparsity=0.5, method=method)
        >>> int((model.weight == 0).sum())
        16
    """
    asked = {name: value for name, value in locals().items() if name in _DECIDING}
    _refuse_moved(moved)
    _check_numbers(seed=seed, batch_size=batch_size)
    method, loss, threads = as_method(method), as_loss(loss), checked_threads(threads)
    generator, ranks = torch.Generator().manual_seed(seed), ranks or ALONE
    with ExitStack() as stack:
        home = stack.enter_context(_surroundings(model, method, ranks))
        folder = stack.enter_context(_opened(model, output_dir, resume_from, ranks))
        journal = Journal(limits, (folder.note, *_all(observe)), ranks)
        data = as_calibration(
            calibration, model, forward=forward, num_samples=num_calibration_samples
        ).cpu()

        weights = method.find(model, targets, ignore)  # Which tensors, one flat index.
        groups = groups_of(weights, sparsity, density, budget, mask_structure)  # How many of them.
        ask = Ask.to(sampler, sampler_options, on_fault, folder.answers)
        dense = stack.enter_context(restored_on_error(model, weights))
        stack.enter_context(method.passing(model))
        look = prepared if method.uses_loss else prepared_inputs
        sharing = (method.accept_share, augment, batch_size, generator, ranks, threads)
        ready = look(model, weights, data, loss, *sharing)
        if len(ready.weights) < len(weights):  # No sample reaches the others.
            groups = groups_of(ready.weights, sparsity, density, budget, mask_structure)
        state_zeros(dense.num_zero, weights.size, groups)

        moves = _moves(method, ready, compensate)
        complete, moves = method.completed(ready, moves, threads)
        executor = stack.enter_context(_executor(executor, sampler, threads, ready.ranks))
        needs = _foreseen(complete, ready, moves, ask, limits, executor)
        objective, judge = ready.objectives(generator, journal.fault)
        run = Run(
            objective=objective,
            judge=judge,
            groups=groups,
            dense=dense.narrowed(ready.weights),
            compensate=moves,
            ask=ask,
            journal=journal,
            observe_blocks=_all(observe_blocks),
            executor=executor,
            generator=generator,
            seed=seed,
        )
        settings = _settings(complete, ready, moves, limits, asked | {"method": method})
        begun = _begun(run, data, settings, folder, output_dir or resume_from)
        schedule = stack.enter_context(closing(complete.schedule(run)))  # Every action to come.

        scored = partial(_scored, model, evaluate, threads, home)
        before = scored()
        first = scored() if evaluate and complete.first_pass(run) is not None else None
        begun.restore(run)
        state = carry_out(run, schedule, begun.progress, partial(folder.keep, run))
        stopped, after = _ended(run, state, scored)
    report = _report(run, state, settings, folder, stopped, needs, (before, first, after))
    mask = run.weights.by_name(state.mask)
    return Pruned(model, {name: kept.to(home) for name, kept in mask.items()}, report)


#: Arguments that decide the mask, beside those of the method.
_DECIDING = (
    *("sparsity", "density", "mask_structure", "budget", "targets", "ignore", "sampler"),
    *("sampler_options", "on_fault", "augment", "batch_size", "seed"),
)
#: Keywords of earlier versions, and where they went.
_MOVED = {
    **dict.fromkeys(
        (
            *("start", "curvature", "select", "terms", "block_size", "num_blocks", "stages"),
            *("rounds", "final_rounds", "samples_per_step", "damping", "accept_share"),
        ),
        "method=Networkwise({0}=...)",
    ),
    **dict.fromkeys(
        ("max_seconds", "max_steps", "max_memory", "should_stop", "expect"),
        "limits=Limits({0}=...)",
    ),
    "care": "on_fault=FaultPolicy(...)",
}


def _refuse_moved(given: Mapping[str, object]) -> None:
    """Refuse keywords that `prune` does not have, with the place of those that it had.

    Raises:
        ImpossibleRequestError: one that has moved.
        TypeError: one that never was.
    """
    for name in given:
        if name in _MOVED:
            raise ImpossibleRequestError(
                f"prune() has no argument {name!r} any more; pass {_MOVED[name].format(name)}"
            )
        raise TypeError(f"prune() got an unexpected keyword argument {name!r}")


def _check_numbers(*, seed: int, batch_size: int | None) -> None:
    try:
        checked(Seed, seed, "seed")
        if batch_size is not None:
            checked(Number, batch_size, "batch_size")
    except ValueError as error:
        raise ImpossibleRequestError(str(error)) from error


def _all(given: T | Sequence[T]) -> tuple[T, ...]:
    """One callback, or several, as a tuple."""
    return tuple(given) if isinstance(given, Sequence) else (given,)


@contextmanager
def _surroundings(model: nn.Module, method: Method, ranks: Ranks) -> Generator[torch.device]:
    """One thread of arithmetic, the model where the method needs it; gives where it was."""
    refuse_wrapped(model)
    with ranks.watched(), limited_threads(1), ExitStack() as stack:
        home = device_of(model)
        if method.on_host:
            home = stack.enter_context(on_cpu(model))
        stack.enter_context(derivable())
        yield home


@contextmanager
def _opened(
    model: nn.Module, output_dir: str | Path | None, resume_from: str | Path | None, ranks: Ranks
) -> Generator[RunFolder]:
    """The run's folder, of a model that it can hold."""
    if output_dir is not None or resume_from is not None:
        refuse_unstorable(model)
    with opened(output_dir, resume_from, ranks) as folder:
        yield folder


@contextmanager
def _executor(given: Any, sampler: Any, threads: int, ranks: Ranks) -> Generator[Any]:
    """The executor that solves blocks; None = one after the other."""
    with ExitStack() as stack:
        if given is None and threads > 1 and isinstance(sampler, str):
            # An object of the user's own may not stand several callers.
            given = stack.enter_context(ThreadPoolExecutor(threads))
        yield given if ranks.size == 1 else FirstSolves(ranks, given)


def _moves(method: Method, ready: Prepared, asked: bool | Compensate) -> Compensate | None:
    """The compensation, tried on the model where the method reads its loss."""
    if not method.uses_loss:
        return Compensation() if asked is True else as_compensate(asked) if asked else None
    return compensation_for(asked, ready.model, ready.weights, ready.fit.inputs, ready.loss)


def _settings(
    method: Method,
    ready: Prepared,
    moves: Compensate | None,
    limits: Limits,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that decides a run, as JSON has it; each field of a method by its name."""
    named = dict(asked)
    for one in _each(method):
        named |= {f.name: getattr(one, f.name) for f in fields(cast(Any, one)) if f.repr}
    named |= {"compensate": moves or False, "loss": ready.loss, "augment": ready.augment}
    named |= {n: getattr(limits, n) for n in ("max_seconds", "max_steps", "max_memory")}
    told = {name: _plain(value) for name, value in named.items()}
    return told | {"method": [type(one).__name__ for one in _each(asked["method"])]}


def _each(method: Method) -> tuple[Method, ...]:
    """The methods in a row, or the one."""
    return method.methods if isinstance(method, InOrder) else (method,)


def _plain(value: Any) -> Any:
    """A value as JSON has it; options keep their names, by which secrets are known."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    plain = value is None or isinstance(value, str | int | float | bool)
    return value if plain else described(value)


def _foreseen(
    method: CompleteMethod,
    ready: Prepared,
    moves: Compensate | None,
    ask: Ask,
    limits: Limits,
    executor: Any,
) -> Estimate | None:
    """The cost of the run, logged; None where the network cannot be tried out.

    One rank knows its own machine only, and a refusal by one would leave the others waiting: of
    several ranks, none estimates.

    Raises:
        ImpossibleRequestError: it does not fit, or does not end.
    """
    if ready.ranks.size > 1:
        return None
    try:
        needs = method.cost(ready, moves, ask, limits, executor)
    except (QpruneError, RuntimeError, MemoryError) as error:
        if not isinstance(error, QpruneError) and not out_of_memory(error):
            raise
        # The run meets the same trouble, and has more to say about it.
        logger.debug("the cost of the run is not known: %s", error)
        return None
    found = estimate(
        float(psutil.Process().memory_info().rss),
        peak_memory(),
        needs.always,
        needs.phases,
        limit=limits.max_seconds,
        unknown=needs.unknown,
    )
    logger.info("%s", found)
    if limits.expect is not None:
        limits.expect(found)
    require_fit(found, available_memory(), limits.max_memory)
    if limits.max_seconds is None and limits.max_steps is None:
        require_end(found)
    return found


def _begun(
    run: Run,
    data: Calibration,
    settings: Mapping[str, Any],
    folder: RunFolder,
    path: str | Path | None,
) -> Begun:
    """The position to go on from, on every rank as on the first."""
    ranks = run.objective.samples.ranks
    if ranks.size == 1 and path is None:
        return folder.begin(run, None)
    require_named(data)
    present = fingerprint_of(run, data, settings)
    for what, value in (
        ("model", present.model),
        ("calibration data set", present.data),
        ("request", str(present.settings)),
        ("version of the code", str(present.code)),
    ):
        ranks.require_equal(what, value)
    begun = ranks.once(lambda: folder.begin(run, present))
    run.generator.set_state(ranks.once(run.generator.get_state))
    return begun


def _scored(
    model: nn.Module,
    evaluate: Callable[[nn.Module], Score] | None,
    threads: int,
    home: torch.device,
) -> Score | None:
    """The caller's own score: where the model was, and with all threads, as it decides nothing.

    Raises:
        ImpossibleRequestError: it is no `Score`. The dense network is scored before anything else,
            so that this costs no run.
    """
    if evaluate is None:
        return None
    with limited_threads(threads), back_home(model, home):
        score = evaluate(model)
    if not isinstance(score, Score):
        raise ImpossibleRequestError(
            f"evaluate must return a qprune.Score, not {score!r} ({type(score).__name__}): for "
            "example qprune.Score(accuracy=0.93, loss=0.21); accuracy may be None"
        )
    model.eval()  # Whatever mode that left it in.
    return score


def _ended(run: Run, state: State, scored: Callable[[], Score | None]) -> tuple[str, Score | None]:
    """(why the run stopped, the score of the pruned network)."""
    stopped = run.journal.stopped
    run.put_back(state)
    ranks = run.objective.samples.ranks
    if ranks.size > 1:
        parts = {"w": state.held(run.weights), "m": state.mask}
        ranks.require_equal("outcome", digest_of_tensors(parts))
    return stopped, scored()


def _report(
    run: Run,
    state: State,
    settings: Mapping[str, Any],
    folder: RunFolder,
    stopped: str,
    needs: Estimate | None,
    scores: tuple[Score | None, Score | None, Score | None],
) -> Report:
    return Report(
        asked_sparsity=run.groups.asked,
        achieved_sparsity=run.sparsity(state),
        layers=_layer_records(run, state),
        steps=tuple(run.journal.steps),
        settings=settings,
        seed=run.seed,
        seconds=folder.seconds,
        cpu_seconds=folder.cpu_seconds,
        stopped=stopped,
        dense=scores[0],
        start=scores[1],
        final=scores[2],
        estimate=needs,
        peak_memory=int(peak_memory()),
        coverage=run.weights.coverage,
        loss=str(run.objective.loss),
        zeros_before=run.dense.num_zero,
    )


def _layer_records(run: Run, state: State) -> tuple[LayerRecord, ...]:
    """One record for each parameter; experts of one tensor together."""
    held = {(layer.parameter, layer.name): layer for s in run.journal.steps for layer in s.layers}
    found: dict[str, LayerRecord] = {}
    for weight, kept in zip(run.weights, run.weights.split(state.mask), strict=True):
        # As the model holds them, in which small ones may be zero.
        zero = int((whole(weight.part(weight.parameter.detach())) == 0).sum())
        record = LayerRecord(
            weight.name,
            tuple(weight.shape),
            weight.size,
            weight.size - int(kept.sum()),
            num_zero=zero,
            parameter=weight.parameter_name,
            input_groups=weight.kind.layout.input_groups,
            gradients=weight.path.told if weight.path is not None else "",
        )
        earlier = held.get((weight.parameter_name, weight.name))
        if earlier is not None:
            record = replace(record, error=earlier.error, tokens=earlier.tokens)
        if weight.expert is not None:
            record = _together(record, found.get(weight.parameter_name), weight)
        found[weight.parameter_name] = record
    return tuple(found.values())


def _together(record: LayerRecord, before: LayerRecord | None, weight: Weight) -> LayerRecord:
    """The record of a tensor of experts, with one expert more."""
    name, shape = weight.parameter_name, tuple(weight.parameter.shape)
    pruned = record.num_pruned + (before.num_pruned if before else 0)
    zero = (record.num_zero or 0) + ((before.num_zero or 0) if before else 0)
    size = weight.parameter.numel()
    return LayerRecord(name, shape, size, pruned, num_zero=zero, parameter=name)
