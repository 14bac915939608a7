"""Choices of `qprune.Distillation` on validation images: the rate between stages, augmentation.

    python -m benchmarks.distillation --data DATA --only between       # 15 CPU min
    python -m benchmarks.distillation --data DATA --only augment

DATA holds mnist.npz and mlpnet_mnist.safetensors. First passes in stages, kept weights moved by
distillation, no blocks; 1,000 unlabelled training images. Networks are MLPNet, and a small
convolutional one with BatchNorm that is trained here on 4,000 of the training images. Everything
is measured on the last 10,000 training images, which no run sees; the test images are not read.
A run is a line of JSON in ``--output``: accuracy in %, the divergence from the dense network's
outputs in nats, CPU seconds of one thread, and what the samples were augmented by.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

import qprune
from qprune.distributed.workers import limited_threads
from qprune.models.datasets import load_data
from qprune.models.zoo import load_model, train_classifier

CALIBRATION, TRAINED_ON, VALIDATION = 1000, 4000, 10_000


_USUAL = qprune.Distillation()
_WARPED = qprune.WarpImages(copies=1)


@dataclass(frozen=True)
class Choice:
    """One setting.

    Attributes:
        part: the question that it belongs to.
        name: of the setting.
        compensate, augment: arguments of `qprune.prune`.
    """

    part: str
    name: str
    compensate: qprune.Compensate = _USUAL
    augment: qprune.Augmentation | str | None = "auto"


CHOICES = (
    *(
        Choice("between", f"{share:g}", qprune.Distillation(between=share))
        for share in (1.0, 0.5, 0.25, 0.0)
    ),
    Choice("augment", "auto"),
    Choice("augment", "rich", augment=qprune.SuitedImages()),
    Choice("augment", "blends", augment=qprune.Mixup()),
    Choice("augment", "none", augment=None),
    *(
        Choice("copies", f"{copies} at {share:g}", augment=qprune.Mixup(copies, share, _WARPED))
        for copies in (8, 32)
        for share in (0.25, 0.5, 1.0)
    ),
)
SPARSITIES = {"mlpnet": (0.95, 0.98), "convolutions": (0.9,)}
#: A step of the convolutional network takes five times as long.
STAGES = {"mlpnet": 20, "convolutions": 8}


class Convolutions(nn.Sequential):
    """Three convolutions with BatchNorm and a linear layer, 6,152 weights in matrices."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 8), (8, 16), (16, 32)):
            convolution = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def networks(folder: Path) -> dict[str, Callable[[Tensor, Tensor], nn.Module]]:
    """Network -> a function of training images and labels that makes it."""

    def convolutions(images: Tensor, labels: Tensor) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Convolutions()
        train_classifier(model.train(), images[:TRAINED_ON], labels[:TRAINED_ON])
        return model.eval()

    weights = folder / "mlpnet_mnist.safetensors"
    return {"mlpnet": lambda *_: load_model("mlpnet", weights), "convolutions": convolutions}


def quality(model: nn.Module, dense: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy in %, and the divergence from the dense network's outputs, nats a sample."""
    with torch.no_grad():
        outputs, expected = (log_softmax(m(images), -1) for m in (model, dense))
    divergence = kl_div(outputs, expected, reduction="batchmean", log_target=True)
    accuracy = 100 * (outputs.argmax(-1) == labels).double().mean()
    return {"accuracy": round(float(accuracy), 2), "divergence": round(float(divergence), 4)}


def result(
    choice: Choice, dense: nn.Module, stages: int, sparsity: float, seed: int, images: Tensor
) -> Any:
    """One run."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return qprune.prune(
        deepcopy(dense),
        images[chosen[:CALIBRATION].sort().values],
        sparsity=sparsity,
        method=qprune.Networkwise(stages=stages, rounds=0, final_rounds=0),
        compensate=choice.compensate,
        augment=choice.augment,
        seed=seed,
    )


def runs(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs that are asked for, one after the other."""
    data = load_data(f"mnist:{arguments.data / 'mnist.npz'}")
    images, labels = data.train_inputs.view(-1, 1, 28, 28), data.train_labels
    held_out = images[-VALIDATION:], labels[-VALIDATION:]
    for network in arguments.networks:
        make = networks(arguments.data)[network]
        dense = make(images[:-VALIDATION], labels[:-VALIDATION])
        print(network, "dense", quality(dense, dense, *held_out), flush=True)
        for seed in arguments.seeds:
            for sparsity in arguments.sparsities or SPARSITIES[network]:
                for choice in CHOICES:
                    named = arguments.choices is None or choice.name in arguments.choices
                    if choice.part not in arguments.only or not named:
                        continue
                    pruned = result(
                        choice, dense, STAGES[network], sparsity, seed, images[:-VALIDATION]
                    )
                    yield {
                        **{"network": network, "sparsity": sparsity, "seed": seed},
                        **{"part": choice.part, "choice": choice.name},
                        **quality(pruned.model, dense, *held_out),
                        "cpu_seconds": round(pruned.report.cpu_seconds, 1),
                        "augment": pruned.report.settings["augment"],
                    }


def main() -> None:
    """Run, and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=["between", "augment", "copies"])
    parser.add_argument("--choices", nargs="*", help="default: all of a question")
    parser.add_argument("--networks", nargs="*", default=list(SPARSITIES))
    parser.add_argument("--sparsities", nargs="*", type=float, default=())
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/distillation.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with limited_threads(1), arguments.output.open("a") as journal:
        for line in runs(arguments):
            print(line, flush=True)
            journal.write(json.dumps(line) + "\n")
            journal.flush()


if __name__ == "__main__":
    main()
