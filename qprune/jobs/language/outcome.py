"""Outcome of a language model's run: for `--json`, the terminal and the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qprune.models.card import Card
from qprune.network.matrices import Matrix
from qprune.results import Report
from qprune.walk.layerwise import LayerOutcome


@dataclass(frozen=True)
class MatrixRecord:
    """Record of one pruned matrix.

    Attributes:
        name: the module's name, with the expert's number where experts share one tensor.
        shape: (rows, inputs).
        sparsity: share of its weights that is zero at the end.
        error: output error after stage 1, as a share of the target outputs' energy; None
            where unknown.
        cpu_seconds: CPU time of its solve in stage 1.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    cpu_seconds: float | None


@dataclass(frozen=True, eq=False)
class LanguageOutcome:
    """Pruned language model with its mask, scores and records.

    Attributes:
        model: the pruned model, its weights rounded to the stored dtype.
        mask: bool by parameter name, True = kept.
        card: request, outcome, and quality of both models.
        report: the steps of stage 2, and times of the pruning alone.
        matrices: every pruned matrix.
        seconds, cpu_seconds: totals, evaluation included.
        peak_memory: bytes, of the GPU if the run used one, else of the process.
    """

    model: nn.Module
    mask: dict[str, Tensor]
    card: Card
    report: Report
    matrices: tuple[MatrixRecord, ...]
    seconds: float
    cpu_seconds: float
    peak_memory: int

    def summary(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        card, report = self.card, self.report
        return {
            "method": card.method,
            "asked_sparsity": card.asked_sparsity,
            "achieved_sparsity": card.achieved_sparsity,
            "mask_structure": card.mask_structure,
            "architecture": card.architecture,
            "dense": card.dense and card.dense.value,
            "final": card.pruned and card.pruned.value,
            "figure": card.pruned and card.pruned.named,
            "accuracy": _accuracy(card),
            "max_seq_length": card.settings["max_seq_length"],
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "prune_seconds": report.seconds,
            "prune_cpu_seconds": report.cpu_seconds,
            "peak_memory": self.peak_memory,
            "estimate": report.estimate and report.estimate.to_json(),
            "seed": report.seed,
            "stopped": report.stopped,
            "steps": [
                {
                    "kind": step.kind,
                    "accepted": step.accepted,
                    "predicted": step.predicted,
                    "real": step.real,
                    "loss": step.loss,
                    "flips": step.flips,
                }
                for step in report.steps
            ],
            "layers": [
                {"name": o.name, "shape": o.shape, "sparsity": o.sparsity, "error": o.error}
                for o in self.matrices
            ],
        }


def _accuracy(card: Card) -> dict[str, float | None] | None:
    scores = {"dense": card.dense, "final": card.pruned}
    found = {name: quality.score.accuracy for name, quality in scores.items() if quality}
    return found if any(value is not None for value in found.values()) else None


def matrix_records(
    matrices: Sequence[Matrix], mask: Mapping[str, Tensor], stage1: Sequence[LayerOutcome]
) -> tuple[MatrixRecord, ...]:
    """Return one record per matrix, with its error and time of stage 1."""
    noted = {outcome.name: outcome for outcome in stage1}
    records = []
    for matrix in matrices:
        kept = matrix.view(mask[matrix.parameter_name])
        outcome = noted.get(matrix.name)
        records.append(
            MatrixRecord(
                name=matrix.name,
                shape=(matrix.rows, matrix.inputs),
                sparsity=1 - int(kept.sum()) / matrix.size,
                error=outcome.error if outcome else None,
                cpu_seconds=outcome.cpu_seconds if outcome else None,
            )
        )
    return tuple(records)
