"""Tabu search by swaps inside groups, or by single flips where there is no count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike

from solvers.elite import improve_with_restarts
from solvers.errors import InvalidOptionError
from solvers.kernels_tabu import flip_tabu, swap_tabu
from solvers.layout import Layout, search_dtype
from solvers.problem import QuadraticProblem
from solvers.reads import Limits, Read, search, start_states, whole_number
from solvers.reduction import reduced
from solvers.sampler import CountingSampler, checked_states, positive_int
from solvers.solution import Solution

# One step of a walk; a fixed number of moves, so that the steps do not depend on the machine.
_MOVES_PER_STEP = 5_000
_POOL_SIZE = 8
_TENURE_SHARE = 1 / 50
_SWAP_TENURE = 2
_SPREAD = 10
_MOVES_PER_VARIABLE = 20
_CANDIDATES = 4


class SwapTabu(CountingSampler):
    """Tabu search that keeps every count exact, restarted from crossings of its best states.

    Without counts: one-flip tabu search.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> SwapTabu().sample_problem(problem, seed=0).sample.tolist()
        [0, 1, 1]
    """

    options: ClassVar = {
        "num_reads": "independent reads (default 1)",
        "num_iterations": "moves of each search (default 20 per variable)",
        "num_restarts": "further searches in a read, from the 8th on crossings of its best "
        "(default 10)",
        "tenure": "iterations that a moved variable rests, at least "
        "(default: a fiftieth of the variables; with counts 2); up to 9 more at random",
        "seed": "seed of starts and moves",
        "initial_states": "states to start from, shape (k, n); further reads start at random",
        "num_threads": "threads that share the reads (default 1); no effect on the answer",
        "time_limit": "seconds after which the best so far is returned",
        "target_energy": "a read that gets there stops (default: none)",
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 1,
        num_iterations: int | None = None,
        num_restarts: int = 10,
        tenure: int | None = None,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        num_threads: int = 1,
        time_limit: float | None = None,
        target_energy: float | None = None,
    ) -> Solution:
        """Search.

        Raises:
            InvalidOptionError: an option's value makes no sense; the message says which and why.
        """
        limits = Limits.of(num_threads, time_limit, target_energy)
        num_reads = positive_int("num_reads", num_reads)
        num_restarts = whole_number("num_restarts", num_restarts)
        reduction = reduced(problem)
        given = reduction.restrict(checked_states(problem, initial_states))
        tenure = _checked_tenure(problem, reduction.problem.num_variables, tenure)
        problem = reduction.problem
        if num_iterations is None:
            num_iterations = _MOVES_PER_VARIABLE * max(1, problem.num_variables)
        moves = positive_int("num_iterations", num_iterations)
        rule = _Tabu(Layout.of(problem, search_dtype(problem)), moves, tenure)
        states, randoms = start_states(problem, num_reads, seed, given)
        solution = search(
            rule.layout,
            states,
            randoms,
            lambda read: improve_with_restarts(
                rule.layout, read, rule.steps, num_restarts, _POOL_SIZE, limits.target
            ),
            limits,
            {"tenure": tenure},
        )
        return reduction.lifted(solution)


def _checked_tenure(problem: QuadraticProblem, left: int, tenure: int | None) -> int:
    """The tenure given, or the default; at most a quarter of the ``left`` variables to search."""
    n = problem.num_variables
    if tenure is None:
        default = _SWAP_TENURE if problem.groups is not None else int(left * _TENURE_SHARE)
        return min(default, left // 4)
    if whole_number("tenure", tenure) >= max(1, n):
        raise InvalidOptionError(
            f"tenure must be less than the number of variables, {n}, not {tenure}"
        )
    return min(int(tenure), left // 4) if left < n else int(tenure)


@dataclass(frozen=True, eq=False)
class _Tabu:
    """Tabu search of a given length on one problem.

    Attributes:
        layout: the problem.
        num_iterations: moves of one search.
        tenure: least iterations that a moved variable rests.
    """

    layout: Layout
    num_iterations: int
    tenure: int

    def steps(self, read: Read, crossing: bool) -> Iterator[None]:
        """Improve the read; random states and crossings alike."""
        n = read.x.size
        field = self.layout.fields(read.x[None])[0]
        scores = np.empty(n, dtype=self.layout.dtype)
        until = np.zeros(n, dtype=np.int32)
        for done in range(0, self.num_iterations, _MOVES_PER_STEP):
            moves = min(_MOVES_PER_STEP, self.num_iterations - done)
            self._run(read, field, until, scores, moves)
            # The next call counts its iterations from zero again.
            until = np.maximum(until - moves, 0).astype(np.int32)
            yield

    def _run(
        self, read: Read, field: np.ndarray, until: np.ndarray, scores: np.ndarray, moves: int
    ) -> None:
        layout = self.layout
        spread = max(1, min(_SPREAD, read.x.size // 4))
        if layout.problem.groups is None:
            flip_tabu(
                layout.matrix,
                field,
                layout.half,
                read.x,
                until,
                self.tenure,
                spread,
                moves,
                read.goal,
                read.random,
                read.best,
                read.tally,
                scores,
            )
        else:
            swap_tabu(
                layout.matrix,
                field,
                layout.half,
                read.x,
                layout.starts,
                until,
                self.tenure,
                spread,
                _CANDIDATES,
                moves,
                read.goal,
                read.random,
                read.best,
                read.tally,
                scores,
            )
