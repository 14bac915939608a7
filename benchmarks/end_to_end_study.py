"""Does a better sampler give a better network? One pruning run, sampler after sampler.

    python -m benchmarks.end_to_end_study --data DATA --output runs/end_to_end   # see below
    python -m benchmarks.end_to_end_study --data DATA --only mlpnet                 # 4 CPU min

DATA is the folder that `benchmarks.pruning` reads. Every sampler has the same CPU seconds for
each block; stopped at any moment, the same command goes on. One run at a time, one thread,
seeds from 0; the tables are in the study's folder and in END_TO_END.md. A run of ResNet-20 takes a
minute of CPU, most of it for forward passes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.pruning import settings_of
from qprune.cli.compare import SettingsTrial, StudyBar, summary_table
from qprune.jobs.settings import make_settings
from qprune.study import compare_pruning
from qprune.study.report import summary_records, write_pruning_report

SAMPLERS = ("relax", "swap-anneal", "sa", "tabu", "greedy", "random")


@dataclass(frozen=True)
class Part:
    """One network of the study.

    Attributes:
        settings: besides model, weights and data, for `qprune.jobs.settings.make_settings`.
        samplers: names.
        budgets: of one block.
        repeats: unless the command line says otherwise.
    """

    settings: dict[str, Any]
    samplers: tuple[str, ...]
    budgets: tuple[str, ...]
    repeats: int


PARTS = {
    "mlpnet": Part(
        {
            "compensate": False,
            "samples_per_step": 800,
            "block_size": 512,
            "stages": 8,
            "rounds": 2,
            "final_rounds": 6,
        },
        SAMPLERS,
        ("0.01s", "0.1s"),
        3,
    ),
    "resnet20": Part(
        {
            "normalization": "half",
            "start": "magnitude",
            "num_calibration_samples": 500,
            "augment": False,
            "samples_per_step": 100,
            "block_size": 512,
            "num_blocks": 4,
            "stages": 4,
            "rounds": 1,
            "final_rounds": 2,
        },
        SAMPLERS,
        ("0.1s",),
        3,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.only:
        part, folder = PARTS[name], arguments.output / name
        with StudyBar(Console(stderr=True)) as bar:
            study = compare_pruning(
                SettingsTrial(
                    make_settings(
                        part.settings | settings_of(name, arguments.data) | {"sparsity": 0.95}
                    )
                ),
                part.samplers,
                part.budgets,
                arguments.repeats or part.repeats,
                arguments.seed,
                folder=folder,
                clock="cpu",
                observe=bar,
            )
        Console(width=150).print(summary_table(summary_records(study)))
        Console().print(str(write_pruning_report(folder)))


if __name__ == "__main__":
    main()
