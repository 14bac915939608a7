"""What is found wrong with a run's folder, and what every kind of run is asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qprune.recording import STEPS
from qprune.records import strict_json
from qprune.run import REPORT_JSON, read_steps
from qprune.steps import Report, Score

Tensors = Mapping[str, Tensor]

# What another machine's arithmetic may change: of the loss, relative, and of the accuracy.
_LOSS, _ACCURACY = 1e-4, 1e-3


@dataclass(frozen=True)
class Finding:
    """What `check_run` found.

    Attributes:
        lies: every contradiction in one line each; none in an honest folder.
        num_weights: targeted weights by the mask.
        num_pruned: how many of them the mask prunes.
        notes: what the folder leaves open.
    """

    lies: tuple[str, ...]
    num_weights: int = 0
    num_pruned: int = 0
    notes: tuple[str, ...] = ()


def num_weights(mask: Tensors) -> int:
    """Targeted weights."""
    return sum(kept.numel() for kept in mask.values())


def num_pruned(mask: Tensors) -> int:
    """Weights that the mask prunes."""
    return sum(int((~kept).sum()) for kept in mask.values())


def wrong_zeros(weights: Tensors, mask: Tensors) -> Iterator[str]:
    """Weights that the mask prunes and that are not exactly zero, or are no numbers."""
    for name, kept in mask.items():
        wrong = int((weights[name][~kept] != 0).sum())
        if wrong:
            yield f"{name}: {wrong} weights that the mask prunes are not exactly zero"
        if not bool(weights[name].isfinite().all()):
            yield f"{name}: weights are NaN or infinite"


def wrong_kept_zeros(weights: Tensors, report: Report) -> Iterator[str]:
    """Numbers of zeros that are not the report's: a weight that the mask keeps has become zero."""
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
    """What the report leaves open about weights that the mask keeps and that are zero."""
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
    """Sparsities that the mask, or the request, does not have."""
    achieved = num_pruned(mask) / max(num_weights(mask), 1)
    if not math.isclose(report.achieved_sparsity, achieved, abs_tol=1e-12):
        yield f"{REPORT_JSON} says sparsity {report.achieved_sparsity}, the mask has {achieved}"
    if not math.isclose(report.asked_sparsity, asked, abs_tol=1e-12):
        yield f"{asked} was asked, {REPORT_JSON} says {report.asked_sparsity}"


def wrong_steps(path: Path, report: Report) -> Iterator[str]:
    """A journal that is not the report's."""
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
    """A score that is not what it is said to be."""
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
