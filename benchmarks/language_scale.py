"""One matrix of 7B shape on the CPU: time and memory of stage 1, and what a whole model would take.

    OMP_NUM_THREADS=1 python -m benchmarks.language_scale                    # 4096 inputs
    OMP_NUM_THREADS=1 python -m benchmarks.language_scale --inputs 512       # seconds

Weights are random, inputs correlated (a low-rank part of decaying spectrum, and noise), those of
the dense network a little off. Every step is timed with two numbers of output rows, which gives
what it costs for the matrix and what for each row; `projected` puts the two together for
LLaMA-7B's matrices. Costs for the matrix grow with the cube of its inputs, costs per row with
their square, sums over tokens with tokens times the square. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import resource
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.timing import cpu_seconds
from qprune.distributed.workers import limited_threads
from qprune.steps.reconstruct import ROWS, Moments, Quadratic, quadratic
from solvers.rows.counts import LayerBudget
from solvers.rows.problem import RowProblem

#: (rows, inputs) of a decoder layer of LLaMA-7B and how many of each, with how many it has
#: sums over tokens of its own: q, k, v share theirs, and so do gate and up.
SHAPES = ((4096, 4096, 4, 2), (11008, 4096, 2, 1), (4096, 11008, 1, 1))
LAYERS = 32
#: 128 sequences of 2,048 tokens, the calibration set that SparseGPT and Wanda made usual.
TOKENS = 128 * 2048
#: How many times the rows each is timed with: a row of SparseGPT's takes next to nothing.
COMPARED = {"reconstruct": 1, "sparsegpt": 16}


@dataclass(frozen=True)
class Cost:
    """CPU seconds at ``inputs`` inputs: once for a matrix, and for every row."""

    inputs: int
    matrix: float
    row: float

    @classmethod
    def between(cls, inputs: int, few: int, many: int, less: float, more: float) -> Cost:
        """From the times with ``few`` and with ``many`` rows."""
        row = max(0.0, (more - less) / (many - few))
        return cls(inputs, max(0.0, less - few * row), row)

    def of(self, rows: int, inputs: int) -> float:
        """The same for another shape."""
        scale = inputs / self.inputs
        return self.matrix * scale**3 + rows * self.row * scale**2


def projected(cost: Cost, per_token: float) -> float:
    """CPU seconds of all matrices of LLaMA-7B.

    Args:
        cost: of solving one matrix.
        per_token: of adding one token to the sums of ``cost.inputs`` inputs.
    """
    seconds = 0.0
    for rows, inputs, number, sums in SHAPES:
        seconds += number * cost.of(rows, inputs)
        seconds += sums * TOKENS * per_token * (inputs / cost.inputs) ** 2
    return LAYERS * seconds


def inputs_like(tokens: int, inputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, inputs) of the pruned and of the dense network."""
    rank = max(1, inputs // 8)
    spectrum = (1 + torch.arange(rank)) ** -0.5
    basis = torch.randn(rank, inputs, generator=generator) * spectrum[:, None]
    scales = torch.exp(0.5 * torch.randn(inputs, generator=generator))
    dense = torch.randn(tokens, rank, generator=generator) @ basis
    dense = (dense + 0.3 * torch.randn(tokens, inputs, generator=generator)) * scales
    return dense + 0.1 * torch.randn(tokens, inputs, generator=generator) * scales, dense


def solve(method: str, moments: Moments, weights: Tensor, sparsity: float) -> float:
    """From sums to values; the error as a share of the outputs' energy."""
    strategy = ROWS[method]
    goal: Quadratic = quadratic(moments, weights, strategy.damping)
    budget = LayerBudget(round(weights.numel() * (1 - sparsity)))
    problem = RowProblem(goal.gram.numpy(), goal.targets.numpy(), budget)
    solved = strategy.solve(problem, compensate=True, seed=0)
    energy = problem.objectives(0.0 * problem.targets).sum()
    return float(problem.objectives(solved.values).sum() / energy)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--rows", type=int, nargs=2, default=[8, 72], help="few, many")
    parser.add_argument("--tokens", type=int, help="default: twice the inputs")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    inputs, most = arguments.inputs, max(arguments.rows)
    tokens = arguments.tokens or 2 * inputs
    generator = torch.Generator().manual_seed(arguments.seed)
    weights = torch.randn(max(COMPARED.values()) * most, inputs, generator=generator)
    errors = Console(stderr=True)
    table = Table(title=f"{inputs} inputs, {tokens} tokens, sparsity {arguments.sparsity:g}")
    for column in ("method", "error", "CPU s/matrix", "CPU s/row", "LLaMA-7B, CPU hours"):
        table.add_column(column, justify="left" if column == "method" else "right")
    with limited_threads(1):
        for method in COMPARED:  # compile
            small = Moments("warm", 8, torch.device("cpu"), False)
            small.add(torch.randn(32, 8, generator=generator))
            solve(method, small, torch.randn(4, 8, generator=generator), 0.5)
        for method in track(COMPARED, "solving", console=errors, disable=not errors.is_terminal):
            dense = ROWS[method].dense_targets
            moments = Moments("", inputs, torch.device("cpu"), dense)
            adding = 0.0
            for part in torch.full((tokens // 1024,), 1024).tolist() or [tokens]:
                x, x0 = inputs_like(part, inputs, generator)
                adding += cpu_seconds(lambda x=x, x0=x0, m=moments: m.add(x, x0))[0]
            seconds, error = [], 0.0
            few, many = (COMPARED[method] * rows for rows in arguments.rows)
            for rows in (few, many):
                given = method, moments, weights[:rows], arguments.sparsity
                spent, error = cpu_seconds(partial(solve, *given))
                seconds.append(spent)
            cost = Cost.between(inputs, few, many, *seconds)
            hours = projected(cost, adding / moments.tokens) / 3600
            table.add_row(
                method, f"{error:.4f}", f"{cost.matrix:.1f}", f"{cost.row:.3f}", f"{hours:.1f}"
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    Console(width=100).print(table)
    Console(width=100).print(
        f"peak memory {peak:.2f} GiB; the model's own passes are not in the hours"
    )


if __name__ == "__main__":
    main()
