"""The machine and the software of a study: versions, commit, processor, cards."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
    found = {}
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
