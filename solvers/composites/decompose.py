"""A large problem by sub-blocks, on a sampler that takes only small ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, ClassVar

import dimod
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from solvers.ask.counting import ProblemSampler, counting
from solvers.errors import ChargeRefusedError, InvalidOptionError, WorkerDiedError
from solvers.foreign.composite import AskingSampler, ChildOptions
from solvers.host.clock import Deadline
from solvers.host.worker import on_a_thread
from solvers.options import Count
from solvers.problem.parts import restricted
from solvers.problem.problem import QuadraticProblem
from solvers.problem.repair import repair
from solvers.problem.solution import Solution
from solvers.sampler import States, positive_int, random_states
from solvers.search.runs import Answers
from solvers.search.timed import TimedSampler

Indices = NDArray[np.int64]

# Variables of a sub-block where the child names no limit of its own.
DEFAULT_SIZE = 64


class DecomposeOptions(ChildOptions):
    """Options of `Decompose`."""

    num_reads: Count | None = Field(
        default=None,
        description="runs, from the initial states first, random ones after (default 1; with a "
        "time limit, as many as fit)",
    )
    max_passes: Count = Field(
        default=20, description="passes over all variables at most (default 20)"
    )


class Decompose(AskingSampler, dimod.ComposedSampler):
    """Solves sub-blocks of a problem in turn, the rest held fixed, until none improves it.

    Every pass offers each variable once, in blocks that mix ones and zeros of the same group:
    by turns the most promising flips together, and at random. A sub-block keeps its own number
    of ones per group, so that counts stay exact; only improvements are taken, so that the
    answer is never worse than the start. It ends after two passes in a row without one, and
    returns the best so far when interrupted or when a paid child's budget is used up.

    Args:
        child: the small sampler: a name, a class or an object. One that cannot count is
            wrapped in `CardinalityPenalty`.
        size: variables in a sub-block; default the child's ``largest_clique_size``, else 64.

    Raises:
        InvalidOptionError: ``size`` is less than 2.

    Example:
        >>> problem = QuadraticProblem(np.arange(20.0), np.eye(20), counts=5)
        >>> Decompose("sa", size=8).sample_problem(problem, seed=1).energy
        12.5
    """

    Options = DecomposeOptions
    shared: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, child: object = "sa", *, size: int | None = None) -> None:
        self._child = counting(child)
        inner = getattr(self._child, "child", self._child)
        limit = getattr(inner, "largest_clique_size", DEFAULT_SIZE)
        self.size = positive_int("size", limit if size is None else size)
        if self.size < 2:
            raise InvalidOptionError("size must be at least 2: one variable has nothing to swap")

    @property
    def children(self) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The one child."""
        return [self._child]

    @property
    def _of_child(self) -> Mapping[str, str]:
        names = set(self._child.parameters) - {"cardinality", "groups"}
        return dict.fromkeys(sorted(names), "as in the child")

    def _search(
        self,
        problem: QuadraticProblem,
        asked: DecomposeOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        for_starts, for_blocks = np.random.SeedSequence(asked.seed).spawn(2)
        run = _Run(
            problem=problem,
            child=self._child,
            size=self.size,
            rng=np.random.default_rng(for_blocks),
            deadline=deadline,
            max_passes=asked.max_passes,
            options=asked.theirs,
        )
        totals: dict[str, Any] = {"blocks": 0, "improved": 0, "passes": 0}
        num_reads = asked.reads(1)
        answers = Answers(problem, num_reads)
        rng = np.random.default_rng(for_starts)
        try:
            for index in count() if num_reads is None else range(num_reads):
                if index and deadline.passed:
                    break
                start = _start(problem, index, given, rng)
                try:
                    run.descend(start, totals)
                finally:
                    answers.add(index, start)
        except ChargeRefusedError as refused:
            if totals["blocks"] == 1:
                raise
            totals["stopped"] = str(refused)
        return answers.solution({"decompose": totals})


def decompose(child: Any, *, size: int | None = None) -> Decompose:
    """`Decompose` as a function."""
    return Decompose(child, size=size)


@dataclass(frozen=True)
class _Run:
    """The settings of one solve."""

    problem: QuadraticProblem
    child: ProblemSampler
    size: int
    rng: np.random.Generator
    deadline: Deadline
    max_passes: int
    options: Mapping[str, Any]

    def descend(self, x: States, totals: dict[str, Any]) -> None:
        """Improve one state, shape (n,), in place, until two passes in a row do not improve it."""
        idle, enough = 0, 2 if x.size > self.size else 1
        for index in range(self.max_passes):
            if self.deadline.passed:
                return
            improved = self._pass(x, promising=index % 2 == 0, totals=totals)
            idle = 0 if improved else idle + 1
            if idle == enough:
                return

    def _pass(self, x: States, *, promising: bool, totals: dict[str, Any]) -> bool:
        totals["passes"] += 1
        improved = False
        for block in self._blocks(x, promising=promising):
            if self.deadline.passed:
                break
            totals["blocks"] += 1
            if self._solve(x, block):
                totals["improved"] += 1
                improved = True
        return improved

    def _solve(self, x: States, block: Indices) -> bool:
        """Put the child's answer for one block into ``x`` if it is better."""
        part = restricted(self.problem, x, block)
        now = x[block]
        options = dict(self.options)
        if "seed" in self.child.parameters:
            options["seed"] = int(self.rng.integers(2**31))
        if "initial_states" in self.child.parameters:
            options["initial_states"] = now[None, :]
        found = self._asked(part, options)
        if found is None:
            return False
        before = part.energy(now)
        if not found.energy < before - 1e-12 * (1.0 + abs(before)):
            return False
        x[block] = found.sample
        return True

    def _asked(self, part: QuadraticProblem, options: dict[str, Any]) -> Solution | None:
        """The child's answer; None where it had not enough time."""
        takes, deadline = self.child.parameters, self.deadline
        if deadline.time_limit is not None and "time_limit" in takes:
            options["time_limit"] = deadline.remaining
            if "num_reads" in takes:
                options.setdefault("num_reads", 1)
        ask = partial(self.child.sample_problem, part, **options)
        if isinstance(self.child, TimedSampler):
            return ask()
        try:
            return on_a_thread(ask, deadline)
        except WorkerDiedError:
            return None

    def _blocks(self, x: States, *, promising: bool) -> Iterator[Indices]:
        order = self._order(x, promising=promising)
        for start in range(0, order.size, self.size):
            yield order[start : start + self.size]

    def _order(self, x: States, *, promising: bool) -> Indices:
        """All variables, group after group, ones and zeros evenly mixed within each."""
        problem = self.problem
        if promising:
            fields = problem.fields(x)[0]
            cost = (1.0 - 2.0 * x) * fields + 0.5 * problem.quadratic.diagonal()
        else:
            cost = self.rng.random(x.size)
        if problem.groups is None:
            return np.argsort(cost, kind="stable")
        place = np.zeros(x.size)
        for group in range(problem.num_groups):
            for value in (0, 1):
                members = np.flatnonzero((problem.groups == group) & (x == value))
                ranks = np.argsort(np.argsort(cost[members], kind="stable"), kind="stable")
                place[members] = (ranks + 0.5) / max(1, members.size)
        shuffled = self.rng.permutation(problem.num_groups)
        return np.lexsort((place, shuffled[problem.groups]))


def _start(
    problem: QuadraticProblem, index: int, given: States | None, rng: np.random.Generator
) -> States:
    """The start of a read, shape (n,): given states first, or one built greedily, then random."""
    if given is not None and index < len(given):
        return given[index].copy()
    if given is None and index == 0 and problem.counts is not None:
        return repair(problem, np.zeros(problem.num_variables))[0]
    return random_states(problem, 1, rng)[0]
