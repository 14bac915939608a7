"""Moves of many replicas at once on batched matrices: heat-bath swaps, and flips."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch

from solvers.host.clock import Deadline
from solvers.problem.problem import QuadraticProblem
from solvers.search.batched.batch import Batch, Moves

# The longest row that a GPU's registers hold well.
LONGEST_FUSED = 8192

# Least descent of a downhill move, with coefficients up to 1: the error of float32 sums.
DOWNHILL = 1e-6

# More than any exponential draw, so that variables that may flip have scores below 0.
FINITE = 1e4


class Swaps(Moves):
    """A one and a zero of the same group change places, by the heat-bath rule.

    Removing the one i and setting the zero j changes E by
    -field_i + half_i + field_j + half_j - Q_ij. The partner is the argmin of beta times that
    plus log-exponential noise, over zeros of the group and over i itself, which costs 0.
    """

    def __init__(self, batch: Batch, groups: torch.Tensor | None) -> None:
        super().__init__(batch)
        self.groups = None if groups is None else groups[:, None]
        self.counts = batch.x[:, 0].sum(-1)
        self.steps = int(self.counts.max()) if batch.size and batch.problems else 0
        # The ones of each replica; shorter lists are padded with zeros' indices, never drawn.
        self.ones = (~batch.x).to(torch.int8).argsort(dim=-1, stable=True)[..., : self.steps]
        # Added to the cost of a partner: inf where there can be none. Without any
        # ones that is everywhere, so that the replica always stays.
        self.barred = torch.where(batch.x | (self.counts == 0)[:, None, None], torch.inf, 0.0)

    def sweep(self, temperatures: torch.Tensor | None, deadline: Deadline) -> None:
        batch = self.batch
        if not self.steps:
            return
        beta, noise, offsets = torch.ones((1, 1, 1), device=batch.device), None, [0] * self.steps
        if temperatures is not None:
            beta = 1.0 / temperatures[:, None, None]
            noise = batch.exponential().log_()
            offsets = batch.offsets(self.steps)
        offer = batch.field + batch.half[:, None]
        slots = batch.uniform(self.steps, batch.problems, batch.reads) * self.counts[:, None]
        slots = slots.long().clamp_(max=self.steps - 1)
        for slot, at in zip(slots, offsets, strict=True):
            if deadline.passed:
                break
            window = None if noise is None else noise[:, at : at + batch.size]
            self._step(offer, slot[..., None], beta, window)
        listed = torch.arange(self.steps, device=batch.device) < self.counts[:, None, None]
        # Padding may repeat a variable that has become a one, so entries are added, not assigned.
        ones = torch.zeros_like(batch.x, dtype=torch.int8)
        batch.x = ones.scatter_add_(-1, self.ones, listed.to(torch.int8).expand_as(self.ones)) > 0
        batch.refresh()

    def _step(
        self,
        offer: torch.Tensor,
        slot: torch.Tensor,
        beta: torch.Tensor,
        noise: torch.Tensor | None,
    ) -> None:
        """One move of every replica; ``offer`` = field + half and ``slot`` of shape (.., .., 1)."""
        batch = self.batch
        out = self.ones.gather(-1, slot)
        half = batch.half[:, None].expand_as(offer).gather(-1, out)
        row = batch.row(out[..., 0])
        cost = (offer - row).add_(self.barred)
        if self.groups is not None:
            own = self.groups.expand(-1, batch.reads, -1).gather(-1, out)
            cost.masked_fill_(self.groups != own, torch.inf)
        # Staying put costs 0 in all, so here minus the removal of ``out``.
        cost.scatter_(-1, out, offer.gather(-1, out) - 2.0 * half)
        cost.mul_(beta)
        if noise is not None:
            cost.add_(noise)
        into = cost.argmin(-1, keepdim=True)
        offer.add_(batch.row(into[..., 0])).sub_(row)
        self.barred.scatter_(
            -1, out, torch.where(self.counts > 0, 0.0, torch.inf)[:, None, None].expand_as(out)
        )
        self.barred.scatter_(-1, into, torch.inf)
        self.ones.scatter_(-1, slot, into)
        self._made += (into != out).sum()


class Flips(Moves):
    """One variable of each replica flips, one of those that Metropolis' rule lets."""

    def sweep(self, temperatures: torch.Tensor | None, deadline: Deadline) -> None:
        batch = self.batch
        if not batch.size:
            return
        sign = 1.0 - 2.0 * batch.x.float()
        if temperatures is None:
            for _ in range(batch.size):
                if deadline.passed:
                    break
                cost = self._cost(sign)
                self._flip(sign, cost, -DOWNHILL)
        else:
            draws = batch.exponential()
            accept, choose = batch.offsets(batch.size), batch.offsets(batch.size)
            for first, second in zip(accept, choose, strict=True):
                if deadline.passed:
                    break
                allowed = draws[:, first : first + batch.size] * temperatures[:, None, None]
                order = draws[:, second : second + batch.size] - FINITE
                cost = torch.where(self._cost(sign) <= allowed, order, 0.0)
                self._flip(sign, cost, 0.0)
        batch.x = sign < 0
        batch.refresh()

    def _cost(self, sign: torch.Tensor) -> torch.Tensor:
        return (sign * self.batch.field).add_(self.batch.half[:, None])

    def _flip(self, sign: torch.Tensor, cost: torch.Tensor, below: float) -> None:
        """Flip each replica's cheapest variable where its cost is below ``below``, in place."""
        least, at = cost.min(-1, keepdim=True)
        moved = least < below
        change = sign.gather(-1, at) * moved
        self.batch.field.add_(self.batch.row(at[..., 0]) * change)
        sign.scatter_add_(-1, at, -2.0 * change)
        self._made += moved.sum()


def moves_for(batch: Batch, problems: list[QuadraticProblem]) -> Moves:
    """Swaps where there are counts, fused into one kernel a sweep where Triton is; else flips."""
    if problems[0].counts is None:
        return Flips(batch)
    groups = None
    if max(problem.num_groups for problem in problems) > 1:
        ids = [problem.groups for problem in problems if problem.groups is not None]
        groups = torch.from_numpy(np.stack(ids)).to(batch.device)
    if batch.device.type == "cuda" and find_spec("triton") and 0 < batch.size <= LONGEST_FUSED:
        from solvers.search.batched.fused_swaps import FusedSwaps

        return FusedSwaps(batch, groups)
    return Swaps(batch, groups)
