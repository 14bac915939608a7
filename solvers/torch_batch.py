"""What the torch samplers share: a checked device, a generator of its own, matrices, counts."""

from __future__ import annotations

import numpy as np
import torch

from solvers.errors import InvalidOptionError, MissingPackageError
from solvers.memory import require_memory
from solvers.problem import QuadraticProblem
from solvers.quadratic import LowRank, Sparse


def checked_device(device: str) -> torch.device:
    """``device`` as torch's.

    Raises:
        InvalidOptionError: torch does not know it.
        MissingPackageError: it is a CUDA device and there is none.
    """
    try:
        known = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidOptionError(f'device must be "cpu" or "cuda", not {device!r}') from error
    if known.type == "cuda" and not torch.cuda.is_available():
        raise MissingPackageError("torch finds no CUDA device here; pass device='cpu'")
    return known


def require_room(num_bytes: float, what: str, way_out: str, device: torch.device) -> None:
    """Refuse what does not fit on ``device``; see `solvers.memory.require_memory`."""
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


def matrix_on(problem: QuadraticProblem, scale: float, device: torch.device) -> torch.Tensor:
    """Q / scale in float32, shape (n, n)."""
    q = problem.quadratic
    if isinstance(q, LowRank):
        factor = torch.from_numpy(q.factor / scale**0.5).to(device)
        return (factor.T @ factor).float()
    return torch.from_numpy(np.asarray(q.dense() / scale, dtype=np.float32)).to(device)


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
