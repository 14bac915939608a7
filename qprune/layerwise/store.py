"""Stores of activations between blocks: in host or device memory, or in memory-mapped files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from qprune.errors import ImpossibleRequestError


class Store(Protocol):
    """Protocol of a list of tensors, on or off the device."""

    def append(self, tensor: Tensor) -> None:
        """Add a tensor."""
        ...

    def __len__(self) -> int: ...

    def get(self, index: int, device: torch.device) -> Tensor:
        """Return the tensor at ``index``, on ``device``."""
        ...


class MemoryStore:
    """Store in memory: the host's, or (``where`` is None) that of the tensors' own device."""

    def __init__(self, where: str | None = "cpu") -> None:
        self._where = where
        self._tensors: list[Tensor] = []

    def append(self, tensor: Tensor) -> None:
        self._tensors.append(tensor if self._where is None else tensor.to(self._where))

    def __len__(self) -> int:
        return len(self._tensors)

    def get(self, index: int, device: torch.device) -> Tensor:
        return self._tensors[index].to(device)


class DiskStore:
    """Store in memory-mapped files of one folder, removed with the store."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._kinds: list[tuple[torch.Size, torch.dtype]] = []

    def append(self, tensor: Tensor) -> None:
        mapped = self._mapped(len(self._kinds), tensor.shape, tensor.dtype, create=True)
        mapped.copy_(tensor)
        self._kinds.append((tensor.shape, tensor.dtype))

    def __len__(self) -> int:
        return len(self._kinds)

    def get(self, index: int, device: torch.device) -> Tensor:
        # A copy, so that in-place operations do not change the file.
        return self._mapped(index, *self._kinds[index], create=False).clone().to(device)

    def _mapped(self, index: int, shape: torch.Size, dtype: torch.dtype, create: bool) -> Tensor:
        path = self._folder / f"{index}.bin"
        if create:
            with path.open("wb") as file:
                file.truncate(shape.numel() * dtype.itemsize)
        flat = torch.from_file(str(path), shared=True, size=shape.numel(), dtype=dtype)
        return flat.view(shape)

    def __del__(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def stores(offload: str | Path) -> Iterator[Callable[[], Store]]:
    """Return a factory of stores: in memory for "cpu" and "device", else in files in that path.

    Raises:
        ImpossibleRequestError: the folder does not exist.
    """
    if str(offload) == "cpu":
        yield MemoryStore
        return
    if str(offload) == "device":
        yield partial(MemoryStore, None)
        return
    if not Path(offload).is_dir():
        raise ImpossibleRequestError(
            "offload must be 'cpu', 'device' or a folder for temporary files; "
            f"there is no folder {offload}"
        )
    with tempfile.TemporaryDirectory(prefix="qprune-", dir=offload) as folder:
        yield lambda: DiskStore(Path(folder))
