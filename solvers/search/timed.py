"""Descent to a state that no swap (or, without counts, no flip) improves.

The base of the samplers here: options checked, a time limit kept, an interrupt answered.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from solvers.host.clock import Deadline, running
from solvers.options import SamplerOptions, TimedOptions, described, read_options
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import CountingSampler, States, given_states, random_states
from solvers.search.kernels.common import GUMBELS
from solvers.search.kernels.flip import flip_descent
from solvers.search.kernels.layout import Layout
from solvers.search.kernels.swap import swap_descent

# Numbers read between two looks at the clock: about ten milliseconds of descent.
_READS_PER_LOOK = 20_000_000


def descend(
    problem: QuadraticProblem,
    states: States,
    layout: Layout | None = None,
    deadline: Deadline | None = None,
) -> States:
    """Every row of ``states`` after swap (or flip) descent; rows keep their counts.

    Args:
        problem: with or without counts.
        states: shape (reads, n), with exact counts.
        layout: the problem's layout; None makes one in float64.
        deadline: time limit; rows not at a local minimum by then are returned as they are, all
            of them unchanged where forming the matrix alone would take longer.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> descend(problem, np.array([[1, 1, 0]])).tolist()
        [[0, 1, 1]]
    """
    deadline = deadline or Deadline()
    layout = layout or Layout.of(problem)
    if not layout.affords_matrix(deadline):
        return states
    result = layout.sorted(states)
    down = _flips if problem.groups is None else _swaps
    for x in result:
        if deadline.passed or not down(layout, x, deadline):
            break
    return layout.unsorted(result)


def _flips(layout: Layout, x: NDArray[np.int8], deadline: Deadline) -> bool:
    """Descend by single flips, in place; return True at a local minimum."""
    field = layout.fields(x[None])[0]
    most = max(1, _READS_PER_LOOK // (100 + 2 * layout.row_length))
    while flip_descent(layout.matrix, field, layout.half, x, most) == most:
        if deadline.passed:
            return False
    return True


def _swaps(layout: Layout, x: NDArray[np.int8], deadline: Deadline) -> bool:
    """Descend by swaps inside groups, in place; return True at a local minimum."""
    field = layout.fields(x[None])[0]
    scores = np.empty(x.size, dtype=layout.dtype)
    unused, cursor = np.zeros(4, dtype=np.uint64), np.zeros(3, dtype=np.int64)
    most = max(1, _READS_PER_LOOK // (100 + 2 * x.size))
    while cursor[2] < x.size:
        if deadline.passed:
            return False
        fields = (layout.matrix, field, layout.half)
        swap_descent(*fields, x, layout.starts, unused, GUMBELS, scores, most, cursor)
    return True


#: Time of a limit reserved for evaluating the answer, in evaluations of one state.
EVALUATIONS_AFTER = 5.0


class TimedSampler(CountingSampler):
    """A sampler that answers within its time limit, and when it is interrupted.

    A subclass lists its options in a `SamplerOptions` and implements `_search`, which looks at
    the deadline at least every 50 ms and then returns the best so far. This class does the rest:
    the options are checked; with a time limit the answer is at least as good as that of swap
    descent from a random state; ``info["timing"]`` has the nanoseconds of ``preprocessing_ns``
    (checks and compiling), ``sampling_ns`` and ``postprocessing_ns``, as D-Wave's samplers do;
    ``info["interrupted"]`` is true after an interrupt.
    """

    Options: ClassVar[type[TimedOptions]] = SamplerOptions

    @property
    def options(self) -> Mapping[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Option name -> one line of help."""
        return described(self.Options)

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Solve ``problem``; samples have the exact counts and recomputed energies.

        Args:
            problem: with or without counts.
            **options: those that `options` lists.

        Raises:
            UnknownOptionError: an option that the sampler does not have.
            InvalidOptionError: an option's value is out of its range; the message has the range.
            ProblemTooLargeError: the problem does not fit into memory, or into the sampler.
        """
        stamps = [time.perf_counter_ns()]
        asked = self._asked(options)
        given = given_states(problem, asked.starts)
        with running(asked.time_limit) as deadline:
            stamps.append(time.perf_counter_ns())
            # The search runs without the offset, which must not change an answer.
            bare = problem.with_linear(problem.linear, 0.0) if problem.offset else problem
            first = None if asked.time_limit is None else self._first(bare, asked, deadline)
            if first is not None and deadline.remaining < deadline.kept_back:
                # Setting up a search would take longer than the time left.
                states = first if given is None else np.concatenate([first, given])
                found = Solution.of(bare, states)
            else:
                found = self._search(bare, asked, given, deadline)
            stamps.append(time.perf_counter_ns())
            if first is not None:
                found = found.joined(bare, first[0])
            stamps.append(time.perf_counter_ns())
        compiled = int(1e9 * deadline.compiled)
        before, during, after = np.diff(stamps).tolist()
        timing = {
            "preprocessing_ns": before + compiled,
            "sampling_ns": during - compiled,
            "postprocessing_ns": after,
        }
        info = {**found.info, "timing": timing}
        if deadline.interrupted:
            info["interrupted"] = True
        return replace(found.shifted(problem.offset), info=info)

    def _asked(self, options: Mapping[str, Any]) -> Any:
        """The options as an object of `Options`."""
        return read_options(type(self).__name__, self.Options, options)

    def _first(
        self, problem: QuadraticProblem, asked: TimedOptions, deadline: Deadline
    ) -> States | None:
        """The state of `Greedy` for the same seed; reserves time to evaluate the answer."""
        state = random_states(problem, 1, np.random.default_rng(asked.randomness))
        state = descend(problem, state, deadline=deadline)
        before = deadline.elapsed
        problem.energies(state)
        deadline.kept_back = EVALUATIONS_AFTER * (deadline.elapsed - before)
        return state

    @abstractmethod
    def _search(
        self,
        problem: QuadraticProblem,
        asked: Any,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        """Solve; ``asked`` is an object of the sampler's `Options`, ``given`` are its states."""
