"""Operations that numpy arrays and torch tensors spell differently.

The row code runs on a host in numpy (float64) or on a device in torch. It is written
once, in the operations that both spell alike.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

#: A numpy array or a torch tensor.
Array = Any

# From this many rows on, selecting in each of them keeps a device busy.
_MANY_ROWS = 64


def is_tensor(array: Array) -> bool:
    """True for a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def namespace(array: Array) -> ModuleType:
    """The module, numpy or torch, whose functions take ``array``."""
    return sys.modules["torch"] if is_tensor(array) else np


def nth_smallest(array: Array, at: Array) -> Array:
    """The ``at[r]``-th smallest entry (from 0) of every row of ``array``, shape (rows,).

    For few different ``at``, rows are partitioned, which is far cheaper than sorting.
    """
    places = np.unique(as_host(at))
    if is_tensor(array):
        # A device selects in all rows at once; one long row it sorts far faster.
        if len(places) == 1 and len(array) >= _MANY_ROWS:
            return array.kthvalue(int(places[0]) + 1, dim=-1).values
        return array.sort(dim=-1).values.gather(-1, at[:, None])[:, 0]
    parted = np.partition(array, places, -1) if len(places) < 8 else np.sort(array, axis=-1)
    return np.take_along_axis(parted, at[:, None], -1)[:, 0]


def as_float(array: Array, like: Array) -> Array:
    """``array`` in the dtype and on the device of ``like``."""
    if is_tensor(like):
        return namespace(like).as_tensor(array, dtype=like.dtype, device=like.device)
    return np.asarray(array, dtype=like.dtype)


def as_bool(array: Array, like: Array) -> Array:
    """``array`` as booleans, on the device of ``like``."""
    if is_tensor(like):
        torch = namespace(like)
        return torch.as_tensor(array, dtype=torch.bool, device=like.device)
    return np.asarray(array, dtype=bool)


def as_double(array: Array) -> Array:
    """``array`` in float64, where it is."""
    return array.double() if is_tensor(array) else np.asarray(array, dtype=np.float64)


def as_count(array: Array, like: Array) -> Array:
    """``array`` as int64, on the device of ``like``."""
    if is_tensor(like):
        torch = namespace(like)
        return torch.as_tensor(array, dtype=torch.int64, device=like.device)
    return np.asarray(array, dtype=np.int64)


def as_host(array: Array) -> np.ndarray:
    """``array`` in numpy."""
    return array.detach().cpu().numpy() if is_tensor(array) else np.asarray(array)
