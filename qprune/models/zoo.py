"""Definitions of the networks that `zoo` builds by name, without weights.

Models by name: benchmark networks, torchvision's, and the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from qprune.distributed.workers import limited_threads
from qprune.errors import DISK, ImpossibleRequestError
from qprune.models.datasets import load_data
from qprune.models.factories import call_factory


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


_TRAINING_SEED = 0


def load_model(spec: str, weights: str | Path | None = None) -> nn.Module:
    """Return the network that ``spec`` names, in evaluation mode.

    Args:
        spec: ``digits-mlp`` (64-64-64-10, trained on the spot when no weights are given),
            ``mlpnet`` (784-40-20-10 without biases), ``resnet20`` (CIFAR-10),
            ``torchvision:NAME``, or ``package.module:factory``, a callable without arguments
            that returns an `nn.Module`.
        weights: safetensors file with every parameter and buffer of the network.

    Raises:
        ImpossibleRequestError: no such model or file, or the file is for another network.
    """
    kind, _, rest = spec.partition(":")
    if kind == "torchvision":
        model = _torchvision(rest, pretrained=weights is None)
    elif rest:
        model = call_factory(spec, nn.Module)
    elif spec in _NETWORKS:
        # torch initialises layers from the global generator, which belongs to the caller.
        with torch.random.fork_rng(devices=[]):
            model = _NETWORKS[spec](weights is None)
    else:
        raise ImpossibleRequestError(
            f"no model named {spec!r}; there are: {', '.join(_NETWORKS)}, torchvision:NAME, "
            "package.module:factory"
        )
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.eval()


def train_classifier(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Train in place for seconds: AdamW, cosine decay, one fixed seed, one thread."""
    epochs, batch_size = 60, 64
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = epochs * -(-len(inputs) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(_TRAINING_SEED)
    with limited_threads(1):
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs), generator=generator).split(batch_size):
                optimizer.zero_grad()
                cross_entropy(model(inputs[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    model.zero_grad()


def _digits_mlp(trained: bool) -> nn.Module:
    model = MLP((64, 64, 64, 10), bias=True)
    initialise(model, _TRAINING_SEED)
    if trained:
        data = load_data("digits")
        train_classifier(model, data.train_inputs, data.train_labels)
    return model


def _mlpnet(trained: bool) -> nn.Module:
    _need_weights("mlpnet", trained)
    return MLP((784, 40, 20, 10), bias=False)


def _resnet20(trained: bool) -> nn.Module:
    _need_weights("resnet20", trained)
    return ResNet20()


_NETWORKS: Mapping[str, Callable[[bool], nn.Module]] = {
    "digits-mlp": _digits_mlp,
    "mlpnet": _mlpnet,
    "resnet20": _resnet20,
}


def _need_weights(name: str, trained: bool) -> None:
    if trained:
        raise ImpossibleRequestError(
            f"{name} is a definition without weights; give --weights FILE.safetensors"
        )


def _torchvision(name: str, *, pretrained: bool) -> nn.Module:
    try:
        from torchvision import models  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImpossibleRequestError(
            f"torchvision:{name} needs torchvision, which is not installed; "
            "run: pip install torchvision"
        ) from error
    try:
        return models.get_model(name, weights="DEFAULT" if pretrained else None)
    except ValueError as error:
        raise ImpossibleRequestError(
            f"torchvision has no model named {name!r}; torchvision.models.list_models() lists them"
        ) from error


def _load_weights(model: nn.Module, path: Path) -> None:
    try:
        state = load_file(DISK.regular(path))
    except (OSError, SafetensorError) as error:
        raise ImpossibleRequestError(
            f"cannot read {path} ({error}); --weights takes a safetensors file"
        ) from error
    wanted = model.state_dict()
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    if missing or unknown:
        problem = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, unknown to it"
        raise ImpossibleRequestError(f"{path} is for another network than the model: it {problem}")
    for name, tensor in wanted.items():
        if state[name].shape != tensor.shape:
            raise ImpossibleRequestError(
                f"{path} is for another network: {name} is {tuple(state[name].shape)}, "
                f"the model's {tuple(tensor.shape)}"
            )
    model.load_state_dict(state)
