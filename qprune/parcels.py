"""Parcels: pickled jobs with their large arrays apart, so that a shared array is sent once."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Smallest size of an array that is sent apart.
_LARGE_BYTES = 1 << 16


@dataclass(frozen=True, eq=False)
class Parcel:
    """Pickled object for another process.

    Attributes:
        payload: the object, pickled without its large arrays.
        arrays: references to these arrays, in the order of the payload.
    """

    payload: bytes
    arrays: tuple[Any, ...]


@dataclass(eq=False)
class Packer:
    """Maker of parcels that remembers the arrays already sent.

    Args:
        pickler: class of the pickler, such as `cloudpickle.Pickler`.
        put: array -> a reference that the other side can resolve.
    """

    pickler: type[pickle.Pickler]
    put: Callable[[NDArray[Any]], Any]
    # By identity; each entry holds its array, so that its id is not reused.
    _out: dict[int, tuple[NDArray[Any], Any]] = field(default_factory=dict)
    _used: set[int] = field(default_factory=set)

    def pack(self, thing: Any) -> Parcel:
        """Return ``thing`` as a parcel."""
        arrays: list[Any] = []
        index: dict[int, int] = {}
        packer = self

        class Apart(self.pickler):
            def persistent_id(self, obj: Any) -> int | None:
                if type(obj) is not np.ndarray or obj.nbytes < _LARGE_BYTES or obj.dtype.hasobject:
                    return None
                if id(obj) not in index:
                    index[id(obj)] = len(arrays)
                    arrays.append(packer._reference(obj))
                return index[id(obj)]

        buffer = io.BytesIO()
        Apart(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(thing)
        return Parcel(buffer.getvalue(), tuple(arrays))

    def forget_unused(self) -> None:
        """Drop arrays that were not packed since the last call."""
        self._out = {key: out for key, out in self._out.items() if key in self._used}
        self._used = set()

    def _reference(self, array: NDArray[Any]) -> Any:
        key = id(array)
        self._used.add(key)
        if key not in self._out:
            self._out[key] = array, self.put(array)
        return self._out[key][1]


def unpacked(payload: bytes, arrays: Sequence[NDArray[Any]]) -> Any:
    """Return the object in a parcel, from its payload and the resolved references."""

    class Whole(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return own[pid]

    # Copies, since arrays in shared memory are read-only, for which kernels would be compiled
    # again.
    own = [np.array(array) for array in arrays]
    return Whole(io.BytesIO(payload)).load()
