"""What one rank does for `benchmarks.scaling.measure` and `.check`; started by them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

import qprune
from benchmarks.reliability.workloads import workloads
from benchmarks.scaling.plans import Counts
from qprune.effort import effort_for
from qprune.layers import find_layers
from qprune.ranks import Ranks, joined
from qprune.samples import sample_size

_EXCHANGES = 8


def launch(arguments: list[str], ranks: int) -> None:
    """Run this module's main in so many processes, one thread each."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0", "-m"]
    subprocess.run([*command, "benchmarks.scaling.rank_program", *arguments], check=True)


def exchange(ranks: Ranks, folder: Path) -> None:
    """CPU seconds of adding up a vector over the ranks."""
    found = []
    for number in (100_000, 1_000_000, 10_000_000):
        vector, part = torch.zeros(number), torch.ones(number)
        began = time.process_time()
        batches = range(_EXCHANGES * ranks.size)
        ranks.accumulate(lambda *_, part=part: (None, [part]), batches, [vector])
        found.append((4 * number, (time.process_time() - began) / _EXCHANGES))
    if ranks.rank == 0:
        (folder / "exchange.json").write_text(json.dumps(found))


def run(ranks: Ranks, data: Path, number: int, batch_size: int, folder: Path) -> None:
    """CPU seconds of one workload on this rank, and how often it did what."""
    workload = workloads(data)[number]
    options = dict(workload.options) | {"batch_size": batch_size, "ranks": ranks}
    dense = copy.deepcopy(workload.model)
    # The first solve loads compiled kernels.
    qprune.prune(dense, workload.data, **options | {"max_steps": 3})
    began = time.process_time()
    pruned = qprune.prune(workload.model, workload.data, **options)
    seconds = time.process_time() - began
    if ranks.rank == 0:
        counts = counted(workload, pruned)
        layers = find_layers(workload.model, ignore=options.get("ignore", ()))
        facts = {"seconds": seconds, "weights": layers.size, "counts": asdict(counts)}
        (folder / f"{number}.{ranks.size}.json").write_text(json.dumps(facts))


def counted(workload, pruned: qprune.Pruned) -> Counts:
    """What the run did, from its report."""
    report, settings = pruned.report, pruned.report.settings
    kinds = Counter(step.kind for step in report.steps)
    rounds = [s for s in report.steps if s.kind == "blocks" and "curvature" in s.seconds]
    blocks = [block for step in report.steps for block in step.blocks]
    compensation = workload.options["compensate"]
    accepting = round(0.2 * len(workload.data))
    fitting = len(workload.data) - accepting
    samples = min(fitting, settings["samples_per_step"])
    share = effort_of(workload).curvature_share
    candidates = len(compensation.iterations) * len(compensation.lengths)
    judged = 2 * kinds["start"] + len(rounds) + kinds["blocks"]
    judged += (1 + candidates) * kinds["compensate"]
    return Counts(
        samples=samples,
        accepting=accepting,
        fitting=fitting,
        starts=kinds["start"],
        rounds=len(rounds),
        blocks=len(blocks),
        variables=blocks[0].num_variables,
        judged=judged,
        compensations=kinds["compensate"],
        products=max(compensation.iterations) * kinds["compensate"],
        product_samples=-(-samples // max(1, round(1 / share))),
    )


def effort_of(workload):
    """The effort that suits the workload's network."""
    layers = find_layers(workload.model, ignore=workload.options.get("ignore", ()))
    return effort_for(sample_size(workload.model, layers, workload.data).multiplications)


def main() -> None:
    what, *rest = sys.argv[1:]
    torch.set_num_threads(1)
    with joined() as ranks:
        if what == "exchange":
            exchange(ranks, Path(rest[0]))
        else:
            run(ranks, Path(rest[0]), int(rest[1]), int(rest[2]), Path(rest[3]))


if __name__ == "__main__":
    main()
