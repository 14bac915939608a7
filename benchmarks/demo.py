"""`make demo`: train a small network on real digits, prune it to 95 %, compare, write a report."""

from __future__ import annotations

import argparse
from copy import deepcopy
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

import qprune
from qprune.cli.bars import ProgressBar
from qprune.distributed.workers import limited_threads
from qprune.jobs.job import run_job
from qprune.jobs.settings import Settings
from qprune.models.datasets import DataSet, load_data
from qprune.models.zoo import load_model
from qprune.record.folder import REPORT_HTML

SAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="new folder; the next free runs/demo-N if not")
    asked = parser.parse_args()

    console = Console()
    console.print("training a 64-64-64-10 network on scikit-learn's digits ...")
    model, data = load_model("digits-mlp"), load_data("digits")
    with limited_threads(1):
        others = one_shot(model, data, asked.sparsity, asked.seed)

    settings = Settings(
        model="digits-mlp",
        data="digits",
        sparsity=asked.sparsity,
        num_calibration_samples=SAMPLES,
        stages=8,
        rounds=1,
        seed=asked.seed,
    )
    output = asked.output or free_folder(Path("runs"))
    with ProgressBar(asked.sparsity, console) as bar:
        report = run_job(settings, output, observe=[bar], others=others).report

    table = Table(title=f"{report.achieved_sparsity:.2%} of the weights are zero")
    table.add_column("500 test images")
    table.add_column("accuracy", justify="right")
    table.add_column("loss, nats", justify="right")
    for name, score in {"dense": report.dense, **others, "qprune": report.final}.items():
        assert score is not None
        assert score.accuracy is not None
        table.add_row(name, f"{score.accuracy:.1%}", f"{score.loss:.3f}")
    console.print(table)
    console.print(
        f"{report.num_accepted} of {len(report.steps)} steps taken, "
        f"{report.cpu_seconds:.1f} s of CPU time"
    )
    console.print(f"report: {output / REPORT_HTML}")


def one_shot(
    model: nn.Module, data: DataSet, sparsity: float, seed: int
) -> dict[str, qprune.Score]:
    """Test scores of the best-known one-shot masks, on copies of ``model``."""
    calibration = data.calibration(SAMPLES, seed)
    return {
        "magnitude": first_pass(model, calibration, data, sparsity, qprune.Magnitude(), "global"),
        "Wanda": first_pass(model, calibration, data, sparsity, qprune.Wanda(), "row"),
    }


def first_pass(
    model: nn.Module,
    calibration: qprune.Calibration,
    data: DataSet,
    sparsity: float,
    start: qprune.Start,
    budget: str,
) -> qprune.Score:
    """Test score of a starting mask alone."""
    pruned = qprune.prune(
        deepcopy(model),
        calibration,
        sparsity=sparsity,
        method=qprune.Networkwise(start=start, stages=1, rounds=0),
        budget=budget,
        compensate=False,
    )
    return data.score(pruned.model)


def free_folder(parent: Path) -> Path:
    """The first of demo-1, demo-2, ... that does not exist."""
    names = (parent / f"demo-{number}" for number in count(1))
    return next(path for path in names if not path.exists())


if __name__ == "__main__":
    main()
