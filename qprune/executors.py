"""Where blocks are solved: threads of this process, or the machines of a Ray cluster.

Any object with ``map(function, items)``, results in the order of the items, will do as
``executor=``; so will every executor of `concurrent.futures`. A block's answer depends on the
block and its seed alone, so that one worker and a thousand give the same mask.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from qprune.errors import ImpossibleRequestError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

#: Seconds of work that are worth a message to another machine.
BATCH_SECONDS = 0.5
_TASK_RETRIES = 5


class Executor(Protocol):
    """A strategy: calls a function on every item, wherever."""

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterable[R]:
        """The results, in the order of ``items``."""
        ...


class RayExecutor:
    """Solves blocks on a Ray cluster, in batches of at least half a second of work.

    What all items share (the function, with the sampler in it) goes once through the object
    store. A batch whose worker dies is given to another; when that fails time and again, it is
    done here, so that no result is lost.

    Args:
        address: of a running cluster; None starts one on this machine.
        batch_seconds: of work in one message.
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
        try:
            self._ray.init(address, log_to_driver=False, ignore_reinit_error=True, **options)
        except Exception as error:
            raise ImpossibleRequestError(
                f"cannot reach the Ray cluster {address or 'on this machine'}: "
                f"{' '.join(str(error).split())[:200]}; `ray status` tests it"
            ) from error
        self._remote = self._ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(timed)

    def map(self, function: Callable[[T], R], items: Iterable[T], /) -> list[R]:
        """The results, in the order of ``items``; what ``function`` raises is raised here."""
        shared = self._ray.put(function)
        batches = list(batched(list(items), self._batch_size))
        references = [self._remote.remote(shared, batch) for batch in batches]
        results: list[R] = []
        for reference, batch in zip(references, batches, strict=True):
            found, seconds = self._result(reference, function, batch)
            self._seconds_per_item = seconds / len(batch)
            results += found
        return results

    def close(self) -> None:
        """Leave the cluster, and end it if it was started here."""
        self._ray.shutdown()

    @property
    def _batch_size(self) -> int:
        if not self._seconds_per_item:
            return 1
        return max(1, math.ceil(self._batch_seconds / self._seconds_per_item))

    def _result(
        self, reference: Any, function: Callable[[T], R], batch: Sequence[T]
    ) -> tuple[list[R], float]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, Exception) and not isinstance(cause, errors.RayError):
                raise cause from None  # What the function itself raised.
            logger.warning("a Ray worker was lost (%s); its blocks are solved here", error)
            return timed(function, batch)


def timed(function: Callable[[T], R], batch: Sequence[T]) -> tuple[list[R], float]:
    """``function`` of every item, and the seconds that took."""
    began = time.perf_counter()
    return [function(item) for item in batch], time.perf_counter() - began


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive parts of at most ``size`` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@contextmanager
def executor_named(spec: str | None) -> Iterator[Executor | None]:
    """The executor that ``spec`` names, closed at the end.

    Args:
        spec: ``threads``, ``threads:N``, ``ray`` (this machine) or ``ray://HOST:PORT``; None
            solves blocks one after the other.

    Raises:
        ImpossibleRequestError: there is no such executor.
    """
    if spec is None:
        yield None
        return
    kind, _, rest = spec.partition(":")
    if kind == "threads" and (not rest or (rest.isdigit() and int(rest) > 0)):
        with ThreadPoolExecutor(int(rest) if rest else os.cpu_count()) as threads:
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


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImpossibleRequestError(
            "--executor ray needs Ray, which is not installed; run: pip install 'qprune[ray]'"
        ) from error
    return ray
