"""Metrics: accuracy and loss on data, and correlation of predictions with outcomes."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from qprune.calibration import Calibration
from qprune.errors import CalibrationError
from qprune.loss_names import as_loss
from qprune.losses import DenseOutputs, Labels, Loss
from qprune.samples import counted_samples, loss_for
from qprune.steps import Score
from qprune.traces import forward


@torch.no_grad()
def score(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    loss: Loss | str = "dense",
    batch_size: int = 500,
) -> Score:
    """Return accuracy and mean loss against labels (cross entropy in nats), in evaluation mode.

    Args:
        model: returns logits, shape (batch, classes), or outputs that ``loss`` takes. Its mode is
            restored afterwards.
        inputs: shape (samples, ...).
        labels: shape (samples, ...), class indices or numbers.
        loss: as in `qprune.prune`; a loss against dense outputs only gives the kind of
            outputs. An open kind is recognised (`qprune.recognise`).
        batch_size: samples per forward pass.

    Returns:
        Accuracy is the share of right labels, None where numbers are predicted.

    Raises:
        CalibrationError: no samples, or numbers of labels and inputs differ.
    """
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise CalibrationError(
            f"cannot score a network on {len(inputs)} inputs with {len(labels)} labels; "
            "pass one label for each input, and at least one"
        )
    was_training = model.training
    model.eval()
    asked = as_loss(loss)
    measure: Loss = Labels(asked.kind) if isinstance(asked, DenseOutputs) else asked
    total, right, told = 0.0, 0, 0
    try:
        measure = loss_for(measure, model, Calibration(inputs, labels))
        data = counted_samples(Calibration(inputs, labels), measure)
        assert data.labels is not None
        parts = zip(data.inputs.split(batch_size), data.labels.split(batch_size), strict=True)
        for batch, target in parts:
            outputs = forward(model, batch).double()
            total += float(measure.per_sample(outputs, target).sum())
            correct = measure.right(outputs, target) if isinstance(measure, Labels) else None
            if correct is not None:
                right, told = right + int(correct.sum()), told + len(correct)
    finally:
        model.train(was_training)
    return Score(accuracy=right / told if told else None, loss=total / len(data))


def correlation(predicted: ArrayLike, real: ArrayLike) -> float | None:
    """Return Pearson's correlation of two series; None where it is undefined."""
    x, y = np.asarray(predicted, float), np.asarray(real, float)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
