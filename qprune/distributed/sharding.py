"""Weights sharded over processes by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Such a weight is a DTensor: every rank holds some of its rows, and only while a module runs does
it hold all of them. FSDP's own gradients are not used, since it adds them up over the ranks in
an order of its own: the passes differentiate by the layers' outputs (see
    `qprune.objective.trace.recorder`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from qprune.errors import ImpossibleRequestError


def is_sharded(tensor: Tensor) -> bool:
    """Return True for a DTensor, without importing torch's distributed package."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor on every rank; every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyright: ignore


def local_rows(weight: Tensor) -> tuple[Tensor, int]:
    """Return (this rank's rows, the index of the first)."""
    mesh = weight.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    length = -(-weight.shape[0] // mesh.size())
    local = weight.to_local()  # pyright: ignore[reportAttributeAccessIssue]
    return local, min(mesh.get_local_rank() * length, weight.shape[0])


def write_rows(weight: Tensor, values: Tensor) -> None:
    """Set a sharded weight from all of its values; every rank writes its own rows."""
    local, first = local_rows(weight)
    local.copy_(values[first : first + len(local)])


def write_elements(weight: Tensor, positions: tuple[Tensor, ...], values: Tensor) -> None:
    """Set some elements of a sharded weight, by their indices in each dimension."""
    local, first = local_rows(weight)
    here = (positions[0] >= first) & (positions[0] < first + len(local))
    rows, *rest = (index[here] for index in positions)
    local[(rows - first, *rest)] = values[here].to(local.dtype)


def refuse_other_shardings(name: str, weight: Tensor, num_ranks: int) -> None:
    """Refuse weights that are not sharded by rows over all ranks.

    Raises:
        ImpossibleRequestError: the sharding is another one.
    """
    mesh = weight.device_mesh  # pyright: ignore[reportAttributeAccessIssue]
    placements = weight.placements  # pyright: ignore[reportAttributeAccessIssue]
    if mesh.ndim != 1 or not placements[0].is_shard(0):
        raise ImpossibleRequestError(
            f"the weight of {name!r} is spread as {placements} over a mesh of {mesh.ndim} "
            "dimensions; qprune takes what fully_shard(module) makes on one mesh dimension"
        )
    if mesh.size() != num_ranks:
        raise ImpossibleRequestError(
            f"the weight of {name!r} is spread over {mesh.size()} processes, and the run has "
            f"{num_ranks}; pass ranks=qprune.DataParallel()"
        )


class Tangents:
    """Forward hooks that move the layers' weights along a direction (forward differentiation).

    Args:
        modules: modules with the direction of each one's weight.
    """

    def __init__(self, modules: Iterator[tuple[nn.Module, Tensor]]) -> None:
        self._modules = list(modules)

    def __enter__(self) -> Tangents:
        self._level = forward_ad.dual_level()
        self._level.__enter__()
        self._handles = [m.register_forward_hook(_along(v)) for m, v in self._modules]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._level.__exit__(*error)


def _along(direction: Tensor):
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs = forward_ad.unpack_dual(args[0]).primal
        if isinstance(module, nn.Conv2d):
            moved = module._conv_forward(inputs, direction.to(inputs), None)
        else:
            moved = functional.linear(inputs, direction.to(inputs))
        return output + forward_ad.make_dual(torch.zeros_like(moved), moved)

    return hook
