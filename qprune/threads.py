"""Thread counts: those of a run, and limits for the arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from qprune.errors import ImpossibleRequestError
from solvers.ranges import Threads, checked

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
def limited_threads(number: int) -> Iterator[None]:
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
