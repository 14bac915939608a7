"""Time limits and interrupts of one call of a sampler, and the clock that measures it.

The clock stands still while numba compiles or loads an inner loop, or a process for a sampler
starts, so that the first call has as much time to search as any other. That time is counted
apart.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from solvers.errors import InvalidOptionError

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORTH_SAYING = 1.0


class Compiling:
    """Clock of the seconds spent in numba's compiler, in loading its cache, and in `clock_stopped`.

    `solvers.search.kernels.common`, which imports numba, calls `began` and `ended`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._since = 0.0
        self._total = 0.0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        with self._lock:
            return self._total + (time.perf_counter() - self._since if self._depth else 0.0)

    def began(self) -> None:
        """Note that one more thread does work that is not counted."""
        with self._lock:
            if self._depth == 0:
                self._since = time.perf_counter()
            self._depth += 1

    def ended(self) -> None:
        """Note that one thread has ended such work."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._total += time.perf_counter() - self._since


#: Of this process: numba has one compiler, and one lock around it.
COMPILING = Compiling()


@contextmanager
def clock_stopped() -> Generator[None]:
    """Stop every `Deadline` of this process, for work that is done once before a call."""
    COMPILING.began()
    try:
        yield
    finally:
        COMPILING.ended()


class Deadline:
    """The time limit of a call, and its interrupt; ``None`` is no limit.

    Args:
        time_limit: seconds of wall time, not counting what numba compiles.

    Attributes:
        interrupted: True if the call is to end before its limit.
        listens: True if Ctrl-C interrupts it; Python delivers signals to the main thread only.

    Raises:
        InvalidOptionError: the limit is negative or not a number.

    Example:
        >>> Deadline(None).remaining, Deadline(0).passed
        (inf, True)
    """

    def __init__(self, time_limit: float | None = None) -> None:
        if time_limit is not None and not time_limit >= 0:
            raise InvalidOptionError(f"time_limit must be at least 0 seconds, not {time_limit!r}")
        self.time_limit = time_limit
        self._interrupted = False
        self._whole: Deadline | None = None
        self.listens = False
        #: Seconds of the limit reserved for evaluating the answer.
        self.kept_back = 0.0
        self._compiled_before = COMPILING.seconds
        self._began = time.perf_counter()

    @property
    def compiled(self) -> float:
        """Seconds of compiling since the call began."""
        return COMPILING.seconds - self._compiled_before

    @property
    def elapsed(self) -> float:
        """Seconds since the call began, without compiling."""
        # The compiler's clock first: time between the two readings then counts as elapsed.
        compiled = self.compiled
        return time.perf_counter() - self._began - compiled

    @property
    def passed(self) -> bool:
        """True when the search must end."""
        return self.remaining <= 0.0

    @property
    def remaining(self) -> float:
        """Seconds left to search, infinite without a limit, 0 after an interrupt."""
        if self.interrupted:
            return 0.0
        if self.time_limit is None:
            return float("inf")
        return max(0.0, self.time_limit - self.kept_back - self.elapsed)

    @property
    def interrupted(self) -> bool:
        """True after `interrupt`, here or on the deadline that this one is part of."""
        return self._interrupted or (self._whole is not None and self._whole.interrupted)

    def interrupt(self) -> None:
        """End the call at its next look at the clock; it answers with the best so far."""
        self._interrupted = True

    def part(self, share: float) -> Deadline:
        """The deadline of a part of the call, to which ``share`` of the time left is given."""
        if share == 1.0:
            return self
        part = Deadline(None if self.time_limit is None else share * self.remaining)
        part._whole = self
        return part


@contextmanager
def running(time_limit: float | None = None) -> Generator[Deadline]:
    """A call that ends by its limit, or by the first Ctrl-C or SIGTERM, with the best so far.

    A signal is handled here only where its handler is Python's own for Ctrl-C, or that of an
    enclosing call, which then ends, too. A second Ctrl-C raises `KeyboardInterrupt`.

    Args:
        time_limit: seconds, see `Deadline`.
    """
    deadline = Deadline(time_limit)
    with _signals_to(deadline):
        yield deadline
    if time_limit is not None and deadline.compiled > _WORTH_SAYING:
        logger.warning(
            "%.1f s went into compiling inner loops and starting processes, once; the time "
            "limit does not count them",
            deadline.compiled,
        )


class _Handler:
    """The signal handler while a call runs."""

    def __init__(self, deadline: Deadline, before: Any) -> None:
        self.deadline = deadline
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        again = self.deadline.interrupted
        self.deadline.interrupt()
        if again or isinstance(self.before, _Handler):
            self.before(number, frame)


@contextmanager
def _signals_to(deadline: Deadline) -> Generator[None]:
    taken: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is signal.default_int_handler or isinstance(before, _Handler):
                signal.signal(number, _Handler(deadline, before))
                taken[number] = before
    deadline.listens = signal.SIGINT in taken
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)
