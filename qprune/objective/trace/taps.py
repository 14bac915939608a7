"""Hooks on the inputs of matrices while a block runs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qprune.network.weights import Weight

#: Called with a matrix and its input (..., inputs) every time it is used.
See = Callable[[Weight, Tensor], None]


class Enough(Exception):  # noqa: N818 - ends a pass, no error
    """Signal of a `See` callback that ends the block's pass early."""


@contextmanager
def tapped(matrices: Sequence[Weight], see: See) -> Generator[None]:
    """While this lasts, ``see`` is called before each use of one of ``matrices``."""
    handles = [
        matrix.module.register_forward_pre_hook(_hook(matrix, see))
        for matrix in matrices
        if matrix.expert is None
    ]
    experts = [matrix for matrix in matrices if matrix.expert is not None]
    try:
        if experts:
            with _one_expert_at_a_time(experts), _LinearCalls(experts, see):
                yield
        else:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(matrix: Weight, see: See) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        see(matrix, args[0])

    return hook


class _LinearCalls(TorchFunctionMode):
    """Observer of ``linear(x, weight)`` with one expert's slice of a larger tensor."""

    def __init__(self, experts: Sequence[Weight], see: See) -> None:
        super().__init__()
        self._by_address = {m.part(m.parameter).data_ptr(): m for m in experts}
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            x, weight = (*args, *(kwargs[k] for k in ("input", "weight") if k in kwargs))[:2]
            matrix = self._by_address.get(weight.data_ptr())
            if matrix is not None and weight.shape == (matrix.rows, matrix.inputs):
                self._see(matrix, x)
        return func(*args, **kwargs)


@contextmanager
def _one_expert_at_a_time(experts: Sequence[Weight]) -> Generator[None]:
    """Transformers may fuse all experts into one product; their plain loop shows each alone."""
    name = "_experts_implementation"
    configs = {id(c): c for m in experts if (c := getattr(m.module, "config", None)) is not None}
    before = {key: getattr(config, name, None) for key, config in configs.items()}
    try:
        for key, config in configs.items():
            if before[key] is not None:
                setattr(config, name, "eager")
        yield
    finally:
        for key, config in configs.items():
            if before[key] is not None:
                setattr(config, name, before[key])
