"""Kill drill: runs killed with SIGKILL at random moments, resumed, and compared byte by byte.

    python -m benchmarks.reliability.kills --data DATA --kills 200     # half an hour of CPU
    python -m benchmarks.reliability.kills --kills 10                  # digits alone, a minute

Each run is killed again and again, at a moment drawn uniformly from the time that a whole run
takes, until one attempt gets to its end. Mask and every parameter must then equal, bit for bit,
those of a run that was never killed. Every other run writes a checkpoint after each step; the
rest keep to the usual share of the time. An attempt is a forked process, so that the kill is a
real one and the imports are paid for once. Needs fork (Linux, macOS); exit code 1 on a difference.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file, save
from torch import Tensor

import qprune
from benchmarks.reliability.workloads import Workload, tensors_of, workloads
from qprune.disk import write_whole
from qprune.record.checkpoint import Checkpoints

OUTCOME = "outcome.safetensors"


def attempt(workload: Workload, folder: Path, every_step: bool) -> None:
    """Start or go on with the run in ``folder``, to its end."""
    if every_step:
        Checkpoints.offer = Checkpoints.write
    going = any(folder.iterdir())
    place = {"resume_from" if going else "output_dir": folder}
    pruned = qprune.prune(workload.model, workload.data, **workload.options, **place)
    mask = {f"mask.{name}": kept for name, kept in pruned.mask.items()}
    write_whole(folder / OUTCOME, save(tensors_of(pruned.model) | mask))


def killed(workload: Workload, folder: Path, after: float | None, every_step: bool) -> bool:
    """One attempt in a process of its own; True if it was killed before its end."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            attempt(workload, folder, every_step)
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{workload.name}: {type(error).__name__}: {error}\n")
        finally:
            os._exit(code)
    end = None if after is None else time.monotonic() + after
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        if end is not None and time.monotonic() >= end:
            os.kill(process, signal.SIGKILL)
            end = None
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise SystemExit(f"{workload.name}: an attempt in {folder} failed, see above")
    return False


def drill(workload: Workload, kills: int, rng: random.Random, report: Progress) -> dict[str, int]:
    """Kill runs of ``workload`` until there are as many kills; what came of it."""
    counts = {"kills": 0, "runs": 0, "different": 0}
    task = report.add_task(workload.name, total=kills)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch, "whole")
        whole.mkdir()
        began = time.monotonic()
        killed(workload, whole, None, every_step=True)
        length = time.monotonic() - began
        expected = load_file(whole / OUTCOME)
        while counts["kills"] < kills:
            folder = Path(scratch, str(counts["runs"]))
            folder.mkdir()
            every_step = counts["runs"] % 2 == 0
            while True:
                enough = counts["kills"] >= kills
                after = None if enough else rng.uniform(0, length)
                if not killed(workload, folder, after, every_step):
                    break
                counts["kills"] += 1
                report.update(task, completed=counts["kills"])
            counts["runs"] += 1
            counts["different"] += not same(expected, load_file(folder / OUTCOME))
    return counts


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether both have the same names and bytes."""
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of workloads, from 0")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(given.seed)
    chosen = workloads(given.data)
    chosen = [chosen[i] for i in given.only] if given.only else chosen
    console = Console()
    different = 0
    with Progress(console=console) as report:
        for number, workload in enumerate(chosen):
            share = given.kills // len(chosen) + (number < given.kills % len(chosen))
            counts = drill(workload, share, rng, report)
            different += counts["different"]
            console.print(
                f"{workload.name}: {counts['kills']} kills, {counts['runs']} runs resumed to "
                f"their end, {counts['different']} different from a run never killed"
            )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
