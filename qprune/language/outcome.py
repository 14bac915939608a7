"""What became of a language model: for `--json`, for the terminal, for the folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qprune.language.card import Card
from qprune.layerwise import LayerOutcome
from qprune.layerwise.matrices import Matrix
from qprune.steps import Report


@dataclass(frozen=True)
class MatrixRecord:
    """One pruned matrix.

    Attributes:
        name: the module's, with the expert's number where several share one tensor.
        shape: (rows, inputs).
        sparsity: share of its weights that is zero in the end.
        error: output error after stage 1, as a share of the target outputs' energy; None where
            that is not known any more.
        cpu_seconds: of its solve in stage 1.
    """

    name: str
    shape: tuple[int, int]
    sparsity: float
    error: float | None
    cpu_seconds: float | None


@dataclass(frozen=True, eq=False)
class LanguageOutcome:
    """A pruned language model and what became of it.

    Attributes:
        model: the pruned model, its weights rounded to what the checkpoint stores them in.
        mask: bool by parameter name, True = kept.
        card: what was asked and came out, how good both models are.
        report: the steps of stage 2, and times of the pruning alone.
        matrices: every pruned matrix.
        seconds, cpu_seconds: of everything, evaluation included.
        peak_memory: bytes, of the process or of the GPU where it ran there.
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
        """What ``--json`` prints."""
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
    """One record for every matrix, with what stage 1 noted of it."""
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
