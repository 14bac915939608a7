"""What one step costs, phase by phase, and that untouched layers cost a pass and no more.

    python -m benchmarks.step_cost
    python -m benchmarks.step_cost --curve 1e8      # up to 10^8 weights; needs 8 GiB

The first table is one 1024-variable step on a 784-512-512-10 network with 200 samples, the shape
of the published example. The second adds layers that no block touches: the share of the step
beyond the passes over the samples should stay where it is. CPU seconds, one thread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import qprune

PHASES = ("select", "curvature", "formulate", "solve", "accept")


def network(*widths: int) -> nn.Sequential:
    """A ReLU network with small random weights."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def block_steps(
    model: nn.Module, num_samples: int, steps: int, ignore: tuple[str, ...] = ()
) -> list[qprune.Step]:
    """The block steps of a run at 90 % sparsity with blocks of 1024."""
    inputs = torch.randn(num_samples, model[0].in_features)
    seen: list[qprune.Step] = []
    qprune.prune(
        model,
        inputs,
        sparsity=0.9,
        method=qprune.Networkwise(stages=1, rounds=steps, final_rounds=steps),
        compensate=False,
        augment=None,
        loss=qprune.DenseOutputs(fit_scale=False),
        ignore=ignore,
        observe=lambda step: seen.append(step) if step.kind == "blocks" else None,
    )
    # A refused step is followed by another attempt on the same expansion: not a whole step.
    return [step for step in seen if "curvature" in step.seconds]


def passes(model: nn.Module, num_samples: int) -> float:
    """CPU seconds of one forward and one backward pass over the samples, median of five."""
    inputs = torch.randn(num_samples, model[0].in_features)
    times = []
    for _ in range(5):
        began = time.process_time()
        model(inputs).square().mean().backward()
        times.append(time.process_time() - began)
        model.zero_grad()
    return statistics.median(times)


def phase_table(steps: list[qprune.Step]) -> Table:
    table = Table(title="one 1024-variable step, 784-512-512-10, 200 samples: seconds")
    for name in (*PHASES, "all, CPU"):
        table.add_column(name, justify="right")
    for what in (min, statistics.median):
        row = [what(step.seconds.get(phase, 0.0) for step in steps) for phase in PHASES]
        row.append(what(step.cpu_seconds for step in steps))
        table.add_row(*(f"{value:.4f}" for value in row))
    return table


def curve_table(limit: float) -> Table:
    table = Table(title="a step as the network grows: CPU seconds")
    for name in ("weights", "forward + backward", "step", "step / passes"):
        table.add_column(name, justify="right")
    for width, depth in ((256, 2), (768, 2), (1024, 10), (4096, 6)):
        model = network(64, *([width] * depth), 10)
        weights = sum(p.numel() for p in model.parameters() if p.ndim == 2)
        if weights > limit:
            break
        once = passes(model, 200)
        cost = statistics.median(step.cpu_seconds for step in block_steps(model, 250, 5))
        table.add_row(f"{weights:.1e}", f"{once:.4f}", f"{cost:.4f}", f"{cost / once:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", type=float, default=1.2e8, help="largest number of weights")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(width=100)
    console.print(f"{platform.processor() or platform.machine()}, one thread, seed 0")
    block_steps(network(784, 512, 512, 10), 250, 2)  # compile the kernels
    console.print(phase_table(block_steps(network(784, 512, 512, 10), 250, arguments.steps)))
    console.print(curve_table(arguments.curve))


if __name__ == "__main__":
    main()
