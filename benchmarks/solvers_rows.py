"""Layer reconstruction: our row search beside SparseGPT's sweep and ALPS's ADMM, in one run.

    OMP_NUM_THREADS=1 python benchmarks/solvers_rows.py
    OMP_NUM_THREADS=1 python benchmarks/solvers_rows.py --data MODEL_DIR --text train.txt.gz

Figures are the reconstruction error |W X - W0 X|^2 / |W0 X|^2 in percent, over all layers (errors
added before dividing), and CPU seconds in all. SparseGPT and ADMM are our own implementations
from their papers; both get the budget that the column names. "refit" sets kept values to their
best on the method's support.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from solvers.rows.counts import Budget, LayerBudget, NofM, RowBudget
from solvers.rows.problem import RowProblem
from solvers.rows.refit import refit
from solvers.rows.search import solve_rows
from solvers.rows.starts import Start, admm, magnitude, obs_sweep, wanda

Layer = tuple[str, np.ndarray, np.ndarray]


def synthetic(rows: int, inputs: int, number: int, seed: int) -> Iterable[Layer]:
    """Layers with Laplace weights and correlated inputs of a power-law spectrum."""
    for index in range(number):
        rng = np.random.default_rng(seed + index)
        basis = np.linalg.qr(rng.normal(size=(inputs, inputs)))[0]
        spectrum = (1.0 + np.arange(inputs)) ** -0.5 * rng.uniform(0.8, 1.2, inputs)
        seen = rng.normal(size=(8 * inputs, inputs)) @ (basis * spectrum).T
        seen *= np.exp(0.3 * rng.normal(size=inputs))
        yield f"synthetic {index}", seen.T @ seen, rng.laplace(size=(rows, inputs))


def refitted(start: Callable[[RowProblem], Start]) -> Callable[[RowProblem], np.ndarray]:
    def values(problem: RowProblem) -> np.ndarray:
        mask, kept = start(problem)
        return refit(problem.gram, problem.targets, mask, kept)

    return values


def ours(start: Callable[[RowProblem], Start], **options) -> Callable[[RowProblem], np.ndarray]:
    def values(problem: RowProblem) -> np.ndarray:
        mask, kept = start(problem)
        return solve_rows(problem, mask=mask, values=kept, **options).values

    return values


METHODS: dict[str, Callable[[RowProblem], np.ndarray]] = {
    "magnitude": lambda problem: magnitude(problem).values,
    "Wanda": lambda problem: wanda(problem).values,
    "SparseGPT sweep": lambda problem: obs_sweep(problem).values,
    "SparseGPT sweep, refit": refitted(obs_sweep),
    "ADMM (ALPS), refit": refitted(admm),
    "ours, mask only, from Wanda": ours(wanda, compensate=False),
    "ours, held swaps, from SparseGPT": ours(obs_sweep, exact=False),
    "ours, exact swaps, from SparseGPT": ours(obs_sweep, depth=0),
    "ours, exact swaps, from ADMM": ours(admm, depth=0),
    "ours, exact, depth 4, from ADMM": ours(admm),
    "ours, exact, depth 16, from ADMM": ours(admm, depth=16),
}


def budgets(rows: int, inputs: int) -> dict[str, Budget]:
    made: dict[str, Budget] = {}
    for share in (0.5, 0.7, 0.8):
        kept = round(inputs * (1 - share))
        made[f"{share:.0%} row"] = RowBudget(kept)
        made[f"{share:.0%} layer"] = LayerBudget(kept * rows)
    return {**made, "2:4": NofM(2, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of a LLaMA in Hugging Face format")
    parser.add_argument("--text", type=Path, help="gzipped calibration text for --data")
    parser.add_argument("--every", type=int, default=1, help="take every so-manieth layer of it")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--inputs", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.data:
        from llama_layers import layers

        layer_list = list(layers(args.data, args.text))[:: args.every]
    else:
        layer_list = list(synthetic(args.rows, args.inputs, args.layers, args.seed))
    warm = RowProblem(np.eye(4), np.ones((2, 4)), LayerBudget(4))
    for method in METHODS.values():  # compile
        method(warm)

    columns = list(budgets(4, 4))
    print(f"{len(layer_list)} layers: {', '.join(name for name, _, _ in layer_list[:8])}")
    print(f"{'method':36s}" + "".join(f"{c:>12s}" for c in columns) + "   CPU s")
    for label, method in METHODS.items():
        begin = time.process_time()
        errors = []
        for column in columns:
            lost = whole = 0.0
            for _, gram, weights in layer_list:
                problem = RowProblem(gram, weights, budgets(*weights.shape)[column])
                lost += problem.objectives(method(problem)).sum()
                whole += problem.objectives(0.0 * weights).sum()
            errors.append(100 * lost / whole)
        seconds = time.process_time() - begin
        print(
            f"{label:36s}" + "".join(f"{e:12.4f}" for e in errors) + f"{seconds:8.1f}", flush=True
        )


if __name__ == "__main__":
    main()
