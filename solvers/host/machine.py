"""Checks that a problem fits into memory, made before anything is allocated.

The machine and the software of a study: versions, commit, processor, cards.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from solvers.errors import ProblemTooLargeError

_GIB = 2.0**30


def available_memory() -> float:
    """Bytes that can be had without swapping, by the host and by the limits of its containers."""
    host = float(psutil.virtual_memory().available)
    return min(host, cgroup_memory())


def peak_memory() -> float:
    """The most bytes that this process has held in memory so far."""
    try:
        import resource
    except ImportError:  # Windows, where psutil has the peak.
        memory: Any = psutil.Process().memory_info()
        return float(memory.peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def cgroup_memory(process: Path = Path("/proc/self"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that the control groups of a process leave it; infinite where there are none.

    Both versions are read: a container's limit is that of its own group or of one around it.
    Pages of files that can be dropped at once do not count as used.
    """
    try:
        lines = (process / "cgroup").read_text().split()
    except OSError:
        return float("inf")
    left = [float("inf")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            left += _left(root, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            left += _left(root / "memory", path, *names)
    return min(left)


def _left(top: Path, path: str, limit: str, usage: str) -> Iterator[float]:
    """Bytes that each control group from ``path`` up to ``top`` leaves."""
    own = top / path.strip("/")
    for folder in (own, *own.parents):
        if not folder.is_relative_to(top):
            return
        try:
            most, used = (folder / limit).read_text().strip(), int((folder / usage).read_text())
            stat = (folder / "memory.stat").read_text().split()
        except (OSError, ValueError):
            continue
        if most != "max":
            figures = dict(zip(stat[::2], stat[1::2], strict=False))
            files = figures.get("total_inactive_file", figures.get("inactive_file", "0"))
            yield float(max(0, int(most) - used + int(files)))


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


_PACKAGES = (
    "qprune", "numpy", "scipy", "numba", "dimod", "dwave-samplers", "dwave-neal", "openjij",
    "simulated-bifurcation", "dwave-system", "torch",
)  # fmt: skip


def session(threads: int) -> dict[str, Any]:
    """One start of a study: when, which versions, which machine."""
    return {
        "started": now(),
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": _told(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "threads": threads,
    }


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """The commit of the sources, with ``-dirty`` where they were changed since; None outside."""
    here = ["git", "-C", str(Path(__file__).parent)]
    # An installation inside another project's checkout has that project's commit.
    if _told([*here, "ls-files", "--error-unmatch", Path(__file__).name]) is None:
        return None
    return _told([*here, "describe", "--always", "--dirty", "--abbrev=12", "--match="])


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # Not Linux.
    return platform.processor() or platform.machine()


def _told(command: Sequence[str]) -> str | None:
    """The output of a program; None if there is none or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
