"""How good a network is on data, and how well predictions agreed with what happened."""

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
    """Accuracy and mean loss against labels (classes: cross entropy, nats), in evaluation mode.

    Args:
        model: returns logits, shape (batch, classes), or what ``loss`` takes. Its mode is put
            back afterwards.
        inputs: shape (samples, ...).
        labels: shape (samples, ...), class indices or numbers.
        loss: what `qprune.prune` takes; of one that keeps to the dense outputs the kind of
            outputs alone counts. Where it is open, it is by sight (`qprune.recognise`).
        batch_size: samples per forward pass.

    Returns:
        Accuracy is the share of right labels, None where numbers are predicted.

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
    """Pearson's correlation of two series; None where it has no meaning."""
    x, y = np.asarray(predicted, float), np.asarray(real, float)
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])
