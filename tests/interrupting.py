"""Ctrl-C, sent by a thread while the main thread works."""

import os
import signal
import threading
import time
from contextlib import contextmanager


@contextmanager
def interrupt_after(seconds, number=signal.SIGINT):
    """Inside, the signal comes after so many seconds; yields a list that gets the time it was sent.

    Whoever runs the tests may have a handler of its own: Python's is put in its place meanwhile.
    """
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), number)

    timer = threading.Timer(seconds, send)
    before = signal.signal(number, signal.default_int_handler)
    timer.start()
    try:
        yield sent
    finally:
        timer.cancel()
        timer.join()
        signal.signal(number, before)
