"""What one rank does for `benchmarks.scaling.measure` and `.check`; started by them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qprune
from benchmarks.reliability.workloads import Workload, workloads
from benchmarks.scaling.plans import Counts
from qprune.effort import Effort, effort_for
from qprune.layers import find_layers
from qprune.ranks import Ranks, joined
from qprune.samples import sample_size
from qprune.traces import outputs_of

_EXCHANGES = 8
# Expansions at the last stage; the workloads' own are more than a check needs.
_ROUNDS = 2


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


def runs(ranks: Ranks, data: Path, batch_sizes: list[int], folder: Path) -> None:
    """Every workload, with its batch size."""
    # The first solve loads compiled kernels.
    model, inputs = nn.Linear(64, 32), torch.randn(60, 64)
    qprune.prune(model, inputs, sparsity=0.5, compensate=False, augment=None, max_steps=2)
    for number, (workload, size) in enumerate(zip(workloads(data), batch_sizes, strict=True)):
        facts = run(ranks, workload, size)
        if ranks.rank == 0:
            (folder / f"{number}.{ranks.size}.json").write_text(json.dumps(facts))


def run(ranks: Ranks, workload: Workload, batch_size: int) -> dict[str, Any]:
    """CPU seconds of one workload on this rank, and how often it did what."""
    options = dict(workload.options) | {"batch_size": batch_size, "ranks": ranks}
    options["final_rounds"] = min(_ROUNDS, options["final_rounds"])
    forward = forward_seconds(workload.model.eval(), workload.data.inputs, batch_size)
    began = time.process_time()
    pruned = qprune.prune(workload.model, workload.data, **options)
    seconds = time.process_time() - began
    layers = find_layers(workload.model, ignore=options.get("ignore", ()))
    counts = asdict(counted(workload, pruned))
    sizes = {"weights": layers.size, "layers": len(layers), "forward": forward}
    return {"seconds": seconds, "counts": counts} | sizes


def forward_seconds(model: nn.Module, inputs: torch.Tensor, batch_size: int) -> float:
    """CPU seconds of one sample's forward pass in batches of the run's size, least of five."""
    times = []
    for _ in range(5):
        began = time.process_time()
        outputs_of(model, inputs[: 8 * batch_size], batch_size)
        times.append(time.process_time() - began)
    return min(times) / len(inputs[: 8 * batch_size])


def counted(workload: Workload, pruned: qprune.Pruned) -> Counts:
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


def effort_of(workload: Workload) -> Effort:
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
            data, folder, *sizes = rest
            runs(ranks, Path(data), list(map(int, sizes)), Path(folder))


if __name__ == "__main__":
    main()
