"""Batched annealing on a GPU: swaps a second against the card's bandwidth, energies against a CPU.

    python benchmarks/solvers_gpu.py                          # 1024 blocks of 1024, on "cuda"
    python benchmarks/solvers_gpu.py --device cpu --problems 2 --size 128 --reads 2 --sweeps 5

Blocks are synthetic Fisher blocks: gradients with a power-law spectrum times Laplace weights, half
of the variables pruned. A swap reads two matrix rows (8 n bytes), hence the ceiling printed:
measured copy bandwidth over 8 n bytes (rows found in the card's cache can go beyond it).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from solvers import LowRank, QuadraticProblem
from solvers.search.annealing import SwapAnnealing
from solvers.search.batched.annealing import TorchAnnealing


def fisher_block(size: int, samples: int, seed: int) -> QuadraticProblem:
    """One block: U = gradients * weights, E = 0.01 w^2 + 1/2 |U x|^2, scaled to mean 1."""
    rng = np.random.default_rng(seed)
    spectrum = (1.0 + np.arange(samples)) ** -0.5
    mix = rng.normal(size=(samples, samples)) * spectrum
    weights = rng.laplace(size=size)
    factor = mix @ rng.normal(size=(samples, size)) * weights
    factor /= np.sqrt(0.5 * (factor**2).sum(0).mean())
    return QuadraticProblem(
        0.1 * weights**2 / (weights**2).mean(), LowRank(factor), counts=size // 2
    )


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a large copy on ``device``."""
    source = torch.empty(1 << (28 if device == "cuda" else 24), device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        begin = now(device)
        target.copy_(source)
        best = min(best, now(device) - begin)
    return 2 * source.nbytes / best


def now(device: str) -> float:
    """Wall seconds, after ``device`` has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--problems", type=int, default=1024)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--reads", type=int, default=4)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--compared", type=int, default=4, help="blocks also solved on the CPU")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    problems = [fisher_block(args.size, args.samples, args.seed + i) for i in range(args.problems)]
    options = {"num_reads": args.reads, "seed": args.seed, "device": args.device}
    sampler = TorchAnnealing()
    sampler.sample_problems(problems[:2], num_sweeps=2, **options)  # compile

    begin = now(args.device)
    sampler.sample_problems(problems, num_sweeps=1, **options)
    middle = now(args.device)
    solutions = sampler.sample_problems(problems, num_sweeps=args.sweeps, **options)
    whole = now(args.device) - middle
    annealing = whole - (middle - begin)  # set-up, temperatures and descent are in both
    replicas = args.problems * args.reads
    tried = (args.sweeps - 1) * (args.size // 2) * replicas
    bandwidth = copy_bandwidth(args.device)
    ceiling = bandwidth / (8 * args.size)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    made = solutions[0].info["moves"]
    print(f"{args.problems} blocks of {args.size} x {args.reads} reads on {name}, seed {args.seed}")
    print(f"whole call {whole:.2f} s; {args.sweeps - 1} sweeps {annealing:.2f} s")
    print(
        f"swaps tried {tried / annealing / 1e6:.1f} M/s (each reads at least one row and weighs "
        f"{args.size - args.size // 2} partners); {made / args.sweeps / replicas:.0f} made a sweep"
    )
    print(f"copy {bandwidth / 1e9:.0f} GB/s; ceiling at two rows a swap {ceiling / 1e6:.1f} M/s")
    print(f"share of the ceiling {tried / annealing / ceiling:.2f}")
    print("\nblock  this device  CPU swap-anneal, same sweeps and reads  CPU s")
    for index in range(min(args.compared, args.problems)):
        begin = time.process_time()
        peer = SwapAnnealing().sample_problem(
            problems[index], num_reads=args.reads, num_sweeps=args.sweeps, seed=args.seed
        )
        seconds = time.process_time() - begin
        print(f"{index:5d}  {solutions[index].energy:11.4f}  {peer.energy:38.4f}  {seconds:5.2f}")


if __name__ == "__main__":
    main()
