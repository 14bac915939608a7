"""Verification of a pruned language model's folder against its dense model and text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from qprune.jobs.findings import wrong_score
from qprune.jobs.language.job import load_subject, score_of
from qprune.jobs.language.settings import LanguageSettings
from qprune.models.card import Card
from qprune.models.pretrained import load_pretrained, stored_dtype
from qprune.network.mask_file import read_mask
from qprune.network.twins import linear_twins
from qprune.record.fingerprint import Fingerprint, digest_of_data, digest_of_model
from qprune.record.folder import MASK
from qprune.record.recording import FINGERPRINT
from qprune.results import Report


def wrong_language_world(
    path: Path, settings: LanguageSettings, report: Report, told: Fingerprint
) -> Iterator[str]:
    """Recompute model and text digests, kept weights and scores; return the contradictions.

    Raises:
        QpruneError: the dense model or the text is not available.
    """
    subject = load_subject(settings)
    across = Card.read(path).method == "qprune"
    with linear_twins(subject.model) if across else nullcontext():
        if digest_of_model(subject.model) != told.model:
            yield f"the dense model is not the one in {FINGERPRINT}"
    if digest_of_data(subject.calibration) != told.data:
        yield f"the calibration data are not those in {FINGERPRINT}"
    pruned = load_pretrained(str(path), dtype=settings.dtype, device=settings.device)
    if not settings.compensate:
        yield from _moved(path, subject.model, pruned, stored_dtype(settings.model))
    for name, said, model in (
        ("dense", report.dense, subject.model),
        ("final", report.final, pruned),
    ):
        found = said and score_of(settings, subject, model, lambda: subject.model)
        if said is not None and found is not None:
            yield from wrong_score(name, said, found.score)


def _moved(path: Path, dense: nn.Module, pruned: nn.Module, dtype: torch.dtype) -> Iterator[str]:
    """Yield kept weights that differ from the stored dense ones though none were to move."""
    for name, kept in read_mask(path / MASK).items():
        before = dense.get_parameter(name).detach()[kept].to(dtype)
        after = pruned.get_parameter(name).detach()[kept].to(dtype)
        if not torch.equal(before, after):
            yield f"{name}: kept weights differ from the dense ones, which were not to move"
