"""Independent reads of one sampler, run on threads until they or the time end.

Restarts from crossings of the best states found: what annealing and tabu search share.

A read improves random states until its pool is full; then each restart crosses two of the pool,
keeps what they agree on, draws the rest at random, and improves the result. The child takes the
place of the parent that it resembles most if it is as good: so the pool stays diverse. (After
Lü, Glover and Hao, "A hybrid metaheuristic approach to solving the UBQP problem", 2010.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, pairwise
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.host.clock import Deadline
from solvers.options import Energy, SamplerOptions, Threads
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.kernels.common import random_states_for
from solvers.search.kernels.layout import Layout
from solvers.search.timed import descend

# A low-rank problem of more variables is polished on the matrix that the search used.
_LARGE = 2048
# Multiplications up to which all answers are evaluated together at the end.
_EVALUATED_AGAIN = 100_000_000


@dataclass
class Read:
    """One walk through the states of a problem; kernels change the arrays in place.

    Attributes:
        x: the state now, shape (n,), int8, in the order of the layout.
        best: the best state so far.
        random: the generator of the kernels, (4,) uint64.
        tally: [E now, best E, moves made], float64; energies relative to the start.
        goal: energy, relative to the start, at which the read may stop.
        energy: of the best state offered, infinite before.
        moves: moves made so far.
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


def starts(
    problem: QuadraticProblem, seed: int | None, given: States | None, num_reads: int | None
) -> Iterator[tuple[NDArray[np.int8], NDArray[np.uint64]]]:
    """The start of each read, ``given`` states first, then random ones, and its generator.

    Without ``num_reads`` the iterator has no end.
    """
    for_states, for_kernels = np.random.SeedSequence(seed).spawn(2)
    rng = np.random.default_rng(for_states)
    for index in count() if num_reads is None else range(num_reads):
        state = random_states(problem, 1, rng)[0]
        if given is not None and index < len(given):
            state = given[index]
        yield state, random_states_for(for_kernels, 1)[0]


class Answers:
    """The final states of reads: all of them, or the best ones where the number of reads is open.

    Args:
        problem: gives the energies.
        num_reads: number of reads; None keeps the best `MOST_KEPT`.
    """

    #: States kept of an unlimited number of reads.
    MOST_KEPT = 100

    def __init__(self, problem: QuadraticProblem, num_reads: int | None) -> None:
        self.problem = problem
        self.begun = 0
        self._most = self.MOST_KEPT if num_reads is None else None
        self._found: list[tuple[float, int, NDArray[np.int8]]] = []

    def add(self, index: int, *rivals: NDArray[np.int8]) -> float:
        """Keep the best of ``rivals``, each of shape (n,), as the answer of read ``index``."""
        distinct = [x for i, x in enumerate(rivals) if not any((x == y).all() for y in rivals[:i])]
        energies = [self.problem.energy(x) for x in distinct]
        best = int(np.argmin(energies))
        self.begun += 1
        self._found.append((energies[best], index, distinct[best].astype(np.int8)))
        if self._most is not None and len(self._found) >= 2 * self._most:
            self._found = sorted(self._found, key=lambda one: one[:2])[: self._most]
        return energies[best]

    def repeat(self) -> None:
        """Enter the first answer once more, as that of another read."""
        energy, _, state = self._found[0]
        self._found.append((energy, self.begun, state))
        self.begun += 1

    def solution(self, info: Mapping[str, Any], lower_bound: float = -np.inf) -> Solution:
        """The solution of the states kept, best first; ties in the order of the reads."""
        found = sorted(self._found, key=lambda one: one[:2])[: self._most]
        samples = np.array([state for _, _, state in found], dtype=np.int8)
        info = {**info, "reads_begun": self.begun}
        energies = None
        # All in one product, as a check would: the rounding of sums depends on their grouping.
        if samples.size * self.problem.num_variables > _EVALUATED_AGAIN:
            energies = np.array([energy for energy, _, _ in found])
        return Solution.of(
            self.problem, samples, energies=energies, lower_bound=lower_bound, info=info
        )


@dataclass(frozen=True)
class Limits:
    """The limits of a search: reads, threads, time, target energy.

    Attributes:
        num_reads: number of reads; None goes on until the deadline.
        num_threads: threads that share the reads.
        deadline: of the whole search.
        target: energy at which a read stops; where the number of reads is open,
            so does the search.
    """

    num_reads: int | None
    num_threads: int
    deadline: Deadline
    target: float

    @classmethod
    def of(cls, asked: ReadOptions, deadline: Deadline) -> Limits:
        """The limits by a sampler's options; a time limit alone leaves the number of reads open."""
        target = -np.inf if asked.target_energy is None else asked.target_energy
        return cls(asked.reads(1), asked.num_threads, deadline, target)


class ReadOptions(SamplerOptions):
    """Options of samplers whose reads are independent."""

    num_threads: Threads = Field(
        default=1, description="threads that share the reads (default 1); no effect on the answer"
    )
    target_energy: Energy | None = Field(
        default=None, description="energy at which a read stops (default: none)"
    )


def search(
    layout: Layout,
    beginnings: Iterator[tuple[NDArray[np.int8], NDArray[np.uint64]]],
    walk: Callable[[Read, int], Iterator[None]],
    limits: Limits,
    info: Mapping[str, Any],
) -> Solution:
    """Run one walk per start and answer with the best state of each, polished in float64.

    Args:
        layout: the problem.
        beginnings: start of each read, in the problem's order, and its generator.
        walk: makes the generator that works on a read, given its number; each step takes some
            milliseconds.
        limits: when to stop.
        info: of the solution; gains ``moves`` and ``reads_begun``.
    """
    problem, deadline = layout.problem, limits.deadline
    large = isinstance(problem.quadratic, LowRank) and problem.num_variables > _LARGE
    polishing = layout if large else Layout.of(problem)
    answers = Answers(problem, limits.num_reads)
    lock, numbered, stop = Lock(), enumerate(beginnings), Event()
    moves = 0

    def ended() -> bool:
        return stop.is_set() or deadline.passed

    def work() -> None:
        nonlocal moves
        while True:
            with lock:
                # The first read is always made.
                following = None if stop.is_set() else next(numbered, None)
            if following is None or (following[0] and ended()):
                return
            index, (state, random) = following
            read = Read.start(layout.sorted(state), random)
            for _ in walk(read, index):
                if ended() or read.energy <= limits.target:
                    break
            found = layout.unsorted(read.best)
            polished = found
            if polishing.has_matrix:
                polished = descend(problem, found[None], polishing, deadline)[0]
            with lock:
                energy = answers.add(index, state, found, polished)
                moves += int(read.moves)
                if limits.num_reads is None and energy <= limits.target:
                    stop.set()

    if problem.num_variables == 0:
        for index, (state, _) in zip(range(limits.num_reads or 1), beginnings, strict=False):
            answers.add(index, state)
    else:
        _on_threads(work, limits.num_threads, stop)
    return answers.solution({**info, "moves": moves})


def _on_threads(work: Callable[[], None], num_threads: int, stop: Event) -> None:
    """Run ``work`` on so many threads; an error in one ends them all."""
    if num_threads == 1:
        work()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        jobs = [pool.submit(work) for _ in range(num_threads)]
        try:
            for job in jobs:
                job.result()
        finally:
            stop.set()


State = NDArray[np.int8]

#: Improves a read step by step; the second argument is True for a crossing.
Improve = Callable[[Read, bool], Iterator[None]]


@dataclass
class Pool:
    """The elite of one read; states in the order of the layout.

    Attributes:
        layout: the problem.
        size: how many states are kept.
        rng: draws parents and crossings.
    """

    layout: Layout
    size: int
    rng: np.random.Generator
    states: list[State] = field(default_factory=list[State])
    energies: list[float] = field(default_factory=list[float])
    parents: tuple[int, int] | None = None

    @cached_property
    def mirrored(self) -> bool:
        """True if E(x) = E(1 - x), as in MaxCut: a state and its mirror image are then the same."""
        problem = self.layout.problem
        ones = np.ones(problem.num_variables)
        tilt = 2.0 * problem.linear + problem.quadratic.product(ones)
        scale = np.abs(problem.linear).max(initial=0.0)
        return problem.groups is None and bool((np.abs(tilt) <= 1e-9 * scale).all())

    def next_start(self) -> State:
        """A random state while the pool fills, then a crossing of two of the pool."""
        if len(self.states) < self.size:
            self.parents = None
            return self.layout.sorted(random_states(self.layout.problem, 1, self.rng))[0]
        first, second = self.rng.choice(self.size, 2, replace=False).tolist()
        self.parents = (first, second)
        return self._crossing(self.states[first], self._facing(self.states[second], first))

    def add(self, state: State, energy: float) -> None:
        """Enter the state reached from the last start, unless the pool has it already."""
        if any(np.array_equal(self._facing(state, i), kept) for i, kept in enumerate(self.states)):
            return
        if len(self.states) < self.size:
            self.states.append(state.copy())
            self.energies.append(energy)
        elif self.parents is not None:
            nearest = sorted(self.parents, key=lambda i: self._distance(state, i))
            for parent in nearest:
                if energy <= self.energies[parent]:
                    self.states[parent], self.energies[parent] = state.copy(), energy
                    break

    def _facing(self, state: State, index: int) -> State:
        """``state`` or its mirror image, whichever is closer to state ``index`` of the pool."""
        differ = np.count_nonzero(state != self.states[index])
        return 1 - state if self.mirrored and 2 * differ > state.size else state

    def _distance(self, state: State, index: int) -> int:
        return int(np.count_nonzero(self._facing(state, index) != self.states[index]))

    def _crossing(self, first: State, second: State) -> State:
        child = first.copy()
        if self.layout.problem.groups is None:
            differ = np.flatnonzero(first != second)
            child[differ] = self.rng.integers(0, 2, differ.size)
            return child
        starts = self.layout.starts
        for low, high in pairwise(starts):
            differ = low + np.flatnonzero(first[low:high] != second[low:high])
            child[differ] = self.rng.permutation(first[differ])
        return child


def improve_with_restarts(
    layout: Layout,
    read: Read,
    improve: Improve,
    num_restarts: int,
    pool_size: int,
    target: float,
) -> Iterator[None]:
    """Improve the read's start, then ``num_restarts`` others; ``read.best`` has the best of all."""
    problem = layout.problem
    pool = Pool(layout, pool_size, np.random.default_rng(read.random))
    start = read.x
    for _ in range(num_restarts + 1):
        origin = problem.energy(layout.unsorted(start))
        yield
        trial = Read.start(start, read.random, target - origin)
        for _step in improve(trial, pool.parents is not None):
            read.offer(trial.best, origin + trial.tally[1])
            yield
        read.moves += trial.tally[2]
        read.offer(trial.best, origin + trial.tally[1])
        pool.add(trial.best, origin + trial.tally[1])
        start = pool.next_start()
