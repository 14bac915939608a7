"""Fault drill: samplers that fail in 30 % of their calls, in every way there is.

    python -m benchmarks.reliability.faults --data DATA      # ten minutes, mostly of waiting
    python -m benchmarks.reliability.faults                  # digits alone, a few minutes

A sampler raises, hangs, aborts, reads memory that is not its own, answers nothing, for too few
variables, with NaN as states or as energies, or with wrong counts, one way after the other; which
call fails is drawn from the seed of the call. Each failure is noted by the sampler itself, in a
file, before it happens. The run must come to its end; the loss on the acceptance split must never
rise above what its stage began with; and the faults in its report must be those that the sampler
noted, kind by kind. Exit code 1 where one of these is not so.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import dimod
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

import qprune
from benchmarks.reliability.workloads import Workload, digits, mlpnet, resnet20, tensors_of

#: Ways to fail, and the kind of fault that the report must call each.
WAYS = {
    "raise": "sampler",
    "hang": "timeout",
    "abort": "crash",
    "segfault": "crash",
    "nothing": "sampler",
    "sizes": "sampler",
    "nan states": "sampler",
    "nan energies": "wrong energies",
    "infeasible": "wrong counts",
}


class Flaky(dimod.Sampler):
    """Guesses with exact counts, but in a share of its calls fails in one of ``ways``.

    Args:
        noted: file that a line is added to for every failure, before it happens.
        ways: names in `WAYS`.
        share: of all calls.
    """

    properties: ClassVar = {}
    parameters: ClassVar = {"seed": [], "cardinality": []}

    def __init__(self, noted: Path, ways: tuple[str, ...] = tuple(WAYS), share: float = 0.3):
        self.noted, self.ways, self.share = noted, ways, share

    def sample(self, bqm: Any, seed: int = 0, cardinality: int = 0) -> Any:
        rng = np.random.default_rng(seed)
        fails = rng.random() < self.share
        size = bqm.num_variables
        states = np.zeros((20, size), dtype=np.int8)
        states[:, :cardinality] = 1
        states = rng.permuted(states, axis=1)
        if not fails:
            return dimod.SampleSet.from_samples_bqm((states, range(size)), bqm)
        way = self.ways[len(ways_of(self.noted)) % len(self.ways)]
        with self.noted.open("a") as file:
            file.write(way + "\n")
        return _failure(way, states, cardinality)


def _failure(way: str, states: np.ndarray, cardinality: int) -> Any:
    size = states.shape[1]
    if way == "raise":
        raise RuntimeError("no luck today")
    if way == "hang":
        time.sleep(3600)
    if way == "abort":
        os.abort()
    if way == "segfault":
        ctypes.string_at(0)
    if way == "nothing":
        return None
    if way == "sizes":
        return dimod.SampleSet.from_samples((states[:, 1:], range(size - 1)), "BINARY", 0.0)
    if way == "nan states":
        return dimod.SampleSet.from_samples(np.full(states.shape, np.nan), "BINARY", 0.0)
    if way == "nan energies":
        return dimod.SampleSet.from_samples(states, "BINARY", np.full(len(states), np.nan))
    states[:] = int(2 * cardinality < size)  # All or nothing, whichever is further away.
    return dimod.SampleSet.from_samples(states, "BINARY", 0.0)


def run(workload: Workload, noted: Path, workers: int, seed: int, **policy: Any) -> qprune.Report:
    """A run of ``workload`` with a flaky sampler in a process of its own; the model as before."""
    dense = tensors_of(workload.model)
    options = workload.changed(num_blocks=3, rounds=3, final_rounds=9).options
    try:
        with ThreadPoolExecutor(workers) as threads:
            return qprune.prune(
                workload.model,
                workload.data,
                **options,
                sampler=Flaky(noted),
                seed=seed,
                on_fault=qprune.FaultPolicy(isolate=True, wait=0.0, **policy),
                executor=threads,
            ).report
    finally:
        workload.model.load_state_dict(dense)


def failures(report: qprune.Report, noted: Path) -> list[str]:
    """What is wrong with a run, one line each."""
    found = []
    if abs(report.achieved_sparsity - report.asked_sparsity) > 1e-3 or report.stopped != "done":
        found.append(f"ended {report.stopped} at sparsity {report.achieved_sparsity}")
    ceiling = float("inf")
    for step in report.steps:
        if step.kind == "start":
            ceiling = step.loss
        elif not step.loss <= ceiling:
            found.append(f"step {step.index}: loss {step.loss}, its stage began with {ceiling}")
    injected = Counter(WAYS[way] for way in ways_of(noted))
    counted = Counter(fault.kind for step in report.steps for fault in step.faults)
    if injected != counted:
        found.append(f"injected {dict(injected)}, counted {dict(counted)}")
    return found


def ways_of(noted: Path) -> list[str]:
    """Every failure that the sampler has noted."""
    return noted.read_text().splitlines() if noted.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    parser.add_argument("--limit", type=float, default=15.0, help="seconds for one call")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loads = [digits()] if given.data is None else [mlpnet(given.data), resnet20(given.data)]
    policies: list[dict[str, Any]] = [
        {"fallback": "keep"},
        {"fallback": "relax"},
        {"fallback": "keep", "retries": 1},
    ]
    logging.getLogger("qprune").setLevel(logging.ERROR)
    console, wrong, all_ways = Console(), 0, Counter[str]()
    with Progress(console=console) as bar, tempfile.TemporaryDirectory() as scratch:
        task = bar.add_task("runs", total=len(loads) * len(policies))
        for workload in loads:
            for number, policy in enumerate(policies):
                noted = Path(scratch, f"{workload.name} {number}")
                workers = 1 + number % 2
                report = run(workload, noted, workers, number, time_limit=given.limit, **policy)
                found = failures(report, noted)
                wrong += len(found)
                all_ways.update(ways_of(noted))
                calls = sum(len(step.blocks) for step in report.steps)
                last = max(i for i, step in enumerate(report.steps) if step.kind == "start")
                console.print(
                    f"{workload.name}, {policy}, {workers} threads: {len(ways_of(noted))} faults "
                    f"injected beside {calls} answers; acceptance loss "
                    f"{report.steps[last].loss:.4f} after the first pass, "
                    f"{report.steps[-1].loss:.4f} at the end; {found or 'all counted'}"
                )
                bar.advance(task)
    console.print(f"{sum(all_ways.values())} faults: {dict(all_ways)}; {wrong} violations")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
