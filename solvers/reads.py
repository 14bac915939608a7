"""Independent reads of one sampler: their state, and running them on threads with a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.errors import InvalidOptionError
from solvers.greedy import descend
from solvers.kernels import random_states_for
from solvers.layout import Layout
from solvers.problem import QuadraticProblem
from solvers.quadratic import LowRank
from solvers.sampler import Deadline, States, checked_states, positive_int, random_states
from solvers.solution import Solution

# A low-rank problem beyond this many variables is polished on the matrix that the search used.
_LARGE = 2048


@dataclass
class Read:
    """One walk through the states of a problem; kernels change the arrays in place.

    Attributes:
        x: the state now, shape (n,), int8, in the order of the layout.
        best: the best state so far.
        random: the generator of the kernels, (4,) uint64.
        tally: [E now, best E, moves made], float64; energies relative to the start.
        goal: an energy, relative to the start, that is low enough.
        energy: of the best state offered, infinite before.
        moves: made in all.
    """

    x: NDArray[np.int8]
    best: NDArray[np.int8]
    random: NDArray[np.uint64]
    tally: NDArray[np.float64]
    goal: float = -np.inf
    energy: float = np.inf
    moves: float = 0

    @classmethod
    def start(cls, x: NDArray[np.int8], random: NDArray[np.uint64], goal: float = -np.inf) -> Read:
        """A read that begins at ``x``."""
        return cls(x.copy(), x.copy(), random, np.zeros(3), goal)

    def offer(self, state: NDArray[np.int8], energy: float) -> None:
        """Keep ``state`` as the best if its energy is lower."""
        if energy < self.energy:
            self.best, self.energy = state.copy(), energy


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """``value`` as an int of at least ``least``.

    Raises:
        InvalidOptionError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidOptionError(
            f"{name} must be a whole number of at least {least}, not {value!r}"
        )
    return int(value)


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


@dataclass(frozen=True)
class Limits:
    """When a search ends before its sweeps do, and on how many threads it runs.

    Attributes:
        num_threads: threads that share the reads.
        deadline: of the whole search.
        target: a read whose energy is at most this stops.
    """

    num_threads: int
    deadline: Deadline
    target: float

    @classmethod
    def of(cls, num_threads: int, time_limit: float | None, target_energy: float | None) -> Limits:
        """The limits that a sampler's options ask for.

        Raises:
            InvalidOptionError: one of them makes no sense.
        """
        target = -np.inf if target_energy is None else float(target_energy)
        if np.isnan(target):
            raise InvalidOptionError("target_energy must be a number, not nan")
        return cls(positive_int("num_threads", num_threads), Deadline(time_limit), target)


def search(
    layout: Layout,
    states: States,
    randoms: NDArray[np.uint64],
    walk: Callable[[Read], Iterator[None]],
    limits: Limits,
    info: Mapping[str, Any],
) -> Solution:
    """Run one walk per start and answer with the best state of each, polished in float64.

    Args:
        layout: the problem.
        states: where the reads begin, (reads, n), in the problem's order.
        randoms: their generators.
        walk: makes the generator that works on a read; each step takes some milliseconds.
        limits: when to stop.
        info: what the sampler has to say; gains ``moves`` and ``reads_begun``.
    """
    problem = layout.problem
    if problem.num_variables == 0:
        return Solution.of(problem, states, info={**info, "moves": 0, "reads_begun": len(states)})
    starts = zip(layout.sorted(states), randoms, strict=True)
    reads = [Read.start(x, random) for x, random in starts]
    begun = _run(reads, [walk(read) for read in reads], limits)
    found = layout.unsorted(np.array([reads[index].best for index in begun], dtype=np.int8))
    best = _best_of(problem, [states[begun], found, _polished(layout, found)])
    moves = int(sum(reads[index].moves for index in begun))
    return Solution.of(problem, best, info={**info, "moves": moves, "reads_begun": len(begun)})


def _run(reads: Sequence[Read], walks: Sequence[Iterator[None]], limits: Limits) -> list[int]:
    """Exhaust every walk, or stop by the limits or an interrupt; the indices of those begun.

    A read stops at the target on its own account only, so that the answer does not depend on the
    threads. The first read is always begun.
    """
    stop = Event()
    begun = [False] * len(walks)

    def run(index: int) -> None:
        if index and (stop.is_set() or limits.deadline.passed):
            return
        begun[index] = True
        for _ in walks[index]:
            if stop.is_set() or limits.deadline.passed or reads[index].energy <= limits.target:
                return

    try:
        if limits.num_threads == 1:
            for index in range(len(walks)):
                run(index)
        else:
            _run_threads(run, len(walks), limits.num_threads, stop)
    except KeyboardInterrupt:
        stop.set()
    return [index for index, started in enumerate(begun) if started]


def _run_threads(run: Callable[[int], None], num: int, num_threads: int, stop: Event) -> None:
    with ThreadPoolExecutor(num_threads) as pool:
        jobs = [pool.submit(run, index) for index in range(num)]
        try:
            for job in jobs:
                job.result()
        finally:
            stop.set()


def _polished(layout: Layout, states: States) -> States:
    """The states after descent, in float64 unless that would need a second large matrix."""
    problem = layout.problem
    if not layout.has_matrix:
        return states
    large = isinstance(problem.quadratic, LowRank) and problem.num_variables > _LARGE
    return descend(problem, states, layout if large else None)


def _best_of(problem: QuadraticProblem, rivals: Sequence[States]) -> States:
    """Row by row the state of lowest energy, shape (reads, n); the first on a tie."""
    stacked = np.stack(rivals)
    num, reads, n = stacked.shape
    energies = problem.energies(stacked.reshape(num * reads, n)).reshape(num, reads)
    return stacked[energies.argmin(axis=0), np.arange(reads)]
