"""Samplers in a process of their own, or with a limit to the time that a caller waits."""

from __future__ import annotations

import contextvars
import ctypes
import pickle
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from solvers.errors import InvalidOptionError, StudyError, WorkerDiedError
from solvers.host.clock import Deadline
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution

if TYPE_CHECKING:
    from solvers.host.worker import Worker

# Seconds between two looks at a deadline, which an interrupt moves.
_SECONDS_PER_LOOK = 0.02


class _ProblemSampler(Protocol):
    @property
    def parameters(self) -> Mapping[str, Any]: ...

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution: ...


class Processes:
    """Processes that hold a copy of one object each, lent one at a time and kept while idle.

    A process is started when none is idle; all end with this object.

    Args:
        factory: makes the object there; see `solvers.host.worker.Worker`.
        main: as there.
    """

    def __init__(self, factory: Callable[[], Any], *, main: bool = True) -> None:
        self._factory, self._main = factory, main
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        weakref.finalize(self, _stop_all, self._idle)

    @contextmanager
    def lent(self) -> Iterator[Worker]:
        """Lend one process; it comes back at the end of the block."""
        from solvers.host.worker import Worker

        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = Worker(self._factory, main=self._main)
        try:
            yield worker
        finally:
            self._idle.put(worker)


def _stop_all(idle: queue.SimpleQueue[Worker]) -> None:
    while not idle.empty():
        idle.get().stop()


class Isolated:
    """A sampler in a process of its own, so that a crash or a hang does not reach the caller.

    Several threads may call at once; each has a process to itself. A process is started with the
    first call and kept until it crashes or is killed at the limit; the next call starts another.

    Args:
        child: takes problems (see `solvers.ask`); can be pickled.
        time_limit: seconds for one call; None is no limit.

    Raises:
        InvalidOptionError: the sampler cannot be sent to another process.

    Example:
        >>> from solvers.ask import counting
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
        self._processes = Processes(partial(_Served, child))

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The child's."""
        return self.child.parameters

    def sample_problem(self, problem: QuadraticProblem, **options: Any) -> Solution:
        """The child's answer.

        Raises:
            WorkerDiedError: the process crashed, did not start, or was killed at the limit.
        """
        try:
            with self._processes.lent() as worker:
                return worker.call("ask", problem, options, limit=self._limit)
        except StudyError as error:
            # The process failed to start: a busy machine, or a script without its main guard.
            raise WorkerDiedError(f"no process for the sampler: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"child": self.child, "_limit": self._limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        processes = Processes(partial(_Served, state["child"]))
        self.__dict__.update(state, _processes=processes)


class TimeLimited:
    """A sampler whose caller waits no longer than the limit; a call that hangs is left behind.

    For samplers that wait for a remote machine. One that computes is better `Isolated`, where
    it can be killed.

    Args:
        child: takes problems (see `solvers.ask`).
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
        try:
            return on_a_thread(
                partial(self.child.sample_problem, problem, **options), Deadline(self._limit)
            )
        except _LeftBehindError:
            raise WorkerDiedError(f"no answer within {self._limit:g} s", timed_out=True) from None


class _LeftBehindError(WorkerDiedError):
    """The call was left behind; also raised inside the call, to end it."""

    def __init__(self) -> None:
        super().__init__("left behind at its deadline", timed_out=True)


def on_a_thread(
    call: Callable[[], Any], deadline: Deadline, grace: Callable[[], float] = lambda: 0.0
) -> Any:
    """Run ``call`` on a thread of its own, with a limit to the wait; return or raise as it does.

    A call left behind ends at its next line of Python, where an exception is raised. This does
    not stop code in C; use a process where that may take long.

    Args:
        call: takes no arguments.
        deadline: end of the wait; an interrupt ends it, too.
        grace: seconds to wait after that, for a call that ends by itself.

    Raises:
        WorkerDiedError: the call was left behind.
    """
    answers: list[tuple[bool, Any]] = []
    # No queue: CPython's waits for ever if a signal comes at the end of its timeout.
    answered = threading.Event()
    context = contextvars.copy_context()

    def ask() -> None:
        try:
            answers.append((True, context.run(call)))
        except BaseException as error:
            answers.append((False, error))
        answered.set()

    # A daemon: a call that hangs must not keep the process from ending.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        while not deadline.passed and not answered.is_set():
            answered.wait(min(deadline.remaining, _SECONDS_PER_LOOK))
        if not answered.wait(grace()):
            raise _LeftBehindError
    except BaseException:
        # CPython's way to interrupt a thread other than the main one.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_LeftBehindError)
        )
        raise
    worked, value = answers[0]
    if not worked:
        raise value
    return value


class _Served:
    """The object in the other process: a sampler."""

    def __init__(self, child: _ProblemSampler) -> None:
        self.child = child

    def ask(self, problem: QuadraticProblem, options: Mapping[str, Any]) -> Solution:
        return self.child.sample_problem(problem, **options)


def _check_limit(time_limit: float | None) -> None:
    if time_limit is not None and not time_limit > 0:
        raise InvalidOptionError(f"the limit must be more than 0 seconds, not {time_limit!r}")
