"""Ctrl-C, as a terminal sends it, some time after a call has begun."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c(after: float) -> Iterator[list[float]]:
    """SIGINT to this process after so many seconds; yields when it was sent (`time.monotonic`)."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after, send)
    timer.start()
    try:
        yield sent
    finally:
        timer.cancel()
        timer.join()
