"""What the methods by name do to a checkpoint: stage 1 alone, or both stages.

Where the loss at the network's end cannot move the weights (experts, or a model on a GPU), method
"qprune" is its first stage alone, "reconstruct", and says so.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qprune.data.inputs import mapped
from qprune.distributed.executors import executor_named
from qprune.errors import DISK, ImpossibleRequestError
from qprune.jobs.language.network import prune_network, reason_against
from qprune.jobs.language.settings import LanguageSettings
from qprune.models.card import layer_records
from qprune.models.heads import Subject, targeted
from qprune.models.pretrained import IMAGES
from qprune.network.matrices import find_matrices
from qprune.network.transformer import find_blocks, reproduces, stores
from qprune.network.twins import linear_twins, turned
from qprune.objective.trace.recorder import forward
from qprune.prune import prune
from qprune.record.fingerprint import (
    Fingerprint,
    code_versions,
    digest_of_data,
    digest_of_model,
    digest_of_tensors,
    plain_settings,
)
from qprune.record.folder import LAYERS
from qprune.record.recording import STEPS, drop_outcome, hold_fingerprint
from qprune.results import Observer, Report
from qprune.steps.reconstruct import METHODS, Method, SampledRows
from qprune.steps.solve import BlockObserver
from qprune.walk.layerwise import LayerObserver, LayerOutcome, evaluating, prune_layerwise
from qprune.walk.layerwise_needs import state_layerwise
from solvers.host.disk import read_json, strict_json
from solvers.host.machine import peak_memory

# Of the time there is, for text that the model writes.
_TEXT_SHARE = 0.25

logger = logging.getLogger(__name__)

Count = Callable[[int, int], None]
"""Called with how much is done, and how much there is to do."""


@dataclass(frozen=True)
class Watch:
    """Who hears of a run as it goes.

    Attributes:
        layer: every matrix that stage 1 is done with.
        step: every step of stage 2.
        block: every problem of stage 2 that the sampler has answered.
        text: sequences that the model has written.
        moves: optimiser steps of one stretch of stage 2.
        should_stop: asked before every step of stage 2; True ends it with the best mask so far.
    """

    layer: LayerObserver | None = None
    step: Observer | None = None
    block: BlockObserver | None = None
    text: Count | None = None
    moves: Count | None = None
    should_stop: Callable[[], bool] | None = None


#: Nobody hears of it, and nobody stops it.
UNWATCHED = Watch()


@dataclass(frozen=True)
class Place:
    """The folder of a run.

    Attributes:
        path: where; it is locked.
        resume: go on with the run that it holds.
    """

    path: Path
    resume: bool = False


@dataclass(frozen=True, eq=False)
class Work:
    """A pruned model's mask and how it came about.

    Attributes:
        method: what was carried out.
        mask: bool by parameter name, True = kept, in the parameter's shape.
        report: counts by parameter; the steps of stage 2, none where it was left out.
        layers: stage 1's matrices, in order of use.
    """

    method: str
    mask: dict[str, Tensor]
    report: Report
    layers: tuple[LayerOutcome, ...]


def prune_model(
    settings: LanguageSettings,
    subject: Subject,
    *,
    watch: Watch = UNWATCHED,
    place: Place | None = None,
    seconds: float | None = None,
) -> Work:
    """Prune the model in place as ``settings`` say.

    Args:
        settings: what to do.
        subject: the model, and its calibration data.
        watch: who hears of it.
        place: folder for fingerprint, journal and checkpoints.
        seconds: stage 2 ends in time; stage 1 takes what it takes.

    Raises:
        QpruneError, SolverError: see `qprune.errors`; the model is then as it was.
    """
    notes = _Notes(place, watch.layer)
    work = _one_stage
    if settings.method == "qprune" and not _in_order(settings, subject):
        logger.warning(
            "the blocks of a %s change the shape of what they pass on, or hold convolutions: "
            "pruning across the network alone, as qprune.prune does",
            type(subject.model).__name__,
        )
        work = _across_alone
    elif crosses(settings, subject.model):
        work = _both_stages
    done = work(settings, subject, replace(watch, layer=notes.add), place, seconds)
    return replace(done, layers=notes.outcomes)


def _in_order(settings: LanguageSettings, subject: Subject) -> bool:
    """Whether an image classifier's blocks can be pruned one after the other; others' are."""
    model = subject.model
    if subject.head.task is not IMAGES:
        return True
    if any(isinstance(m.module, nn.Conv2d) for inside in targeted(model, settings) for m in inside):
        return False
    one = mapped(subject.calibration.inputs[:1], lambda t: t.to(next(model.parameters()).device))
    with stores("cpu") as new_store, evaluating(model):
        return reproduces(model, find_blocks(model), one, new_store)


def crosses(settings: LanguageSettings, model: nn.Module) -> bool:
    """Whether stage 2 follows; a log line says why not where it was asked for.

    Raises:
        QpruneError: there is nothing to prune, or not in such a model.
    """
    if settings.method != "qprune":
        return False
    with linear_twins(model):
        blocks = find_matrices(find_blocks(model), settings.targets, settings.ignore)
        reason = reason_against([matrix for inside in blocks for matrix in inside])
    if reason is not None:
        logger.warning(
            "%s; stage 2 is for Linear layers on the CPU that all tokens reach: pruning layer by "
            "layer alone, as --method reconstruct does",
            reason,
        )
    return reason is None


def _both_stages(
    settings: LanguageSettings,
    subject: Subject,
    watch: Watch,
    place: Place | None,
    seconds: float | None,
) -> Work:
    moving = settings.stage2_steps != 0
    augment = None
    # Without distillation there is nothing that more text would be fitted by.
    if settings.augment and settings.compensate and moving:
        enough = _enough(watch, seconds)
        augment = subject.augment or subject.head.own_text(subject.model, watch.text, enough)
    chosen: dict[str, Any] = {
        "steps": settings.stage2_steps,
        "rounds": settings.rounds if moving else 0,
        "block_size": settings.block_size,
        "num_blocks": settings.num_blocks,
        "sampler": settings.sampler,
        "sampler_options": settings.sampler_options or None,
        "budget": settings.budget,
        "max_seconds": seconds,
        "max_memory": _most(settings),
    }
    if place is not None:
        chosen["resume_from" if place.resume else "output_dir"] = place.path
    model = subject.model
    with linear_twins(model) as twins, executor_named(settings.executor) as executor:
        pruned = prune_network(
            model,
            subject.calibration,
            loss=subject.head.criterion(model).loss,
            sparsity=None if settings.mask_structure else settings.asked_sparsity,
            mask_structure=settings.mask_structure,
            targets=settings.targets,
            ignore=settings.ignore,
            compensate=settings.compensate,
            augment=augment,
            offload=settings.offload,
            seed=settings.seed,
            threads=settings.threads,
            observe=watch.step or (),
            observe_blocks=watch.block or (),
            observe_layers=watch.layer,
            observe_moves=watch.moves,
            should_stop=watch.should_stop,
            executor=executor,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    mask = turned(pruned.mask, twins)
    report = replace(
        pruned.report,
        asked_sparsity=settings.asked_sparsity,
        layers=layer_records(mask),
        settings=settings.model_dump(mode="json") | dict(pruned.report.settings),
    )
    return Work("qprune", mask, report, ())


def _across_alone(
    settings: LanguageSettings,
    subject: Subject,
    watch: Watch,
    place: Place | None,
    seconds: float | None,
) -> Work:
    """The walk of `qprune.prune` with its own defaults, where stage 1 cannot be."""
    if settings.stage2_steps is not None:
        raise ImpossibleRequestError(
            "--stage2-steps is of networks that are pruned layer by layer first, and a "
            f"{type(subject.model).__name__} is not; leave it out"
        )
    chosen: dict[str, Any] = {
        "rounds": settings.rounds,
        "block_size": settings.block_size,
        "num_blocks": settings.num_blocks,
        "sampler": settings.sampler,
        "sampler_options": settings.sampler_options or None,
        "budget": settings.budget,
        "max_seconds": seconds,
        "max_memory": _most(settings),
    }
    if place is not None:
        chosen["resume_from" if place.resume else "output_dir"] = place.path
    matrices = targeted(subject.model, settings)
    with executor_named(settings.executor) as executor:
        pruned = prune(
            subject.model,
            subject.calibration,
            loss=subject.head.criterion(subject.model).loss,
            sparsity=None if settings.mask_structure else settings.asked_sparsity,
            mask_structure=settings.mask_structure,
            targets=[matrix.name for inside in matrices for matrix in inside],
            compensate=settings.compensate,
            augment=(subject.augment or "auto") if settings.augment else None,
            seed=settings.seed,
            observe=watch.step or (),
            observe_blocks=watch.block or (),
            should_stop=watch.should_stop,
            executor=executor,
            **{name: value for name, value in chosen.items() if value is not None},
        )
    report = replace(
        pruned.report,
        asked_sparsity=settings.asked_sparsity,
        layers=layer_records(pruned.mask),
        settings=settings.model_dump(mode="json") | dict(pruned.report.settings),
    )
    return Work("qprune", pruned.mask, report, ())


def _enough(watch: Watch, seconds: float | None) -> Callable[[], bool]:
    """Whether the run is to end, or its text has had its share of the time."""
    end = math.inf if seconds is None else time.perf_counter() + _TEXT_SHARE * seconds
    stop = watch.should_stop or (lambda: False)
    return lambda: stop() or time.perf_counter() > end


def _one_stage(
    settings: LanguageSettings,
    subject: Subject,
    watch: Watch,
    place: Place | None,
    seconds: float | None,
) -> Work:
    if place is not None:
        hold_fingerprint(place.path, _fingerprint(settings, subject))
        drop_outcome(place.path)
        DISK.write_whole(place.path / STEPS, b"")
    method, name = chosen_method(settings)
    needs = state_layerwise(
        subject.model,
        subject.calibration,
        method,
        targets=settings.targets,
        ignore=settings.ignore,
        offload=settings.offload,
        max_memory=_most(settings),
    )
    done = prune_layerwise(
        subject.model,
        subject.calibration,
        method=method,
        sparsity=settings.asked_sparsity,
        mask_structure=settings.mask_structure,
        compensate=settings.compensate,
        targets=settings.targets,
        ignore=settings.ignore,
        offload=settings.offload,
        seed=settings.seed,
        threads=settings.threads,
        observe=watch.layer,
    )
    report = Report(
        asked_sparsity=settings.asked_sparsity,
        achieved_sparsity=done.achieved_sparsity,
        layers=layer_records(done.mask),
        steps=(),
        settings=settings.model_dump(mode="json"),
        seed=settings.seed,
        seconds=done.seconds,
        cpu_seconds=done.cpu_seconds,
        estimate=needs,
        peak_memory=int(peak_memory()),
    )
    return Work(name, done.mask, report, done.layers)


def _most(settings: LanguageSettings) -> float | None:
    """Bytes that the process may hold."""
    return settings.max_memory and 1e9 * settings.max_memory


def chosen_method(settings: LanguageSettings) -> tuple[Method, str]:
    """Stage 1's method, and its name.

    Raises:
        SolverError: no such sampler or option.
    """
    name = "reconstruct" if settings.method == "qprune" else settings.method
    method: Any = METHODS[name]
    if settings.method == "reconstruct" and settings.sampler not in (None, "rows"):
        method = SampledRows(settings.sampler, settings.sampler_options)
    if settings.budget in ("layer", "row"):
        method = replace(method, scope=settings.budget)
    return method, name


def _fingerprint(settings: LanguageSettings, subject: Subject) -> Fingerprint:
    model, first = subject.model, subject.calibration.inputs[:1]
    device = next(model.parameters()).device
    outputs = forward(model, mapped(first, lambda tensor: tensor.to(device))).detach()
    return Fingerprint(
        digest_of_model(model),
        digest_of_data(subject.calibration),
        plain_settings(settings.model_dump(mode="json")),
        code_versions(),
        digest_of_tensors({"outputs": outputs}),
    )


class _Notes:
    """Stage 1's matrices, also on the disk: a run that goes on in stage 2 has them still."""

    def __init__(self, place: Place | None, observe: LayerObserver | None) -> None:
        self._path = place.path / LAYERS if place is not None else None
        self._observe = observe
        self._found = list(read_layers(place.path)) if place and place.resume else []

    @property
    def outcomes(self) -> tuple[LayerOutcome, ...]:
        return tuple(self._found)

    def add(self, outcome: LayerOutcome, done: int, total: int) -> None:
        """A `LayerObserver`."""
        if done == 1:
            self._found.clear()
            if self._path is not None:
                DISK.write_whole(self._path, b"")
        self._found.append(outcome)
        if self._path is not None:
            DISK.append_line(self._path, strict_json(asdict(outcome)))
        if self._observe is not None:
            self._observe(outcome, done, total)


def read_layers(path: Path) -> Sequence[LayerOutcome]:
    """Stage 1's matrices as far as a run's folder tells of them; nothing hangs on them."""
    if not (path / LAYERS).is_file():
        return ()
    try:
        lines = DISK.read_regular(path / LAYERS).decode().split("\n")[:-1]
        records = [read_json(line) for line in lines]
        return [LayerOutcome(**record | {"shape": tuple(record["shape"])}) for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s); its figures are left out", path / LAYERS, error)
        return ()
