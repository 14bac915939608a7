"""Packed masks: a safetensors file with one bit per weight, and names and shapes.

Each parameter's mask is flattened row by row and packed eight to a byte, the first weight in the
lowest bit; a set bit is a kept weight. Names and shapes are in the file's metadata.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qprune.errors import DISK, RunFolderError
from solvers.host.disk import read_json

#: File of the mask in a pruned folder.
MASK_FILE = "mask.safetensors"
#: Format name in the metadata of a packed mask.
FORMAT, VERSION = "qprune-packed-mask", "1"


def pack(kept: Tensor) -> Tensor:
    """Pack a bool mask of any shape into ``ceil(numel / 8)`` bytes, shape (bytes,), uint8.

    Example:
        >>> pack(torch.tensor([[True, False], [True, True]]))  # 1 + 4 + 8
        tensor([13], dtype=torch.uint8)
    """
    bits = kept.detach().cpu().contiguous().flatten().numpy()
    return torch.from_numpy(np.packbits(bits, bitorder="little"))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the bool mask of ``shape`` in ``packed``: the inverse of `pack`.

    Raises:
        ValueError: the length of ``packed`` does not fit ``shape``.
    """
    size = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((size + 7) // 8,):
        raise ValueError(
            f"{tuple(packed.shape)} {packed.dtype} is not {(size + 7) // 8} bytes for {shape}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), count=size, bitorder="little")
    return torch.from_numpy(bits.astype(bool)).view(shape)


def packed_bytes(mask: Mapping[str, Tensor]) -> bytes:
    """Return the content of a packed file for `read_mask`; equal masks give equal bytes.

    Args:
        mask: bool, by parameter name, True = kept, each in its parameter's shape.
    """
    shapes = {name: list(kept.shape) for name, kept in mask.items()}
    metadata = {"format": FORMAT, "version": VERSION, "shapes": json.dumps(shapes)}
    return _ordered(save({name: pack(kept) for name, kept in mask.items()}, metadata))


def _ordered(content: bytes) -> bytes:
    """Return the safetensors file with its metadata sorted; the library shuffles them."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read_mask(path: Path) -> dict[str, Tensor]:
    """Read a mask by parameter name from a packed file, or from one of plain bool tensors.

    Raises:
        RunFolderError: there is no such file, or it holds no mask.
    """
    try:
        with safe_open(DISK.regular(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            return _checked_bool(path, tensors)
        if metadata.get("version") != VERSION:
            raise RunFolderError(
                f"{path} is a packed mask of version {metadata.get('version')}; this qprune "
                f"reads version {VERSION}: use a newer one"
            )
        shapes = read_json(metadata["shapes"])
        return {name: unpack(packed, _shape(shapes[name])) for name, packed in tensors.items()}
    except OSError as error:
        if isinstance(error, RunFolderError):
            raise
        raise RunFolderError(f"cannot read the mask {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{path} holds no mask: {error}; give a mask that qprune wrote"
        ) from error


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise ValueError(f"{sizes!r:.60} is no shape")
    return tuple(sizes)


def _checked_bool(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wrong = [name for name, kept in tensors.items() if kept.dtype != torch.bool]
    if wrong or not tensors:
        reason = f"{wrong[0]!r} is {tensors[wrong[0]].dtype}, not bool" if wrong else "it is empty"
        raise RunFolderError(f"{path} holds no mask: {reason}; give a mask that qprune wrote")
    return dict(tensors)
