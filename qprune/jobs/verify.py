"""Verification of a run folder: its figures recomputed from model and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qprune.data.calibration import as_calibration
from qprune.distributed.workers import limited_threads
from qprune.errors import DISK, ImpossibleRequestError, RunFolderError
from qprune.jobs.check import check_run
from qprune.jobs.findings import Finding, wrong_score
from qprune.jobs.language.settings import LanguageSettings
from qprune.jobs.language.verify import wrong_language_world
from qprune.jobs.settings import Asked
from qprune.models.datasets import load_data
from qprune.models.factories import is_factory
from qprune.models.zoo import load_model
from qprune.record.fingerprint import Fingerprint, code_versions, digest_of_data, digest_of_model
from qprune.record.folder import (
    CHECKSUMS,
    MASK,
    MODEL,
    REPORT_HTML,
    Saved,
    read_checksums,
    read_run,
    sha256,
    summed,
)
from qprune.record.recording import FINGERPRINT


@dataclass(frozen=True)
class Verdict:
    """Result of `verify_run`.

    Attributes:
        finding: contradictions between the files, and with the recomputed figures.
        notes: remarks that are no contradictions.
    """

    finding: Finding
    notes: tuple[str, ...] = ()


def trusted(settings: Asked, model: str | None, data: str | None) -> None:
    """Refuse to import code that only a file names (a run folder, --config), not the user.

    Args:
        settings: settings in the file.
        model: the user's ``--model``; None = not given.
        data: the user's ``--data``.

    Raises:
        ImpossibleRequestError: names the option to give.
    """
    for option, said, given in (("model", settings.model, model), ("data", settings.data, data)):
        if given is not None and given != said:
            raise ImpossibleRequestError(f"the run was started with --{option} {said}, not {given}")
        if given is None and is_factory(said):
            raise ImpossibleRequestError(
                f"the settings ask to import {said!r}, which runs code; if that is your own, say "
                f"so with --{option} {said}"
            )


def verify_run(path: Path, model: str | None = None, data: str | None = None) -> Verdict:
    """Check a finished run's files, then recompute its figures from its model and data.

    Args:
        path: the run's folder.
        model: name of the user's own factory, where the run has one; see `trusted`.
        data: the same for the data.

    Raises:
        QpruneError: the folder holds no run, or its model or data cannot be loaded.
    """
    saved = read_run(path)
    trusted(saved.settings, model, data)
    finding = check_run(path)
    if finding.lies:
        return Verdict(finding)
    with limited_threads(saved.settings.threads):
        lies = (*_wrong_sums(path, saved), *_wrong_world(path, saved))
    notes = (*finding.notes, *_other_code(path))
    return Verdict(Finding(lies, finding.num_weights, finding.num_pruned), notes)


def _wrong_sums(path: Path, saved: Saved) -> Iterator[str]:
    try:
        told = read_checksums(path)
    except RunFolderError as error:
        yield str(error)
        return
    for name in sorted(told):
        if not (path / name).exists():
            yield f"{name} is missing, but listed in {CHECKSUMS}"
        elif sha256(path / name) != told[name]:
            yield f"{name} does not match its checksum in {CHECKSUMS}"
    for name in sorted(summed(path, loaded=isinstance(saved.settings, LanguageSettings)) - {*told}):
        # Earlier versions had no checksum of the page.
        way_out = "; `qprune report` writes both" if name == REPORT_HTML else ""
        yield f"{name} is not in {CHECKSUMS}{way_out}"


def _wrong_world(path: Path, saved: Saved) -> Iterator[str]:
    """Recompute model and data digests, kept weights and scores; return the contradictions."""
    settings, report = saved.settings, saved.report
    print_ = _fingerprint(path)
    if isinstance(settings, LanguageSettings):
        yield from wrong_language_world(path, settings, report, print_)
        return
    network = load_model(settings.model, settings.weights)
    if digest_of_model(network) != print_.model:
        yield f"the dense model is not the one in {FINGERPRINT}"
    data = load_data(settings.data, settings.normalization)
    calibration = data.calibration(settings.num_calibration_samples, settings.seed)
    if digest_of_data(as_calibration(calibration)) != print_.data:
        yield f"the calibration data are not those in {FINGERPRINT}"
    yield from wrong_score("dense", report.dense, data.score(network, settings.loss))
    if not settings.compensate:
        yield from _moved(path, network)
    try:
        network.load_state_dict(load_file(DISK.regular(path / MODEL)))
    except (RuntimeError, SafetensorError) as error:
        yield f"{MODEL} does not fit the model: {' '.join(str(error).split())}"
        return
    yield from wrong_score("final", report.final, data.score(network, settings.loss))


def _moved(path: Path, dense: nn.Module) -> Iterator[str]:
    """Yield weights that differ from the dense ones though none were to move."""
    pruned, mask = load_file(DISK.regular(path / MODEL)), load_file(DISK.regular(path / MASK))
    original = dense.state_dict()
    for name, tensor in pruned.items():
        kept = mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        if name in original and not torch.equal(tensor[kept], original[name][kept]):
            yield f"{name}: kept weights differ from the dense ones, which were not to move"


def _fingerprint(path: Path) -> Fingerprint:
    try:
        return Fingerprint.from_json(DISK.read_regular(path / FINGERPRINT))
    except RunFolderError:
        raise
    except OSError as error:
        raise RunFolderError(f"cannot read {path / FINGERPRINT}: {error.strerror}") from error


def _other_code(path: Path) -> Iterator[str]:
    told, present = _fingerprint(path).code, code_versions()
    for name in sorted({*told, *present}):
        if told.get(name) != present.get(name):
            yield f"made with another version of {name}"
