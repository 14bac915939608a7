"""Ray drill: the same answers and masks as threads, what that costs, and a worker killed.

    OMP_NUM_THREADS=1 python -m benchmarks.reliability.ray --data DATA            # some minutes
    OMP_NUM_THREADS=1 python -m benchmarks.reliability.ray --only overhead

Overhead: blocks of n = 1024 with 400 samples, with --data also those of a run on MLPNet, handed
to two threads and to two Ray workers in turn, again and again, the workers warm. Each pair gives
one ratio of wall seconds, and one of CPU seconds over this process and all workers; the median
pair is what counts, since other work on the machine reaches both. Mask: runs of MLPNet (without
DATA, of the digits' network) in which every step solves eight blocks, by threads, by Ray, and by
Ray with one worker killed with SIGKILL in the middle; all must be equal. Exit code 1 on a
difference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.progress import Progress

import qprune
from benchmarks.reliability.workloads import Workload, digits, mlpnet, tensors_of
from qprune.distributed.executors import RayExecutor
from qprune.steps.solve import answer
from solvers import Ask, LowRank, QuadraticProblem

WORKERS = 2
# What Ray calls its processes: all that work for it, and a worker at a task of an executor's.
# (Others are ray::IDLE, or ray::DashboardAgent, without which Ray ends the whole node.)
_ANY, _BUSY = b"ray::", b"ray::_unpacked_and_timed"


def blocks(number: int, size: int, samples: int, seed: int) -> list[tuple[Any, Any, int]]:
    """Jobs as a run makes them: Fisher problems of low rank, half of each block pruned."""
    rng = np.random.default_rng(seed)
    jobs = []
    for index in range(number):
        # Columns of very different size, as per-sample gradients have them.
        factor = rng.standard_normal((samples, size)) * rng.lognormal(0, 1, size)
        present = (np.arange(size) < size // 2).astype(np.int8)
        offset = factor @ present / size
        problem = QuadraticProblem(
            -2 * (offset @ factor) / samples, LowRank(factor / samples**0.5), counts=size // 2
        )
        jobs.append((problem, present, index))
    return jobs


def blocks_of(workload: Workload, number: int, size: int) -> list[Any]:
    """The jobs of a run: those of its last round, each as often as it takes."""
    seen: list[list[Any]] = []

    class Noting:
        def map(self, function: Any, items: Any, /) -> Any:
            seen.append(list(items))
            return map(function, seen[-1])

    options = workload.changed(block_size=size, num_blocks=8, stages=2).options
    dense = tensors_of(workload.model)
    qprune.prune(workload.model, workload.data, **options, executor=Noting())
    workload.model.load_state_dict(dense)
    full = [job for jobs in seen for job in jobs if job[0].num_variables == size]
    return [full[index % len(full)] for index in range(number)]


def processes(name: bytes) -> list[psutil.Process]:
    """Ray's processes that this one has started and whose names begin so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(name):
                found.append(process)
        except OSError:
            continue
    return found


def cpu_seconds() -> float:
    """Of this process and Ray's."""
    times = [process.cpu_times() for process in processes(_ANY)]
    return time.process_time() + sum(t.user + t.system for t in times)


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall and CPU seconds, and the answer."""
    began = time.perf_counter(), cpu_seconds()
    answer = call()
    return time.perf_counter() - began[0], cpu_seconds() - began[1], answer


def overhead(
    ray: RayExecutor, sampler: str, what: str, jobs: list[Any], pairs: int, out: Console
) -> int:
    """Ratios of Ray to threads; the number of answers that differ."""
    work = partial(answer, Ask.to(sampler))
    ratios: list[tuple[float, float]] = []
    different = 0
    with ThreadPoolExecutor(WORKERS) as threads, Progress(console=out, transient=True) as report:
        for _ in range(2):  # Kernels loaded, time per block known.
            list(threads.map(work, jobs)), ray.map(work, jobs)
        for pair in report.track(range(pairs), description=sampler):
            order = ["threads", "ray"] if pair % 2 else ["ray", "threads"]
            by = {
                "threads": lambda: list(threads.map(work, jobs)),
                "ray": lambda: ray.map(work, jobs),
            }
            seen = {name: timed(by[name]) for name in order}
            mine, other = seen["ray"], seen["threads"]
            ratios.append((mine[0] / other[0], mine[1] / other[1]))
            different += sum(
                not np.array_equal(a.sample, b.sample) or a.energy != b.energy
                for a, b in zip(mine[2], other[2], strict=True)
            )
            last = other
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    spread = ", ".join(f"{ratio:.2f}" for ratio, _ in sorted(ratios))
    out.print(
        f"{sampler}, {len(jobs)} {what} blocks, {1e3 * last[1] / len(jobs):.0f} ms of CPU each: "
        f"Ray takes {wall:.3f} x the wall time of threads and {cpu:.3f} x the CPU time "
        f"(medians of {pairs} pairs; wall {spread}); {different} answers differ"
    )
    return different


class Killing:
    """An executor that kills one of Ray's workers while it works, once."""

    def __init__(self, ray: RayExecutor) -> None:
        self.ray, self.killed = ray, 0
        self._calls = 0

    def map(self, function: Any, items: Any, /) -> Any:
        self._calls += 1
        if self._calls == 4:
            threading.Thread(target=self._kill, daemon=True).start()
        return self.ray.map(function, items)

    def _kill(self) -> None:
        end = time.monotonic() + 60
        while not self.killed and time.monotonic() < end:
            for process in processes(_BUSY):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.killed += 1
                    return
            time.sleep(0.001)


def masks(ray: RayExecutor, workload: Workload, out: Console) -> int:
    """Runs by threads, by Ray, and by Ray with a loss; the number that differ."""
    dense = tensors_of(workload.model)
    killing = Killing(ray)
    ray._batch_seconds = 1e-3  # Several batches in every step.
    with ThreadPoolExecutor(WORKERS) as threads:
        outcomes = []
        for executor in (threads, ray, killing):
            workload.model.load_state_dict(dense)
            options = workload.changed(num_blocks=8).options
            pruned = qprune.prune(workload.model, workload.data, **options, executor=executor)
            outcomes.append(tensors_of(pruned.model) | pruned.mask)
    first = outcomes[0]
    different = sum(any(not torch.equal(first[n], o[n]) for n in first) for o in outcomes[1:])
    out.print(
        f"{workload.name}: threads, Ray, and Ray with {killing.killed} worker killed in the "
        f"middle: {different} of 2 masks or weights differ from those of threads"
    )
    return different + (killing.killed != 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    parser.add_argument("--only", choices=["overhead", "masks"])
    parser.add_argument("--samplers", nargs="*", default=["relax"])
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = Console()
    began = time.perf_counter()
    ray = RayExecutor(num_cpus=WORKERS)
    out.print(f"Ray with {WORKERS} workers is up after {time.perf_counter() - began:.1f} s")
    wrong = 0
    try:
        if given.only != "masks":
            sets = {"made": blocks(given.blocks, given.size, given.samples, given.seed)}
            if given.data:
                sets["MLPNet"] = blocks_of(mlpnet(given.data), 4 * given.blocks, given.size)
            for sampler in given.samplers:
                for what, jobs in sets.items():
                    wrong += overhead(ray, sampler, what, jobs, given.pairs, out)
        if given.only != "overhead":
            wrong += masks(ray, mlpnet(given.data) if given.data else digits(), out)
    finally:
        ray.close()
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
