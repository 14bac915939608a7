"""Silero VAD at 16 kHz, rebuilt from package silero-vad's safetensors, on espeak-ng's speech."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real.case import Case, MissingError, Sizes, file_of
from benchmarks.real.text import sentences

RATE = 16_000
#: Samples between two decisions, and what is heard again of the frame before.
FRAME, CONTEXT = 512, 64
#: Frames of a clip, one second to prune on and two to measure on.
FRAMES = {"calibration": 32, "validation": 64, "test": 64}
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-us-nyc", "en-029")
VOICES = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4", "f5")


class SileroVad(nn.Module):
    """Spectrum, four convolutions, an LSTM over the frames, and a sigmoid for every frame.

    The sizes are those of the package's `tinygrad_model.py`; the Fourier basis is a buffer, as in
    its own TorchScript model.
    """

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(258, 1, 256))
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound: Tensor) -> Tensor:
        """Probability of speech, shape (m, T), in frames of 32 ms of sound (m, 512 T)."""
        frames = functional.pad(sound, (CONTEXT, 0)).unfold(1, CONTEXT + FRAME, FRAME)
        x = functional.pad(frames.flatten(0, 1), (0, 64), mode="reflect")[:, None]  # (m T, 1, 640)
        real, imaginary = functional.conv1d(x, self.basis, stride=128).chunk(2, 1)
        x = (real**2 + imaginary**2).sqrt()  # (m T, 129, 4)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = functional.relu(conv(x))
        x, _ = self.lstm(x.view(*frames.shape[:2], 128))  # (m, T, 128)
        return torch.sigmoid(self.final_conv(functional.relu(x).mT))[:, 0]


def silero_vad() -> SileroVad:
    """The trained network."""
    weights = load_file(file_of("silero-vad", "silero_vad_16k.safetensors"))
    names = {"stft_conv.weight": "basis"}
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        names[f"lstm_cell.{kind}"] = f"lstm.{kind}_l0"
    model = SileroVad()
    model.load_state_dict({names.get(name, name): w for name, w in weights.items()})
    return model.eval()


def spoken(words: str, generator: np.random.Generator) -> np.ndarray:
    """``words`` in a random voice, pitch and speed, at 16 kHz, within [-1, 1].

    Raises:
        MissingError: there is no espeak-ng.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise MissingError("espeak-ng makes the speech and is missing: apt-get install espeak-ng")
    voice = f"{generator.choice(ACCENTS)}+{generator.choice(VOICES)}"
    speed, pitch = generator.integers(130, 210), generator.integers(25, 80)
    call = [program, "-v", voice, "-s", str(speed), "-p", str(pitch)]
    # To a file: into a pipe it writes a header without the length.
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run([*call, "-w", file.name, words], check=True)
        rate, sound = wavfile.read(file.name)
    return resample_poly(sound / 32768, RATE, rate)


def in_noise(speech: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """``number`` samples of sound that hold ``speech`` somewhere, in noise 0 to 30 dB below it.

    The spectrum of the noise falls by 0 to 6 dB an octave.
    """
    speech = speech[:number]
    speech = speech / speech.std()
    spectrum = np.fft.rfft(generator.standard_normal(number))
    noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** generator.uniform(0, 1))
    sound = 10 ** (-generator.uniform(0, 30) / 20) * noise / noise.std()
    start = generator.integers(number - len(speech) + 1)
    sound[start : start + len(speech)] += speech
    return generator.uniform(0.1, 0.9) * sound / np.abs(sound).max()


def clips(sentences: Sequence[str], frames: int, seed: int) -> Tensor:
    """One clip for every sentence: one to three of its words a second, in noise.

    Returns:
        Shape (sentences, 512 * frames), at 16 kHz.
    """
    generator = np.random.default_rng(seed)
    seconds = frames // 32
    made = []
    for sentence in sentences:
        number = generator.integers(seconds, 3 * seconds + 1)
        words = " ".join(re.findall(r"[A-Za-z']+", sentence)[:number])
        made.append(in_noise(spoken(words, generator), frames * FRAME, generator))
    return torch.tensor(np.array(made), dtype=torch.float32)


def case(data: Path, sizes: Sizes) -> Case:
    """Silero VAD with clips of sentences of the three splits of wikitext-2 in folder ``data``.

    Raises:
        MissingError: package silero-vad, espeak-ng or the text is not there.
    """
    model = silero_vad()
    splits = {
        split: clips(sentences(data, split, number), FRAMES[split], seed)
        for seed, (split, number) in enumerate(asdict(sizes).items(), start=1)
    }
    decided = {split: decisions(model, splits[split]) for split in ("validation", "test")}

    def figure(model: nn.Module, split: str) -> float:
        return 100 * (decisions(model, splits[split]) == decided[split]).double().mean().item()

    return Case(model, splits["calibration"], "frames with the dense network's decision", figure)


@torch.no_grad()
def decisions(model: nn.Module, sound: Tensor) -> Tensor:
    """Which frames hold speech, by the package's own threshold: bool (m, T)."""
    return torch.cat([model(batch) > 0.5 for batch in sound.split(50)])
