"""`make bench` and `make bench-full`: every table and figure of the README, and of its appendices.

    python -m benchmarks --data DATA                   # in a short setting; `make bench DATA=DATA`
    python -m benchmarks --data DATA --full            # as printed, hours; `make bench-full`
    python -m benchmarks --data DATA --only study convex

DATA holds mnist.npz, mlpnet_mnist.safetensors, cifar10_subset.npz, resnet20_cifar10.safetensors,
qubo/ (fisher/, orlib/, gset/ and the README with best-known values), tinyllama-wikitext2/ and
wikitext2/. Two benchmarks run at a time, each on one thread; what each prints goes to
``--output``/NAME.txt, its files lie beside that. Exit code 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

NETWORKS = ("mnist.npz", "mlpnet_mnist.safetensors", "cifar10_subset.npz")
NETWORKS += ("resnet20_cifar10.safetensors",)
LLAMA = ("tinyllama-wikitext2", "wikitext2")


@dataclass(frozen=True)
class Job:
    """One benchmark.

    Attributes:
        name: of its output.
        call: module and arguments; {data} and {out} are filled in.
        short, full: more arguments, in the short setting or the full one.
        needs: what of DATA it reads.
    """

    name: str
    call: str
    short: str = ""
    full: str = ""
    needs: Sequence[str] = ()

    def command(self, data: Path, out: Path, full: bool) -> list[str]:
        """What runs."""
        words = f"{self.call} {self.full if full else self.short}".split()
        return [sys.executable, "-m", *(word.format(data=data, out=out) for word in words)]


#: The longest first, so that two at a time end together.
JOBS = (
    Job("study", "benchmarks.study --data {data}/qubo --output {out}/study", "--short",
        needs=("qubo",)),
    Job("defaults", "benchmarks.defaults --data {data}/qubo --output {out}/defaults",
        "--only tour knapsack glass --limits 0.1s", "--limits 0.1s 1s 10s", needs=("qubo",)),
    Job("end-to-end", "benchmarks.end_to_end_study --data {data} --output {out}/end_to_end",
        "--only mlpnet --repeats 1", needs=NETWORKS),
    Job("energy-quality", "benchmarks.energy_quality --data {data} --output {out}/energy_quality",
        "--short", needs=(*LLAMA, *NETWORKS[:2])),
    Job("language", "benchmarks.language --model {data}/tinyllama-wikitext2 "
        "--data wikitext2:{data}/wikitext2 --output {out}/language.jsonl",
        "--short --methods wanda sparsegpt qprune --sparsities 0.5 2:4 --seeds 0", needs=LLAMA),
    Job("real-networks", "benchmarks.real_networks --data {data}/wikitext2 "
        "--output {out}/real_networks.jsonl", "--quick --sparsities 0.8", needs=("wikitext2",)),
    Job("pruning", "benchmarks.pruning --data {data} --output {out}/pruning.jsonl",
        "--only mask fitted --sparsity 0.95 --seeds 0", needs=NETWORKS),
    Job("fidelity", "benchmarks.fidelity --data {data}",
        "--networks mlpnet --options stages=4 rounds=1 final_rounds=4",
        "--networks digits-mlp mlpnet resnet20 --seeds 0 1 2", needs=NETWORKS),
    Job("distillation", "benchmarks.distillation --data {data} --output {out}/distillation.jsonl",
        "--only augment --networks mlpnet --sparsities 0.98 --seeds 0", needs=NETWORKS[:2]),
    Job("convex", "benchmarks.solvers_convex --data {data}/qubo",
        "--instances digits-n64 digits-n256-N1024 --reads 2 --time-limit 2", needs=("qubo",)),
    Job("local", "benchmarks.solvers_local --data {data}/qubo",
        "--only best --instances bqp250.1|gka1f|gka10d --seeds 1 --limit 4", needs=("qubo",)),
    Job("energies", "benchmarks.solvers_energies --data {data}/qubo",
        "--instances digits-n64 digits-n256 digits-n1024-N256 --reads 50 --sweeps 500 --nodes 100",
        needs=("qubo",)),
    Job("step", "benchmarks.step_cost", "--curve 4e6 --steps 10"),
    Job("rows", "benchmarks.solvers_rows", full="--rows 512 --inputs 512"),
    Job("overhead", "benchmarks.study_overhead --data {data}/qubo",
        "--repeats 2 --budget 0.1s", needs=("qubo",)),
    Job("compare-kills", "benchmarks.reliability.compare_kills --data {data}/qubo", "--kills 1",
        needs=("qubo",)),
    Job("kills", "benchmarks.reliability.kills", "--kills 5", "--data {data} --kills 200"),
    Job("faults", "benchmarks.reliability.faults", full="--data {data}"),
    Job("storage", "benchmarks.reliability.storage", "--positions 40 --every 25"),
    Job("memory", "benchmarks.reliability.memory", "--only wide", "--data {data}"),
    Job("checkpoints", "benchmarks.reliability.overhead", full="--data {data}"),
    Job("fuzz", "benchmarks.reliability.fuzz --crashes {out}/crashes", "--seconds 20",
        "--seconds 3600"),
    Job("scaling", "benchmarks.scaling.measure --output {out}/measured.json",
        full="--data {data}"),
)  # fmt: skip


def run(job: Job, data: Path, out: Path, full: bool) -> tuple[int, float]:
    """Run one to its end; exit code and seconds."""
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "COLUMNS": "140"}
    command = job.command(data, out, full)
    began = time.perf_counter()
    with (out / f"{job.name}.txt").open("w", encoding="utf-8") as told:
        told.write(f"$ {' '.join(['python', *command[1:]])}\n\n")
        told.flush()
        done = subprocess.run(
            command, stdout=told, stderr=subprocess.STDOUT, env=os.environ | threads, check=False
        )
    return done.returncode, time.perf_counter() - began


def missing(jobs: Sequence[Job], data: Path) -> Iterator[str]:
    """What the jobs need of ``data`` and it lacks, each once."""
    needed = dict.fromkeys(name for job in jobs for name in job.needs)
    return (name for name in needed if not (data / name).exists())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Every table of the README; see the module."
    )
    names = [job.name for job in JOBS]
    parser.add_argument("--data", type=Path, required=True, help="folder with networks and qubo/")
    parser.add_argument("--full", action="store_true", help="as printed in the README; hours")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    parser.add_argument("--workers", type=int, default=2, help="benchmarks at a time")
    arguments = parser.parse_args()
    jobs = [job for job in JOBS if job.name in arguments.only]
    absent = list(missing(jobs, arguments.data))
    if absent:
        parser.error(f"{arguments.data} lacks {', '.join(absent)}; give the folder that holds them")
    arguments.output.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    failed = 0
    with (
        Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar,
        ThreadPoolExecutor(arguments.workers) as pool,
    ):
        task = bar.add_task("benchmarks", total=len(jobs))
        paths = (arguments.data.absolute(), arguments.output)
        running = {pool.submit(run, job, *paths, arguments.full): job for job in jobs}
        for future in as_completed(running):
            code, seconds = future.result()
            name = running[future].name
            failed += code != 0
            outcome = "done" if code == 0 else f"FAILED with exit code {code}"
            bar.console.print(
                f"{name}: {outcome} after {seconds:.0f} s, {arguments.output / name}.txt"
            )
            bar.advance(task)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
