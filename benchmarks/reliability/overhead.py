"""What a run's folder costs: time for journal and checkpoints, as a share of the run.

    python -m benchmarks.reliability.overhead --data DATA       # MLPNet and ResNet-20
    python -m benchmarks.reliability.overhead                   # digits alone

Each run writes its journal and its checkpoints as it does by default; the time inside the
functions that write is set against that of the whole, on the wall clock and in CPU time of the
process. Exit code 1 where checkpoints take more than 2 % of either.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console

import qprune
from benchmarks.reliability.workloads import Workload, digits, mlpnet, resnet20
from qprune.record.checkpoint import Checkpoints
from qprune.record.folder import RunFolder

LIMIT = 0.02


class Clock:
    """Time spent inside of what it wraps: wall and CPU seconds, and how often."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.calls = 0

    def wrapping(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """``method``, timed."""

        def timed(*arguments: Any) -> Any:
            with self.running():
                return method(*arguments)

        return timed

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.wall += time.perf_counter() - wall
            self.cpu += time.process_time() - cpu
            self.calls += 1


def measured(workload: Workload) -> tuple[Clock, Clock, Clock]:
    """The whole run, its checkpoints, its journal."""
    whole, checkpoints, journal = Clock(), Clock(), Clock()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(Checkpoints, "write", checkpoints.wrapping(Checkpoints.write)),
        mock.patch.object(RunFolder, "note", journal.wrapping(RunFolder.note)),
        whole.running(),
    ):
        qprune.prune(workload.model, workload.data, **workload.options, output_dir=folder)
    return whole, checkpoints, journal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # More of everything, so that checkpoints are worth their time.
    loads = [digits().changed(stages=12, rounds=4, final_rounds=20)]
    if given.data is not None:
        loads = [
            mlpnet(given.data).changed(stages=12, rounds=4, final_rounds=20),
            resnet20(given.data).changed(stages=3, rounds=1, final_rounds=4),
        ]
    console, worst = Console(width=120), 0.0
    for workload in loads:
        whole, checkpoints, journal = measured(workload)
        shares = checkpoints.wall / whole.wall, checkpoints.cpu / whole.cpu
        worst = max(worst, *shares)
        console.print(
            f"{workload.name}: {whole.wall:.1f} s, {whole.cpu:.1f} CPU s; {checkpoints.calls} "
            f"checkpoints {100 * shares[0]:.2f} % of the time, {100 * shares[1]:.2f} % of the CPU "
            f"time; {journal.calls} steps in the journal {100 * journal.wall / whole.wall:.2f} % "
            f"and {100 * journal.cpu / whole.cpu:.2f} %"
        )
    sys.exit(int(worst > LIMIT))


if __name__ == "__main__":
    main()
