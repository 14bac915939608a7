"""Recognition of the kind of outputs from their values and labels, by one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qprune.data.outputs import (
    IGNORED,
    Bernoulli,
    Classes,
    Kind,
    Real,
    class_dims,
    in_unit_interval,
    sums_to_one,
)
from qprune.errors import CalibrationError

#: Remedy named by refusals.
WAYS_OUT = (
    "loss='mse' (real numbers), loss='bce' (independent sigmoids), loss='cross-entropy' (classes) "
    "or loss=PerSample(...)"
)

# Tolerance of a normalised length, in half precision too.
_LENGTH_ONE = 5e-3


@dataclass(frozen=True)
class Recognised:
    """Recognised kind of outputs, with the evidence."""

    kind: Kind
    reason: str


def recognise(outputs: Tensor, labels: Tensor | None) -> Recognised:
    """Return the kind of outputs, by the first row of the table that fits.

    ============================================  ==================================
    float labels                                  real numbers
    outputs in [0, 1] that sum to 1               probabilities
    other outputs that are all in [0, 1]          independent sigmoids
    one column, labels 0 and 1                    the logit of a sigmoid
    one column otherwise                          refused, with the possible requests
    rows of length one, without labels            embeddings: real numbers
    whole labels, one for each output             logits of sigmoids (several ones a row)
    everything else                               logits over classes
    ============================================  ==================================

    Args:
        outputs: outputs of some samples, shape (m, ...).
        labels: labels of the same samples, shape (m, ...); None = without.

    Raises:
        CalibrationError: the outputs are ambiguous.

    Example:
        >>> import torch
        >>> recognise(torch.eye(8, 5).softmax(1), None).kind
        Classes(dim=-1, logits=False)
    """
    for row in _TABLE:
        found = row(outputs, labels)
        if found is not None:
            return found
    raise AssertionError("the last row takes everything")


def _real_targets(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    if labels is None or not labels.is_floating_point():
        return None
    return Recognised(Real(), "the targets are floats")


def _probabilities(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    for dim in class_dims(outputs, labels):
        if sums_to_one(outputs, dim):
            return Recognised(Classes(dim, logits=False), "they lie in [0, 1] and sum to 1")
    return None


def _sigmoids(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    if not in_unit_interval(outputs):
        return None
    return Recognised(Bernoulli(logits=False), "they all lie in [0, 1] and do not sum to 1")


def _one_column(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    if outputs.ndim > 1 and outputs.shape[class_dims(outputs, labels)[0]] > 1:
        return None
    if labels is not None and _are_answers(labels):
        return Recognised(Bernoulli(logits=True), "they are one column, and the labels 0 and 1")
    told = "no targets" if labels is None else "labels other than 0 and 1"
    raise CalibrationError(
        f"outputs of shape {tuple(outputs.shape)} are one column with {told}, which is ambiguous; "
        f"pass {WAYS_OUT}"
    )


def _embeddings(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    """Return real numbers for rows of length one, as sentence encoders give; else None."""
    if labels is not None or outputs.ndim != 2:
        return None
    lengths = outputs.float().norm(dim=1)
    if not bool(((lengths - 1).abs() < _LENGTH_ONE).all()):
        return None
    return Recognised(Real(), "each is a vector of length one, an embedding")


def _one_label_an_output(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    if labels is None or labels.shape != outputs.shape:
        return None
    if not _are_answers(labels):
        raise CalibrationError(
            f"whole labels of the outputs' shape {tuple(outputs.shape)} that are not all 0 and 1 "
            f"are no classes; pass them as floats, or {WAYS_OUT}"
        )
    dim = class_dims(outputs, None)[0]
    if bool((labels.sum(dim) == 1).all()):
        return None
    return Recognised(Bernoulli(logits=True), "each has a label 0 or 1 of its own")


def _logits(outputs: Tensor, labels: Tensor | None) -> Recognised | None:
    dim = class_dims(outputs, labels)[0]
    rest = outputs.movedim(dim, -1).shape[:-1]
    fits = labels is not None and labels.numel() == rest.numel()
    reason = "their labels are classes" if fits else "nothing else fits: this is a guess"
    return Recognised(Classes(dim, logits=True), reason)


def _are_answers(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1) | (labels == IGNORED)).all())


_TABLE: tuple[Callable[[Tensor, Tensor | None], Recognised | None], ...] = (
    _real_targets,
    _probabilities,
    _sigmoids,
    _one_column,
    _embeddings,
    _one_label_an_output,
    _logits,
)
