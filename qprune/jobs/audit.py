"""Audit of a run's folder: claims, each of which its files, or a recomputation, may contradict.

`check_run` needs the folder alone; `verify_run` loads model and data again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qprune.data.calibration import as_calibration
from qprune.distributed.workers import limited_threads
from qprune.errors import DISK, ImpossibleRequestError, QpruneError, RunFolderError
from qprune.jobs.kinds import Kind, kind_of
from qprune.jobs.settings import Saved, read_run, trusted
from qprune.models.card import CARD_JSON, Card
from qprune.models.evaluate import untracked
from qprune.network.mask_file import read_mask
from qprune.network.weights import Weights
from qprune.record.fingerprint import Fingerprint, code_versions, digest_of_data, digest_of_model
from qprune.record.folder import (
    CHECKSUMS,
    FINGERPRINT,
    MASK,
    REPORT_HTML,
    REPORT_JSON,
    STEPS,
    read_checksums,
    read_steps,
    sha256,
    summed,
)
from qprune.results import LayerRecord, Report, Score
from solvers.host.disk import strict_json

Tensors = Mapping[str, Tensor]

# Tolerance for another machine's arithmetic: of the loss (relative) and of the accuracy.
_LOSS, _ACCURACY = 1e-4, 1e-3


@dataclass(frozen=True)
class Finding:
    """One thing that a claim found, in one line.

    Attributes:
        line: what.
        contradicts: True for an inconsistency, False for a remark.
    """

    line: str
    contradicts: bool = True


@dataclass(frozen=True)
class Audit:
    """Result of `check_run` and `verify_run`.

    Attributes:
        findings: in the order of the claims.
        num_weights: number of targeted weights in the mask.
        num_pruned: number of them that the mask prunes.
    """

    findings: tuple[Finding, ...]
    num_weights: int = 0
    num_pruned: int = 0

    @property
    def contradictions(self) -> tuple[str, ...]:
        """Inconsistencies, one line each; none in a consistent folder."""
        return tuple(finding.line for finding in self.findings if finding.contradicts)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on what the folder leaves open."""
        return tuple(finding.line for finding in self.findings if not finding.contradicts)


class Evidence:
    """Files of a run's folder, and the model that made it, each read when first asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def saved(self) -> Saved:
        """Settings and report."""
        return read_run(self.path)

    @cached_property
    def kind(self) -> type[Kind]:
        """Kind of the model."""
        return kind_of(self.saved.settings)

    @cached_property
    def mask(self) -> dict[str, Tensor]:
        """Mask by parameter name, True = kept."""
        return read_mask(self.path / MASK)

    @cached_property
    def model(self) -> tuple[Weights, Tensors]:
        """Targets, and tensors by parameter name."""
        return self.kind.read(self.path, self.saved.settings, self.saved.report)

    @property
    def targets(self) -> Weights:
        """Targeted weights of the pruned model."""
        return self.model[0]

    @property
    def tensors(self) -> Tensors:
        """Tensors of the pruned model by parameter name."""
        return self.model[1]

    @cached_property
    def card(self) -> Card | None:
        """Card of a checkpoint; None for other models."""
        return Card.read(self.path) if CARD_JSON in self.kind.needed else None

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Digests of what the run was made from."""
        try:
            return Fingerprint.from_json(DISK.read_regular(self.path / FINGERPRINT))
        except RunFolderError:
            raise
        except OSError as error:
            raise RunFolderError(
                f"cannot read {self.path / FINGERPRINT}: {error.strerror}"
            ) from error

    @cached_property
    def job(self) -> Kind:
        """The dense model and its data, loaded again."""
        return self.kind.load(self.kind.completed(self.saved.settings))


Claim = Callable[[Evidence], Iterable[Finding]]
"""One claim that a folder makes; yields what contradicts it."""


def check_run(path: Path) -> Audit:
    """Compare the files of a finished run with each other.

    Raises:
        RunFolderError: the folder holds no run.
    """
    evidence = Evidence(path)
    _ = evidence.saved
    for claim in _GROUNDS:
        found = tuple(claim(evidence))
        if found:
            return Audit(found)
    found = tuple(finding for claim in CLAIMS for finding in claim(evidence))
    return Audit(found, *_counts(evidence.mask))


def verify_run(path: Path, model: str | None = None, data: str | None = None) -> Audit:
    """Check a finished run's files, then recompute its figures from its model and data.

    Args:
        path: the run's folder.
        model: name of the user's own factory, where the run has one; see `trusted`.
        data: the same for the data.

    Raises:
        QpruneError: the folder holds no run, or its model or data cannot be loaded.
    """
    evidence = Evidence(path)
    trusted(evidence.saved.settings, model, data)
    audit = check_run(path)
    if audit.contradictions:
        return audit
    with limited_threads(evidence.saved.settings.threads):
        found = tuple(finding for claim in RECOMPUTED for finding in claim(evidence))
    return Audit((*audit.findings, *found), audit.num_weights, audit.num_pruned)


def _complete(folder: Evidence) -> Iterator[Finding]:
    """All files are there."""
    missing = [name for name in folder.kind.needed if not (folder.path / name).is_file()]
    if missing:
        yield Finding(f"{missing[0]} is missing: the run did not finish, or it was removed")


def _readable(folder: Evidence) -> Iterator[Finding]:
    """Weights, mask and card can be read."""
    try:
        _ = folder.mask, folder.model, folder.card
    except (QpruneError, OSError, SafetensorError) as error:
        yield Finding(f"weights or {MASK} cannot be read: {error}")


def _fitting(folder: Evidence) -> Iterator[Finding]:
    """Mask and weights have the same names and shapes."""
    mask, targets = folder.mask, {weight.parameter_name for weight in folder.targets}
    if set(mask) != targets:
        odd = sorted(set(mask) ^ targets)[0]
        yield Finding(f"{MASK} and {REPORT_JSON} name different weights: {odd} is in one of them")
    for name, kept in mask.items():
        if name not in folder.tensors:
            yield Finding(f"{name} has a mask but no weights")
        elif kept.shape != folder.tensors[name].shape:
            yield Finding(
                f"{name}: the mask is {tuple(kept.shape)}, the weights are "
                f"{tuple(folder.tensors[name].shape)}"
            )


def exact_zeros(folder: Evidence) -> Iterator[Finding]:
    """Pruned weights are exactly zero, and none is NaN."""
    for name, kept in folder.mask.items():
        wrong = int((folder.tensors[name][~kept] != 0).sum())
        if wrong:
            yield Finding(f"{name}: {wrong} weights that the mask prunes are not exactly zero")
        if not bool(folder.tensors[name].isfinite().all()):
            yield Finding(f"{name}: weights are NaN or infinite")


def kept_zeros(tensors: Tensors, report: Report) -> Iterator[Finding]:
    """Of the weights that the mask keeps, as many are zero as the report says."""
    for name, records in _by_parameter(report.layers, tensors).items():
        told = [record.num_zero for record in records if record.num_zero is not None]
        if len(told) < len(records) or name not in tensors:
            continue
        found = int((tensors[name] == 0).sum())
        if found != sum(told):
            pruned = sum(record.num_pruned for record in records)
            yield Finding(
                f"{name}: {found} weights are zero, {REPORT_JSON} says {sum(told)}, {pruned} of "
                "them pruned: weights that the mask keeps have changed"
            )
    if any(record.num_zero is None for record in report.layers):
        yield Finding(
            f"{REPORT_JSON} is of a version that did not count zeros: weights that the mask keeps "
            "may have become zero",
            contradicts=False,
        )
        return
    kept = sum((record.num_zero or 0) - record.num_pruned for record in report.layers)
    if kept:
        yield Finding(
            f"{kept} weights that the mask keeps are zero, as many as {REPORT_JSON} says; which "
            f"ones it does not say ({report.zeros_before} were zero before the run)",
            contradicts=False,
        )


def _kept_zeros(folder: Evidence) -> Iterator[Finding]:
    return kept_zeros(folder.tensors, folder.saved.report)


def recorded_counts(folder: Evidence) -> Iterator[Finding]:
    """Report and card have the mask's counts."""
    told = [(REPORT_JSON, folder.saved.report.layers)]
    if folder.card is not None:
        told.append((CARD_JSON, folder.card.layers))
    for file, layers in told:
        found = _by_parameter(layers, folder.mask)
        for name, kept in folder.mask.items():
            records = found.get(name, [])
            pruned = sum(record.num_pruned for record in records)
            size = sum(record.num_weights for record in records)
            shapes = {record.shape for record in records if len(records) == 1}
            if (pruned, size) != (int((~kept).sum()), kept.numel()) or shapes - {tuple(kept.shape)}:
                yield Finding(
                    f"{name}: {file} says {pruned} of {size} pruned, shape {sorted(shapes)}; the "
                    f"mask prunes {int((~kept).sum())} of {kept.numel()}, shape {tuple(kept.shape)}"
                )
        for name in sorted(set(found) - set(folder.mask)):
            yield Finding(f"{file} lists {name}, which has no mask")


def totals(folder: Evidence) -> Iterator[Finding]:
    """The sparsity is the mask's, and what was asked."""
    size, pruned = _counts(folder.mask)
    achieved, report = pruned / max(size, 1), folder.saved.report
    if not math.isclose(report.achieved_sparsity, achieved, abs_tol=1e-12):
        yield Finding(
            f"{REPORT_JSON} says sparsity {report.achieved_sparsity}, the mask has {achieved}"
        )
    asked = folder.saved.settings.asked_sparsity
    if not math.isclose(report.asked_sparsity, asked, abs_tol=1e-12):
        yield Finding(f"{asked} was asked, {REPORT_JSON} says {report.asked_sparsity}")


def exact_counts(folder: Evidence) -> Iterator[Finding]:
    """Every part that was asked for (all weights, layers, rows, runs of N:M) has its count."""
    settings, weights = folder.saved.settings, folder.targets
    structure = settings.structure
    budget = structure or folder.kind.budget(settings, folder.card.method if folder.card else "")
    kind = f"mask structure {settings.mask_structure}" if structure else f"budget {budget}"
    try:
        groups = budget.groups(weights, settings.asked_sparsity)
    except ImpossibleRequestError as error:
        yield Finding(f"{kind} does not fit: {error}")
        return
    parts = [weight.part(folder.mask[weight.parameter_name]).flatten() for weight in weights]
    pruned = groups.sizes_of(~torch.cat(parts))
    wrong = torch.nonzero(pruned != groups.counts)[:, 0].tolist()
    if wrong:
        first = wrong[0]
        yield Finding(
            f"{kind}: {len(wrong)} of {len(groups.counts)} counts are wrong; group {first} "
            f"has {int(pruned[first])} pruned, it should have {int(groups.counts[first])}"
        )


def journal(folder: Evidence) -> Iterator[Finding]:
    """The journal has the report's steps."""
    report = folder.saved.report
    try:
        steps = read_steps(folder.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Finding(f"{STEPS} cannot be read: {error}")
        return
    if len(steps) != len(report.steps):
        yield Finding(f"{STEPS} has {len(steps)} steps, {REPORT_JSON} {len(report.steps)}")
        return
    for written, told in zip(steps, report.steps, strict=True):
        # As text, so that NaN equals itself.
        if strict_json(written.to_json()) != strict_json(told.to_json()):
            yield Finding(f"{STEPS} and {REPORT_JSON} differ in step {told.index}")
            return


def checksums(folder: Evidence) -> Iterator[Finding]:
    """Every file has its checksum."""
    path = folder.path
    try:
        told = read_checksums(path)
    except RunFolderError as error:
        yield Finding(str(error))
        return
    for name in sorted(told):
        if not (path / name).exists():
            yield Finding(f"{name} is missing, but listed in {CHECKSUMS}")
        elif sha256(path / name) != told[name]:
            yield Finding(f"{name} does not match its checksum in {CHECKSUMS}")
    for name in sorted(summed(path, loaded=folder.kind.loaded) - {*told}):
        # Earlier versions had no checksum of the page.
        way_out = "; `qprune report` writes both" if name == REPORT_HTML else ""
        yield Finding(f"{name} is not in {CHECKSUMS}{way_out}")


def inputs(folder: Evidence) -> Iterator[Finding]:
    """Dense model and calibration data are those that the run was made from."""
    if digest_of_model(folder.job.model) != folder.fingerprint.model:
        yield Finding(f"the dense model is not the one in {FINGERPRINT}")
    if digest_of_data(as_calibration(folder.job.calibration)) != folder.fingerprint.data:
        yield Finding(f"the calibration data are not those in {FINGERPRINT}")


def outcome(folder: Evidence) -> Iterator[Finding]:
    """Both scores come out again, and kept weights that were not to move have not."""
    report, job = folder.saved.report, folder.job
    yield from _wrong_score("dense", report.dense, job, job.model)
    try:
        pruned = job.pruned(folder.path)
    except (RuntimeError, SafetensorError) as error:
        yield Finding(f"the weights do not fit the model: {' '.join(str(error).split())}")
        return
    if not folder.saved.settings.compensate:
        yield from _moved(folder.mask, job.model, pruned, job.stored)
    yield from _wrong_score("final", report.final, job, pruned)


def _wrong_score(name: str, told: Score | None, job: Kind, model: nn.Module) -> Iterator[Finding]:
    if told is None:
        return
    found = job.score(model, untracked)
    same_loss = math.isclose(told.loss, found.loss, rel_tol=_LOSS, abs_tol=1e-6)
    pair = told.accuracy, found.accuracy
    both = [value for value in pair if value is not None]
    same_accuracy = pair == (None, None) or (
        len(both) == 2 and math.isclose(*both, rel_tol=0, abs_tol=_ACCURACY)
    )
    if not (same_loss and same_accuracy):
        yield Finding(
            f"the report says {name} accuracy {told.accuracy} and loss {told.loss}; computed "
            f"again they are {found.accuracy} and {found.loss}"
        )


def _moved(
    mask: Tensors, dense: nn.Module, pruned: nn.Module, stored: torch.dtype | None
) -> Iterator[Finding]:
    before = dense.state_dict()
    for name, tensor in pruned.state_dict().items():
        kept = mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        pair = [
            found[name][kept.to(found[name].device)].cpu() for found in (before, {name: tensor})
        ]
        if stored is not None and tensor.is_floating_point():
            pair = [values.to(stored) for values in pair]
        if not torch.equal(*pair):
            yield Finding(
                f"{name}: kept weights differ from the dense ones, which were not to move"
            )


def code(folder: Evidence) -> Iterator[Finding]:
    """The same versions made it."""
    told, present = folder.fingerprint.code, code_versions()
    for name in sorted({*told, *present}):
        if told.get(name) != present.get(name):
            yield Finding(f"made with another version of {name}", contradicts=False)


def _counts(mask: Tensors) -> tuple[int, int]:
    """Return the numbers of targeted weights, and of those that the mask prunes."""
    size = sum(kept.numel() for kept in mask.values())
    return size, sum(int((~kept).sum()) for kept in mask.values())


def _by_parameter(
    records: Iterable[LayerRecord], known: Mapping[str, object]
) -> dict[str, list[LayerRecord]]:
    """Return the records of every parameter; experts of one tensor have several."""
    found: dict[str, list[LayerRecord]] = {}
    for record in records:
        # In earlier versions a checkpoint's records are named by the parameters themselves.
        name = record.name if record.name in known else record.parameter
        found.setdefault(name, []).append(record)
    return found


# Without these, there is nothing to compare.
_GROUNDS: tuple[Claim, ...] = (_complete, _readable, _fitting)
#: Claims about the files of a folder alone.
CLAIMS: tuple[Claim, ...] = (
    exact_zeros,
    _kept_zeros,
    recorded_counts,
    totals,
    exact_counts,
    journal,
)
#: Claims about the files that take model and data.
RECOMPUTED: tuple[Claim, ...] = (checksums, inputs, outcome, code)
