"""CPU seconds of calls, of this process alone: other work on the machine does not count."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def cpu_seconds(call: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of one call, and its result."""
    begun = time.process_time()
    answer = call()
    return time.process_time() - begun, answer
