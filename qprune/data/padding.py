"""Padding of batches of different lengths to the longest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qprune.errors import CalibrationError

#: Label that is ignored, by torch's convention.
IGNORED = -100
_MASK = "attention_mask"


def padded(batches: Sequence[Any], pad_id: int | None) -> Sequence[Any]:
    """Return ``batches`` with sequences that have an ``attention_mask`` padded to one length.

    Padding is ``pad_id``, or the id at masked places, or 0 for token ids; `IGNORED` for labels
    of tokens; 0 for all else. Where masks begin with padding, it is added there.

    Args:
        batches: of one structure; those that are no dict, or have no mask, are unchanged.
        pad_id: the model's padding token; None finds it in the data.

    Raises:
        CalibrationError: a mask that does not mark padding by 0.
    """
    first = batches[0]
    if not isinstance(first, dict | tuple | list):
        return batches
    if not all(type(batch) is type(first) and len(batch) == len(first) for batch in batches):
        return batches
    if isinstance(first, dict):
        return _padded_dicts(batches, pad_id)
    columns = [padded(column, pad_id) for column in zip(*batches, strict=True)]
    rows = zip(*columns, strict=True)
    if hasattr(first, "_fields"):
        return [type(first)(*row) for row in rows]
    return [type(first)(row) for row in rows]


def _padded_dicts(batches: Sequence[dict[str, Any]], pad_id: int | None) -> Sequence[Any]:
    if not all(batch.keys() == batches[0].keys() for batch in batches):
        return batches
    made = [dict(batch) for batch in batches]
    for key in batches[0]:
        column = [batch[key] for batch in batches]
        lengths = [x.shape[1] for x in column if isinstance(x, Tensor) and x.ndim > 1]
        if len(lengths) < len(column) or len(set(lengths)) == 1:
            continue
        labels = "label" in key and not column[0].is_floating_point()
        name = f"decoder_{_MASK}" if key.startswith("decoder_") else _MASK
        masks = [batch.get(name) for batch in batches]
        own = _fits(masks, lengths)
        if not own and not (labels and column[0].ndim == 2):
            continue
        value = IGNORED if labels else 0
        if key.endswith("input_ids"):
            value = _pad_id(column, masks, pad_id)
        left = own and any(_begins_padded(mask) for mask in masks)
        for batch, tensor in zip(made, column, strict=True):
            batch[key] = _longer(tensor, max(lengths), value, left=left)
    return made


def _fits(masks: Sequence[Any], lengths: Sequence[int]) -> bool:
    """Return True if there is a mask for sequences of these lengths."""
    for mask, length in zip(masks, lengths, strict=True):
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != length:
            return False
        if not ((mask == 0) | (mask == 1)).all():
            raise CalibrationError(
                "calibration batches of different lengths have an attention_mask that is not 0 "
                "and 1; pad them to one length"
            )
    return True


def _begins_padded(mask: Any) -> bool:
    return not bool(mask[:, 0].all())


def _pad_id(column: Sequence[Tensor], masks: Sequence[Any], pad_id: int | None) -> int:
    if pad_id is not None:
        return pad_id
    hidden = (ids[mask == 0] for ids, mask in zip(column, masks, strict=True))
    return next((int(ids[0]) for ids in hidden if ids.numel()), 0)


def _longer(tensor: Tensor, length: int, value: int, *, left: bool) -> Tensor:
    missing = length - tensor.shape[1]
    beside = [0, 0] * (tensor.ndim - 2)
    if tensor.dtype == torch.bool:
        value = bool(value)
    return functional.pad(tensor, [*beside, *((missing, 0) if left else (0, missing))], value=value)
