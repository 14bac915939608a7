"""Checks on a run folder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qprune.record.folder import REPORT_JSON, read_steps
from qprune.record.recording import STEPS
from qprune.results import Report, Score
from solvers.host.disk import strict_json

Tensors = Mapping[str, Tensor]

# Tolerance for another machine's arithmetic: of the loss (relative) and of the accuracy.
_LOSS, _ACCURACY = 1e-4, 1e-3


@dataclass(frozen=True)
class Finding:
    """Result of `check_run`.

    Attributes:
        lies: contradictions, one line each; none in a consistent folder.
        num_weights: number of targeted weights in the mask.
        num_pruned: number of them that the mask prunes.
        notes: facts that the folder leaves open.
    """

    lies: tuple[str, ...]
    num_weights: int = 0
    num_pruned: int = 0
    notes: tuple[str, ...] = ()


def num_weights(mask: Tensors) -> int:
    """Return the number of targeted weights."""
    return sum(kept.numel() for kept in mask.values())


def num_pruned(mask: Tensors) -> int:
    """Return the number of weights that the mask prunes."""
    return sum(int((~kept).sum()) for kept in mask.values())


def wrong_zeros(weights: Tensors, mask: Tensors) -> Iterator[str]:
    """Yield pruned weights that are not exactly zero, or are NaN."""
    for name, kept in mask.items():
        wrong = int((weights[name][~kept] != 0).sum())
        if wrong:
            yield f"{name}: {wrong} weights that the mask prunes are not exactly zero"
        if not bool(weights[name].isfinite().all()):
            yield f"{name}: weights are NaN or infinite"


def wrong_kept_zeros(weights: Tensors, report: Report) -> Iterator[str]:
    """Yield counts of zeros that differ from the report's: a kept weight has become zero."""
    for record in report.layers:
        # A language model's records are named by the parameters themselves.
        name = record.parameter if record.parameter in weights else record.name
        if record.num_zero is None or name not in weights:
            continue
        found = int((weights[name] == 0).sum())
        if found != record.num_zero:
            yield (
                f"{name}: {found} weights are zero, {REPORT_JSON} says "
                f"{record.num_zero}, {record.num_pruned} of them pruned: weights that the mask "
                "keeps have changed"
            )


def kept_zeros_told(report: Report) -> Iterator[str]:
    """Yield a note on zeros that the mask keeps and the report does not count."""
    if any(record.num_zero is None for record in report.layers):
        yield (
            f"{REPORT_JSON} is of a version that did not count zeros: weights that the mask keeps "
            "may have become zero"
        )
        return
    kept = sum((record.num_zero or 0) - record.num_pruned for record in report.layers)
    if kept:
        yield (
            f"{kept} weights that the mask keeps are zero, as many as {REPORT_JSON} says; which "
            f"ones it does not say ({report.zeros_before} were zero before the run)"
        )


def wrong_totals(mask: Tensors, report: Report, asked: float) -> Iterator[str]:
    """Yield recorded sparsities that differ from the mask or the request."""
    achieved = num_pruned(mask) / max(num_weights(mask), 1)
    if not math.isclose(report.achieved_sparsity, achieved, abs_tol=1e-12):
        yield f"{REPORT_JSON} says sparsity {report.achieved_sparsity}, the mask has {achieved}"
    if not math.isclose(report.asked_sparsity, asked, abs_tol=1e-12):
        yield f"{asked} was asked, {REPORT_JSON} says {report.asked_sparsity}"


def wrong_steps(path: Path, report: Report) -> Iterator[str]:
    """Yield contradictions between the journal and the report."""
    try:
        journal = read_steps(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"{STEPS} cannot be read: {error}"
        return
    if len(journal) != len(report.steps):
        yield (f"{STEPS} has {len(journal)} steps, {REPORT_JSON} {len(report.steps)}")
        return
    for written, told in zip(journal, report.steps, strict=True):
        # As text, so that NaN equals itself.
        if strict_json(written.to_json()) != strict_json(told.to_json()):
            yield f"{STEPS} and {REPORT_JSON} differ in step {told.index}"
            return


def wrong_score(name: str, told: Score | None, found: Score) -> Iterator[str]:
    """Yield a recorded score that differs from the recomputed one."""
    if told is None:
        return
    same_loss = math.isclose(told.loss, found.loss, rel_tol=_LOSS, abs_tol=1e-6)
    pair = told.accuracy, found.accuracy
    both = [value for value in pair if value is not None]
    same_accuracy = pair == (None, None) or (
        len(both) == 2 and math.isclose(*both, rel_tol=0, abs_tol=_ACCURACY)
    )
    if not (same_loss and same_accuracy):
        yield (
            f"the report says {name} accuracy {told.accuracy} and loss {told.loss}; computed "
            f"again they are {found.accuracy} and {found.loss}"
        )
