"""Statistics of BatchNorm: a pruned network's activations have others than the dense one's.

Means and variances that were taken when nothing was pruned shift and scale every channel of a
pruned network. They are taken again on calibration samples, without labels (Nagel et al.,
arXiv 1906.04721, and Li et al., arXiv 2007.02491, on why this decides how pruned networks rank).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

T = TypeVar("T")


def norms_of(model: nn.Module) -> list[_BatchNorm]:
    """The modules of ``model`` that keep a running mean and variance, each once.

    Not those that share theirs with other processes, where there are some: these would wait.

    Example:
        >>> len(norms_of(nn.Sequential(nn.BatchNorm1d(3), nn.GroupNorm(1, 3))))
        1
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    return [
        norm
        for norm in norms
        if None not in (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        and not (shared and isinstance(norm, nn.SyncBatchNorm))
    ]


def affine_of(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of those modules, a scale before its shift; none without the other."""
    pairs = [(norm.weight, norm.bias) for norm in norms_of(model)]
    return [tensor for pair in pairs if None not in pair for tensor in pair]


def free_affine_of(model: nn.Module) -> list[nn.Parameter]:
    """Those of them that are not frozen: in pairs of which both require gradients.

    All of them where nothing in the model does, as it is loaded to be looked at only.
    """
    tensors = affine_of(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return tensors
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    return [tensor for pair in pairs if all(t.requires_grad for t in pair) for tensor in pair]


def statistics_of(model: nn.Module) -> Tensor | None:
    """All running means and variances, scales and shifts as one new vector; None without any."""
    tensors = _tensors(model)
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors]) if tensors else None


@torch.no_grad()
def write_statistics(model: nn.Module, values: Tensor) -> None:
    """Set all of them from a vector of `statistics_of`."""
    tensors = _tensors(model)
    for tensor, part in zip(tensors, values.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def by_batch(model: nn.Module) -> Generator[None]:
    """Every batch is normalised by its own mean and variance; none are kept."""
    with _training(norms_of(model), 0.0):
        yield


@torch.no_grad()
def take_again(model: nn.Module, run: Callable[[T], object], batches: Iterable[T]) -> None:
    """Take running means and variances again: the means of those of ``batches``, passed by ``run``.

    Every other module stays in its mode.
    """
    norms = norms_of(model)
    with _training(norms, None):
        for norm in norms:
            norm.reset_running_stats()
        for batch in batches:
            run(batch)


@contextmanager
def _training(norms: list[_BatchNorm], momentum: float | None) -> Generator[None]:
    """Training mode with this momentum; None = the mean over all batches."""
    known = [(norm, norm.training, norm.momentum, _count(norm).clone()) for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, momentum
    try:
        yield
    finally:
        for norm, training, before, count in known:
            norm.training, norm.momentum = training, before
            _count(norm).copy_(count)


def _count(norm: _BatchNorm) -> Tensor:
    assert norm.num_batches_tracked is not None
    return norm.num_batches_tracked


def _tensors(model: nn.Module) -> list[Tensor]:
    found: list[Tensor] = []
    for norm in norms_of(model):
        found += [tensor for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
    return [*found, *affine_of(model)]
