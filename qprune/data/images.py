"""Augmentation of images: shifted, turned, magnified, mirrored, blended, as the network bears it.

A network that is distilled follows the dense one wherever it is asked, so that what is asked may
lie beside the samples, and must only be of their kind: rich changes and blends of them, with the
dense network's outputs on the changed images as targets, go further than the samples themselves
(Beyer et al., arXiv 2106.05237). Which changes are of that kind differs: digits are not mirrored,
spectrograms not turned. The dense network is asked, not its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from qprune.data.augment import Augmentation, Mixup, check_copies
from qprune.data.inputs import AnyInputs, Inputs
from qprune.errors import CalibrationError, ImpossibleRequestError

Shape = tuple[int, int, int]

# Images on which a change is tried, and the loss that it may cause, as a share of that of others.
_TRIED, _LITTLE = 128, 0.05
# Largest turns in degrees, changes of size, and shares in a blend that are tried.
_DEGREES, _ZOOMS, _BLENDS = (5.0, 10.0), (0.05, 0.1), (0.25, 0.5)


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
    shape: Shape | None = None
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
        images = _images(inputs, self.shape, type(self).__name__)
        return _joined(inputs, (self._moved(images, generator) for _ in range(self.copies)))

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


@dataclass(frozen=True)
class WarpImages:
    """Images turned, magnified and shifted at once, bilinearly, with edges repeated.

    Each number is the end of a range, drawn from uniformly for each copy.

    Args:
        degrees: largest turn each way.
        zoom: largest change of size each way, as a share: 0.1 = 0.9 to 1.1 times as large.
        pixels: largest shift along height and along width.
        mirror: whether half of the copies are flipped left to right.
        shape: (channels, height, width) of flattened images; None for inputs (m, c, h, w).
        copies: changed images made per sample.

    Raises:
        ImpossibleRequestError: a number is negative, or too large to make sense.

    Example:
        >>> warp = WarpImages(degrees=5, copies=2, shape=(1, 8, 8))
        >>> warp(torch.zeros(4, 64), torch.Generator().manual_seed(0)).shape
        torch.Size([8, 64])
    """

    keeps_labels: ClassVar[bool] = True
    degrees: float = 10.0
    zoom: float = 0.1
    pixels: float = 2.0
    mirror: bool = False
    shape: Shape | None = None
    copies: int = 8

    def __post_init__(self) -> None:
        check_copies(self.copies)
        for name, most in (("degrees", 180), ("zoom", 0.9), ("pixels", math.inf)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ImpossibleRequestError(
                    f"{name} of WarpImages must lie between 0 and {most}, not {value!r}"
                )

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies; see `qprune.data.augment.Augmentation`.

        Raises:
            CalibrationError: the inputs are no images of that shape.
        """
        images = _images(inputs, self.shape, type(self).__name__)
        return _joined(inputs, (self._warped(images, generator) for _ in range(self.copies)))

    def _warped(self, images: Tensor, generator: torch.Generator) -> Tensor:
        number, _, height, width = images.shape

        def drawn(most: float) -> Tensor:
            return most * (2 * torch.rand(number, generator=generator) - 1)

        turn, size = drawn(math.radians(self.degrees)), 1 + drawn(self.zoom)
        # In units of half a side, as the grid has it.
        right, down = 2 * drawn(self.pixels) / width, 2 * drawn(self.pixels) / height
        along, across = turn.cos() / size, turn.sin() / size
        rows = [
            torch.stack([along, -across * height / width, right], 1),
            torch.stack([across * width / height, along, down], 1),
        ]
        if self.mirror:
            flip = torch.rand(number, 1, generator=generator) < 0.5
            rows[0] = torch.where(flip, -rows[0], rows[0])
        exact = images.to(torch.promote_types(images.dtype, torch.float32))
        grid = functional.affine_grid(
            torch.stack(rows, 1).to(exact), list(images.shape), align_corners=False
        )
        warped = functional.grid_sample(exact, grid, padding_mode="border", align_corners=False)
        return warped.to(images)


@dataclass(frozen=True)
class SuitedImages:
    """Augmentation of images that is still to be chosen: what the dense network bears.

    A change is taken as far as the dense network's outputs on changed images differ far less from
    those on the images than those on other images do. Shifts are always made.

    Args:
        shape: (channels, height, width) of flattened images; None for inputs (m, c, h, w).
        copies: changed images made per sample.
        rich: whether more than shifts and mirroring is tried.

    Example:
        >>> images = torch.rand(8, 1, 6, 6)
        >>> SuitedImages().chosen(images, lambda changed, images: 1.0, blends=True)
        ShiftImages(pixels=2, mirror=False, shape=None, copies=8)
    """

    keeps_labels: ClassVar[bool] = True
    shape: Shape | None = None
    copies: int = 8
    rich: bool = True

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return shifted copies, which every network bears."""
        return ShiftImages(shape=self.shape, copies=self.copies)(inputs, generator)

    def chosen(
        self, inputs: Tensor, felt: Callable[[Tensor, Tensor], float], *, blends: bool
    ) -> Augmentation:
        """Return the augmentation for ``inputs``.

        Args:
            inputs: the samples, of which some are passed.
            felt: (changed samples, samples) -> the loss of the dense network's outputs on changed
                samples against those on the samples.
            blends: whether two images may be blended, which leaves them without labels.
        """
        number = min(_TRIED, len(inputs))
        some = inputs[torch.arange(number) * len(inputs) // number]
        little = _LITTLE * felt(some.roll(1, 0), some)

        def borne(change: Augmentation) -> bool:
            return felt(change(some, torch.Generator().manual_seed(0)), some) <= little

        flipped = _images(some, self.shape, type(self).__name__).flip(-1).reshape(some.shape)
        mirror = felt(flipped, some) <= little
        shifted = ShiftImages(mirror=mirror, shape=self.shape, copies=self.copies)
        if not self.rich:
            return shifted
        still = WarpImages(0.0, 0.0, 0.0, shape=self.shape, copies=1)
        degrees = max((d for d in _DEGREES if borne(replace(still, degrees=d))), default=0.0)
        zoom = max((z for z in _ZOOMS if borne(replace(still, zoom=z))), default=0.0)
        warped = WarpImages(degrees, zoom, 2.0, mirror, self.shape, self.copies)
        changed = warped if degrees or zoom else shifted
        shares = [share for share in _BLENDS if blends and borne(Mixup(1, share))]
        if shares:
            return Mixup(self.copies, max(shares), replace(changed, copies=1))
        return changed


def natural(inputs: AnyInputs) -> Augmentation | None:
    """Return the default augmentation of ``inputs``: shifts of images, blends, or None.

    Images are mirrored too where the dense network bears it. None for tokens, and for inputs of
    several tensors, which need not match after a change.
    """
    if isinstance(inputs, Inputs) or not inputs.is_floating_point():
        return None
    return SuitedImages(rich=False) if inputs.ndim == 4 else Mixup()


def _joined(inputs: Tensor, copies: Iterable[Tensor]) -> Tensor:
    """All ``copies`` one after the other, each in the shape of ``inputs``; none are possible."""
    return torch.cat([inputs[:0], *(copy.view_as(inputs) for copy in copies)])


def _images(inputs: Tensor, shape: Shape | None, name: str) -> Tensor:
    """``inputs`` as images (m, c, h, w).

    Raises:
        CalibrationError: they are none of that shape.
    """
    sizes = shape or tuple(inputs.shape[1:])
    if not inputs.is_floating_point():
        raise CalibrationError(
            f"{name} changes images of floating-point numbers, not inputs of type {inputs.dtype}"
        )
    if len(sizes) != 3 or inputs[0].numel() != math.prod(sizes):
        raise CalibrationError(
            f"inputs of shape {tuple(inputs.shape[1:])} are no images (channels, height, "
            f"width); give {name} their shape, or use Mixup"
        )
    return inputs.reshape(-1, *sizes)
