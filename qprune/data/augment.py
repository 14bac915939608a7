"""Augmentation: more samples to fit on, made from given ones, with the dense network's outputs.

With few calibration samples the second-order step fits their noise. A dense network can be asked
about any input, so that blends and shifted copies of the samples pin it down further, and no
labels are invented. The acceptance split is never augmented.

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
from torch.nn import functional

from qprune.data.inputs import AnyInputs, Inputs
from qprune.data.outputs import draw_classes
from qprune.errors import CalibrationError, ImpossibleRequestError

# Images on which mirroring is tried, and the loss that it may cause, as a share of that of others.
_MIRRORED, _LITTLE = 128, 0.05


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

    def __post_init__(self) -> None:
        check_copies(self.copies)
        if not 0 < self.strength <= 1:
            raise ImpossibleRequestError(f"strength must lie in (0, 1], not {self.strength!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        size = len(inputs)
        blends = [inputs[:0]]
        for _ in range(self.copies):
            partner = torch.randperm(size, generator=generator)
            share = self.strength * torch.rand(size, generator=generator)
            share = share.view(-1, *[1] * (inputs.ndim - 1)).to(inputs)
            blends.append(torch.lerp(inputs, inputs[partner], share))
        return torch.cat(blends)


@dataclass(frozen=True)
class ShiftImages:
    """Images shifted by a few pixels each way, edges repeated; half of them mirrored on request.

    Args:
        pixels: largest shift along height and along width.
        mirror: whether half of the copies are flipped left to right.
        shape: (channels, height, width) of flattened images; None for inputs (m, c, h, w).
        copies: shifted images made per sample.

    Raises:
        ImpossibleRequestError: ``pixels`` or ``copies`` is negative.

    Example:
        >>> shift = ShiftImages(copies=2, shape=(1, 8, 8))
        >>> shift(torch.zeros(4, 64), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 64])
    """

    keeps_labels: ClassVar[bool] = True
    pixels: int = 2
    mirror: bool = False
    shape: tuple[int, int, int] | None = None
    copies: int = 8

    def __post_init__(self) -> None:
        check_copies(self.copies)
        if self.pixels < 0:
            raise ImpossibleRequestError(f"pixels must be at least 0, not {self.pixels!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return shifted copies; see `Augmentation`.

        Raises:
            CalibrationError: the inputs are no images of that shape.
        """
        shape = self.shape or tuple(inputs.shape[1:])
        if len(shape) != 3 or inputs[0].numel() != shape[0] * shape[1] * shape[2]:
            raise CalibrationError(
                f"inputs of shape {tuple(inputs.shape[1:])} are no images (channels, height, "
                "width); give ShiftImages their shape, or use Mixup"
            )
        images = inputs.view(-1, *shape)
        copies = [self._moved(images, generator) for _ in range(self.copies)]
        return torch.cat([inputs[:0], *(copy.view_as(inputs) for copy in copies)])

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        number, _, height, width = images.shape
        edge = self.pixels
        padded = functional.pad(images, (edge,) * 4, mode="replicate")
        down, right = (
            torch.randint(2 * edge + 1, (number, 1), generator=generator) for _ in range(2)
        )
        rows = down + torch.arange(height)
        cols = right + torch.arange(width)
        if self.mirror:
            flip = torch.rand(number, 1, generator=generator) < 0.5
            cols = torch.where(flip, cols.flip(1), cols)
        sample = torch.arange(number)[:, None, None]
        return padded.movedim(1, -1)[sample, rows[:, :, None], cols[:, None, :]].movedim(-1, 1)


def natural(inputs: AnyInputs, felt: Callable[[Tensor, Tensor], float]) -> Augmentation | None:
    """Return the default augmentation of ``inputs``: shifts, blends, or None.

    None for tokens, and for inputs of several tensors, which need not match after a change.
    Images are mirrored too where the dense network hardly minds: far less than to be shown others
    in their place.

    Args:
        inputs: the samples.
        felt: (changed samples, samples) -> the loss of the dense network's outputs on changed
            samples against those on the samples.
    """
    if isinstance(inputs, Inputs) or not inputs.is_floating_point():
        return None
    if inputs.ndim != 4:
        return Mixup()
    some = inputs[torch.arange(min(_MIRRORED, len(inputs))) * len(inputs) // _MIRRORED]
    return ShiftImages(mirror=felt(some.flip(-1), some) <= _LITTLE * felt(some.roll(1, 0), some))


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
