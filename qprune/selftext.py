"""Augmentation by text that the dense language model writes itself.

The dense model continues pieces of the calibration sequences, token by token from its own
distribution. No other text and no labels are used: as with every augmentation, the dense
model's outputs are the targets (LLM-QAT, Liu et al., arXiv 2305.17888, makes its training data
in this way).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from qprune.augment import check_copies
from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.kinds import draw_classes

#: Largest number of tokens with cached keys and values.
CACHED_TOKENS = 1 << 15
# Argument and output for keys and values; renamed in transformers 5.
_CACHES = ("cache", "past_key_values")


def cache_name(model: nn.Module) -> str | None:
    """Return the name of the argument for keys and values; None if the model cannot write text."""
    takes = inspect.signature(model.forward).parameters
    return next((name for name in _CACHES if name in takes), None)


@dataclass(frozen=True)
class OwnText:
    """Augmentation by continuations of pieces of the calibration sequences, at temperature 1.

    Args:
        model: causal language model with Hugging Face's interface (``past_key_values``, or
            ``cache`` since transformers 5), called while it is dense.
        copies: sequences written per calibration sequence.
        prefix: tokens that each begins with, from a random place of a calibration sequence.
        observe: progress callback: (sequences written, total).
        enough: callback at every token; True ends the writing with the complete sequences.

    Raises:
        ImpossibleRequestError: ``copies`` is negative, or ``prefix`` less than 1.
    """

    keeps_labels: ClassVar[bool] = False
    model: nn.Module = field(repr=False)
    copies: int = 4
    prefix: int = 32
    observe: Callable[[int, int], None] | None = field(default=None, repr=False)
    enough: Callable[[], bool] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_copies(self.copies)
        if self.prefix < 1:
            raise ImpossibleRequestError(f"prefix must be at least 1 token, not {self.prefix!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return written sequences for token ids ``inputs`` (m, T); see `Augmentation`.

        Raises:
            CalibrationError: the inputs are no sequences of tokens, or too short; or the model
                cannot write text.
        """
        if inputs.ndim != 2 or inputs.is_floating_point() or inputs.shape[1] < 2:
            raise CalibrationError(
                f"OwnText goes on from token ids (m, T), not from inputs of shape "
                f"{tuple(inputs.shape)} and type {inputs.dtype}; use augment=None"
            )
        length = inputs.shape[1]
        prefix = min(self.prefix, length - 1)
        written = [inputs[:0]]
        for _ in range(self.copies):
            places = torch.randint(length - prefix + 1, (len(inputs), 1), generator=generator)
            pieces = inputs.gather(1, (places + torch.arange(prefix)).to(inputs.device))
            for batch in pieces.split(max(1, CACHED_TOKENS // length)):
                continued = self._continued(batch, length, generator)
                if continued is None:
                    return torch.cat(written)
                written.append(continued)
                if self.observe is not None:
                    self.observe(sum(map(len, written)), self.copies * len(inputs))
        return torch.cat(written)

    @torch.no_grad()
    def _continued(self, tokens: Tensor, length: int, generator: torch.Generator) -> Tensor | None:
        """Return ``tokens`` (m, t) with their continuation, (m, length); None if ended early."""
        name = cache_name(self.model)
        if name is None:
            raise CalibrationError(
                f"{type(self.model).__name__} cannot write text of its own (it takes neither "
                f"{' nor '.join(_CACHES)}); use augment=None"
            )
        sequences, cache = tokens, None
        while sequences.shape[1] < length:
            if self.enough is not None and self.enough():
                return None
            output = self.model(tokens, use_cache=True, **{name: cache})
            cache = getattr(output, name, None)
            if cache is None:
                raise CalibrationError(
                    f"{type(self.model).__name__} returns no {name} to go on from; use augment=None"
                )
            tokens = draw_classes(output.logits[:, -1:].float(), generator).to(tokens)
            sequences = torch.cat([sequences, tokens], 1)
        return sequences
