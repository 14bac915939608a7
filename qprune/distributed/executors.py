"""Parcels: pickled jobs with their large arrays apart, so that a shared array is sent once.

Executors of blocks: threads of this process, or the machines of a Ray cluster.

Any object with ``map(function, items)``, results in the order of the items, will do as
``executor=``; so will every executor of `concurrent.futures`. A block's answer depends on the
block and its seed alone, so that one worker and a thousand give the same mask.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from qprune.distributed.workers import limited_threads
from qprune.errors import ImpossibleRequestError
from solvers.host.ranges import MAX_THREADS, quoted

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


T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

#: Seconds of work in one message to another machine.
BATCH_SECONDS = 0.5
_TASK_RETRIES = 5


class Executor(Protocol):
    """Protocol of an executor: calls a function on every item."""

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]:
        """Return the results in the order of ``items``."""
        ...


class RayExecutor:
    """Executor on a Ray cluster, in batches of at least half a second of work.

    The time of an item is known from the call before; less than one batch in all is done
    here. An array that several items share goes once through the object store. A batch whose
    worker dies is given to another; after repeated failures it is done here, so that no
    result is lost. Workers use as many threads as this process, and need the same package
    versions and the same kind of processor for results equal to the last digit.

    Args:
        address: address of a running cluster; None starts one on this machine.
        batch_seconds: seconds of work in one message.
        options: for ``ray.init``, such as ``num_cpus``.

    Raises:
        ImpossibleRequestError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        batch_seconds: float = BATCH_SECONDS,
        **options: Any,
    ) -> None:
        self._ray = _ray()
        self._batch_seconds = batch_seconds
        self._seconds_per_item = 0.0
        self._own = not self._ray.is_initialized()
        if self._own:
            _connect(self._ray, address, options)
        self._packer = Packer(self._ray.cloudpickle.CloudPickler, self._ray.put)
        self._remote = self._ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(_unpacked_and_timed)

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> list[R]:
        """Return the results in the order of ``items``; errors of ``function`` are raised."""
        items = list(items)
        if not items:
            return []
        batches = list(batched(items, self._num_batches(len(items))))
        if len(batches) == 1 and self._seconds_per_item:
            done = [timed(function, items)]
        else:
            references = [self._sent(function, batch) for batch in batches]
            self._packer.forget_unused()
            done = [self._result(r, function, b) for r, b in zip(references, batches, strict=True)]
        self._seconds_per_item = sum(seconds for _, seconds in done) / len(items)
        return [result for results, _ in done for result in results]

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        if self._own:
            self._ray.shutdown()

    def _num_batches(self, number: int) -> int:
        if not self._seconds_per_item:
            return number
        batches = min(number, int(number * self._seconds_per_item / self._batch_seconds))
        return shared_evenly(batches, int(self._ray.cluster_resources().get("CPU", 1)))

    def _sent(self, function: Callable[[T], R], batch: Sequence[T]) -> Any:
        parcel = self._packer.pack((function, batch))
        return self._remote.remote(torch.get_num_threads(), parcel.payload, *parcel.arrays)

    def _result(
        self, reference: Any, function: Callable[[T], R], batch: Sequence[T]
    ) -> tuple[list[R], float]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Exception) and not isinstance(cause, errors.RayError):
                raise cause from None  # The function's own error.
            logger.warning("a Ray worker was lost (%s); its blocks are solved here", error)
            return timed(function, batch)


def timed(function: Callable[[T], R], batch: Sequence[T]) -> tuple[list[R], float]:
    """Return ``function`` of every item, and the seconds taken."""
    began = time.perf_counter()
    return [function(item) for item in batch], time.perf_counter() - began


def _unpacked_and_timed(
    num_threads: int, payload: bytes, *arrays: NDArray[Any]
) -> tuple[list[Any], float]:
    """Run the batch of a parcel on a worker."""
    function, batch = unpacked(payload, arrays)
    with limited_threads(num_threads):
        return timed(function, batch)


def shared_evenly(batches: int, workers: int) -> int:
    """Return the number of batches rounded down to a multiple of ``workers``, at least one."""
    return max(1, batches - batches % workers if batches > workers else batches)


def batched(items: Sequence[T], number: int) -> Iterator[Sequence[T]]:
    """Yield ``number`` consecutive parts of nearly equal size, at least one item in each."""
    for part in range(number):
        yield items[part * len(items) // number : (part + 1) * len(items) // number]


@contextmanager
def executor_named(spec: str | None) -> Generator[Executor | None]:
    """Return the executor that ``spec`` names, closed at the end of the context.

    Args:
        spec: ``threads``, ``threads:N``, ``ray`` (this machine) or ``ray://HOST:PORT``; None
            solves blocks one after the other.

    Raises:
        ImpossibleRequestError: there is no such executor.

    Example:
        >>> with executor_named("threads:2") as executor:
        ...     list(executor.map(abs, [-1, 2]))
        [1, 2]
    """
    if spec is None:
        yield None
        return
    kind, _, rest = spec.partition(":")
    if kind == "threads":
        with ThreadPoolExecutor(_number_of(rest, spec)) as threads:
            yield threads
    elif spec == "ray" or spec.startswith("ray://"):
        ray = RayExecutor(None if spec == "ray" else spec)
        try:
            yield ray
        finally:
            ray.close()
    else:
        raise ImpossibleRequestError(
            f"no executor named {spec!r}; there are: threads, threads:N, ray, ray://HOST:PORT"
        )


def _number_of(threads: str, spec: str) -> int:
    if not threads and spec == "threads":
        return os.cpu_count() or 1
    if not re.fullmatch("[0-9]{1,10}", threads) or not 1 <= int(threads) <= MAX_THREADS:
        raise ImpossibleRequestError(
            f"no executor named {quoted(spec)}: threads:N takes a whole number from 1 to "
            f"{MAX_THREADS:,}"
        )
    return int(threads)


def _ray() -> Any:
    # Set before the import: no usage statistics leave this machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.cloudpickle  # pyright: ignore[reportMissingImports, reportUnusedImport]
        import ray.exceptions  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ImpossibleRequestError(
            "--executor ray needs Ray, which is not installed; run: pip install 'qprune[ray]'"
        ) from error
    return ray


def _connect(ray: Any, address: str | None, options: Mapping[str, Any]) -> None:
    usual: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # A new cluster: by default Ray joins the one that was started last.
        address, usual = "local", usual | {"include_dashboard": False}
    with _signals_kept():
        try:
            ray.init(address, **(usual | dict(options)))
        except Exception as error:
            raise ImpossibleRequestError(
                f"cannot reach the Ray cluster {address}: "
                f"{' '.join(str(error).split())[:200]}; `ray status` tests it, and one that asks "
                "for a token wants RAY_AUTH_MODE=token here too"
            ) from error


@contextmanager
def _signals_kept() -> Generator[None]:
    """Restore the run's SIGTERM handler, which Ray replaces, after the context."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
