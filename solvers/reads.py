"""Independent reads of one sampler: their state, and running them on threads with a way out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.kernels import random_states_for
from solvers.problem import QuadraticProblem
from solvers.sampler import Deadline, States, checked_states, random_states


@dataclass
class Read:
    """One walk through the states of a problem; kernels change the arrays in place.

    Attributes:
        x: the state now, shape (n,), int8, in the order of the layout.
        best: the best state so far.
        random: the generator of the kernels, (4,) uint64.
        tally: [E now, best E, moves made], float64; energies relative to the start.
    """

    x: NDArray[np.int8]
    best: NDArray[np.int8]
    random: NDArray[np.uint64]
    tally: NDArray[np.float64]

    @classmethod
    def start(cls, x: NDArray[np.int8], random: NDArray[np.uint64]) -> Read:
        """A read that begins at ``x``."""
        return cls(x.copy(), x.copy(), random, np.zeros(3))


def start_states(
    problem: QuadraticProblem,
    num_reads: int,
    seed: int | None,
    initial_states: ArrayLike | None,
) -> tuple[States, NDArray[np.uint64]]:
    """Where the reads begin, (reads, n), initial states first, and their generators (reads, 4)."""
    given = checked_states(problem, initial_states)
    for_states, for_kernels = np.random.SeedSequence(seed).spawn(2)
    states = random_states(problem, num_reads, np.random.default_rng(for_states))
    if given is not None:
        states[: len(given)] = given[:num_reads]
    return states, random_states_for(for_kernels, num_reads)


def run_walks(walks: Sequence[Iterator[None]], num_threads: int, deadline: Deadline) -> list[int]:
    """Exhaust every walk, or stop at the deadline or an interrupt; the indices of those begun.

    A walk is a generator that works in steps of some milliseconds. Each makes at least one step,
    except those not yet begun when time is over; the first is always begun.
    """
    stop = Event()
    begun = [False] * len(walks)

    def run(index: int) -> None:
        if index and (stop.is_set() or deadline.passed):
            return
        begun[index] = True
        for _ in walks[index]:
            if stop.is_set() or deadline.passed:
                return

    try:
        if num_threads == 1:
            for index in range(len(walks)):
                run(index)
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                jobs = [pool.submit(run, index) for index in range(len(walks))]
                try:
                    for job in jobs:
                        job.result()
                finally:
                    stop.set()
    except KeyboardInterrupt:
        stop.set()
    return [index for index, started in enumerate(begun) if started]


def better_of(problem: QuadraticProblem, first: States, second: States) -> States:
    """Row by row the state of lower energy, shape (reads, n); the first on a tie."""
    keep = problem.energies(first) <= problem.energies(second)
    return np.where(keep[:, None], first, second)
