"""The end of one call of a sampler: a time limit, a wish to stop, and the clock that they share.

The clock stands still while numba compiles or loads an inner loop, so that the first call after
an installation has as much time to search as any other. How long that was is kept beside it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from solvers.errors import InvalidOptionError

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WORTH_SAYING = 1.0


class Compiling:
    """Seconds that this process has spent in numba's compiler, or loading what it compiled.

    `solvers.kernels`, with which numba is imported, tells it when.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._since = 0.0
        self._total = 0.0

    @property
    def seconds(self) -> float:
        """All of them, up to now."""
        with self._lock:
            return self._total + (time.perf_counter() - self._since if self._depth else 0.0)

    def began(self) -> None:
        """One thread, or one more, is in the compiler."""
        with self._lock:
            if self._depth == 0:
                self._since = time.perf_counter()
            self._depth += 1

    def ended(self) -> None:
        """One thread has left it."""
        with self._lock:
            self._depth -= 1
            if self._depth == 0:
                self._total += time.perf_counter() - self._since


#: Of this process: numba has one compiler, and one lock around it.
COMPILING = Compiling()


class Deadline:
    """When a call must end; ``None`` leaves it as long as it takes.

    Args:
        time_limit: seconds of wall time, not counting what numba compiles.

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
        #: Seconds of the limit that are left for what comes after the search.
        self.kept_back = 0.0
        self._compiled_before = COMPILING.seconds
        self._began = time.perf_counter()

    @property
    def compiled(self) -> float:
        """Seconds that went into compiling since the call began."""
        return COMPILING.seconds - self._compiled_before

    @property
    def elapsed(self) -> float:
        """Seconds since the call began, without those."""
        # The compiler's seconds first: what passes between the two looks only adds to the result.
        compiled = self.compiled
        return time.perf_counter() - self._began - compiled

    @property
    def passed(self) -> bool:
        """Whether the search must end now."""
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
        """Whether somebody wished the call to end."""
        return self._interrupted or (self._whole is not None and self._whole.interrupted)

    def interrupt(self) -> None:
        """End the call as soon as it looks; what it has found so far is its answer."""
        self._interrupted = True

    def part(self, share: float) -> Deadline:
        """The deadline of a part of the call, to which ``share`` of the time left is given."""
        if share == 1.0:
            return self
        part = Deadline(None if self.time_limit is None else share * self.remaining)
        part._whole = self
        return part


@contextmanager
def running(time_limit: float | None = None) -> Iterator[Deadline]:
    """A call that ends by its limit, or by the first Ctrl-C or SIGTERM, with the best so far.

    A signal is taken over where nobody else handles it: where its handler is Python's own for
    Ctrl-C, or that of a call around this one, which is then to end, too. A second Ctrl-C is a
    `KeyboardInterrupt`, as ever.

    Args:
        time_limit: seconds, see `Deadline`.
    """
    deadline = Deadline(time_limit)
    with _signals_to(deadline):
        yield deadline
    if time_limit is not None and deadline.compiled > _WORTH_SAYING:
        logger.warning(
            "%.1f s went into compiling or loading inner loops, once in a process; they are no "
            "part of the time limit",
            deadline.compiled,
        )


class _Handler:
    """What a signal does while a call runs."""

    def __init__(self, deadline: Deadline, before: Any) -> None:
        self.deadline = deadline
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        again = self.deadline.interrupted
        self.deadline.interrupt()
        if again or isinstance(self.before, _Handler):
            self.before(number, frame)


@contextmanager
def _signals_to(deadline: Deadline) -> Iterator[None]:
    taken: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is signal.default_int_handler or isinstance(before, _Handler):
                signal.signal(number, _Handler(deadline, before))
                taken[number] = before
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)
