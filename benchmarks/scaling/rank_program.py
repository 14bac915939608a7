"""The program of one rank for `benchmarks.scaling.measure`, which starts it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import qprune
from benchmarks.reliability.workloads import workloads
from qprune.distributed.ranks import Ranks, joined

#: Numbers in the vectors that are added up, and how often each is.
EXCHANGED, _EXCHANGES = (100_000, 1_000_000, 10_000_000), 8
#: Samples of a micro-batch of every workload.
RUNS = {"MLPNet": 64, "ResNet-20": 4, "small LLaMA": 2}
# Expansions at the last stage; the workloads' own are more than this needs.
_ROUNDS = 2


def launched(arguments: list[str], ranks: int) -> list[float]:
    """The result of rank 0 of so many processes, one thread each."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", f"--nproc-per-node={ranks}", "--rdzv-backend=c10d"]
        command += ["--rdzv-endpoint=localhost:0", "-m"]
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "found.json")
        command += ["benchmarks.scaling.rank_program", str(found), *arguments]
        subprocess.run(command, check=True)
        return json.loads(found.read_text())


def exchange(ranks: Ranks) -> Iterator[float]:
    """CPU seconds of adding up each vector over the ranks."""
    for number in EXCHANGED:
        vector, part = torch.zeros(number), torch.ones(number)
        began = time.process_time()
        batches = range(_EXCHANGES * ranks.size)
        ranks.accumulate(lambda *_, part=part: (None, [part]), batches, [vector])
        yield (time.process_time() - began) / _EXCHANGES


def runs(ranks: Ranks, data: Path) -> Iterator[float]:
    """CPU seconds of every workload."""
    # The first solve loads compiled kernels.
    model, inputs = nn.Linear(64, 32), torch.randn(60, 64)
    few = qprune.Limits(max_steps=2)
    qprune.prune(model, inputs, sparsity=0.5, compensate=False, augment=None, limits=few)
    for workload in workloads(data):
        shared = {"batch_size": RUNS[workload.name], "ranks": ranks}
        options = workload.changed(shared, final_rounds=_ROUNDS).options
        began = time.process_time()
        qprune.prune(workload.model, workload.data, **options)
        yield time.process_time() - began


def main() -> None:
    file, what, *data = sys.argv[1:]
    torch.set_num_threads(1)
    with joined() as ranks:
        found = list(exchange(ranks) if what == "exchange" else runs(ranks, Path(*data)))
        if ranks.rank == 0:
            Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
