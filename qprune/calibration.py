"""The data that a run may see, split once into a part to fit on and a part to accept on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qprune.errors import CalibrationError
from qprune.inputs import AnyInputs, Inputs, tensors_of


@dataclass(frozen=True, eq=False)
class Calibration:
    """Samples of what the network is used on.

    Args:
        inputs: shape (m, ...), one sample a row, as the model takes them.
        labels: shape (m, ...); None when the loss needs none.

    Raises:
        CalibrationError: no samples, NaN or Inf in the inputs, or labels of another length.
    """

    inputs: AnyInputs
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        for tensor in tensors_of(self.inputs):
            if not tensor.ndim or not len(tensor):
                raise CalibrationError("the calibration data are empty; pass at least two samples")
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = torch.nonzero(~torch.isfinite(tensor))[0, 0].item()
                raise CalibrationError(f"calibration sample {bad} holds NaN or Inf")
        if self.labels is not None and len(self.labels) != len(self.inputs):
            raise CalibrationError(
                f"{len(self.inputs)} calibration inputs but {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor) -> Calibration:
        """The samples at ``indices``."""
        return Calibration(
            self.inputs[indices], None if self.labels is None else self.labels[indices]
        )

    def split(
        self, accept_share: float, generator: torch.Generator
    ) -> tuple[Calibration, Calibration]:
        """(fit, accept): a random ``accept_share`` of the samples is kept for acceptance.

        Raises:
            CalibrationError: one of the two would be empty.
        """
        order = torch.randperm(len(self), generator=generator)
        size = round(accept_share * len(self))
        if not 0 < size < len(self):
            raise CalibrationError(
                f"{len(self)} calibration samples cannot be split into a part to fit on and a "
                f"part to accept on (share {accept_share}); pass more samples"
            )
        return self.take(order[size:].sort().values), self.take(order[:size].sort().values)


def _joined(batches: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    try:
        return [torch.cat(column) for column in zip(*batches, strict=True)]
    except (RuntimeError, ValueError) as error:
        shapes = " and ".join(str([tuple(t.shape) for t in batch]) for batch in batches[:2])
        raise CalibrationError(
            f"calibration batches do not fit together, they begin with {shapes}: {error}"
        ) from error


def as_calibration(data: Any) -> Calibration:
    """A `Calibration` of one, of a tensor, an (inputs, labels) pair, or an iterable of batches.

    Batches that are mappings, as Hugging Face's collators make them, give their inputs alone.

    Raises:
        CalibrationError: it is none of these, or empty.
    """
    if isinstance(data, Calibration):
        return data
    if isinstance(data, Tensor | Inputs):
        return Calibration(data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        return Calibration(*data)
    if isinstance(data, Iterable):
        given = list(data)
        if any(isinstance(batch, Mapping) for batch in given):
            return Calibration(windows_of_batches(given))
        batches = [b if isinstance(b, tuple | list) else (b,) for b in given]
        if batches and all(isinstance(t, Tensor) for batch in batches for t in batch):
            return Calibration(*_joined(batches)[:2])
    raise CalibrationError(
        "calibration must be a qprune.Calibration, a tensor of inputs, an (inputs, labels) "
        f"pair, or a DataLoader of such batches, not {type(data).__name__}"
    )


def windows_of_batches(batches: Iterable[Any], num_samples: int | None = None) -> Tensor:
    """The inputs that a DataLoader yields, joined; its batches are tensors, pairs or mappings.

    Args:
        batches: tensors (m, ...), tuples that begin with one, or mappings with ``input_ids`` or
            ``pixel_values``, as Hugging Face's collators make them.
        num_samples: stop after so many; None takes all.

    Returns:
        Shape (samples, ...): token ids or pixel values.

    Raises:
        CalibrationError: nothing there, batches of different lengths, or padded sequences.
    """
    parts: list[Tensor] = []
    for index, batch in enumerate(batches):
        parts.append(_inputs_of(batch, index))
        if parts[-1].shape[1:] != parts[0].shape[1:]:
            raise CalibrationError(
                f"calibration batch {index} has samples of shape {tuple(parts[-1].shape[1:])}, "
                f"batch 0 of {tuple(parts[0].shape[1:])}; cut or group them to one length"
            )
        if num_samples is not None and sum(map(len, parts)) >= num_samples:
            break
    if not sum(map(len, parts)):
        raise CalibrationError("the calibration data hold no samples; pass at least one batch")
    joined = torch.cat(parts)
    return joined if num_samples is None else joined[:num_samples]


def _inputs_of(batch: Any, index: int) -> Tensor:
    if isinstance(batch, tuple | list) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and not bool(mask.all()):
            raise CalibrationError(
                f"calibration batch {index} is padded; group the text into windows of one length"
            )
        batch = next((batch[key] for key in ("input_ids", "pixel_values") if key in batch), None)
    if not isinstance(batch, Tensor) or not batch.ndim:
        raise CalibrationError(
            f"calibration batch {index} is a {type(batch).__name__}; pass tensors, or mappings "
            "with 'input_ids' or 'pixel_values'"
        )
    return batch
