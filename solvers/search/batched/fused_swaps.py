# pyright: standard
"""A sweep of heat-bath swaps as one GPU kernel: a replica's state stays in registers.

The same move as `solvers.search.batched.moves.Swaps`, at the cost of the two matrix rows it reads.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

from solvers.host.clock import Deadline
from solvers.search.batched.batch import Batch, Moves


@triton.jit
def _sweep_kernel(
    matrices, fields, halves, states, groups, betas, made,
    size, reads, steps, seed,
    COLD: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One replica a program: ``steps`` times, a random one changes places or stays."""
    replica = tl.program_id(0).to(tl.int64)
    problem = replica // reads
    at = tl.arange(0, BLOCK)
    inside = at < size
    x = tl.load(states + replica * size + at, mask=inside, other=0).to(tl.int32)
    half = tl.load(halves + problem * size + at, mask=inside, other=0.0)
    offer = tl.load(fields + replica * size + at, mask=inside, other=0.0) + half
    beta = tl.load(betas + problem)
    matrix = matrices + problem * size * size
    group = tl.zeros((BLOCK,), tl.int64)
    if GROUPED:
        group = tl.load(groups + problem * size + at, mask=inside, other=-1)
    noise = tl.randint(seed, replica * BLOCK + at).to(tl.uint32, bitcast=True) | 1
    moves = 0
    ones = tl.sum(x, axis=0)
    movable = (ones > 0) & (ones < size)
    for step in range(tl.where(movable, steps, 0)):
        # A random one: the first in a pseudo-random order of indices (multiply and shift).
        draw = tl.randint(seed + 1, replica * steps + step).to(tl.uint32, bitcast=True)
        order = (at * ((draw >> 16) | 1) + draw) & (BLOCK - 1)
        out = tl.argmin(tl.where(x == 1, order.to(tl.int32), BLOCK), axis=0)
        own = at == out
        row = tl.load(matrix + out * size + at, mask=inside, other=0.0)
        allowed = inside & (x == 0)
        if GROUPED:
            allowed = allowed & (group == tl.load(groups + problem * size + out))
        stay = tl.sum(tl.where(own, offer - 2.0 * half, 0.0), axis=0)
        cost = tl.where(own, stay, offer - row) * beta
        if not COLD:
            noise ^= noise << 13
            noise ^= noise >> 17
            noise ^= noise << 5
            uniform = (noise >> 8).to(tl.float32) * 5.9604645e-08 + 2.9802322e-08
            cost += tl.log(-tl.log(uniform))
        cost = tl.where(allowed | own, cost, float("inf"))
        into = tl.argmin(cost, axis=0)
        other = tl.load(matrix + into * size + at, mask=inside, other=0.0)
        offer += other - row
        x = tl.where(own, 0, x)
        x = tl.where(at == into, 1, x)
        moves += (into != out).to(tl.int32)
    tl.store(states + replica * size + at, x.to(tl.int8), mask=inside)
    tl.store(made + replica, moves)


class FusedSwaps(Moves):
    """`Swaps` with one kernel launch a sweep; draws other random numbers."""

    def __init__(self, batch: Batch, groups: torch.Tensor | None) -> None:
        super().__init__(batch)
        self.groups = groups
        self.steps = int(batch.x[:, 0].sum(-1).max())

    def sweep(self, temperatures: torch.Tensor | None, deadline: Deadline) -> None:
        # One kernel; it is too short to check the clock.
        batch = self.batch
        states = batch.x.to(torch.int8).contiguous()
        replicas = batch.problems * batch.reads
        made = torch.zeros(replicas, dtype=torch.int32, device=batch.device)
        cold = temperatures is None
        betas = torch.ones(batch.problems, device=batch.device) if cold else 1.0 / temperatures
        seed = torch.randint(1 << 30, (1,), generator=batch.random, device=batch.device)
        block = triton.next_power_of_2(batch.size)
        launch: Any = _sweep_kernel
        launch[(replicas,)](
            batch.matrices,
            batch.field,
            batch.half.contiguous(),
            states,
            made if self.groups is None else self.groups,
            betas.contiguous(),
            made,
            batch.size,
            batch.reads,
            self.steps,
            int(seed),
            COLD=cold,
            GROUPED=self.groups is not None,
            BLOCK=block,
            num_warps=max(1, min(8, block // 256)),
        )
        batch.x = states.bool()
        self._made += made.sum()
        batch.refresh()
