"""One `qprune prune` of a checkpoint: from settings to a folder that transformers loads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from qprune.cli.bars import Track, untracked
from qprune.distributed.workers import limited_threads
from qprune.errors import ImpossibleRequestError, RunFolderError
from qprune.jobs.language.outcome import LanguageOutcome, matrix_records
from qprune.jobs.language.settings import LanguageSettings
from qprune.jobs.language.stages import UNWATCHED, Place, Watch, Work, chosen_method, prune_model
from qprune.jobs.page import render_html
from qprune.models.card import Card, Quality, layer_records
from qprune.models.heads import Subject, head_of, targeted
from qprune.models.pretrained import load_checkpoint, load_pretrained, stored_dtype
from qprune.models.save import save_model
from qprune.record.folder import OURS, RunFolder, resumed_folder, run_folder
from solvers import Ask
from solvers.host.disk import LOCK, half_written
from solvers.host.machine import peak_memory


def load_subject(settings: LanguageSettings) -> Subject:
    """The model and the data that ``settings`` name.

    Raises:
        QpruneError: one of them cannot be had, or they do not fit.
    """
    loaded = load_checkpoint(settings.model, dtype=settings.dtype, device=settings.device)
    head = head_of(loaded.model)
    for option in head.useless:
        if getattr(settings, option) is not None:
            raise ImpossibleRequestError(
                f"{settings.model} is {head.task.described}, and --{option.replace('_', '-')} "
                "says nothing to it; leave it out"
            )
    return head.subject(settings, loaded)


def score_of(
    settings: LanguageSettings,
    subject: Subject,
    model: nn.Module,
    dense: Callable[[], nn.Module],
    track: Track = untracked,
) -> Quality | None:
    """How good ``model`` is; None where nobody wants to know. ``dense`` loads the dense one."""
    if not settings.evaluate:
        return None
    return subject.head.quality(settings, subject, model, dense, track)


def run_language_job(
    settings: LanguageSettings,
    output: Path | None = None,
    *,
    resume: bool = False,
    watch: Watch = UNWATCHED,
    track: Track = untracked,
) -> LanguageOutcome:
    """Load, prune, evaluate and, with ``output``, save.

    Args:
        settings: what to do.
        output: new folder for what `save_pretrained` writes, the packed mask, the card, and the
            run's own files (`qprune.record.folder`).
        resume: go on with the run that ``output`` holds.
        watch: who hears of it.
        track: wraps the samples that are evaluated, for a progress bar.

    Raises:
        QpruneError, SolverError: the request is impossible, or failed; a run that was not under
            way leaves nothing behind, any other a folder that can be resumed.
    """
    began = time.perf_counter(), time.process_time()
    _refuse(settings)
    saving = nullcontext(None) if output is None else _folder(output, settings, resume)
    with limited_threads(settings.threads), saving as folder:
        subject = load_subject(settings)

        def dense_again() -> nn.Module:
            return load_pretrained(settings.model, dtype=settings.dtype, device=settings.device)

        before_dense = time.perf_counter()
        dense = score_of(settings, subject, subject.model, lambda: subject.model, track)
        now = time.perf_counter()
        work = prune_model(
            settings,
            subject,
            watch=watch,
            place=Place(folder.path, resume) if folder else None,
            # What the dense evaluation took, the last one will take too.
            seconds=_left(settings, now - began[0] + now - before_dense),
        )
        dtype = stored_dtype(settings.model)
        _round_to(subject.model, dtype)
        pruned = score_of(settings, subject, subject.model, dense_again, track)
        outcome = _outcome(settings, subject, work, (dense, pruned), began)
        if folder is not None:
            _save(folder, settings, subject, outcome, dtype)
    return outcome


def _refuse(settings: LanguageSettings) -> None:
    """What can be refused before a model is loaded.

    Raises:
        QpruneError, SolverError: names the option.
    """
    settings.check()
    _ = settings.asked_sparsity
    chosen_method(settings)
    if settings.method == "qprune" and (settings.sampler or settings.sampler_options):
        Ask.to(settings.sampler or "relax", settings.sampler_options)


@contextmanager
def _folder(output: Path, settings: LanguageSettings, resume: bool) -> Iterator[RunFolder]:
    if resume:
        with resumed_folder(output) as folder:
            yield folder
        return
    if not _is_free(output):
        raise RunFolderError(
            f"{output} is not empty; choose another --output (`qprune resume` goes on with a run)"
        )
    with run_folder(output, settings) as folder:
        yield folder


def _is_free(output: Path) -> bool:
    """Whether nothing is there but what a run left that was killed before it had begun."""
    try:
        return {*output.iterdir()} <= {output / LOCK, *half_written(output, OURS)}
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"cannot use {output}: {error.strerror}; choose another --output"
        ) from error


def _left(settings: LanguageSettings, spent: float) -> float | None:
    return None if settings.max_seconds is None else max(0.0, settings.max_seconds - spent)


def _outcome(
    settings: LanguageSettings,
    subject: Subject,
    work: Work,
    scores: tuple[Quality | None, Quality | None],
    began: tuple[float, float],
) -> LanguageOutcome:
    dense, pruned = scores
    blocks = targeted(subject.model, settings)
    weights = dict(subject.model.named_parameters(remove_duplicate=False))
    report = replace(work.report, layers=layer_records(work.mask, weights))
    card = Card(
        base_model=settings.model,
        method=work.method,
        asked_sparsity=settings.asked_sparsity,
        layers=layer_records(work.mask),
        mask_structure=settings.mask_structure,
        dense=dense,
        pruned=pruned,
        settings=settings.model_dump(mode="json") | {"max_seq_length": subject.length},
        architecture=type(subject.model).__name__,
        unused=subject.unused,
    )
    return LanguageOutcome(
        model=subject.model,
        mask=work.mask,
        card=card,
        report=replace(report, dense=dense and dense.score, final=pruned and pruned.score),
        matrices=matrix_records([m for inside in blocks for m in inside], work.mask, work.layers),
        seconds=time.perf_counter() - began[0],
        cpu_seconds=time.process_time() - began[1],
        peak_memory=_peak_memory(settings.device),
    )


def _save(
    folder: RunFolder,
    settings: LanguageSettings,
    subject: Subject,
    outcome: LanguageOutcome,
    dtype: torch.dtype,
) -> None:
    written = save_model(
        folder.path,
        outcome.model,
        outcome.mask,
        tokenizer=subject.tokenizer,
        beside=subject.beside,
        card=outcome.card,
        dtype=dtype,
    )
    html = render_html(outcome.report, title=settings.title)
    folder.finish(outcome.report, (), html, written)


@torch.no_grad()
def _round_to(model: nn.Module, dtype: torch.dtype) -> None:
    """Round weights to what they are stored in, so that the figures are those of the folder."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.copy_(parameter.to(dtype))


def _peak_memory(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    return int(peak_memory())
