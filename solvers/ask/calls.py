"""One call of a sampler: here, with a limit to the wait, or in a process of its own."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from solvers.ask.counting import ProblemSampler
from solvers.errors import InvalidOptionError, StudyError, WorkerDiedError
from solvers.host.clock import Deadline
from solvers.host.worker import LeftBehindError, Processes, on_a_thread
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution

Call = Callable[[QuadraticProblem, Mapping[str, Any]], Solution]
"""Calls a sampler on a problem, with options."""


def call_of(sampler: ProblemSampler, *, time_limit: float | None, isolate: bool) -> Call:
    """The way to call ``sampler`` with a limit, or apart from this process.

    Raises:
        InvalidOptionError: the sampler cannot be sent to another process.
    """
    if isolate:
        return Apart(sampler, time_limit)
    here = Here(sampler)
    return here if time_limit is None else Awaited(here, time_limit)


class Here:
    """Call in this process and thread."""

    def __init__(self, sampler: ProblemSampler) -> None:
        self.sampler = sampler

    def __call__(self, problem: QuadraticProblem, options: Mapping[str, Any]) -> Solution:
        return self.sampler.sample_problem(problem, **options)


class Awaited:
    """Call whose caller waits no longer than the limit; a call that hangs is left behind.

    For samplers that wait for a remote machine. One that computes is better called `Apart`,
    where it can be killed.

    Raises:
        WorkerDiedError: when called: there was no answer in time.
    """

    def __init__(self, call: Call, time_limit: float) -> None:
        self._call, self._limit = call, time_limit

    def __call__(self, problem: QuadraticProblem, options: Mapping[str, Any]) -> Solution:
        try:
            return on_a_thread(partial(self._call, problem, options), Deadline(self._limit))
        except LeftBehindError:
            raise WorkerDiedError(f"no answer within {self._limit:g} s", timed_out=True) from None


class Apart:
    """Call in a process of its own, so that a crash or a hang does not reach the caller.

    Several threads may call at once; each has a process to itself. A process is started with the
    first call and kept until it crashes or is killed at the limit; the next call starts another.

    Args:
        sampler: can be pickled.
        time_limit: seconds for one call; None is no limit.

    Raises:
        InvalidOptionError: the sampler cannot be sent to another process.
        WorkerDiedError: when called: the process crashed, did not start, or was killed.
    """

    def __init__(self, sampler: ProblemSampler, time_limit: float | None) -> None:
        try:
            pickle.dumps(sampler)
        except Exception as error:
            raise InvalidOptionError(
                f"{type(sampler).__name__} cannot be sent to a process of its own: {error}; define "
                "it in a module that can be imported, or do without isolation"
            ) from error
        self.sampler, self._limit = sampler, time_limit
        self._processes = Processes(partial(_Served, sampler))

    def __call__(self, problem: QuadraticProblem, options: Mapping[str, Any]) -> Solution:
        try:
            with self._processes.lent() as worker:
                return worker.call("ask", problem, options, limit=self._limit)
        except StudyError as error:
            # The process failed to start: a busy machine, or a script without its main guard.
            raise WorkerDiedError(f"no process for the sampler: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"sampler": self.sampler, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        processes = Processes(partial(_Served, state["sampler"]))
        self.__dict__.update(state, _processes=processes)


class _Served:
    """The object in the other process: a sampler."""

    def __init__(self, sampler: ProblemSampler) -> None:
        self.ask = Here(sampler)
