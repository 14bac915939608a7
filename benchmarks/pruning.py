"""MLPNet on MNIST and ResNet-20 on the CIFAR-10 subset, beside what others were measured at.

    python -m benchmarks.pruning --data PATH                    # all of it, an hour or two
    python -m benchmarks.pruning --data PATH --only mask fitted --sparsity 0.95 --seeds 0

PATH holds mnist.npz, mlpnet_mnist.safetensors, cifar10_subset.npz and
resnet20_cifar10.safetensors. Every run is what the command line would do with the settings
printed; a run is a line of JSON in ``--output`` as soon as it ends, and is not repeated when it
is already there. Accuracy is on test images that no run sees, times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

import qprune
from qprune.distributed.workers import limited_threads
from qprune.jobs.job import run_job
from qprune.jobs.settings import make_settings


@dataclass(frozen=True)
class Row:
    """One row of a table: a network, a setting, and what others reach.

    Attributes:
        network: "mlpnet" or "resnet20".
        title: how the table calls the row.
        settings: for `qprune.jobs.settings.make_settings`, besides model, data and sparsity.
        augment: instead of what suits the data by itself.
        targets: sparsity -> test accuracy in % to be reached.
        peers: sparsity -> (accuracy in %, who), as measured by others on the same checkpoint.
    """

    network: str
    title: str
    settings: dict[str, Any]
    targets: dict[float, float]
    peers: dict[float, tuple[float, str]] = field(default_factory=dict)
    augment: qprune.Augmentation | None = None


_CHITA = {0.9: (92.80, "CHITA"), 0.95: (91.49, "CHITA++"), 0.98: (79.46, "CHITA++")}
_CHITA_RESNET = {0.7: (83.2, "CHITA"), 0.8: (70.4, "CHITA"), 0.9: (28.9, "CHITA")}
_MANY = {"num_calibration_samples": 20_000, "loss": "cross-entropy", "samples_per_step": 4000}
# With many samples and labels, few and small shifts: two pixels cost a point of accuracy.
_SMALL_SHIFTS = qprune.ShiftImages(pixels=1, shape=(1, 28, 28), copies=2)

ROWS = {
    "mask": Row(
        "mlpnet",
        "mask only, 1,000 samples",
        {"compensate": False},
        {0.9: 92.5, 0.95: 90.5, 0.98: 83.0},
        _CHITA,
    ),
    "fitted": Row(
        "mlpnet", "compensated, 1,000 samples", {}, {0.9: 93.7, 0.95: 93.0, 0.98: 89.5}, _CHITA
    ),
    "plain": Row(
        "mlpnet",
        "compensated, 1,000 samples, none augmented",
        {"augment": False},
        {0.9: 93.7, 0.95: 93.0, 0.98: 89.5},
        _CHITA,
    ),
    "many": Row(
        "mlpnet",
        "compensated, 20,000 samples and labels",
        _MANY,
        {0.9: 94.8, 0.95: 94.4, 0.98: 93.0},
        augment=_SMALL_SHIFTS,
    ),
    "resnet": Row(
        "resnet20",
        "compensated, 4,000 samples",
        {
            "normalization": "half",
            "num_calibration_samples": 4000,
            "start": "magnitude",
            "num_blocks": 4,
        },
        {0.7: 88.0, 0.8: 84.0, 0.9: 70.0},
        _CHITA_RESNET,
    ),
}
_FILES = {
    "mlpnet": ("mlpnet_mnist.safetensors", "mnist:", "mnist.npz"),
    "resnet20": ("resnet20_cifar10.safetensors", "cifar10:", "cifar10_subset.npz"),
}


def settings_of(network: str, data: Path) -> dict[str, Any]:
    """Model, weights and images of a network, all in folder ``data``."""
    weights, kind, images = _FILES[network]
    return {"model": network, "weights": data / weights, "data": f"{kind}{data / images}"}


def run(row: Row, sparsity: float, seed: int, data: Path) -> dict[str, Any]:
    """One run: what `qprune prune --json` would print."""
    given = row.settings | settings_of(row.network, data)
    given |= {"sparsity": sparsity, "seed": seed}
    with limited_threads(1):
        return run_job(make_settings(given), augment=row.augment).summary()


def table(network: str, results: dict[tuple[str, float, int], dict[str, Any]]) -> Table:
    """Mean accuracy over seeds, with the target and the best peer beside it."""
    shown = Table(title=f"{network}: test accuracy in %, mean over seeds")
    for column in ("run", "sparsity", "qprune", "seeds", "target", "peer", "CPU s"):
        shown.add_column(column, justify="left" if column == "run" else "right")
    for name, row in ROWS.items():
        for sparsity, target in row.targets.items():
            runs = [r for (n, s, _), r in sorted(results.items()) if (n, s) == (name, sparsity)]
            if row.network != network or not runs:
                continue
            accuracy = [100 * r["final"]["accuracy"] for r in runs]
            peer = row.peers.get(sparsity)
            shown.add_row(
                row.title,
                f"{sparsity:g}",
                f"{mean(accuracy):.2f}",
                " ".join(f"{a:.2f}" for a in accuracy),
                f"{target:.1f}",
                "-" if peer is None else f"{peer[0]:.2f} ({peer[1]})",
                f"{mean(r['cpu_seconds'] for r in runs):.0f}",
            )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--sparsity", type=float, nargs="*", help="default: all of each row's")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/pruning.jsonl"))
    arguments = parser.parse_args()
    console = Console(width=110)
    console.print(f"{platform.machine()}, one thread; peers: published code on a like machine")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.touch()
    lines = [json.loads(line) for line in arguments.output.read_text().splitlines()]
    results = {(r["row"], r["sparsity"], r["seed"]): r["result"] for r in lines}
    for seed in arguments.seeds:
        for name in arguments.only:
            for sparsity in arguments.sparsity or ROWS[name].targets:
                key = (name, sparsity, seed)
                if key in results or sparsity not in ROWS[name].targets:
                    continue
                results[key] = run(ROWS[name], sparsity, seed, arguments.data)
                line = {"row": name, "sparsity": sparsity, "seed": seed, "result": results[key]}
                with arguments.output.open("a") as journal:
                    journal.write(json.dumps(line) + "\n")
                console.print(name, sparsity, seed, results[key]["final"])
    for network in _FILES:
        shown = table(network, results)
        if shown.row_count:
            console.print(shown)


if __name__ == "__main__":
    main()
