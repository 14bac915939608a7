"""Restarts from crossings of the best states found: what annealing and tabu search share.

A read improves random states until its pool is full; then each restart crosses two of the pool,
keeps what they agree on, draws the rest at random, and improves the result. The child takes the
place of the parent that it resembles most if it is as good: so the pool stays diverse. (After
Lü, Glover and Hao, "A hybrid metaheuristic approach to solving the UBQP problem", 2010.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from solvers.layout import Layout
from solvers.reads import Read
from solvers.sampler import random_states

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
    states: list[State] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
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
