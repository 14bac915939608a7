"""Short measurements at the start of a run: what one pass over some samples holds and takes."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tally(TorchDispatchMode):
    """Counts, inside, the bytes of tensors that are alive at once, backward passes included.

    What was there before is not counted, nor what an operation needs for itself.

    Attributes:
        live: bytes alive now.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):
            self._see(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self._see(tensor, counts=True)
        return out

    def _see(self, tensor: Any, counts: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size


@dataclass(frozen=True)
class Pass:
    """What a pass over samples holds and takes: so much at all, and so much for each sample.

    Attributes:
        fixed_bytes, sample_bytes: alive at once.
        fixed_seconds, sample_seconds: wall time.
    """

    fixed_bytes: float = 0.0
    sample_bytes: float = 0.0
    fixed_seconds: float = 0.0
    sample_seconds: float = 0.0

    def num_bytes(self, batch: int) -> float:
        """Of a pass over ``batch`` samples at once."""
        return self.fixed_bytes + batch * self.sample_bytes

    def seconds(self, samples: float, batch: int) -> float:
        """Of passes over ``samples`` in all, ``batch`` at once."""
        return samples * self.sample_seconds + samples / max(1, batch) * self.fixed_seconds


def gauged(run: Callable[[int], object], sizes: Sequence[int]) -> Pass:
    """A `Pass` from runs over some numbers of samples.

    Args:
        run: makes the pass over so many samples.
        sizes: a small and a large number; the same one twice where there is but one sample.
    """
    small, large = sizes
    first, _ = _counted(run, small)
    if small == large:
        seconds = _timed(run, small)
        return Pass(0.0, first / small, 0.0, seconds / small)
    second, _ = _counted(run, large)
    each = max(0.0, (second - first) / (large - small))
    few, many = _timed(run, small), _timed(run, large)
    slope = max(many - few, 0.1 * many) / (large - small)
    return Pass(max(0.0, first - small * each), each, max(0.0, few - small * slope), slope)


def _counted(run: Callable[[int], object], size: int) -> tuple[int, object]:
    with Tally() as tally:
        kept = run(size)
    return tally.peak, kept


def _timed(run: Callable[[int], object], size: int) -> float:
    began = time.perf_counter()
    run(size)
    return time.perf_counter() - began
