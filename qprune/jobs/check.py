"""Consistency check of a run folder: the files against each other, number by number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from qprune.errors import DISK, ImpossibleRequestError
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
from qprune.jobs.language.check import check_language_run
from qprune.jobs.language.settings import LanguageSettings
from qprune.network.groups import BUDGETS
from qprune.network.layouts import Kind, layout_of
from qprune.network.weights import Layer, Layers
from qprune.record.folder import FILES, MASK, MODEL, REPORT_JSON, Saved, read_run
from qprune.results import LayerRecord


def check_run(path: Path) -> Finding:
    """Compare the files of a finished run with each other.

    Raises:
        RunFolderError: the folder holds no run.
    """
    saved = read_run(path)
    if isinstance(saved.settings, LanguageSettings):
        return check_language_run(path, saved.settings, saved.report)
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        return Finding((f"{missing[0]} is missing: the run did not finish, or it was removed",))
    try:
        weights, mask = load_file(DISK.regular(path / MODEL)), load_file(DISK.regular(path / MASK))
    except (OSError, SafetensorError) as error:
        return Finding((f"{MODEL} or {MASK} cannot be read: {error}",))
    layers = _as_layers(saved.report.layers)
    misfits = tuple(_misfits(weights, mask, layers))
    if misfits:
        return Finding(misfits)
    lies = (
        *wrong_zeros(weights, mask),
        *wrong_kept_zeros(weights, saved.report),
        *_wrong_counts(mask, saved, layers),
        *_wrong_structure(mask, saved, layers),
        *wrong_steps(path, saved.report),
    )
    notes = tuple(kept_zeros_told(saved.report))
    return Finding(lies, num_weights(mask), num_pruned(mask), notes)


def _misfits(weights: Tensors, mask: Tensors, layers: Layers) -> Iterator[str]:
    """Yield tensors whose names, shapes or types differ between the files."""
    if set(mask) != {layer.parameter_name for layer in layers}:
        yield f"{MASK} and {REPORT_JSON} name different weights"
    for name, kept in mask.items():
        if name not in weights:
            yield f"{name} has a mask but no weights in {MODEL}"
        elif kept.dtype != torch.bool or kept.shape != weights[name].shape:
            yield (
                f"{name}: the mask is {kept.dtype} {tuple(kept.shape)}, "
                f"the weights are {tuple(weights[name].shape)}"
            )


def _wrong_counts(mask: Tensors, saved: Saved, layers: Layers) -> Iterator[str]:
    """Yield recorded counts that differ from the mask's."""
    report, settings = saved.report, saved.settings
    for layer, record in zip(layers, report.layers, strict=True):
        kept = mask[layer.parameter_name]
        told = (record.shape, record.num_weights, record.num_pruned)
        found = (tuple(kept.shape), kept.numel(), int((~kept).sum()))
        if told != found:
            yield (
                f"{layer.parameter_name}: {REPORT_JSON} says {told[2]} of {told[1]} pruned, shape "
                f"{told[0]}; the mask prunes {found[2]} of {found[1]}, shape {found[0]}"
            )
    yield from wrong_totals(mask, report, settings.asked_sparsity)


def _wrong_structure(mask: Tensors, saved: Saved, layers: Layers) -> Iterator[str]:
    """Yield groups (all weights, layers, rows, runs of N:M) without their exact count."""
    settings = saved.settings
    structure = settings.structure
    budget = structure or BUDGETS[settings.budget or "global"]
    kind = f"mask structure {settings.mask_structure}" if structure else f"budget {settings.budget}"
    try:
        groups = budget.groups(layers, settings.asked_sparsity)
    except ImpossibleRequestError as error:
        yield f"{kind} does not fit: {error}"
        return
    pruned = groups.sizes_of(~torch.cat([mask[layer.parameter_name].flatten() for layer in layers]))
    wrong = torch.nonzero(pruned != groups.counts)[:, 0].tolist()
    if wrong:
        first = wrong[0]
        yield (
            f"{kind}: {len(wrong)} of {len(groups.counts)} counts are wrong; group {first} "
            f"has {int(pruned[first])} pruned, it should have {int(groups.counts[first])}"
        )


def _as_layers(records: tuple[LayerRecord, ...]) -> Layers:
    """Return layers of the recorded shapes, without values."""
    items, offset = [], 0
    for record in records:
        module = nn.Module()
        tensor = torch.empty(record.shape, device="meta")
        kind = Kind(layout=layout_of(record.input_groups))
        items.append(Layer(record.name, record.parameter, tensor, module, offset, kind))
        offset += record.num_weights
    return Layers(tuple(items))
