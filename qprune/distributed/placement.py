"""Placement of a model: moved to the CPU for the run, and back."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn

from qprune.distributed.sharding import is_sharded
from qprune.errors import ImpossibleRequestError

logger = logging.getLogger(__name__)

_CPU = torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of all parameters and buffers; the CPU where there are none.

    Raises:
        ImpossibleRequestError: they are on several devices.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    first: dict[torch.device, str] = {}
    for name, tensor in named:
        first.setdefault(tensor.device, name)
    if len(first) > 1:
        (one, name), (other, another) = list(first.items())[:2]
        raise ImpossibleRequestError(
            f"the model is spread over several devices ({name!r} on {one}, {another!r} on "
            f"{other}); put it on one: model.cpu()"
        )
    return next(iter(first), _CPU)


@contextmanager
def on_cpu(model: nn.Module) -> Generator[torch.device]:
    """Keep the model on the CPU within the context; afterwards, also on an error, move it back.

    Parameters stay the same objects, so that an optimiser still refers to them. A model sharded
    over processes (`qprune.distributed.sharding`) is not moved.

    Yields:
        The model's original device.

    Raises:
        ImpossibleRequestError: it is on several devices, or cannot be moved.

    Example:
        >>> with on_cpu(nn.Linear(2, 3)) as home:
        ...     home
        device(type='cpu')
    """
    if any(is_sharded(parameter) for parameter in model.parameters()):
        yield _CPU
        return
    home = device_of(model)
    if home.type == "cpu":
        yield home
        return
    logger.info("the model is on %s: moved to the CPU, pruned there, and put back", home)
    _move(model, _CPU)
    try:
        yield home
    finally:
        _move(model, home)


@contextmanager
def back_home(model: nn.Module, home: torch.device) -> Generator[None]:
    """Move the model to its original device within the context, inside `on_cpu`."""
    if home.type == "cpu":
        yield
        return
    _move(model, home)
    try:
        yield
    finally:
        _move(model, _CPU)


def _move(model: nn.Module, device: torch.device) -> None:
    try:
        model.to(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ImpossibleRequestError(
            f"the model cannot be moved to {device}: {' '.join(str(error).split())[:200]}; pass "
            "one on the CPU"
        ) from error
