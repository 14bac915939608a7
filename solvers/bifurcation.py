"""Simulated bifurcation (Goto et al. 2021, Science Advances 7, eabe7953), batched over reads."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from solvers.clock import Deadline
from solvers.descent import descend
from solvers.errors import InvalidOptionError
from solvers.problem import QuadraticProblem
from solvers.sampler import CountingSampler, States, checked_states, positive_int
from solvers.solution import Solution
from solvers.torch_batch import (
    checked_device,
    generator,
    largest_in_groups,
    matrix_on,
    require_room,
    scale_of,
)

# Steps between looks at the clock.
_STEPS = 16


class _Dynamics:
    """Positions and momenta of all reads, and the force -dE/ds of spins s = 2x - 1 on them.

    The pump a(t) rises from 0 to 1; with c0 = 1 / (2 <J^2>^(1/2) n^(1/2)) a step is

        y += dt (-(1 - a) s + c0 f(s))     s += dt y     |s| > 1: s = sign(s), y = 0

    where the discrete variant evaluates f at the spins that s stands for. A group with an exact
    count keeps its sum of positions: forces lose their mean over the group, positions are moved
    back by one Newton step after walls have stopped some of them, and the spins that s stands
    for are the count's largest positions, so that every answer has its exact counts.
    """

    def __init__(
        self, problem: QuadraticProblem, discrete: bool, time_step: float, device: torch.device
    ) -> None:
        size = problem.num_variables
        require_room(
            8.0 * size * size,
            f"the dense matrix of {size} variables",
            "use a sampler for sparse problems, such as swap-anneal",
            device,
        )
        scale = scale_of(problem)
        self.matrix = matrix_on(problem, scale, device)
        half = 0.5 * self.matrix.diagonal().clone()
        self.matrix.fill_diagonal_(0.0)
        linear = torch.from_numpy(problem.linear / scale).float().to(device) + half
        # E(s) = s.bias + 1/4 sum_{i<j} Q_ij s_i s_j + constant
        self.bias = 0.5 * linear + 0.25 * self.matrix.sum(-1)
        spread = float((self.matrix.double() / 4).square().sum() / max(1, size * (size - 1))) ** 0.5
        if spread == 0.0:
            spread = float(self.bias.abs().mean()) or 1.0
        self.strength = 0.5 / (spread * max(1, size) ** 0.5)
        self.discrete = discrete
        self.time_step = time_step
        self._groups(problem, device)

    def _groups(self, problem: QuadraticProblem, device: torch.device) -> None:
        self.counted = problem.groups is not None and problem.counts is not None
        if not self.counted:
            return
        sizes = problem.group_sizes
        self.groups = torch.from_numpy(problem.groups).to(device)
        self.starts = torch.from_numpy(np.cumsum(sizes) - sizes).to(device)
        self.counts = torch.from_numpy(problem.counts).to(device)
        self.sizes = torch.from_numpy(sizes).float().to(device)
        self.sums = 2.0 * self.counts.float() - self.sizes

    def step(self, s: torch.Tensor, y: torch.Tensor, pump: float) -> None:
        """One step of all reads, in place."""
        at = self.spins(s) if self.discrete else s
        force = self.strength * -(0.25 * (at @ self.matrix) + self.bias)
        if self.counted:
            force -= (self._group_sums(force) / self.sizes)[:, self.groups]
        y += self.time_step * (force - (1.0 - pump) * s)
        s += self.time_step * y
        outside = s.abs() > 1.0
        s.clamp_(-1.0, 1.0)
        y.masked_fill_(outside, 0.0)
        if self.counted:
            free = self._group_sums((s.abs() < 1.0).float()).clamp(min=1.0)
            missing = (self.sums - self._group_sums(s)) / free
            s.add_(missing[:, self.groups]).clamp_(-1.0, 1.0)

    def spins(self, s: torch.Tensor) -> torch.Tensor:
        """The spins +-1 that positions stand for, with exact counts."""
        if not self.counted:
            return torch.where(s > 0, 1.0, -1.0)
        up = largest_in_groups(s, self.groups, self.starts, self.counts)
        return up.float() * 2.0 - 1.0

    def _group_sums(self, values: torch.Tensor) -> torch.Tensor:
        sums = values.new_zeros(len(values), len(self.counts))
        return sums.index_add_(1, self.groups, values)


class Bifurcation(CountingSampler):
    """Simulated bifurcation, ballistic or discrete, then swap descent."""

    options: ClassVar = {
        "num_reads": "independent trajectories (default 16)",
        "num_steps": "time steps (default 1000)",
        "discrete": "True for the discrete variant, False (default) for the ballistic one",
        "time_step": "dt (default 0.25)",
        "seed": "seed of the starting positions",
        "initial_states": "states near which reads start, shape (k, n); also descended as they are",
        "time_limit": "seconds of wall time (default: none); the pump then stops early",
        "device": 'torch device, "cpu" (default) or "cuda"',
    }

    def sample_problem(
        self,
        problem: QuadraticProblem,
        *,
        num_reads: int = 16,
        num_steps: int = 1000,
        discrete: bool = False,
        time_step: float = 0.25,
        seed: int | None = None,
        initial_states: ArrayLike | None = None,
        time_limit: float | None = None,
        device: str = "cpu",
    ) -> Solution:
        num_reads = positive_int("num_reads", num_reads)
        num_steps = positive_int("num_steps", num_steps)
        if not 0 < time_step < 2:
            raise InvalidOptionError(f"time_step must lie in (0, 2), not {time_step!r}")
        limit = Deadline(time_limit)
        given = checked_states(problem, initial_states)
        on = checked_device(device)
        random = generator(seed, on)
        dynamics = _Dynamics(problem, discrete, time_step, on)
        shape = (num_reads, problem.num_variables)
        s, y = (0.2 * torch.rand(shape, generator=random, device=on) - 0.1 for _ in range(2))
        if given is not None:
            near = torch.from_numpy(given[:num_reads]).to(on).float()
            s[: len(near)] += 0.5 * (2.0 * near - 1.0)
        steps = _run(dynamics, s, y, num_steps, limit)
        by_sign = (s > 0).cpu().numpy()
        states = _binary(dynamics.spins(s))
        if given is not None:
            states = np.concatenate([states, given])
        return Solution.of(
            problem,
            descend(problem, states),
            info={"steps": steps, "feasible_by_sign": float(problem.feasible(by_sign).mean())},
        )


def _run(
    dynamics: _Dynamics, s: torch.Tensor, y: torch.Tensor, num_steps: int, limit: Deadline
) -> int:
    step = 0
    try:
        for step in range(num_steps):
            if step % _STEPS == 0 and limit.passed:
                return step
            dynamics.step(s, y, step / num_steps)
    except KeyboardInterrupt:
        return step  # what the positions stand for now is an answer
    return num_steps


def _binary(spins: torch.Tensor) -> States:
    return (spins > 0).to(torch.int8).cpu().numpy()
