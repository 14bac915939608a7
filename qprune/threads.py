"""How many threads the arithmetic may use, and how many a run works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from qprune.errors import ImpossibleRequestError
from solvers.ranges import Threads, checked

#: Threads of a run where nothing is said, in Python and on the command line. One: cores are often
#: shared with others, and every further thread holds a batch of its own.
DEFAULT_THREADS = 1


def checked_threads(threads: int | None) -> int:
    """``threads``, or the default for None.

    Raises:
        ImpossibleRequestError: no number of threads.

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
    """At most ``number`` threads in torch and in numpy's BLAS; as before afterwards.

    Sums come out the same only for the same number of threads (torch's sums and products of
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
