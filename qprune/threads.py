"""How many threads the arithmetic may use, and how many a run works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from qprune.errors import ImpossibleRequestError

#: Threads of a run where nothing is said, in Python and on the command line. One: cores are often
#: shared with others, and every further thread holds a batch of its own.
DEFAULT_THREADS = 1
#: More than this is a mistake.
MAX_THREADS = 1024


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
    if isinstance(threads, bool) or not isinstance(threads, int):
        raise ImpossibleRequestError(f"threads must be a whole number or None, not {threads!r}")
    if not 1 <= threads <= MAX_THREADS:
        raise ImpossibleRequestError(f"threads must lie in 1..{MAX_THREADS}, not {threads}")
    return threads


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
