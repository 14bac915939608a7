"""The best energies of the Fisher blocks, beside the best-known ones of the data folder's table.

    OMP_NUM_THREADS=1 python -m benchmarks.solvers_energies --data ../shared/data/qubo
        [--instances digits-n1024] [--counts 512] [--reads 400] [--sweeps 2000] [--seed 0]

Many reads of ``relax``, then ``swap-tabu`` from the best of them, then ``exact`` from that. No
limit of time, so the same seed gives the same states anywhere. The energy printed is recomputed
from the file's own arrays, d.x + |U x|^2 / 2 in float64. CPU seconds are those of all three.
"""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path

import numpy as np

from benchmarks.solvers_convex import Block, blocks
from benchmarks.timing import cpu_seconds
from solvers.convex.exact import Exact
from solvers.convex.relax import Relax
from solvers.search.tabu import SwapTabu


def best_known(data: Path) -> dict[tuple[str, int], tuple[float, bool]]:
    """Energy of each (instance, count) in the folder's table, and whether it is proved there."""
    row = re.compile(r"\| (\S+) \| (\d+) \| (-?[\d.]+) \| -?[\d.]+ \| (yes|no) \|")
    rows = (row.match(line) for line in (data / "README.md").read_text().splitlines())
    return {(m[1], int(m[2])): (float(m[3]), m[4] == "yes") for m in rows if m}


def energy_of(data: Path, name: str, count: int, state: np.ndarray) -> float:
    """The energy from the file's arrays alone; the state has the count or this fails."""
    if int(state.sum()) != count or not np.isin(state, (0, 1)).all():
        raise ValueError(f"{name}: the state has {state.sum()} ones, not {count}")
    with np.load(data / "fisher" / f"{name}.npz") as arrays:
        outputs = arrays["U"].astype(np.float64) @ state
        return float(arrays["d"].astype(np.float64) @ state + 0.5 * outputs @ outputs)


def search(block: Block, args: argparse.Namespace) -> np.ndarray:
    """The best state of ``relax``, improved by tabu search and then by branch and bound."""
    states = Relax().sample_problem(
        block.problem, num_reads=args.reads, num_sweeps=args.sweeps, seed=args.seed
    )
    found = SwapTabu().sample_problem(
        block.problem,
        initial_states=states.sample[None],
        num_restarts=args.restarts,
        seed=args.seed,
    )
    return (
        Exact()
        .sample_problem(
            block.problem, initial_states=found.sample[None], max_nodes=args.nodes, seed=args.seed
        )
        .sample
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds fisher/")
    parser.add_argument("--instances", nargs="+", default=[], help="names, or how they begin")
    parser.add_argument("--counts", nargs="+", type=int, default=[], help="only these counts")
    parser.add_argument("--reads", type=int, default=400, help="of relax")
    parser.add_argument("--sweeps", type=int, default=2000, help="of each read")
    parser.add_argument("--restarts", type=int, default=20, help="of tabu search")
    parser.add_argument("--nodes", type=int, default=1000, help="of branch and bound")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(platform.machine(), *(f"{name} {value}" for name, value in vars(args).items()))
    known = best_known(args.data)
    for block in blocks(args.data, args.instances, args.counts):
        seconds, state = cpu_seconds(lambda block=block: search(block, args))
        energy = energy_of(args.data, block.name, block.count, state)
        best, proved = known.get((block.name, block.count), (np.inf, False))
        # The table has six decimals.
        verdict = "equal" if abs(energy - best) <= 1e-6 else "BETTER" if energy < best else "worse"
        print(
            f"{block.name:24} {block.count:5} best known {best:14.6f} "
            f"{'proved' if proved else '':6} found {energy:14.6f} {verdict:6} "
            f"{100 * (energy - best) / abs(best):+9.4f} %  {seconds:8.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
