"""The base of the samplers here: options checked, a time limit kept, an interrupt answered."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from solvers.clock import Deadline, running
from solvers.descent import descend
from solvers.options import SamplerOptions, TimedOptions, described, read_options
from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler, States, given_states, random_states
from solvers.solution import Solution

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
