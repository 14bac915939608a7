"""Sizes of a model in bytes: as stored, compressed, and as values beside a mask."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qprune.errors import RunFolderError

#: Bytes read to estimate the zipped size, in pieces spread over the weights.
_SAMPLE, _PIECE = 32 << 20, 1 << 16


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model's weights in bytes.

    Attributes:
        disk: the weight files; None for a model that is not in a folder.
        memory: parameters and buffers once loaded; zeros take as much as other numbers.
        zipped: estimated size of the parameters after zlib.
        packed: kept values and one bit per weight for the mask; weights without a mask
            unchanged.
    """

    disk: int | None
    memory: int
    zipped: int
    packed: int


def measure_sizes(folder: Path | None, model: nn.Module, mask: Mapping[str, Tensor]) -> Sizes:
    """Measure a model that was loaded from ``folder``; an empty mask for a dense one.

    Raises:
        RunFolderError: the folder has no weight files.
    """
    return Sizes(
        disk=sum(file.stat().st_size for file in weight_files(folder)) if folder else None,
        memory=sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
        zipped=zipped_size(model),
        packed=packed_size(model, mask),
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a transformers model's weights.

    Raises:
        RunFolderError: there are no such files.
    """
    files = tuple(sorted(folder.glob("model*.safetensors")))
    if not files:
        raise RunFolderError(f"{folder} holds no model*.safetensors; give a folder with a model")
    return files


def zipped_size(model: nn.Module, sample: int = _SAMPLE) -> int:
    """Estimate the zlib size of the parameters from about ``sample`` evenly spaced bytes."""
    total = sum(parameter.nbytes for parameter in model.parameters())
    step = max(_PIECE, round(_PIECE * total / max(sample, 1)))
    read = left = 0
    for parameter in model.parameters():
        content = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        for start in range(0, len(content), step):
            piece = content[start : start + _PIECE].numpy().tobytes()
            read += len(piece)
            left += len(zlib.compress(piece))
    return round(total * left / max(read, 1))


def packed_size(model: nn.Module, mask: Mapping[str, Tensor]) -> int:
    """Return the bytes of kept values and one bit per weight under masks, and of all else."""
    size = 0
    for name, parameter in model.named_parameters():
        kept = mask.get(name)
        if kept is None:
            size += parameter.nbytes
        else:
            size += int(kept.sum()) * parameter.itemsize + -(-kept.numel() // 8)
    return size
