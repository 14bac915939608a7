"""What a study costs beside its samplers.

    OMP_NUM_THREADS=1 python -m benchmarks.study_overhead --data DATA [--repeats 4] [--budget 0.1s]

A study of eight samplers on Fisher blocks of 256 and 1024 variables and on OR-Library. After each
row the CPU time of both processes (this one and the one that samples) is read. A row's overhead is
what they used since the row before, less what the sampler used. It holds everything: sending,
rebuilding models, judging and repairing answers, writing the row to disk. Only the first repeat is
left out: it compiles, chooses penalties and builds what later repeats use again, once in a
study. CPU times, so that other work on the machine does not count. Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from benchmarks.study import PEERS, instances
from qprune.cli.compare import StudyBar
from solvers.study import compare

BLOCKS = (
    "digits-n256-N128-c0-k128",
    "digits-n256-N1024-c1-k128",
    "bqp500.1",
    "digits-n1024-N256-c0-k512",
)
OURS = ("relax", "exact", "swap-anneal", "swap-tabu", "greedy")


class Meter:
    """Notes for every row the CPU seconds of both processes since the row before."""

    def __init__(self) -> None:
        self.spent: list[float] = []
        self._before = 0.0
        self._of_worker: dict[int, float] = {}

    def __call__(self, row: Mapping[str, Any], done: int, total: int) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                self._of_worker[child.pid] = _cpu_seconds(child.pid)
        now = time.process_time() + sum(self._of_worker.values())
        self.spent.append(now - self._before)
        self._before = now


def _cpu_seconds(process: int) -> float:
    """Time on a processor, of all threads."""
    threads = Path(f"/proc/{process}/task").iterdir()
    return sum(int((one / "schedstat").read_text().split()[0]) for one in threads) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--budget", nargs="+", default=["0.1s", "1s"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chosen = [one for one in instances(arguments.data, 1024) if one.name in BLOCKS]
    meter = Meter()
    with StudyBar(Console(stderr=True)) as bar:
        study = compare(
            chosen,
            [*OURS, *PEERS[:3]],
            arguments.budget,
            arguments.repeats,
            arguments.seed,
            clock="cpu",
            observe=[meter, bar],
        )
    rows = study.rows.assign(spent=meter.spent)
    rows = rows[(rows.repeat > 0) & (rows.status == "ok")]
    rows = rows.assign(overhead=rows.spent - rows.cpu_seconds)
    for by in ("budget", "n", "problem", "sampler", ["n", "budget"]):
        table = rows.groupby(by)[["cpu_seconds", "overhead"]].sum()
        print(_shown(table.assign(runs=rows.groupby(by).size())), "\n")
    print(_shown(rows[["cpu_seconds", "overhead"]].sum().to_frame().T.assign(runs=len(rows))))


def _shown(table: pd.DataFrame) -> str:
    table = table.assign(share=100 * table.overhead / table.cpu_seconds)
    return table.round(3).rename(columns={"share": "overhead, %"}).to_string()


if __name__ == "__main__":
    main()
