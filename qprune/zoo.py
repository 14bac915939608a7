"""Models by name: benchmark networks, torchvision's, and the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy

from qprune.datasets import load_data
from qprune.errors import ImpossibleRequestError
from qprune.factories import call_factory
from qprune.folder import regular
from qprune.networks import MLP, ResNet20, initialise
from qprune.threads import limited_threads

_TRAINING_SEED = 0


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
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
        _load_weights(model, weights)
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
        state = load_file(regular(path))
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
