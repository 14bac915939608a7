"""The README's study of samplers: Fisher blocks of 64 to 4096 weights, OR-Library and gka.

    python -m benchmarks.study --data DATA --output runs/study            # about 20 CPU minutes
    python -m benchmarks.study --data DATA --output runs/study --short    # about 4

DATA is the folder with fisher/, orlib/ and the table of best-known values. Stopped at any
moment, the same command goes on. One run at a time, one thread, seed 0; times are CPU
seconds, so that other work on the machine does not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks import solvers_local
from benchmarks.peers import SimulatedBifurcation
from benchmarks.solvers_energies import best_known
from qprune.cli.compare import StudyBar, problem_summary, summary_table
from solvers.study import Instance, compare, read_instances
from solvers.study.instances import Known

#: Blocks of real networks; half, or nine tenths, of their weights pruned.
FISHER = {
    "digits-n64-N32-c0": (32, 58),
    "digits-n64-N256-c1": (32,),
    "digits-n256-N128-c0": (128,),
    "digits-n256-N1024-c1": (128,),
    "digits-n1024-N256-c0": (512,),
    "digits-n1024-N1024-c0": (512,),
    "digits-n1024-N1024-c1": (512,),
    "digits-n4096-N512-c0": (2048,),
}
#: Without counts; OR-Library's bqp are to be maximised.
PLAIN = ("gka10d", "gka1f", "gka5f", "bqp250.1", "bqp500.1", "bqp1000.1")
OURS = ("relax", "exact", "swap-anneal", "swap-tabu", "greedy", "bifurcation", "random")
PEERS = (
    ("dwave SA", "sa", {}),
    ("dwave Tabu", "tabu", {}),
    ("dwave path-integral", "path-integral", {}),
    ("openjij SA", "openjij-sa", {}),
    ("simulated-bifurcation", SimulatedBifurcation, {}),
)
SAMPLERS = (*((name, name, {}) for name in OURS), *PEERS)


def known_values(data: Path) -> dict[str, Known]:
    """The table of best-known values, by the names that `read_instances` gives."""
    values = {
        f"{name}-k{count}": Known(energy, proved)
        for (name, count), (energy, proved) in best_known(data).items()
    }
    plain = solvers_local.best_known(data).items()
    return values | {name: Known(energy) for name, energy in plain if name[0] in "gb"}


def instances(data: Path, largest: int) -> Iterator[Instance]:
    """The study's problems with up to ``largest`` variables."""
    known = known_values(data)
    paths = [(data / "fisher" / f"{name}.npz", counts) for name, counts in FISHER.items()]
    paths += [(data / "orlib" / f"{name}.txt.gz", ()) for name in PLAIN]
    for path, counts in paths:
        maximize = path.name.startswith("bqp")
        for one in read_instances(path, counts=counts, maximize=maximize, known=known):
            if one.problem.num_variables <= largest:
                yield replace(one, kind="Fisher block") if counts else one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="to n = 1024, one budget, 2 repeats")
    arguments = parser.parse_args()
    largest, budgets, repeats = 4096, ("1s",), arguments.repeats
    if arguments.short:
        largest, budgets, repeats = 1024, ("0.3s",), 2
    with StudyBar(Console(stderr=True)) as bar:
        study = compare(
            instances(arguments.data, largest),
            SAMPLERS,
            budgets,
            repeats,
            arguments.seed,
            folder=arguments.output,
            time_limit=120.0,
            prepare_limit=240.0,
            clock="cpu",
            observe=bar,
        )
    Console(width=120).print(summary_table(problem_summary(study)))


if __name__ == "__main__":
    main()
