"""The common part of the torch samplers: device, random generator, `Batch`, counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator

from solvers.errors import InvalidOptionError, MissingPackageError
from solvers.host.clock import Deadline
from solvers.host.machine import require_memory
from solvers.problem.problem import Floats, QuadraticProblem
from solvers.problem.quadratic import LowRank, Sparse
from solvers.sampler import States

# Some milliseconds of work on a CPU.
_ENTRIES_PER_LOOK = 1 << 20
_SECONDS_AFTER_INTERRUPT = 0.2


def _name(device: Any) -> Any:
    return str(device) if isinstance(device, torch.device) else device


#: The name of a torch device.
Device = Annotated[str, BeforeValidator(_name)]


def checked_device(device: str | torch.device) -> torch.device:
    """``device`` as a torch device on which one number was allocated.

    Raises:
        InvalidOptionError: torch does not know it.
        MissingPackageError: there is none here, or torch cannot compute on it.
    """
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidOptionError(f'device must be "cpu" or "cuda", not {device!r}') from error
    if known.type == "cuda" and not torch.cuda.is_available():
        raise MissingPackageError("torch finds no CUDA device here; pass device='cpu'")
    try:
        torch.zeros(1, device=known).item()
    except Exception as error:  # Each backend has its own error types.
        why = " ".join(str(error).split())[:100]
        raise MissingPackageError(
            f"torch cannot compute on {str(known)!r} here; pass device='cpu' ({why})"
        ) from error
    return known


def require_room(num_bytes: float, what: str, way_out: str, device: torch.device) -> None:
    """Refuse what does not fit on ``device``; see `solvers.host.machine.require_memory`."""
    free = float(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else None
    require_memory(num_bytes, what, way_out, free)


def generator(seed: int | None, device: torch.device) -> torch.Generator:
    """A generator of the sampler's own; torch's global one is left alone."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


class TooLateError(Exception):
    """The deadline passed before the problem was on the device."""


def matrices_of(
    problems: Sequence[QuadraticProblem], device: torch.device, deadline: Deadline
) -> tuple[torch.Tensor, Floats]:
    """Q of every problem, float32 (problems, n, n), and the scale by which each was divided.

    The scale is the largest coefficient, 1 where all are 0: it keeps float32 in range.

    Raises:
        TooLateError: the deadline passed meanwhile.
    """
    scales = np.array([_scale(problem) for problem in problems])
    size = problems[0].num_variables
    matrices = torch.empty((len(problems), size, size), device=device)
    rows = max(1, _ENTRIES_PER_LOOK // max(1, size))
    for matrix, problem, scale in zip(matrices, problems, scales.tolist(), strict=True):
        for start in range(0, size, rows):
            if deadline.passed:
                raise TooLateError
            part = _rows(problem, start, start + rows) / scale
            matrix[start : start + rows] = torch.from_numpy(part.astype(np.float32)).to(device)
    return matrices, scales


class Batch:
    """Matrices, states and fields of problems of equal size and all their reads, on one device.

    Args:
        problems: all with counts or all without.
        matrices: see `matrices_of`.
        scales: see `matrices_of`.
        states: exact counts, shape (problems, reads, n).
        random: the generator of every draw.

    Attributes:
        matrices: Q of every problem, shape (problems, n, n), float32, scaled.
        linear: shape (problems, n), scaled.
        x: the states, shape (problems, reads, n), bool.
        field: linear + Q x, shape (problems, reads, n).
        scales: divisor of each problem's coefficients, shape (problems,).
    """

    def __init__(
        self,
        problems: Sequence[QuadraticProblem],
        matrices: torch.Tensor,
        scales: Floats,
        states: States,
        random: torch.Generator,
    ) -> None:
        self.matrices, self.scales, self.random = matrices, scales, random
        self.device = matrices.device
        linear = np.stack([problem.linear for problem in problems]) / scales[:, None]
        self.linear = torch.from_numpy(linear).float().to(self.device)
        self.x = torch.from_numpy(states).to(self.device).bool()
        self.half = 0.5 * matrices.diagonal(dim1=1, dim2=2)
        self.problems, self.reads, self.size = states.shape
        self.rows = matrices.reshape(self.problems * self.size, self.size)
        #: Row of ``rows`` where each problem's matrix begins, shape (problems, 1).
        self.first = torch.arange(self.problems, device=self.device)[:, None] * self.size
        self.refresh()

    def refresh(self) -> None:
        """Fields anew: float32 sums drift."""
        self.field = torch.baddbmm(self.linear[:, None], self.x.float(), self.matrices)

    def row(self, index: torch.Tensor) -> torch.Tensor:
        """Row ``index`` of each replica's matrix, (problems, reads) -> (problems, reads, n)."""
        return self.rows[self.first + index]

    def uniform(self, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1) from the batch's own generator."""
        return torch.rand(shape, generator=self.random, device=self.device)

    def exponential(self) -> torch.Tensor:
        """Unit exponential draws, shape (reads, n + spare): a step reads n from an `offsets`."""
        # torch's own exponential_ takes ten times as long on a CPU.
        draws = self.uniform(self.reads, self.size + self._spare)
        return draws.neg_().log1p_().neg_().clamp_(min=1e-30)

    def offsets(self, steps: int) -> list[int]:
        """The position in such draws at which each of ``steps`` steps begins to read."""
        at = torch.randint(self._spare, (steps,), generator=self.random, device=self.device)
        return at.tolist()

    @property
    def _spare(self) -> int:
        return max(64, 4 * self.size)

    def states(self) -> States:
        """The states, shape (problems, reads, n)."""
        return self.x.to(torch.int8).cpu().numpy()


def _scale(problem: QuadraticProblem) -> float:
    q = problem.quadratic
    if isinstance(q, Sparse):
        largest = np.abs(q.matrix.data).max(initial=0.0)
    else:  # positive semidefinite or not, |Q_ij| of a low-rank one is at most its diagonal's
        entries = q.diagonal() if isinstance(q, LowRank) else q.dense()
        largest = max(entries.max(initial=0.0), -entries.min(initial=0.0))
    return float(max(largest, np.abs(problem.linear).max(initial=0.0))) or 1.0


class Moves(ABC):
    """One kind of move of a batch's replicas."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._made = torch.zeros((), dtype=torch.int64, device=batch.device)

    @abstractmethod
    def sweep(self, temperatures: torch.Tensor | None, deadline: Deadline) -> None:
        """Move every replica as often as it has moves to offer, or until the deadline.

        Args:
            temperatures: of each problem, shape (problems,), scaled; None moves only downhill.
            deadline: when to stop.
        """

    def made(self) -> int:
        """Moves made so far, over all replicas."""
        return int(self._made)


def _rows(problem: QuadraticProblem, start: int, stop: int) -> Floats:
    q = problem.quadratic
    if isinstance(q, LowRank):
        return q.factor[:, start:stop].T @ q.factor
    if isinstance(q, Sparse):
        return np.asarray(q.matrix[start:stop].toarray(), dtype=np.float64)
    return q.dense()[start:stop]


def batches(num_reads: int | None, most: int) -> Iterator[int]:
    """Reads of each batch; without ``num_reads`` there is no end to them."""
    if num_reads is None:
        yield from repeat(most)
        return
    for done in range(0, num_reads, most):
        yield min(most, num_reads - done)


def for_descent(deadline: Deadline) -> Deadline:
    """The deadline of the last descent: some time after an interrupt, none after a time limit."""
    return Deadline(_SECONDS_AFTER_INTERRUPT) if deadline.interrupted else deadline


def steps_per_look(entries: float) -> int:
    """Steps between two looks at the clock, of a step that reads or writes so many numbers."""
    return max(1, min(16, int(_ENTRIES_PER_LOOK // max(1.0, entries))))


def largest_in_groups(
    positions: torch.Tensor, groups: torch.Tensor, starts: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """True at the ``counts[g]`` largest positions of every group g, for every row.

    Args:
        positions: shape (reads, n).
        groups: the group of every variable, shape (n,).
        starts: the number of variables in groups before g, shape (g,).
        counts: shape (g,).
    """
    by_position = positions.argsort(dim=-1, descending=True, stable=True)
    by_group = groups[by_position].argsort(dim=-1, stable=True)
    order = by_position.gather(-1, by_group)
    rank = torch.arange(groups.numel(), device=groups.device)
    sorted_groups = groups.sort().values
    chosen = rank - starts[sorted_groups] < counts[sorted_groups]
    return torch.zeros_like(positions, dtype=torch.bool).scatter_(
        -1, order, chosen.expand_as(positions)
    )
