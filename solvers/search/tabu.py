"""Tabu search by swaps inside groups, or by single flips where there is no count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from solvers.errors import InvalidOptionError
from solvers.host.clock import Deadline
from solvers.options import Count, Whole
from solvers.problem.parts import reduced
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import States
from solvers.search.kernels.layout import Layout, search_dtype
from solvers.search.kernels.tabu import flip_tabu, swap_tabu
from solvers.search.runs import Limits, Read, ReadOptions, improve_with_restarts, search, starts
from solvers.search.timed import TimedSampler

# One step of a walk; a fixed number of moves, so that the steps do not depend on the machine.
_MOST_MOVES_PER_STEP = 5_000
_READS_PER_STEP = 20_000_000
_MOST_DOUBLINGS = 20
_POOL_SIZE = 8
_TENURE_SHARE = 1 / 50
_SWAP_TENURE = 2
_SPREAD = 10
_MOVES_PER_VARIABLE = 20
_CANDIDATES = 4


class TabuOptions(ReadOptions):
    """Options of `SwapTabu`."""

    num_iterations: Count | None = Field(
        default=None, description="moves of each search (default 20 per variable)"
    )
    num_restarts: Whole = Field(
        default=10,
        description="further searches in a read, from the 8th on crossings of its best "
        "(default 10; growing with a time limit)",
    )
    tenure: Whole | None = Field(
        default=None,
        description="iterations that a moved variable is tabu, at least "
        "(default: a fiftieth of the variables; with counts 2); up to 9 more at random",
    )


class SwapTabu(TimedSampler):
    """Tabu search that keeps every count exact, restarted from crossings of its best states.

    Without counts: one-flip tabu search.

    Example:
        >>> problem = QuadraticProblem([1.0, -1.0, 0.5], np.ones((3, 3)), counts=2)
        >>> SwapTabu().sample_problem(problem, seed=0).sample.tolist()
        [0, 1, 1]
    """

    Options = TabuOptions

    def _search(
        self,
        problem: QuadraticProblem,
        asked: TabuOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        reduction = reduced(problem, deadline)
        given = reduction.restrict(given)
        tenure = _checked_tenure(problem, reduction.problem.num_variables, asked.tenure)
        problem = reduction.problem
        limits = Limits.of(asked, deadline)
        moves = asked.num_iterations or _MOVES_PER_VARIABLE * max(1, problem.num_variables)
        rule = _Tabu(Layout.of(problem, search_dtype(problem)), moves, tenure, deadline)
        solution = search(
            rule.layout,
            starts(problem, asked.seed, given, limits.num_reads),
            lambda read, index: improve_with_restarts(
                rule.layout,
                read,
                rule.steps,
                _restarts(asked, limits, index),
                _POOL_SIZE,
                limits.target,
            ),
            limits,
            {"tenure": tenure},
        )
        return reduction.lifted(solution)


def _restarts(asked: TabuOptions, limits: Limits, index: int) -> int:
    """Restarts of one read: where reads have no end they double, unless their number was given."""
    if limits.num_reads is not None or "num_restarts" in asked.model_fields_set:
        return asked.num_restarts
    return asked.num_restarts << min(index, _MOST_DOUBLINGS)


def _checked_tenure(problem: QuadraticProblem, left: int, tenure: int | None) -> int:
    """The tenure given, or the default; at most a quarter of the ``left`` variables to search."""
    n = problem.num_variables
    if tenure is None:
        default = _SWAP_TENURE if problem.groups is not None else int(left * _TENURE_SHARE)
        return min(default, left // 4)
    if tenure >= max(1, n):
        raise InvalidOptionError(
            f"tenure must be less than the number of variables, {n}, not {tenure}"
        )
    return min(tenure, left // 4) if left < n else tenure


@dataclass(frozen=True, eq=False)
class _Tabu:
    """Tabu search of a given length on one problem.

    Attributes:
        layout: the problem.
        num_iterations: moves of one search.
        tenure: least iterations that a moved variable is tabu.
        deadline: of the whole search; there is none if forming the matrix alone would take longer.
    """

    layout: Layout
    num_iterations: int
    tenure: int
    deadline: Deadline

    @property
    def moves_per_step(self) -> int:
        """Moves of some ten milliseconds; every one looks at all variables."""
        looks = 1 if self.layout.problem.groups is None else 1 + _CANDIDATES
        fitting = _READS_PER_STEP // (looks * max(1, self.layout.half.size))
        return min(_MOST_MOVES_PER_STEP, max(1, fitting))

    def steps(self, read: Read, crossing: bool) -> Iterator[None]:
        """Improve the read; random states and crossings alike."""
        n = read.x.size
        if not self.layout.affords_matrix(self.deadline):
            return
        field = self.layout.fields(read.x[None])[0]
        scores = np.empty(n, dtype=self.layout.dtype)
        until = np.zeros(n, dtype=np.int32)
        step = self.moves_per_step
        for done in range(0, self.num_iterations, step):
            moves = min(step, self.num_iterations - done)
            self._run(read, field, until, scores, moves)
            # The next call starts at iteration 0.
            until = np.maximum(until - moves, 0).astype(np.int32)
            yield

    def _run(
        self, read: Read, field: np.ndarray, until: np.ndarray, scores: np.ndarray, moves: int
    ) -> None:
        layout = self.layout
        spread = max(1, min(_SPREAD, read.x.size // 4))
        start = (layout.matrix, field, layout.half, read.x)
        end = (moves, read.goal, read.random, read.best, read.tally, scores)
        if layout.problem.groups is None:
            flip_tabu(*start, until, self.tenure, spread, *end)
        else:
            swap_tabu(*start, layout.starts, until, self.tenure, spread, _CANDIDATES, *end)
