"""Thread counts: those of a run, and limits for the arithmetic.

Parallel passes by threads of one process, with the same sums as one thread.

The result does not depend on the number of threads: batches are cut as for one, every batch is
passed with one thread of arithmetic (`qprune.distributed.workers.limited_threads`), and sums are
taken in the order of the batches. Every thread uses its own copy of the model, since modules may
store state while they run, and differentiation switches flags of the parameters.
"""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from qprune.distributed.ranks import ALONE, Alone, Parts, Ranks
from qprune.errors import ImpossibleRequestError
from solvers.host.ranges import Threads, checked

#: Default threads of a run, in Python and on the command line. One: cores are often
#: shared with others, and every further thread holds a batch of its own.
DEFAULT_THREADS = 1


def checked_threads(threads: int | None) -> int:
    """Return ``threads``, or the default for None.

    Raises:
        ImpossibleRequestError: ``threads`` is no positive integer.

    Example:
        >>> checked_threads(None), checked_threads(3)
        (1, 3)
    """
    if threads is None:
        return DEFAULT_THREADS
    try:
        return checked(Threads, threads, "threads")
    except ValueError as error:
        raise ImpossibleRequestError(str(error)) from error


@contextmanager
def limited_threads(number: int) -> Generator[None]:
    """Limit torch and numpy's BLAS to ``number`` threads within the context.

    Sums are reproducible only for the same number of threads (torch's sums and products of
    vectors, convolutions, layer norm; LAPACK's factors and eigenvectors), and where cores are
    shared with others, threads of one sum spend several times its work in waiting for one another.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)


T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class PerThread(Generic[T]):
    """Value per thread, made on first use."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make, self._made = make, threading.local()

    def __call__(self) -> T:
        """Return this thread's value."""
        if not hasattr(self._made, "value"):
            self._made.value = self._make()
        return self._made.value


@dataclass(frozen=True)
class Workers(Alone):
    """Ranks of a single process that passes one batch per thread at the same time.

    Args:
        number: number of threads.
        home: the calling thread, which uses the original model.
    """

    number: int
    home: int = field(default_factory=threading.get_ident)

    @property
    def serial(self) -> Ranks:
        return ALONE

    def own(self, things: T) -> T:
        return things if threading.get_ident() == self.home else copy.deepcopy(things)

    def gather(self, function: Callable[[int, T], R], batches: Sequence[T]) -> list[R]:
        with closing(self._in_order(function, batches)) as results:
            return list(results)

    def accumulate(
        self,
        function: Callable[[int, T], tuple[R, Parts]],
        batches: Sequence[T],
        totals: Sequence[Tensor],
    ) -> dict[int, R]:
        def whole(number: int, batch: T) -> tuple[R, Parts]:
            kept, parts = function(number, batch)
            # Computed in the thread that passed the batch, not in the one that adds.
            return kept, list(parts)

        kept, sums = {}, self.summing(totals)
        with closing(self._in_order(whole, batches)) as results:
            for number, (found, parts) in enumerate(results):
                kept[number] = found
                sums.add(parts, 1)
        return kept

    def _in_order(
        self, function: Callable[[int, T], R], batches: Sequence[T]
    ) -> Generator[R, None, None]:
        """Yield the results in order, with one running batch per thread."""
        if len(batches) == 1:
            yield function(0, batches[0])
            return
        gradients = torch.is_grad_enabled()

        def run(number: int, batch: T) -> R:
            with torch.set_grad_enabled(gradients):  # A new thread does not inherit this flag.
                return function(number, batch)

        under_way: deque[Future[R]] = deque()
        # Warning filters are global to the process, and are restored after the threads.
        with warnings.catch_warnings(), ThreadPoolExecutor(self.number) as pool:
            try:
                for number, batch in enumerate(batches):
                    if len(under_way) == self.number:
                        yield under_way.popleft().result()
                    under_way.append(pool.submit(run, number, batch))
                while under_way:
                    yield under_way.popleft().result()
            finally:
                wait(under_way)


def workers_for(number: int, things: T, gradients: Callable[[T], Sequence[Tensor | None]]) -> Ranks:
    """Return `Workers` if a copy of ``things`` gives the same gradients, else warn: `ALONE`.

    Gradients differ where a copy still uses tensors of the original (through a function that
    holds them), or where the model draws random numbers.

    Args:
        number: number of threads.
        things: a model and its layers.
        gradients: computes gradients by the weights of ``things``.
    """
    if number == 1:
        return ALONE
    try:
        expected, found = gradients(things), gradients(copy.deepcopy(things))
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = f"the model cannot be copied ({' '.join(str(error).split())[:120]})"
    else:
        if all(_same(a, b) for a, b in zip(expected, found, strict=True)):
            return Workers(number)
        reason = "a copy of the model has other gradients"
    logger.warning("batches are passed by one thread, not %d: %s", number, reason)
    return ALONE


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)
