"""Augmentation: more samples to fit on, made from given ones, with the dense network's outputs.

With few calibration samples the second-order step fits their noise. A dense network can be asked
about any input, so that blends and changed copies of the samples pin it down further, and no
labels are invented. Images are changed in `qprune.data.images`. The acceptance split is never
augmented.

Augmentation by text that the dense language model writes itself.

The dense model continues pieces of the calibration sequences, token by token from its own
distribution. No other text and no labels are used: as with every augmentation, the dense
model's outputs are the targets (LLM-QAT, Liu et al., arXiv 2305.17888, makes its training data
in this way).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from qprune.data.outputs import draw_classes
from qprune.errors import CalibrationError, ImpossibleRequestError


class Augmentation(Protocol):
    """Protocol of an augmentation: makes more samples from given ones.

    `keeps_labels` says whether a new sample has the label of the one it was made from.
    """

    keeps_labels: ClassVar[bool]

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of ``inputs`` (m, ...), one after the other, (copies * m, ...)."""
        ...


@dataclass(frozen=True)
class Mixup:
    """Blends of two samples, (1 - t) a + t b with t uniform in (0, strength).

    The inputs of Zhang et al., "mixup" (arXiv 1710.09412), with the dense network's answer in
    place of blended labels.

    Args:
        copies: blends made per sample.
        strength: largest share of the second sample.
        of: changes both samples before; its first copy of each is taken. None = as they are.

    Raises:
        ImpossibleRequestError: ``copies`` is negative or ``strength`` not in (0, 1].

    Example:
        >>> more = Mixup(copies=3)(torch.zeros(4, 5), torch.Generator().manual_seed(0))
        >>> more.shape
        torch.Size([12, 5])
    """

    keeps_labels: ClassVar[bool] = False
    copies: int = 8
    strength: float = 0.5
    of: Augmentation | None = None

    def __post_init__(self) -> None:
        check_copies(self.copies)
        if not 0 < self.strength <= 1:
            raise ImpossibleRequestError(f"strength must lie in (0, 1], not {self.strength!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        size = len(inputs)
        blends = [inputs[:0]]
        for _ in range(self.copies):
            mixed = inputs if self.of is None else self.of(inputs, generator)[:size]
            partner = torch.randperm(size, generator=generator)
            share = self.strength * torch.rand(size, generator=generator)
            share = share.view(-1, *[1] * (inputs.ndim - 1)).to(inputs)
            blends.append(torch.lerp(mixed, mixed[partner], share))
        return torch.cat(blends)


def check_copies(copies: int) -> None:
    """Refuse a negative number of copies.

    Raises:
        ImpossibleRequestError: ``copies`` is negative.
    """
    if copies < 0:
        raise ImpossibleRequestError(f"copies must be at least 0, not {copies!r}")


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
