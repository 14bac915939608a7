"""Simulated bifurcation (Goto et al. 2021, Science Advances 7, eabe7953), batched over reads."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from solvers.host.clock import Deadline
from solvers.options import Count, SamplerOptions
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.sampler import States, random_states
from solvers.search.batched.batch import (
    Device,
    TooLateError,
    batches,
    checked_device,
    for_descent,
    generator,
    largest_in_groups,
    matrices_of,
    require_room,
    steps_per_look,
)
from solvers.search.kernels.layout import Layout
from solvers.search.runs import Answers
from solvers.search.timed import TimedSampler, descend

# Limits of a batch: its positions, and the multiplications of one step.
_MOST_POSITIONS, _MOST_PRODUCTS = 1 << 22, 1 << 26
# States of a batch that are evaluated after the time limit.
_MOST_AFTERWARDS = 1


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
        self,
        problem: QuadraticProblem,
        discrete: bool,
        time_step: float,
        device: torch.device,
        deadline: Deadline,
    ) -> None:
        size = problem.num_variables
        (self.matrix,), (scale,) = matrices_of([problem], device, deadline)
        half = 0.5 * self.matrix.diagonal().clone()
        self.matrix.fill_diagonal_(0.0)
        linear = torch.from_numpy(problem.linear / scale).float().to(device) + half
        # E(s) = s.bias + 1/4 sum_{i<j} Q_ij s_i s_j + constant
        self.bias = 0.5 * linear + 0.25 * self.matrix.sum(-1)
        spread = 0.25 * float(torch.linalg.vector_norm(self.matrix))
        spread /= max(1, size * (size - 1)) ** 0.5
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


class BifurcationOptions(SamplerOptions):
    """Options of `Bifurcation`."""

    num_reads: Count | None = Field(
        default=None,
        description="independent trajectories (default 16; with a time limit, as many as fit)",
    )
    num_steps: Count = Field(default=1000, description="time steps (default 1000)")
    discrete: bool = Field(
        default=False,
        description="True for the discrete variant, False (default) for the ballistic one",
    )
    time_step: Annotated[float, Field(gt=0, lt=2)] = Field(
        default=0.25, description="dt (default 0.25)"
    )
    device: Device = Field(default="cpu", description='torch device, "cpu" (default) or "cuda"')


class Bifurcation(TimedSampler):
    """Simulated bifurcation, ballistic or discrete, then swap descent.

    Reads start near the given states, which are also descended as they are. Where the time is
    over the pump stops, and the spins of the positions are the answer.

    Example:
        >>> problem = QuadraticProblem([3.0, -1.0, -2.0], np.zeros((3, 3)), counts=2)
        >>> Bifurcation().sample_problem(problem, seed=1).sample.tolist()
        [0, 1, 1]
    """

    Options = BifurcationOptions

    def _search(
        self,
        problem: QuadraticProblem,
        asked: BifurcationOptions,
        given: States | None,
        deadline: Deadline,
    ) -> Solution:
        size = problem.num_variables
        on = checked_device(asked.device)
        require_room(
            8.0 * size * size,
            f"the dense matrix of {size} variables",
            "use a sampler for sparse problems, such as swap-anneal",
            on,
        )
        num_reads = asked.reads(16)
        found = _Found(problem, num_reads, deadline)
        if given is not None:
            found.add(given)
        random = generator(asked.seed, on)
        done = steps = 0
        most = max(1, min(_MOST_POSITIONS // max(1, size), _MOST_PRODUCTS // max(1, size) ** 2))
        most = min(16, most) if num_reads is None else most
        try:
            dynamics = _Dynamics(problem, asked.discrete, asked.time_step, on, deadline)
            for batch in batches(num_reads, most):
                if done and deadline.passed:
                    break
                s, y = (
                    0.2 * torch.rand((batch, size), generator=random, device=on) - 0.1
                    for _ in range(2)
                )
                if given is not None and done < len(given):
                    near = torch.from_numpy(given[done : done + batch]).to(on).float()
                    s[: len(near)] += 0.5 * (2.0 * near - 1.0)
                steps += _run(dynamics, s, y, asked.num_steps, deadline)
                found.by_sign(s)
                found.add(_binary(dynamics.spins(s)))
                done += batch
        except TooLateError:
            pass
        return found.solution({"steps": steps}, asked.seed)


class _Found:
    """The states that trajectories ended in, descended as far as there is time."""

    def __init__(
        self, problem: QuadraticProblem, num_reads: int | None, deadline: Deadline
    ) -> None:
        self._problem, self._deadline = problem, deadline
        self._answers = Answers(problem, num_reads)
        self._layout = Layout.of(problem)
        self._feasible = self._signs = 0

    def by_sign(self, s: torch.Tensor) -> None:
        """Note how many positions have the exact counts by their signs alone."""
        feasible = self._problem.feasible((s > 0).cpu().numpy())
        self._feasible += int(feasible.sum())
        self._signs += feasible.size

    def add(self, states: States) -> None:
        for index, state in enumerate(states):
            if index >= _MOST_AFTERWARDS and self._deadline.passed:
                return
            until = for_descent(self._deadline)
            descended = descend(self._problem, state[None], self._layout, until)
            self._answers.add(self._answers.begun, descended[0])

    def solution(self, info: dict[str, int], seed: int | None) -> Solution:
        if not self._answers.begun:
            self.add(random_states(self._problem, 1, np.random.default_rng(seed)))
        share = self._feasible / max(1, self._signs)
        return self._answers.solution({**info, "feasible_by_sign": share})


def _run(
    dynamics: _Dynamics, s: torch.Tensor, y: torch.Tensor, num_steps: int, deadline: Deadline
) -> int:
    every = steps_per_look(s.numel() * (10.0 + 0.1 * s.shape[1]))
    for step in range(num_steps):
        if step % every == 0 and deadline.passed:
            return step
        dynamics.step(s, y, step / num_steps)
    return num_steps


def _binary(spins: torch.Tensor) -> States:
    return (spins > 0).to(torch.int8).cpu().numpy()
