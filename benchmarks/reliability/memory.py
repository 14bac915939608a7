"""Memory drill: is what a run says it will need what it takes?

    python -m benchmarks.reliability.memory --data DATA     # MLPNet, ResNet-20, a small LLaMA, ...
    python -m benchmarks.reliability.memory                 # a wide network alone, needs no files

Every run is a process of its own, and what counts is that process at its largest (the kernel's
own figure), interpreter, libraries, model and data included, against `Report.estimate`. `wide` and
`wide, distilled` are networks of four million weights, so that vectors over all weights count;
`ResNet-20` and the `LLaMA` ones are about activations, traces and statistics. Exit code 1 where a
run takes more than 1.3 times the estimate, or is more than 30 % away from it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

import qprune
from qprune.cost import in_bytes
from solvers.host.machine import peak_memory

BOUND = 0.3
_QUICK = qprune.Compensation(iterations=(2,), final_steps=1)


@dataclass(frozen=True)
class Outcome:
    """What was said and what was taken, bytes; what the process held before the run; seconds."""

    said: float
    taken: float
    present: float
    dominant: str
    said_seconds: float
    seconds: float


def wide(folder: Path | None, compensate: qprune.Compensate = _QUICK) -> Outcome:
    """Four million weights, random ones; nothing is learned here."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 1500), nn.ReLU(), nn.Linear(1500, 8)]
    method = qprune.Networkwise(stages=1, final_rounds=2, samples_per_step=300)
    options = {"method": method, "compensate": compensate}
    return _pruned(nn.Sequential(*layers), torch.randn(400, 512), 0.8, **options)


def distilled(folder: Path | None) -> Outcome:
    return wide(folder, qprune.Distillation(steps=8, samples_per_step=64, candidates=2))


def mlpnet(folder: Path | None) -> Outcome:
    from benchmarks.reliability import workloads

    assert folder is not None
    load = workloads.mlpnet(folder, 1000)
    method = qprune.Networkwise(stages=3, rounds=1, final_rounds=3)
    return _pruned(load.model, load.data, 0.95, method=method)


def resnet20(folder: Path | None) -> Outcome:
    from benchmarks.reliability import workloads

    assert folder is not None
    load = workloads.resnet20(folder, 250)
    method = qprune.Networkwise(stages=1, final_rounds=2, samples_per_step=400)
    return _pruned(load.model, load.data, 0.7, method=method, compensate=_QUICK)


def llama(folder: Path | None) -> Outcome:
    """Both stages."""
    from benchmarks.language import both_stages

    model, windows = _llama(folder, 48, 128)
    # The search of stage 1 takes no more memory than Wanda, and far more time.
    options = both_stages("wanda", steps=4) | {"augment": qprune.OwnText(model, copies=1)}
    return _pruned(model, windows, 0.5, **options)


def layers_alone(folder: Path | None) -> Outcome:
    """The first stage, over so many tokens that their activations count."""
    model, windows = _llama(folder, 512, 128)
    method = qprune.Layerwise("sparsegpt", shares=None)
    return _pruned(model, windows, 0.5, method=method, budget=qprune.PerLayer(alone=True))


RUNS: dict[str, Callable[[Path | None], Outcome]] = {
    "wide": wide,
    "wide, distilled": distilled,
    "MLPNet": mlpnet,
    "ResNet-20": resnet20,
    "LLaMA": llama,
    "LLaMA, stage 1 of sparsegpt": layers_alone,
}
WITHOUT_DATA = ("wide", "wide, distilled")


def _pruned(model: nn.Module, data: Any, sparsity: float, **options: Any) -> Outcome:
    report = qprune.prune(model, data, sparsity=sparsity, **options).report
    said = report.estimate
    assert said is not None
    dominant = said.memory[0].what if said.memory else ""
    taken, seconds = peak_memory(), report.seconds
    return Outcome(said.peak_memory, taken, said.present, dominant, said.seconds, seconds)


def _llama(folder: Path | None, number: int, length: int) -> tuple[nn.Module, Tensor]:
    """The model, and the beginning of the text: the whole would take more than the run."""
    from qprune.models.pretrained import load_pretrained, load_tokenizer

    assert folder is not None
    source = str(folder / "tinyllama-wikitext2")
    with gzip.open(folder / "wikitext2" / "train.txt.gz", "rt", encoding="utf-8") as file:
        text = file.read(8 * number * length)
    tokens = load_tokenizer(source)(text, return_tensors="pt").input_ids[0]
    return load_pretrained(source), tokens[: number * length].view(number, length)


def _in_a_process(name: str, folder: Path | None) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.reliability.memory", "--child", name]
    command += ["--data", str(folder)] if folder else []
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{name}: the run failed\n{run.stderr[-2000:]}")
    return Outcome(**json.loads(run.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of checkpoints and data sets")
    parser.add_argument("--only", nargs="*", choices=list(RUNS))
    parser.add_argument("--child", choices=list(RUNS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.child:
        print(json.dumps(asdict(RUNS[given.child](given.data))))
        return
    table = Table(title="memory of the process at its largest")
    for column in ("run", "before", "said", "taken", "taken / said", "largest part", "s said", "s"):
        table.add_column(column)
    wrong = 0
    names = given.only or (list(RUNS) if given.data else list(WITHOUT_DATA))
    with Progress(console=Console(stderr=True), transient=True) as report:
        for name in report.track(names, description="runs"):
            found = _in_a_process(name, given.data)
            ratio = found.taken / found.said
            wrong += not 1 / (1 + BOUND) <= ratio <= 1 + BOUND
            sizes = map(in_bytes, (found.present, found.said, found.taken))
            times = f"{found.said_seconds:.0f}", f"{found.seconds:.0f}"
            table.add_row(name, *sizes, f"{ratio:.2f}", found.dominant, *times)
    Console(width=140).print(table)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
