"""The runs that the drills try to break: small ones of every kind of network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

import qprune
from qprune import Networkwise
from qprune.models.datasets import load_data
from qprune.models.zoo import load_model

# Enough to move the kept weights; the drills are about the run, not about accuracy.
_QUICK = qprune.Compensation(iterations=(2,), final_steps=1)


@dataclass(frozen=True)
class Workload:
    """One run.

    Attributes:
        name: how tables call it.
        model: the dense network; a copy of its state is put back before every run.
        data: calibration samples.
        options: for `qprune.prune`.
    """

    name: str
    model: nn.Module
    data: qprune.Calibration
    options: Mapping[str, Any]

    def changed(self, options: Mapping[str, Any] = MappingProxyType({}), **fields: Any) -> Workload:
        """The same with other options, and with other fields of its method."""
        method = replace(self.options["method"], **fields)
        return replace(self, options={**self.options, **options, "method": method})


def digits() -> Workload:
    """A small network on scikit-learn's digits; needs no files."""
    method = Networkwise(stages=4, rounds=2, final_rounds=4, block_size=256)
    options = {"sparsity": 0.9, "method": method, "augment": None, "compensate": _QUICK}
    data = load_data("digits").calibration(300, 0)
    return Workload("digits", load_model("digits-mlp"), data, options)


def mlpnet(folder: Path, samples: int = 500) -> Workload:
    """MLPNet on MNIST."""
    method = Networkwise(stages=4, rounds=2, final_rounds=4, block_size=512)
    options = {"sparsity": 0.95, "method": method, "augment": None, "compensate": _QUICK}
    data = load_data(f"mnist:{folder / 'mnist.npz'}").calibration(samples, 0)
    model = load_model("mlpnet", folder / "mlpnet_mnist.safetensors")
    return Workload("MLPNet", model, data, options)


def resnet20(folder: Path, samples: int = 40) -> Workload:
    """ResNet-20 on CIFAR-10."""
    method = Networkwise(stages=1, final_rounds=4)
    options = {"sparsity": 0.7, "method": method, "augment": None, "compensate": _QUICK}
    data = load_data(f"cifar10:{folder / 'cifar10_subset.npz'}", "half").calibration(samples, 0)
    model = load_model("resnet20", folder / "resnet20_cifar10.safetensors")
    return Workload("ResNet-20", model, data, options)


def llama(folder: Path) -> Workload:
    """The small LLaMA on WikiText-2."""
    from qprune.models.pretrained import load_pretrained, load_tokenizer
    from qprune.models.text import calibration_windows

    source = str(folder / "tinyllama-wikitext2")
    windows = calibration_windows(
        f"wikitext2:{folder / 'wikitext2'}",
        load_tokenizer(source),
        num_samples=10,
        max_seq_length=32,
        seed=0,
    )
    method = Networkwise(stages=1, final_rounds=4)
    options = {"sparsity": 0.5, "method": method, "ignore": ["lm_head"], "compensate": _QUICK}
    model = load_pretrained(source)
    # Compensation differentiates forwards, which fused attention cannot.
    model.set_attn_implementation("eager")
    return Workload("small LLaMA", model, qprune.Calibration(windows), options)


def workloads(folder: Path | None) -> list[Workload]:
    """All of them, or `digits` alone without the folder of checkpoints and data."""
    if folder is None:
        return [digits()]
    return [mlpnet(folder), resnet20(folder), llama(folder)]


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
