"""Whether a problem fits into memory, asked before the memory is."""

from __future__ import annotations

import os
from pathlib import Path

from solvers.errors import ProblemTooLargeError

_GIB = 2.0**30


def available_memory() -> float:
    """Bytes that can be allocated without swapping; infinite where the system does not say."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def require_memory(
    num_bytes: float, what: str, way_out: str, available: float | None = None
) -> None:
    """Refuse what cannot fit into ``available`` bytes (default: the host's free memory).

    Raises:
        ProblemTooLargeError: ``num_bytes`` is more than is available; the message names
            ``what`` needs them, how much there is, and the ``way_out``.
    """
    if available is None:
        available = available_memory()
    if num_bytes > available:
        raise ProblemTooLargeError(
            f"{what} needs {num_bytes / _GIB:.1f} GiB, {available / _GIB:.1f} GiB are available; "
            f"{way_out}"
        )
