"""The common part of the torch samplers: device, random generator, matrices, counts."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator

from solvers.errors import InvalidOptionError, MissingPackageError
from solvers.host.clock import Deadline
from solvers.host.machine import require_memory
from solvers.problem.problem import Floats, QuadraticProblem
from solvers.problem.quadratic import LowRank, Sparse

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


def scale_of(problem: QuadraticProblem) -> float:
    """The largest coefficient, 1 where all are 0; dividing by it keeps float32 in range."""
    q = problem.quadratic
    if isinstance(q, Sparse):
        largest = np.abs(q.matrix.data).max(initial=0.0)
    else:  # positive semidefinite or not, |Q_ij| of a low-rank one is at most its diagonal's
        entries = q.diagonal() if isinstance(q, LowRank) else q.dense()
        largest = max(entries.max(initial=0.0), -entries.min(initial=0.0))
    return float(max(largest, np.abs(problem.linear).max(initial=0.0))) or 1.0


class TooLateError(Exception):
    """The deadline passed before the problem was on the device."""


def write_matrix(
    matrix: torch.Tensor, problem: QuadraticProblem, scale: float, deadline: Deadline
) -> None:
    """Write Q / scale into a float32 tensor of shape (n, n), some rows at a time.

    Raises:
        TooLateError: the deadline passed meanwhile.
    """
    size = problem.num_variables
    rows = max(1, _ENTRIES_PER_LOOK // max(1, size))
    for start in range(0, size, rows):
        if deadline.passed:
            raise TooLateError
        part = _rows(problem, start, start + rows) / scale
        matrix[start : start + rows] = torch.from_numpy(part.astype(np.float32)).to(matrix.device)


def _rows(problem: QuadraticProblem, start: int, stop: int) -> Floats:
    q = problem.quadratic
    if isinstance(q, LowRank):
        return q.factor[:, start:stop].T @ q.factor
    if isinstance(q, Sparse):
        return np.asarray(q.matrix[start:stop].toarray(), dtype=np.float64)
    return q.dense()[start:stop]


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
