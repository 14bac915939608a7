"""How good a network is on data, and how well predictions agreed with what happened."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qprune.errors import CalibrationError
from qprune.steps import Score


@torch.no_grad()
def score(model: nn.Module, inputs: Tensor, labels: Tensor, *, batch_size: int = 500) -> Score:
    """Accuracy and mean cross-entropy (nats) of a classifier, in evaluation mode.

    Args:
        model: returns logits, shape (batch, classes). Its mode is put back afterwards.
        inputs: shape (samples, ...).
        labels: shape (samples,), class indices.
        batch_size: samples per forward pass.

    Raises:
        CalibrationError: no samples, or as many labels as inputs is not so.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise CalibrationError(
            f"cannot score a network on {len(inputs)} inputs with {len(labels)} labels; "
            "pass one label for each input, and at least one"
        )
    was_training = model.training
    model.eval()
    right, loss = 0, 0.0
    try:
        for batch, target in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            logits = model(batch)
            right += int((logits.argmax(dim=1) == target).sum())
            loss += float(cross_entropy(logits.double(), target, reduction="sum"))
    finally:
        model.train(was_training)
    return Score(accuracy=right / len(inputs), loss=loss / len(inputs))


def correlation(predicted: ArrayLike, real: ArrayLike) -> float | None:
    """Pearson's correlation of two series; None where it has no meaning."""
    x, y = np.asarray(predicted, float), np.asarray(real, float)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
