"""Consistency check of a pruned language model's folder: the files against each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qprune.errors import QpruneError
from qprune.jobs.findings import (
    Finding,
    Tensors,
    kept_zeros_told,
    num_pruned,
    num_weights,
    wrong_kept_zeros,
    wrong_steps,
    wrong_totals,
    wrong_zeros,
)
from qprune.jobs.language.settings import LanguageSettings
from qprune.jobs.language.stages import chosen_method
from qprune.models.card import CARD_JSON, Card, layer_records
from qprune.models.heads import targeted
from qprune.models.pretrained import load_pretrained
from qprune.network.groups import budget_of
from qprune.network.mask_file import read_mask
from qprune.network.matrices import Matrix
from qprune.record.folder import FILES, MASK, MODEL, REPORT_JSON
from qprune.results import Report

#: Required files besides the weights, which may lie in several files.
_NEEDED = (*(name for name in FILES if name != MODEL), "config.json", CARD_JSON)


def check_language_run(path: Path, settings: LanguageSettings, report: Report) -> Finding:
    """Compare the files of a finished run, read as transformers reads them, with each other.

    Raises:
        ImpossibleRequestError: transformers is missing.
    """
    missing = [name for name in _NEEDED if not (path / name).is_file()]
    if missing:
        return Finding((f"{missing[0]} is missing: the run did not finish, or it was removed",))
    try:
        model = load_pretrained(str(path), dtype="auto")
        mask = read_mask(path / MASK)
        card = Card.read(path)
        blocks = targeted(model, settings)
    except QpruneError as error:
        return Finding((str(error),))
    matrices = [matrix for inside in blocks for matrix in inside]
    weights = {matrix.parameter_name: matrix.parameter.detach() for matrix in matrices}
    misfits = tuple(_misfits(weights, mask))
    if misfits:
        return Finding(misfits)
    lies = (
        *wrong_zeros(weights, mask),
        *wrong_kept_zeros(weights, report),
        *_wrong_records(mask, report, card),
        *wrong_totals(mask, report, settings.asked_sparsity),
        *_wrong_counts(mask, settings, matrices, card.method),
        *wrong_steps(path, report),
    )
    return Finding(lies, num_weights(mask), num_pruned(mask), tuple(kept_zeros_told(report)))


def _misfits(weights: Tensors, mask: Tensors) -> Iterator[str]:
    """Yield tensors whose names, shapes or types differ between the files."""
    if set(mask) != set(weights):
        odd = sorted(set(mask) ^ set(weights))[0]
        yield f"{odd} has a mask but is no target, or is a target without a mask"
        return
    for name, kept in mask.items():
        if kept.shape != weights[name].shape:
            yield (
                f"{name}: the mask is {tuple(kept.shape)}, the weights are "
                f"{tuple(weights[name].shape)}"
            )


def _wrong_records(mask: Tensors, report: Report, card: Card) -> Iterator[str]:
    """Yield recorded counts of tensors that differ from the mask's."""
    found = {record.name: record for record in layer_records(mask)}
    for file, told in ((REPORT_JSON, report.layers), (CARD_JSON, card.layers)):
        for record in told:
            own = found.get(record.name)
            if replace(record, num_zero=None) != own:
                yield f"{record.name}: {file} says {_words(record)}, the mask {_words(own)}"
        if len(told) != len(found):
            yield f"{file} lists {len(told)} tensors, the mask has {len(found)}"


def _words(record: object) -> str:
    pruned, size = getattr(record, "num_pruned", 0), getattr(record, "num_weights", 0)
    return f"{pruned} of {size} pruned"


def _wrong_counts(
    mask: Tensors, settings: LanguageSettings, matrices: Sequence[Matrix], method: str
) -> Iterator[str]:
    """Yield parts (network, matrices, rows, runs of N:M) without their exact count."""
    structure, asked = settings.structure, settings.asked_sparsity
    if structure is None and method == "qprune" and settings.budget != "layer":
        total = num_weights(mask)
        if num_pruned(mask) != round(asked * total):
            yield f"{num_pruned(mask)} of {total} weights are pruned, not {round(asked * total)}"
        return
    scope = "layer" if method == "qprune" else chosen_method(settings)[0].scope
    for matrix in matrices:
        budget = budget_of(matrix, asked, structure, scope)
        kept = matrix.view(mask[matrix.parameter_name]).numpy()
        wrong = np.argwhere(budget.kept(kept) != budget.wanted(matrix.rows, matrix.inputs))
        if len(wrong):
            yield f"{matrix.name}: {len(wrong)} counts are not those of {budget}"
