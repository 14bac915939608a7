"""Fast paths of torch that have no derivatives, switched off for a while.

The fused kernel of nn.MultiheadAttention and nn.TransformerEncoderLayer in evaluation mode has no
derivative, and torch.utils.checkpoint forgets what a derivative within the network needs. The
numbers are the same without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import checkpoint

# The names by which torch.utils.checkpoint finds its two kinds; torch may rename the second.
_KINDS = ("CheckpointFunction", "_checkpoint_without_reentrant_generator")


class _NothingForgotten:
    """Stands for the autograd function of reentrant checkpoints: it just calls."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args)


def _nothing_around(*_: Any, **__: Any) -> Iterator[None]:
    """Stands for checkpoints of the other kind: nothing before the call, nothing after it."""
    yield


@contextmanager
def derivable() -> Iterator[None]:
    """Inside, every module of torch's own can be differentiated; everything put back.

    The switches are the process' own: not to be entered by several threads at once.
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
