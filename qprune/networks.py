"""Definitions of the networks that `zoo` builds by name, without weights."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class MLP(nn.Module):
    """Fully connected layers ``fc1``, ``fc2``, ... with ReLU between them.

    Args:
        widths: inputs, hidden units, outputs: (784, 40, 20, 10) has three layers.
        bias: add biases to the layers.
    """

    def __init__(self, widths: tuple[int, ...], *, bias: bool) -> None:
        super().__init__()
        self.depth = len(widths) - 1
        for number, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
            setattr(self, f"fc{number}", nn.Linear(fan_in, fan_out, bias=bias))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape (batch, widths[-1]); inputs are flattened."""
        x = inputs.flatten(1)  # (batch, widths[0])
        for number in range(1, self.depth):
            x = relu(getattr(self, f"fc{number}")(x))
        return getattr(self, f"fc{self.depth}")(x)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential()
        if stride != 1 or channels_in != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, shape (batch, channels, height / stride, width / stride)."""
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + self.downsample(x))


class ResNet20(nn.Module):
    """ResNet-20 for 32x32 images (He et al., arXiv 1512.03385, section 4.2).

    Shortcuts that change shape are 1x1 convolutions with BatchNorm, as in the checkpoint that
    the WoodFisher, M-FAC and CHITA papers prune.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stack(16, 16, stride=1)
        self.layer2 = _stack(16, 32, stride=2)
        self.layer3 = _stack(32, 64, stride=2)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits, shape (batch, classes), of images of shape (batch, 3, 32, 32)."""
        x = relu(self.bn1(self.conv1(inputs)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean(dim=(2, 3)))


def _stack(channels_in: int, channels: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(channels_in, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(2)))


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Set He-normal weights and zero biases from ``seed``; the global generator is untouched."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                module.bias.zero_()
