"""Row problems on torch tensors: the best of many swaps in every row at once."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray

from solvers.host.clock import Deadline
from solvers.rows.moves import HeldSearch

Integers = NDArray[np.int64]
Restored = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Entries of A read in one step over all rows: the limit of its memory.
STEP_ENTRIES = 1 << 26

# Candidates of a row in one step of the kernel, which amortise the cost of a step.
FUSED_CANDIDATES = 16

# Steps between checks for finished rows (each check waits for the device).
STEPS = 8

# Steps at most, for each input.
MOST_SWEEPS = 100


class TorchSearch(HeldSearch):
    """`HeldSearch` for tensors: in each step every row makes the best swap of a few candidates.

    The candidates are the kept weights that are cheapest to prune among those not yet tried since
    the row's last swap; a row is done when none of them improves it. Memory read in a step:
    rows x candidates x run of A; a swap then takes two rows of A.
    """

    def _swap(self, rows: Integers, deadline: Deadline) -> Integers:
        at = torch.as_tensor(rows, device=self.values.device)
        state = _State(self, at)
        # Every step of a row makes a swap or rules out a candidate.
        left = MOST_SWEEPS * (1 + self.problem.num_inputs)
        while len(state.at) and left > 0 and not deadline.passed:
            left -= STEPS
            for _ in range(STEPS):
                state.step()
            state.drop_done()
        return state.swaps.cpu().numpy()


class _State:
    """The rows still under way, gathered; written back when they are done."""

    def __init__(self, search: HeldSearch, at: torch.Tensor) -> None:
        self.search = search
        self.at = at
        self.swaps = torch.zeros(len(at), dtype=torch.int64, device=at.device)
        self.live = torch.arange(len(at), device=at.device)
        self.values, self.field = search.values[at], search.field[at]
        self.mask, self.slope = search.mask[at], search.restore.slope[at]
        self.tolerance = search.tolerance[at]
        self.tried = torch.zeros_like(self.mask)
        inputs = search.problem.num_inputs
        self.run = search.problem.counts.run(inputs)
        self.runs = search.problem.gram.view(inputs, inputs // self.run, self.run)
        self.fused = _kernel(search, self.run)

    def step(self) -> None:
        """The best swap of the cheapest untried candidates, in every row where it improves."""
        diagonal = self.search.diagonal
        loss = self.values * (0.5 * self.values * diagonal - self.field)
        loss = torch.where(self.mask & ~self.tried, loss, torch.inf)
        cheapest, out = loss.topk(self._width(len(loss)), largest=False)
        gain, into = self._restored(out, self.values.gather(1, out))
        change, best = (cheapest - gain).min(-1)
        better = change < -self.tolerance
        # A row without candidates has infinite costs, so it never improves.
        self.tried.scatter_(1, out, ~better[:, None].expand_as(out))
        self.tried &= ~better[:, None]
        self._apply(better, out.gather(1, best[:, None])[:, 0], into.gather(1, best[:, None])[:, 0])

    def _width(self, rows: int) -> int:
        """Candidates that a row looks at together."""
        if self.fused is not None:
            return min(self.mask.shape[1], FUSED_CANDIDATES)
        return max(1, min(self.mask.shape[1], STEP_ENTRIES // max(1, rows * self.run), 64))

    def _restored(self, out: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Once each candidate is pruned: what the best input to restore gains, and which it is."""
        search = self.search
        if self.fused is not None:
            rows = search.problem.gram, self.field, self.mask, self.slope
            return self.fused(*rows, search.restore, search.diagonal, out, w)
        curve, diagonal = search.restore.curve, search.diagonal
        which = out // self.run
        field = self._of_run(self.field, which) - w[..., None] * self.runs[out, which]
        slope = self._of_run(self.slope, which)
        gain = field * (curve.view(-1, self.run)[which] * field - slope)
        gain = gain - 0.5 * slope**2 * diagonal.view(-1, self.run)[which]
        gain = torch.where(self._of_run(self.mask, which), -torch.inf, gain)
        best, into = gain.max(-1)
        return best, which * self.run + into

    def _of_run(self, array: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """The entries of each candidate's run, (rows, inputs) -> (rows, candidates, run)."""
        split = array.view(len(array), -1, self.run)
        return split[torch.arange(len(array), device=array.device)[:, None], which]

    def _apply(self, better: torch.Tensor, out: torch.Tensor, into: torch.Tensor) -> None:
        rows = better.nonzero()[:, 0]
        out, into = out[rows], into[rows]
        gram = self.search.problem.gram
        w = self.values[rows, out]
        field = self.field[rows, into] - w * gram[out, into]
        value = self.slope[rows, into] - 2.0 * field * self.search.restore.curve[into]
        self.field[rows] += value[:, None] * gram[into] - w[:, None] * gram[out]
        self.values[rows, out] = 0.0
        self.values[rows, into] = value
        self.mask[rows, out] = False
        self.mask[rows, into] = True
        self.swaps[self.live[rows]] += 1

    def drop_done(self) -> None:
        """Write the rows back; keep those with untried candidates."""
        search = self.search
        search.values[self.at], search.field[self.at] = self.values, self.field
        search.mask[self.at] = self.mask
        open_ = (self.mask & ~self.tried).any(-1) & ~self.mask.all(-1)
        self.at, self.live, self.tolerance = self.at[open_], self.live[open_], self.tolerance[open_]
        self.values, self.field = self.values[open_], self.field[open_]
        self.mask, self.slope, self.tried = self.mask[open_], self.slope[open_], self.tried[open_]


def _kernel(search: HeldSearch, run: int) -> Restored | None:
    """`best_restored` where it is of use: whole rows, on a GPU with Triton."""
    gram = search.problem.gram
    if gram.device.type != "cuda" or run < len(gram) or not find_spec("triton"):
        return None
    from solvers.rows.fused_restore import best_restored

    return best_restored
