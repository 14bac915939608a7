"""Local search beside D-Wave's samplers: kernels, tuned annealing, time to best-known values.

    OMP_NUM_THREADS=1 python -m benchmarks.solvers_local --data ../shared/data/qubo [--only kernels]

Times are CPU seconds of one thread, peers interleaved with ours; building a BQM is not counted.
"""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
from dwave.samplers import SimulatedAnnealingSampler, TabuSampler

from benchmarks.solvers_convex import penalised
from benchmarks.timing import cpu_seconds
from solvers import Dense, QuadraticProblem
from solvers.formats.files import read_problem
from solvers.problem.repair import repair
from solvers.sampler import random_states
from solvers.search.annealing import SwapAnnealing
from solvers.search.forms import FactorFlips, FactorSwaps, FlipFields, Form, SwapFields, SwapRows
from solvers.search.kernels.common import kernel, random_states_for
from solvers.search.kernels.layout import Layout
from solvers.search.runs import Read
from solvers.search.tabu import SwapTabu

# -- kernels ------------------------------------------------------------------------------------


@kernel
def stream_one(matrix, field, rows):
    """The ceiling of a flip: one row read and added, the next row known in advance."""
    for r in range(rows.size):
        row = matrix[rows[r]]
        for t in range(field.size):
            field[t] += row[t]


@kernel
def stream_two(matrix, field, rows):
    """The ceiling of a swap: two rows."""
    for r in range(0, rows.size - 1, 2):
        out_row, in_row = matrix[rows[r]], matrix[rows[r + 1]]
        for t in range(field.size):
            field[t] += in_row[t] - out_row[t]


def hot_nanoseconds(form: Form, x: np.ndarray, sweeps: int, temperature: float) -> float:
    """CPU nanoseconds per accepted move at a temperature that accepts nearly everything."""
    read = Read.start(x, random_states_for(np.random.SeedSequence(0), 1)[0])
    kept = form.kept(x)
    seconds, _ = cpu_seconds(lambda: form.anneal(read, kept, np.full(sweeps, temperature)))
    return seconds / max(1.0, read.tally[2]) * 1e9


def ceilings(layout: Layout, rows: np.ndarray) -> tuple[float, float]:
    """CPU nanoseconds per (flip, swap) of the streaming kernels."""
    field = np.zeros(layout.half.size, dtype=layout.dtype)
    one, _ = cpu_seconds(lambda: stream_one(layout.matrix, field, rows))
    two, _ = cpu_seconds(lambda: stream_two(layout.matrix, field, rows))
    return one / rows.size * 1e9, two / (rows.size / 2) * 1e9


def benchmark_kernels(data: Path, seed: int) -> None:
    print("\n## Kernels: nanoseconds per accepted move, median of 9 interleaved runs")
    print("| instance | n | dtype | flip ceiling | flip | share | swap ceiling | swap | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("digits-n1024-N1024-c0", "syn-n4096-N128"):
        for dtype in (np.float32, np.float64):
            _print_ceiling(data, name, dtype, seed)
    print("\n| instance, hot | m | form by cost | fields | factor | ratio | flips: ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in ("syn-n4096-N128", "digits-n4096-N512-c0", "syn-n1024-N64"):
        _print_low_rank(data, name, seed)


def _print_ceiling(data: Path, name: str, dtype: Any, seed: int) -> None:
    problem, x, rng = _half_filled(data, name, seed)
    n = x.size
    layout, plain = Layout.of(problem, dtype), Layout.of(problem.without_counts(), dtype)
    rows, sweeps = rng.integers(0, n, 40_000), max(1, 40_000 // n)
    table = []
    for _ in range(10):
        flip_ceiling, swap_ceiling = ceilings(layout, rows)
        flip = hot_nanoseconds(FlipFields(plain), x, sweeps, 1e9)
        table.append((flip_ceiling, flip, swap_ceiling, 0.0))
        swap = hot_nanoseconds(SwapFields(layout), x, sweeps, 1e9)
        table[-1] = (flip_ceiling, flip, swap_ceiling, swap)
    one, flip, two, swap = np.median(np.array(table[1:]), axis=0)
    print(
        f"| {name} | {n} | {np.dtype(dtype)} | {one:.0f} | {flip:.0f} | {one / flip:.0%} "
        f"| {two:.0f} | {swap:.0f} | {two / swap:.0%} |"
    )


def _print_low_rank(data: Path, name: str, seed: int) -> None:
    problem, x, _ = _half_filled(data, name, seed)
    counted = Layout.of(problem, np.float32)
    plain = Layout.of(problem.without_counts(), np.float32)
    forms: list[Form] = [
        SwapFields(counted), FactorSwaps(counted), FlipFields(plain), FactorFlips(plain)
    ]  # fmt: skip
    sweeps = max(1, 20_000 // x.size)
    table = [[hot_nanoseconds(form, x, sweeps, 1e9) for form in forms] for _ in range(6)]
    fields, factor, flips, factor_flips = np.median(np.array(table[1:]), axis=0)
    hot: Form = min((SwapFields(counted), SwapRows(counted), FactorSwaps(counted)),
                    key=lambda form: form.cost(1.0))  # fmt: skip
    print(
        f"| {name} | {counted.factor.shape[1]} | {type(hot).__name__} | {fields:.0f} "
        f"| {factor:.0f} | {fields / factor:.1f}x | {flips / factor_flips:.1f}x |"
    )


def _half_filled(
    data: Path, name: str, seed: int
) -> tuple[QuadraticProblem, np.ndarray, np.random.Generator]:
    problem = read_problem(data / "fisher" / f"{name}.npz", count=0)
    n = problem.num_variables
    problem = QuadraticProblem(problem.linear, problem.quadratic, counts=n // 2)
    rng = np.random.default_rng(seed)
    return problem, random_states(problem, 1, rng)[0], rng


# -- against hand-tuned annealing ---------------------------------------------------------------


def benchmark_tuned(data: Path, seed: int) -> None:
    name, count, reads, sweeps = "digits-n1024-N1024-c0", 512, 4, 1000
    problem = read_problem(data / "fisher" / f"{name}.npz", count=count)
    dense = QuadraticProblem(problem.linear, Dense(problem.quadratic.dense()), counts=count)
    print(f"\n## {name}, k = {count}: dwave SA, best of {reads} x {sweeps} sweeps, repaired")
    print("| penalty | beta_range | E | feasible | CPU s |\n|---|---|---|---|---|")
    best, spent = np.inf, 0.0
    for strength in (0.02, 0.2, 2.0):
        bqm = penalised(dense, strength)
        for betas in (None, (0.3, 30.0), (1.0, 100.0), (3.0, 300.0)):
            options = {"num_reads": reads, "num_sweeps": sweeps, "seed": seed}
            if betas is not None:
                options["beta_range"] = list(betas)
            seconds, found = cpu_seconds(
                lambda bqm=bqm, options=options: SimulatedAnnealingSampler().sample(bqm, **options)
            )
            states = found.record.sample[:, np.argsort(np.array(found.variables))]
            energy = dense.energies(repair(dense, states)).min()
            feasible = dense.feasible(states).mean()
            print(f"| {strength} | {betas or 'default'} | {energy:.3f} | {feasible:.0%} "
                  f"| {seconds:.3f} |", flush=True)  # fmt: skip
            if energy < best:
                best, spent = energy, seconds
    print(f"\nTuned: E = {best:.3f} in {spent:.3f} CPU s. Ours, cold, to that energy:")
    for sampler, options in ((SwapAnnealing(), _annealing_grid()), (SwapTabu(), _tabu_grid())):
        for setting in options:
            seconds = [_reach(sampler, dense, best, 20.0, s, **setting) for s in range(5)]
            print(f"- {type(sampler).__name__} {setting}: {_shown(seconds)}, "
                  f"{spent / np.mean(seconds):.0f}x", flush=True)  # fmt: skip


def _annealing_grid() -> list[dict[str, Any]]:
    return [{"num_sweeps": n, "num_restarts": 10**6} for n in (50, 100, 200, 500)]


def _tabu_grid() -> list[dict[str, Any]]:
    return [{"num_restarts": 10**6}]


# -- time to best-known values ------------------------------------------------------------------


def best_known(data: Path) -> dict[str, float]:
    """Minimised best-known value of each instance in the data folder's own table."""
    row = re.compile(r"\| (\S+) \| \d+ \| \d+ \| (max|min|cut) (-?\d+) \|")
    rows = (row.match(line) for line in (data / "README.md").read_text().splitlines())
    return {m[1]: float(m[3]) if m[2] == "min" else -float(m[3]) for m in rows if m}


def load(data: Path, name: str) -> QuadraticProblem:
    folder = "gset" if name.startswith("G") else "orlib"
    maximize = None if folder == "gset" else name.startswith("bqp")
    return read_problem(data / folder / f"{name}.txt.gz", maximize=maximize)


def benchmark_best(data: Path, seeds: int, limit: float, only: str) -> None:
    print(f"\n## CPU seconds to the best-known value, mean of {seeds} seeds, limit {limit:g} s")
    print("OR-Library, gka: SwapTabu; G-set: SwapAnnealing(num_sweeps=4000); each with restarts")
    print("| instance | best known | ours | reached | dwave Tabu | ratio | dwave SA | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, best in best_known(data).items():
        if not re.match(only, name):
            continue
        problem = load(data, name)
        bqm = problem.to_bqm()
        cut = name.startswith("G")
        ours: Any = SwapAnnealing() if cut else SwapTabu()
        options: dict[str, Any] = {"num_restarts": 10**9}
        if cut:
            options["num_sweeps"] = 4000
        _reach(ours, problem, best, 0.01, 0, **options)
        times = np.array([
            (
                _reach(ours, problem, best, limit, seed, **options),
                np.nan if cut else _tabu_seconds(bqm, best, limit, seed),
                _sa_seconds(bqm, best, limit, seed),
            )
            for seed in range(seeds)
        ])  # fmt: skip
        own, tabu, annealing = (times[:, column] for column in range(3))
        print(
            f"| {name} | {best:.0f} | {_shown(own)} | {np.isfinite(own).mean():.0%} "
            f"| {_shown(tabu)} | {_ratio(tabu, own, limit)} "
            f"| {_shown(annealing)} | {_ratio(annealing, own, limit)} |",
            flush=True,
        )


def _reach(
    sampler: Any, problem: QuadraticProblem, target: float, limit: float, seed: int, **options: Any
) -> float:
    """CPU seconds to the target energy, infinite if the limit (of wall time) came first."""
    goal = target + 1e-9 * abs(target)
    seconds, solution = cpu_seconds(
        lambda: sampler.sample_problem(
            problem, target_energy=goal, time_limit=limit, seed=seed, **options
        )
    )
    return seconds if solution.energy <= goal else np.inf


def _tabu_seconds(bqm: Any, best: float, limit: float, seed: int) -> float:
    seconds, found = cpu_seconds(
        lambda: TabuSampler().sample(
            bqm, timeout=int(1000 * limit), energy_threshold=best + 1e-6, seed=seed
        )
    )
    return seconds if found.first.energy <= best + 1e-6 else np.inf


def _sa_seconds(bqm: Any, best: float, limit: float, seed: int) -> float:
    """Reads of 1,000 sweeps, one by one, until one gets there."""
    spent, reads = 0.0, 0
    while spent < limit:
        seconds, found = cpu_seconds(
            lambda reads=reads: SimulatedAnnealingSampler().sample(
                bqm, num_sweeps=1000, num_reads=1, seed=seed * 100_000 + reads
            )
        )
        spent, reads = spent + seconds, reads + 1
        if found.first.energy <= best + 1e-6:
            return spent
    return np.inf


def _shown(seconds: Any) -> str:
    """The mean, or how many of the seeds got there; a dash for what was not run."""
    seconds = np.asarray(seconds)
    if np.isnan(seconds).all():
        return "-"
    reached = np.isfinite(seconds)
    if not reached.any():
        return "not reached"
    shown = f"{seconds[reached].mean():.4f} s"
    return shown if reached.all() else f"{shown} in {reached.sum()} of {seconds.size}"


def _ratio(peer: Any, own: Any, limit: float) -> str:
    """How much longer the peer takes; at least, where it ran into the limit."""
    if not np.isfinite(own).all() or np.isnan(peer).any():
        return "-"
    bounded = np.where(np.isfinite(peer), peer, limit)
    at_least = "" if np.isfinite(peer).all() else ">= "
    return f"{at_least}{bounded.mean() / own.mean():.1f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder with orlib/, gset/")
    parser.add_argument("--only", choices=["kernels", "tuned", "best"], help="one part")
    parser.add_argument("--instances", default=".", help="regular expression on names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds per try")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {platform.system()}, "
          f"numpy {np.__version__}, seed {arguments.seed}")  # fmt: skip
    if arguments.only in (None, "kernels"):
        benchmark_kernels(arguments.data, arguments.seed)
    if arguments.only in (None, "tuned"):
        benchmark_tuned(arguments.data, arguments.seed)
    if arguments.only in (None, "best"):
        benchmark_best(arguments.data, arguments.seeds, arguments.limit, arguments.instances)


if __name__ == "__main__":
    main()
