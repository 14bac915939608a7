"""Relaxation, bounds and proofs on real pruning blocks, beside the annealing libraries.

    OMP_NUM_THREADS=1 python -m benchmarks.solvers_convex --data ../shared/data/qubo
        [--only quality reach proof bound] [--instances digits-n256] [--counts 128]
        [--dense] [--reads 10] [--time-limit 10] [--seed 0]

Times are CPU seconds of one thread, ours interleaved with the library. The libraries get the
count as a penalty, the better of two strengths, and a greedy repair of what they answer; building
their model is not counted; ours forms its matrix from the factor in the time that is counted,
unless it is handed the matrix too (--dense). Energies are recomputed from the problem for everyone.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dimod
import numpy as np
from dwave.samplers import SimulatedAnnealingSampler, TabuSampler

from benchmarks.timing import cpu_seconds
from solvers import Dense, LowRank, QuadraticProblem
from solvers.convex.bounds import relax, tangent_at
from solvers.convex.exact import Exact
from solvers.convex.relax import Relax
from solvers.problem.repair import repair

# In units of an energy scale in which the mean half diagonal is 1.
PENALTIES = (0.2, 2.0)

# Ours from cheap to thorough.
LADDER: tuple[dict[str, Any], ...] = (
    {"tolerance": 0.5, "num_sweeps": 0},
    {"tolerance": 0.02, "num_sweeps": 0},
    {"tolerance": 1e-3, "num_sweeps": 20},
    {},
    {"num_reads": 5},
    {"num_reads": 20},
    {"num_reads": 80},
    {"num_reads": 320},
)


@dataclass(frozen=True)
class Block:
    """One instance with one count."""

    name: str
    count: int
    problem: QuadraticProblem


def blocks(
    data: Path, wanted: list[str], counts: list[int], dense: bool = False
) -> Iterator[Block]:
    """The blocks whose names begin as wanted, with the wanted counts; no wish means all."""
    for path in sorted((data / "fisher").glob("*.npz")):
        if wanted and not any(path.stem.startswith(name) for name in wanted):
            continue
        with np.load(path) as arrays:
            factor, linear = arrays["U"].astype(np.float64), arrays["d"].astype(np.float64)
            for count in np.ravel(arrays["k"]).tolist():
                if counts and count not in counts:
                    continue
                quadratic = Dense(factor.T @ factor) if dense else LowRank(factor)
                problem = QuadraticProblem(linear, quadratic, counts=count)
                yield Block(path.stem, count, problem)


# -- the libraries: (model, seed, reads) -> states --------------------------------------------


def dwave_sa(bqm: dimod.BinaryQuadraticModel, seed: int, reads: int) -> np.ndarray:
    sampler = SimulatedAnnealingSampler()
    return sampler.sample(bqm, num_reads=reads, num_sweeps=1000, seed=seed).record.sample


def dwave_tabu(bqm: dimod.BinaryQuadraticModel, seed: int, reads: int) -> np.ndarray:
    return TabuSampler().sample(bqm, num_reads=1, timeout=100 * reads, seed=seed).record.sample


def openjij_sa(bqm: dimod.BinaryQuadraticModel, seed: int, reads: int) -> np.ndarray:
    import openjij

    found = openjij.SASampler().sample(bqm, num_reads=reads, num_sweeps=1000, seed=seed)
    order = [list(found.variables).index(v) for v in range(bqm.num_variables)]
    return found.record.sample[:, order]


def bifurcation(bqm: dimod.BinaryQuadraticModel, seed: int, reads: int) -> np.ndarray:
    import simulated_bifurcation as sb
    import torch

    torch.manual_seed(seed)
    linear, (row, col, data), _ = bqm.to_numpy_vectors(variable_order=range(bqm.num_variables))
    matrix = np.zeros((linear.size, linear.size))
    matrix[row, col] = data
    x, _ = sb.minimize(
        torch.tensor(matrix),
        torch.tensor(linear),
        domain="binary",
        agents=10 * reads,
        verbose=False,
    )
    return x.numpy()[None].astype(np.int8)


LIBRARIES = {
    "dwave SA": dwave_sa,
    "dwave Tabu": dwave_tabu,
    "openjij SA": openjij_sa,
    "bifurcation": bifurcation,
}


def penalised(problem: QuadraticProblem, strength: float) -> dimod.BinaryQuadraticModel:
    """The energy plus strength * (sum of x - count)^2."""
    assert problem.counts is not None
    count = float(problem.counts[0])
    return QuadraticProblem(
        problem.linear - 2 * strength * count,
        problem.quadratic.dense() + 2 * strength,
        problem.offset + strength * count * count,
    ).to_bqm()


def library_best(block: Block, solve: Callable, seed: int, reads: int) -> tuple[float, float]:
    """(CPU seconds, energy) at the better of the two penalties."""
    outcomes = []
    for strength in PENALTIES:
        bqm = penalised(block.problem, strength)
        seconds, states = cpu_seconds(lambda bqm=bqm: solve(bqm, seed, reads))
        energy = block.problem.energies(repair(block.problem, states)).min()
        outcomes.append((float(energy), seconds))
    energy, seconds = min(outcomes)
    return seconds, energy


# -- the tables -------------------------------------------------------------------------------


def ours_within(block: Block, seconds: float, target: float, seed: int) -> tuple[float, float]:
    """(CPU seconds, energy): up the ladder from the default while no better and time is left."""
    used, best = 0.0, np.inf
    for options in LADDER[3:]:
        took, solution = cpu_seconds(
            lambda options=options: Relax().sample_problem(block.problem, seed=seed, **options)
        )
        if used and used + took > seconds:
            break
        assert block.problem.feasible(solution.samples).all()
        used, best = used + took, min(best, solution.energy)
        if best <= target:
            break
    return used, best


def quality(args: argparse.Namespace) -> None:
    """Figure 2: energies at equal CPU time."""
    print("\nEnergy at equal CPU time (library: seconds, energy; ours: seconds, energy)")
    for block in blocks(args.data, args.instances, args.counts, args.dense):
        for name, solve in LIBRARIES.items():
            seconds, energy = library_best(block, solve, args.seed, args.reads)
            used, best = ours_within(block, seconds, energy, args.seed)
            verdict = "ok" if best <= energy + 1e-6 * abs(energy) and used <= seconds else "MISSED"
            print(
                f"{block.name:24} {block.count:5} {name:12} {seconds:8.3f} s {energy:14.6f}   "
                f"ours {used:8.4f} s {best:14.6f}  {verdict}",
                flush=True,
            )


def reach(args: argparse.Namespace) -> None:
    """Figure 3: time to dwave SA's best energy."""
    print(f"\nTime to the best of {args.reads} reads of dwave SA (1000 sweeps)")
    for block in blocks(args.data, args.instances, args.counts, args.dense):
        seconds, energy = library_best(block, dwave_sa, args.seed, args.reads)
        used = reached_after(block, energy, args.seed)
        print(
            f"{block.name:24} {block.count:5} SA {seconds:8.3f} s {energy:14.6f}   "
            f"ours {1e3 * used:9.2f} ms  {seconds / used:7.0f} x",
            flush=True,
        )


def reached_after(block: Block, target: float, seed: int) -> float:
    """CPU seconds of the fastest setting that reaches ``target`` with each of five seeds."""
    quick = [_median_seconds(block, options, target, seed) for options in LADDER[:4]]
    if min(quick) < float("inf"):
        return min(quick)
    # Each of the others only does more of the same.
    slow = (_median_seconds(block, options, target, seed) for options in LADDER[4:])
    return next((seconds for seconds in slow if seconds < float("inf")), float("inf"))


def _median_seconds(block: Block, options: dict[str, Any], target: float, seed: int) -> float:
    """Median CPU seconds of five seeds, infinite if one of them misses the target."""
    times = []
    for trial in range(5):
        took, solution = cpu_seconds(
            lambda trial=trial: Relax().sample_problem(block.problem, seed=seed + trial, **options)
        )
        if solution.energy > target + 1e-9 * abs(target):
            return float("inf")
        times.append(took)
    return statistics.median(times)


def proof(args: argparse.Namespace) -> None:
    """Figure 4: time to a proof, or the gap that is left."""
    print(f"\nProofs (wall limit {args.time_limit} s)")
    small = []
    for block in blocks(args.data, args.instances, args.counts, args.dense):
        if block.problem.num_variables > 1024:
            continue
        took, solution = cpu_seconds(
            lambda block=block: Exact().sample_problem(
                block.problem, seed=args.seed, time_limit=args.time_limit
            )
        )
        if block.problem.num_variables == 64:
            small.append(took)
        print(
            f"{block.name:24} {block.count:5} {solution.energy:14.6f} "
            f"bound {solution.lower_bound:14.6f} gap {100 * solution.gap:8.4f} % "
            f"{'proved' if solution.info['proved'] else 'open':6} {1e3 * took:9.1f} ms "
            f"{solution.info['nodes']:7} nodes",
            flush=True,
        )
    if small:
        print(
            f"n=64: median {1e3 * statistics.median(small):.1f} ms, worst {1e3 * max(small):.1f} ms"
        )


def bound(args: argparse.Namespace) -> None:
    """Figure 5: what the certificate costs."""
    print("\nShare of the certificate (one product and one tangent) in a default solve")
    for block in blocks(args.data, args.instances, args.counts, args.dense):
        relaxation = relax(block.problem)
        convex, x = relaxation.convex, relaxation.x

        def certificate(convex=convex, x=x) -> Any:
            return tangent_at(convex, x, convex.quadratic.product(x))

        def solve(block=block) -> Any:
            return Relax().sample_problem(block.problem, seed=args.seed)

        certificate(), solve()
        alone = min(cpu_seconds(certificate)[0] for _ in range(5))
        whole = min(cpu_seconds(solve)[0] for _ in range(5))
        # Twice: once after the warm-up, once at the end.
        print(
            f"{block.name:24} {block.count:5} solve {1e3 * whole:8.2f} ms  "
            f"certificate {2e3 * alone:7.3f} ms  {200 * alone / whole:5.1f} %",
            flush=True,
        )


TABLES = {"quality": quality, "reach": reach, "proof": proof, "bound": bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds fisher/")
    parser.add_argument("--only", nargs="+", choices=sorted(TABLES), default=list(TABLES))
    parser.add_argument("--instances", nargs="+", default=[], help="names, or how they begin")
    parser.add_argument("--counts", nargs="+", type=int, default=[], help="only these counts")
    parser.add_argument("--dense", action="store_true", help="hand ours the matrix, not the factor")
    parser.add_argument("--reads", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps({"machine": platform.processor() or platform.machine(), "seed": args.seed}))
    # Compile before anything is timed.
    rng = np.random.default_rng(0)
    for size in (30, 500):
        warm = QuadraticProblem(np.ones(size), LowRank(rng.normal(size=(9, size))), counts=9)
        Relax().sample_problem(warm)
        Exact().sample_problem(warm, max_nodes=2)
    for name in args.only:
        TABLES[name](args)


if __name__ == "__main__":
    main()
