"""CPU seconds of every phase of a run on this machine, as networks, blocks and samples grow.

    OMP_NUM_THREADS=1 nice -n 10 python -m benchmarks.scaling.measure --data DATA

One thread, least of three, seed 0; about two CPU minutes, and three for whole runs. Writes
``measured.json`` beside this file, which the formulas of docs/scaling.md read.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from benchmarks.reliability.workloads import workloads
from benchmarks.scaling.rank_program import EXCHANGED, RUNS, launched
from benchmarks.step_cost import network
from benchmarks.timing import cpu_seconds
from qprune.moving.compensate import gauss_newton
from qprune.network.groups import BUDGETS, prune_lowest
from qprune.network.weights import Weights, find_weights
from qprune.objective import SketchedFisher
from qprune.objective.losses import DenseOutputs
from qprune.objective.samples import Objective, sample_size
from qprune.objective.trace.recorder import Samples, outputs_of
from qprune.record.checkpoint import Checkpoints, Snapshot
from qprune.steps.accept import Trust
from qprune.steps.formulate import Block, formulate
from qprune.steps.select import Boundary, Offer
from qprune.walk.state import FullState, Progress
from solvers import Ask, LowRank
from solvers.rows.counts import Counts
from solvers.rows.problem import RowProblem
from solvers.rows.search import solve_rows
from solvers.rows.starts import admm

MEASURED = Path(__file__).with_name("measured.json")
REPEATS = 3


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        phase: what was done.
        what: to what.
        sizes: by name: weights, samples, multiplications of one sample's forward pass, variables,
            rows, inputs, bytes.
        seconds: CPU seconds, least of some.
    """

    phase: str
    what: str
    sizes: Mapping[str, float]
    seconds: float


def least(function: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least CPU seconds of some calls."""
    return min(cpu_seconds(function)[0] for _ in range(repeats))


def networks(folder: Path | None) -> Iterator[tuple[str, nn.Module, torch.Tensor, Weights]]:
    """(name, model, 64 samples or fewer, targeted weights), small and larger ones."""
    for width, depth in ((128, 2), (512, 2), (512, 8), (2048, 2), (2048, 4)):
        model = network(64, *[width] * depth, 10)
        yield f"MLP {depth} x {width}", model, torch.randn(256, 64), find_weights(model)
    for workload in workloads(folder) if folder else ():
        ignore = workload.options.get("ignore", ())
        inputs = workload.data.inputs[:64]
        model = workload.model.eval()
        yield workload.name, model, inputs, find_weights(model, ignore=ignore)


def passes(name: str, model: nn.Module, inputs: torch.Tensor, weights: Weights) -> Iterator[Row]:
    """Forward pass, expansion, columns of blocks, Gauss-Newton product."""
    from qprune.data.calibration import Calibration

    loss, size = DenseOutputs(), len(inputs)
    samples = Samples(inputs, outputs_of(model, inputs, size))
    objective = Objective(model, weights, samples, loss, size, size)
    seen = sample_size(model, weights, Calibration(inputs))
    sizes = {"weights": weights.size, "samples": size, "multiplications": seen.multiplications}
    sizes["layers"] = len(weights)

    def expand():
        return SketchedFisher().expand(objective, torch.Generator().manual_seed(0))

    yield Row("forward", name, sizes, least(objective.value, 5))
    yield Row("expand", name, sizes, least(expand))
    expansion = expand()
    chosen = torch.randperm(weights.size)[: min(1024, weights.size)].sort().values
    columns = sizes | {"variables": len(chosen)}
    yield Row("columns", name, columns, least(lambda: expansion.curvature.blocks([chosen])))
    product = gauss_newton(objective)
    vector = torch.randn(weights.size)
    yield Row("product", name, sizes, least(lambda: product(vector)))


def selections() -> Iterator[Row]:
    """Choosing one block among ever more weights."""
    for number in (100_000, 1_000_000, 10_000_000):
        model = nn.Linear(number // 1000, 1000)
        weights = find_weights(model)
        groups = BUDGETS["global"].groups(weights, 0.9)
        mask = torch.rand(weights.size) > 0.9
        offer = Offer(
            weights, groups, mask, torch.randn(weights.size), torch.zeros_like(mask),
            torch.Generator().manual_seed(0),
        )  # fmt: skip
        seconds = least(lambda offer=offer: Boundary().blocks(offer, 1024, 1))
        yield Row("select", "one block of 1024", {"weights": weights.size}, seconds)
        lowest = partial(prune_lowest, torch.rand(weights.size), ~mask, groups, groups.total)
        yield Row("prune", "by score", {"weights": weights.size}, least(lowest, 1))


def solves() -> Iterator[Row]:
    """Formulating and solving a block of random gradients at 90 % pruned."""
    rng = np.random.default_rng(0)
    ask = Ask.to("relax")
    for variables, samples in ((256, 200), (512, 200), (1024, 100), (1024, 400), (2048, 200)):
        factor = rng.standard_normal((samples, variables)) / samples**0.5
        pruned = (rng.random(variables) < 0.9).astype(np.int8)
        value = rng.standard_normal(variables)
        block = Block(
            indices=np.arange(variables),
            current=np.where(pruned, 0.0, value),
            keep_value=value,
            pruned=pruned,
            gradient=0.1 * rng.standard_normal(variables),
            groups=np.zeros(variables, np.int64),
            counts=np.array([pruned.sum()]),
        )
        sizes = {"variables": variables, "samples": samples}

        def formulated(block=block, factor=factor):
            return formulate(block, LowRank(factor), ridge=0.05)

        problem = formulated()
        yield Row("formulate", "Fisher block", sizes, least(formulated))

        def solve(problem=problem, pruned=pruned):
            return ask(problem, pruned, 0)

        solve()
        yield Row("solve", "relax", sizes, least(solve))


def row_solves() -> Iterator[Row]:
    """Pruning a matrix to 50 % by reconstruction: ADMM, then the rows' swaps with values held.

    Up to 1024 inputs a run makes dearer, exact swaps; what is measured is the search that
    larger matrices get.
    """
    rng = np.random.default_rng(0)
    for rows, inputs in ((128, 128), (256, 256), (1024, 256), (512, 512), (128, 1024), (512, 1024)):
        x = rng.standard_normal((inputs, 4 * inputs)) * rng.lognormal(0, 1, (inputs, 1))
        x[1:] += 0.5 * x[:-1]
        gram = x @ x.T
        gram += 0.01 * np.trace(gram) / inputs * np.eye(inputs)
        targets = rng.standard_normal((rows, inputs))
        problem = RowProblem(gram, targets, Counts(rows * inputs // 2))
        sizes = {"rows": rows, "inputs": inputs}
        start = admm(problem, damping=0.0)
        if inputs == 128:
            # Compiled kernels are loaded before anything is timed.
            solve_rows(problem, mask=start.mask, values=start.values, exact=False)
        yield Row("rows: start", "ADMM", sizes, least(partial(admm, problem, damping=0.0), 1))
        solve = partial(solve_rows, problem, mask=start.mask, values=start.values, exact=False)
        yield Row("rows: search", "swaps, trades, refits", sizes, least(solve, 1))


def checkpoints() -> Iterator[Row]:
    """Packing and writing a checkpoint."""
    for number in (1_000_000, 10_000_000):
        state = FullState(
            torch.rand(number) > 0.5, Trust(), torch.randn(number),
            torch.zeros(number, dtype=torch.int32),
        )  # fmt: skip
        progress = Progress.beginning(state, 1)
        generator = torch.Generator().get_state()
        snapshot = Snapshot(progress, generator, (), 1.0, 1.0)
        with tempfile.TemporaryDirectory() as folder:
            write = partial(Checkpoints(Path(folder)).write, snapshot)
            yield Row("checkpoint", "", {"weights": number}, least(write))


def draws() -> Row:
    """Random signs, as `SketchedFisher` draws them."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, 2, (10_000_000,), generator=generator)
    return Row("draw", "signs", {"numbers": 10_000_000}, least(draw))


def exchanges() -> Iterator[Row]:
    """CPU seconds of one of two ranks on this machine, for sums over ever longer vectors."""
    for number, seconds in zip(EXCHANGED, launched(["exchange"], 2), strict=True):
        yield Row("exchange", "two ranks", {"bytes": 4 * number}, seconds)


def runs(folder: Path | None) -> Iterator[Row]:
    """CPU seconds of rank 0 for whole runs, of one rank and of two."""
    for ranks in (1, 2) if folder else ():
        for (name, size), seconds in zip(
            RUNS.items(), launched(["runs", str(folder)], ranks), strict=True
        ):
            yield Row("run", name, {"ranks": ranks, "batch_size": size}, seconds)


def stream() -> Row:
    """Bytes that one core adds up in a second: what memory-bound work is scaled by."""
    numbers = np.zeros(1 << 26, np.float32)
    return Row("stream", "", {"bytes": numbers.nbytes}, least(numbers.sum, 5))


#: What can be measured, by name: a function of the data's folder that gives rows in groups.
GROUPS: dict[str, Callable[[Path | None], list[Iterable[Row]]]] = {
    "stream": lambda _: [[stream()]],
    "passes": lambda data: [passes(*network) for network in networks(data)],
    "select": lambda _: [selections()],
    "solve": lambda _: [solves()],
    "rows": lambda _: [row_solves()],
    "checkpoint": lambda _: [checkpoints()],
    "draw": lambda _: [[draws()]],
    "exchange": lambda _: [exchanges()],
    "runs": lambda data: [runs(data)],
}


def machine() -> str:
    """What this is measured on."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, one thread"
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    parser.add_argument("--only", choices=GROUPS, help="measure this anew and keep the rest")
    parser.add_argument("--output", type=Path, default=MEASURED, help="default: %(default)s")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = [given.only] if given.only else list(GROUPS)
    groups = [group for name in names for group in GROUPS[name](given.data)]
    rows: list[Row] = []
    for group in track(groups, "measuring", console=Console(stderr=True)):
        rows += group
    phases = {row.phase for row in rows}
    before = (
        json.loads(given.output.read_text())["rows"] if given.only and given.output.exists() else []
    )
    rows = [Row(**row) for row in before if row["phase"] not in phases] + rows
    record = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    given.output.write_text(json.dumps(record, indent=1) + "\n")
    table = Table(title=f"CPU seconds, {record['machine']}")
    for name in ("phase", "what", "sizes", "seconds"):
        table.add_column(name)
    for row in rows:
        sizes = ", ".join(f"{name} {value:g}" for name, value in row.sizes.items())
        table.add_row(row.phase, row.what, sizes, f"{row.seconds:.4g}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
