"""A sampler at arm's length: in a process of its own, or at least with a limit to its time."""

from __future__ import annotations

import pickle
import queue
import threading
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from solvers.errors import InvalidOptionError, StudyError, WorkerDiedError
from solvers.problem import QuadraticProblem
from solvers.solution import Solution


class _ProblemSampler(Protocol):
    @property
    def parameters(self) -> Mapping[str, Any]: ...

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution: ...


class Isolated:
    """A sampler that runs in a process of its own: what crashes or hangs there ends there.

    Several threads may ask at once; each has a process to itself. A process is started with the
    first call and lives on, until it dies or is killed at the limit; the next call starts another.

    Args:
        child: takes problems (see `solvers.counting`); can be pickled.
        time_limit: seconds for one call; None = as long as it takes.

    Raises:
        InvalidOptionError: the sampler cannot be sent to another process.

    Example:
        >>> from solvers.counting import counting
        >>> Isolated(counting("greedy"), time_limit=60).parameters["seed"]
        []
    """

    def __init__(self, child: _ProblemSampler, *, time_limit: float | None = None) -> None:
        _check_limit(time_limit)
        try:
            pickle.dumps(child)
        except Exception as error:
            raise InvalidOptionError(
                f"{type(child).__name__} cannot be sent to a process of its own: {error}; define "
                "it in a module that can be imported, or do without isolation"
            ) from error
        self.child = child
        self._limit = time_limit
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The child's."""
        return self.child.parameters

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:
        """The child's answer.

        Raises:
            WorkerDiedError: the process crashed, did not start, or was killed at the limit.
        """
        worker = self._worker()
        try:
            return worker.call("ask", problem, options, limit=self._limit)
        except StudyError as error:
            # It failed to start, on a busy machine, or where a script lacks its main guard.
            raise WorkerDiedError(f"no process for the sampler: {error}") from error
        finally:
            self._idle.put(worker)

    def _worker(self) -> Any:
        from solvers.study.worker import Worker

        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return Worker(partial(_Served, self.child))

    def __getstate__(self) -> dict[str, Any]:
        return {"child": self.child, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _idle=queue.SimpleQueue())


class TimeLimited:
    """A sampler whose caller waits no longer than the limit; what hangs goes on unheard.

    For samplers that wait for a remote machine. One that computes is better `Isolated`, where
    it can be killed.

    Args:
        child: takes problems (see `solvers.counting`).
        time_limit: seconds for one call.
    """

    def __init__(self, child: _ProblemSampler, *, time_limit: float) -> None:
        _check_limit(time_limit)
        self.child = child
        self._limit = time_limit

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The child's."""
        return self.child.parameters

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:
        """The child's answer.

        Raises:
            WorkerDiedError: there was none in time.
        """
        answers: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((True, self.child.sample_problem(problem, **options)))
            except BaseException as error:
                answers.put((False, error))

        # A daemon: what hangs must not keep the process from ending.
        threading.Thread(target=ask, daemon=True).start()
        try:
            worked, value = answers.get(timeout=self._limit)
        except queue.Empty:
            raise WorkerDiedError(f"no answer within {self._limit:g} s", timed_out=True) from None
        if not worked:
            raise value
        return value


class _Served:
    """What lives in the other process."""

    def __init__(self, child: _ProblemSampler) -> None:
        self.child = child

    def ask(self, problem: QuadraticProblem, options: Mapping[str, Any]) -> Solution:
        return self.child.sample_problem(problem, **options)


def _check_limit(time_limit: float | None) -> None:
    if time_limit is not None and not time_limit > 0:
        raise InvalidOptionError(f"the limit must be more than 0 seconds, not {time_limit!r}")
