"""Augmentation: more samples to fit on, made from given ones, with the dense network's outputs.

With few calibration samples the second-order step fits their noise. A dense network can be asked
about any input, so that blends and shifted copies of the samples pin it down further, and no
labels are invented. The acceptance split is never augmented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from qprune.errors import CalibrationError, ImpossibleRequestError
from qprune.inputs import AnyInputs, Inputs


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


def natural(inputs: AnyInputs) -> Augmentation | None:
    """Return the default augmentation of ``inputs``: shifts, blends, or None.

    None for tokens, and for inputs of several tensors, which need not match after a change.
    """
    if isinstance(inputs, Inputs) or not inputs.is_floating_point():
        return None
    return ShiftImages() if inputs.ndim == 4 else Mixup()


def check_copies(copies: int) -> None:
    """Refuse a negative number of copies.

    Raises:
        ImpossibleRequestError: ``copies`` is negative.
    """
    if copies < 0:
        raise ImpossibleRequestError(f"copies must be at least 0, not {copies!r}")
