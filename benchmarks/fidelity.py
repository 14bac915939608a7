"""Predicted changes of the loss held against the real ones, with and without their correction.

    OMP_NUM_THREADS=1 python -m benchmarks.fidelity                        # digits-mlp, no files
    OMP_NUM_THREADS=1 python -m benchmarks.fidelity --data DATA \
        [--networks mlpnet resnet20] [--sparsity 0.95 0.98] [--compensate] [--seeds 0 1 2] \
        [--options samples_per_step=800 stages=8] [--test]

DATA holds mnist.npz, mlpnet_mnist.safetensors, cifar10_subset.npz and
resnet20_cifar10.safetensors. A row is two runs with the same seed, with models corrected and not.
*Real / predicted* is the median over the steps of a run, *correlation* that of both changes. The
real change is that on samples which judge, and which no model was fitted to. *Foretold plain* is
what the ratio would be if the corrected run's answers were held against the uncorrected models.
Accuracy is on training images that the run did not see, for which 500 of ResNet-20's 4,000 are
left; with ``--test``, on the test images.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import qprune
from qprune.distributed.workers import limited_threads
from qprune.models.datasets import DataSet

#: Name in the zoo -> weights, kind of data, images, calibration samples.
FILES = {
    "digits-mlp": (None, "digits", None, 500),
    "mlpnet": ("mlpnet_mnist.safetensors", "mnist", "mnist.npz", 1000),
    "resnet20": ("resnet20_cifar10.safetensors", "cifar10", "cifar10_subset.npz", 3500),
}
COLUMNS = (
    *("network", "sparsity", "models", "seed", "steps", "real / predicted", "foretold plain"),
    *("correlation", "accuracy, %", "CPU s"),
)


def run(
    network: str, sparsity: float, seed: int, method: qprune.Networkwise, asked: argparse.Namespace
) -> tuple[qprune.Report, float]:
    """A run's report, and the accuracy of the pruned network in %."""
    weights, kind, images, number = FILES[network]
    model = qprune.load_model(network, asked.data / weights if weights else None)
    data = qprune.load_data(f"{kind}:{asked.data / images}" if images else kind)
    calibration = data.calibration(number, seed=seed)
    pruned = qprune.prune(
        model,
        calibration,
        sparsity=sparsity,
        method=method,
        compensate=asked.compensate,
        seed=seed,
    )
    score = (data if asked.test else unseen(data, calibration.inputs)).score(pruned.model)
    return pruned.report, 100 * (score.accuracy or 0.0)


def unseen(data: DataSet, used: torch.Tensor) -> DataSet:
    """The data with the training samples that are not among ``used`` for test samples.

    Example:
        >>> data = qprune.load_data("digits")
        >>> used = data.calibration(1000, seed=0).inputs
        >>> len(unseen(data, used).test_labels) + 1000 >= len(data.train_labels)
        True
    """
    seen = {sample.numpy().tobytes() for sample in used}
    free = [sample.numpy().tobytes() not in seen for sample in data.train_inputs]
    rows = torch.tensor(free)
    return replace(data, test_inputs=data.train_inputs[rows], test_labels=data.train_labels[rows])


def rows(asked: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """The table's lines."""
    cells = list(product(asked.networks, asked.sparsity, asked.seeds, (True, False)))
    for network, sparsity, seed, corrected in track(cells, "runs", transient=True):
        method = qprune.Networkwise(corrected=corrected, **dict(asked.options))
        with limited_threads(1):
            report, accuracy = run(network, sparsity, seed, method, asked)
        promise = report.promise
        kept = ("0", "-", "-", "-")
        if promise is not None:
            agreement = "-" if promise.correlation is None else f"{promise.correlation:.3f}"
            plain = f"{promise.uncorrected:.2f}"
            kept = (str(promise.steps), f"{promise.ratio:.2f}", plain, agreement)
        models = "corrected" if corrected else "plain"
        place = (network, f"{sparsity:g}", models, str(seed))
        yield (*place, *kept, f"{accuracy:.2f}", f"{report.cpu_seconds:.0f}")


def _option(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    return name, int(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the networks and images")
    parser.add_argument("--networks", nargs="+", choices=list(FILES), default=["digits-mlp"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--compensate", action="store_true", help="kept weights move")
    parser.add_argument("--options", type=_option, nargs="*", default=[], metavar="NAME=NUMBER")
    parser.add_argument("--test", action="store_true", help="accuracy on test images")
    asked = parser.parse_args(arguments)
    if asked.data is None and asked.networks != ["digits-mlp"]:
        parser.error("--data is needed for any network but digits-mlp")
    table = Table(title=f"Predicted means real ({platform.machine()}, one thread)")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows(asked):
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
