"""Worker processes and threads for calls that may crash or hang, with limits to the wait."""

from __future__ import annotations

import contextvars
import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import psutil

from solvers.errors import StudyError, WorkerDiedError
from solvers.host.clock import Deadline

# With a CPU clock, wall time limit as a multiple of the limit: a waiting process uses no CPU.
_WALL_PER_CPU = 20.0
# Seconds to start Python and import numpy, numba and dimod on a slow, busy machine.
_SECONDS_TO_START = 300.0
_SECONDS_TO_END = 5.0
# Seconds between two looks at a limit, and at a deadline, which an interrupt moves.
_SECONDS_PER_LOOK = 0.5
_SECONDS_PER_LOOK_AT_DEADLINE = 0.01
# The same for a thread.
_SECONDS_PER_LOOK_OF_THREAD = 0.02


class Worker:
    """An object that lives in another process, made again after that process dies.

    Args:
        factory: makes the object there; must be importable (module level).
        greet: called with the worker after each start, to send what the object must know.
        clock: clock of limits: "wall"; or "cpu", the CPU time of the process, so that
            other work on the machine ends nothing.
        main: True to import the main script in the process, for classes defined there; a script
            then needs its main guard.

    The process is spawned, so that threads and locks of this one do no harm there.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        greet: Callable[[Worker], None] = lambda worker: None,
        clock: str = "wall",
        main: bool = True,
    ) -> None:
        self._factory, self._greet, self._main = factory, greet, main
        self._by_cpu = clock == "cpu"
        self._process: Any = None
        self._pipe: Any = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None and self._process is not None:
            # An idle process may still have to release locks of its libraries.
            self._pipe.close()
            self._process.join(_SECONDS_TO_END)
        self.stop()

    def ensure(self, deadline: Deadline | None = None) -> None:
        """Start the process if there is none; an interrupt of ``deadline`` stops the start."""
        if self._process is None:
            self._start(deadline)

    def call(
        self,
        method: str,
        *arguments: Any,
        limit: float | None = None,
        deadline: Deadline | None = None,
    ) -> Any:
        """Call a method of the object in the process; return or raise as it does.

        Raises:
            WorkerDiedError: the process died, or was killed after ``limit`` seconds or when
                ``deadline`` had passed; the next call starts another.
            StudyError: an argument cannot be sent.
        """
        self.ensure(deadline)
        try:
            self._pipe.send((method, arguments))
        except (BrokenPipeError, ConnectionResetError):
            raise self._died() from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise StudyError(
                f"cannot be sent to the process that runs samplers: {error}; "
                "define it in a module that can be imported, not in a notebook or a function"
            ) from error
        return self._answer(limit, deadline)

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None

    def _abandon(self) -> None:
        """End the process without waiting until its memory is given back."""
        self._process.kill()
        threading.Thread(target=self._process.join, daemon=True).start()
        self._pipe.close()
        self._process = self._pipe = None

    def _start(self, deadline: Deadline | None = None) -> None:
        if multiprocessing.parent_process() is not None:
            raise StudyError(
                "a study was started while a worker process imported the main script; put "
                "what the script does under: if __name__ == '__main__'"
            )
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._factory), daemon=True)
        if self._main:
            self._process.start()
        else:
            with _without_main():
                self._process.start()
        theirs.close()
        try:
            self._answer(_SECONDS_TO_START, deadline)
        except WorkerDiedError as error:
            if error.timed_out:
                raise
            raise StudyError(
                f"the process that runs samplers did not start: {error}; in a script, call "
                "compare under: if __name__ == '__main__'"
            ) from error
        self._greet(self)

    def _answer(self, limit: float | None, deadline: Deadline | None) -> Any:
        began, used = time.monotonic(), self._cpu_seconds()
        try:
            while not self._pipe.poll(_seconds_to_look(deadline)):
                if deadline is not None and deadline.passed:
                    self._abandon()
                    raise WorkerDiedError("killed at its deadline", timed_out=True)
                if limit is not None and self._elapsed(began, used) >= limit:
                    self.stop()
                    raise WorkerDiedError(f"killed after {limit:g} s", timed_out=True)
            worked, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        except KeyboardInterrupt:
            self.stop()
            raise
        if not worked:
            raise value
        return value

    def _elapsed(self, began: float, used: float) -> float:
        wall = time.monotonic() - began
        return max(self._cpu_seconds() - used, wall / _WALL_PER_CPU) if self._by_cpu else wall

    def _cpu_seconds(self) -> float:
        if not self._by_cpu:
            return 0.0
        try:
            spent = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0  # It has ended, which the pipe reports.
        return spent.user + spent.system

    def _died(self) -> WorkerDiedError:
        self._process.join(5.0)
        code = self._process.exitcode
        self.stop()
        if code is not None and code < 0:
            return WorkerDiedError(f"the process died of {signal.Signals(-code).name}")
        return WorkerDiedError(f"the process ended with exit code {code}")


class Processes:
    """Processes that hold a copy of one object each, lent one at a time and kept while idle.

    A process is started when none is idle; all end with this object.

    Args:
        factory: makes the object there; see `Worker`.
        main: as there.
    """

    def __init__(self, factory: Callable[[], Any], *, main: bool = True) -> None:
        self._factory, self._main = factory, main
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        weakref.finalize(self, _stop_all, self._idle)

    @contextmanager
    def lent(self) -> Generator[Worker]:
        """Lend one process; it comes back at the end of the block."""
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


class LeftBehindError(WorkerDiedError):
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
        LeftBehindError: the call was left behind.
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
            answered.wait(min(deadline.remaining, _SECONDS_PER_LOOK_OF_THREAD))
        if not answered.wait(grace()):
            raise LeftBehindError
    except BaseException:
        # CPython's way to interrupt a thread other than the main one.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(LeftBehindError)
        )
        raise
    worked, value = answers[0]
    if not worked:
        raise value
    return value


def _seconds_to_look(deadline: Deadline | None) -> float:
    if deadline is None:
        return _SECONDS_PER_LOOK
    return min(deadline.remaining, _SECONDS_PER_LOOK_AT_DEADLINE)


@contextmanager
def _without_main() -> Generator[None]:
    """Hide the main script from `multiprocessing`, which offers no way not to import it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _serve(pipe: Connection, factory: Callable[[], Any]) -> None:
    """Main loop of the process: make the object, then answer calls until the pipe closes."""
    # The parent handles Ctrl-C and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            subject = factory()
        except Exception as error:
            pipe.send((False, _sendable(error)))
            return
        pipe.send((True, None))
        while True:
            method, arguments = pipe.recv()
            try:
                answer = (True, getattr(subject, method)(*arguments))
            except Exception as error:
                answer = (False, _sendable(error))
            try:
                pipe.send(answer)
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                pipe.send((False, RuntimeError(f"the answer cannot be sent: {error}")))
    except (EOFError, OSError):
        return  # The parent is gone.


def _end_with_parent() -> None:
    """End this process when its parent was killed, even during a long call."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _sendable(error: Exception) -> Exception:
    """The error without its problem; if it cannot be pickled, a `RuntimeError` with its message."""
    error.__dict__.clear()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
