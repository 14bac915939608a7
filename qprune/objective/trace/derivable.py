"""Context in which torch's fast paths without derivatives are switched off.

The fused kernel of nn.MultiheadAttention and nn.TransformerEncoderLayer in evaluation mode has no
derivative, and torch.utils.checkpoint forgets what a derivative within the network needs. The
numbers are the same without.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

# Names of the two implementations in torch.utils.checkpoint; torch may rename the second.
_KINDS = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")


class _NothingForgotten:
    """Replacement of the autograd function of reentrant checkpoints: a plain call."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*_: Any, **__: Any) -> Iterator[None]:
    """Replacement of the context of non-reentrant checkpoints: an empty one."""
    yield


@contextmanager
def derivable() -> Generator[None]:
    """Make all torch modules differentiable within the context; restored on exit.

    The switches are global to the process: do not enter from several threads at once.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    kinds = {name: getattr(checkpoint, name) for name in _KINDS if hasattr(checkpoint, name)}
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for name, plain in zip(_KINDS, (_NothingForgotten, _nothing_around), strict=True):
            if name in kinds:
                setattr(checkpoint, name, plain)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for name, kind in kinds.items():
            setattr(checkpoint, name, kind)
