"""How many threads the arithmetic may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def limited_threads(number: int) -> Iterator[None]:
    """At most ``number`` threads in torch and in numpy's BLAS; as before afterwards.

    Sums come out the same on every machine only for the same number of threads, and on small
    networks, or cores shared with others, threads cost more in waiting than they save.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        with threadpool_limits(number):
            yield
    finally:
        torch.set_num_threads(before)
