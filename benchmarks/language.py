r"""A small LLaMA on wikitext-2: perplexity after pruning, beside Wanda, SparseGPT and ALPS.

    python -m benchmarks.language --model MODEL --data wikitext2:DIR    # hours
    python -m benchmarks.language --model MODEL --data wikitext2:DIR --short    # minutes
    python -m benchmarks.language --model MODEL --data wikitext2:DIR \
        --methods qprune --sparsities 0.8 2:4 --seeds 0 1

Every method sees the same 128 windows of 256 training tokens; the seed decides their places and
everything random. The figure is the perplexity of the test split in windows of 256 tokens, or,
where settings are chosen (``--validation``), of every fifth window of the validation split. A run
has a process of its own and is a line of JSON in ``--output`` as soon as it ends; the same
command goes on with what is missing. Peers are quoted, for the model named below, from the
published code of each, run on a machine of the same kind (one thread, CPU seconds).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from os import getpid
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import qprune
from qprune.distributed.workers import limited_threads
from qprune.models.evaluate import perplexity
from qprune.models.pretrained import load_pretrained, load_tokenizer
from qprune.models.text import (
    calibration_windows,
    consecutive_windows,
    encode,
    evaluation_windows,
    read_text,
)
from qprune.steps.reconstruct import Reconstruct
from solvers.rows.starts import admm

COLUMNS = ("0.5", "0.6", "0.7", "0.8", "0.9", "2:4")
LENGTH = 256
# Rounds of block moves where values may not move: they are all that stage 2 has.
MASK_ROUNDS = 3
NUM_SAMPLES = 128

_SENSITIVITY = qprune.Sensitivity(loss=qprune.DenseOutputs(fit_scale=False))


def fast(rounds: int) -> qprune.Layerwise:
    """Stage 1 with at most so many rounds of ADMM, and layer budgets from eight windows."""
    return qprune.Layerwise(
        Reconstruct(start=partial(admm, damping=0.0, max_iterations=rounds)),
        shares=replace(_SENSITIVITY, num_samples=8),
    )


#: Of tinyllama-wikitext2, measured with the published code of each; CPU seconds of the pruning.
DENSE = 41.229
QUOTED: dict[str, tuple[tuple[float | None, ...], float]] = {
    "magnitude": ((44.79, 51.09, 77.63, 326.45, None, 50.16), 0.3),
    "Wanda": ((44.57, 49.88, 71.45, 275.46, None, 49.95), 11),
    "SparseGPT": ((42.56, 44.81, 51.47, 79.00, None, 44.28), 15),
    "ALPS": ((41.86, 42.63, 44.43, 49.51, 73.15, 42.76), 50),
}


@dataclass(frozen=True)
class Run:
    """One run: a method, a column of the table and a seed."""

    method: str
    column: str
    seed: int

    def pruned(self, model: nn.Module, windows: Tensor, short: bool) -> dict[str, Any]:
        """Prune ``model`` in place; what is worth noting besides the perplexity."""
        asked: dict[str, Any] = {"seed": self.seed}
        asked |= {"mask_structure": self.column} if ":" in self.column else {}
        asked |= {} if ":" in self.column else {"sparsity": float(self.column)}
        return METHODS[self.method](model, windows, short, asked)


@dataclass(frozen=True)
class WrittenOnce:
    """`OwnText` that is written by the first run of a seed: it depends on nothing else.

    The generator goes on as if it had been written again, and its CPU seconds are counted again.
    """

    text: qprune.OwnText
    seed: int
    keeps_labels: ClassVar[bool] = False

    @property
    def _path(self) -> Path:
        return Path(f"runs/language-text-{self.text.copies}-{self.seed}.pt")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """As `OwnText`."""
        start = generator.get_state()
        if self._path.is_file():
            kept = torch.load(self._path)
            if torch.equal(kept["inputs"], inputs) and torch.equal(kept["start"], start):
                generator.set_state(kept["end"])
                return kept["written"]
        began = time.process_time()
        written = self.text(inputs, generator)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"inputs": inputs, "start": start, "end": generator.get_state(), "written": written}
        torch.save(kept | {"cpu_seconds": time.process_time() - began, "pid": getpid()}, self._path)
        return written

    def saved_cpu_seconds(self) -> float:
        """CPU seconds that another process has spent for this one."""
        kept = torch.load(self._path)
        return 0.0 if kept["pid"] == getpid() else kept["cpu_seconds"]


def both_stages(rows: str = "reconstruct", steps: int = 96, rounds: int = 1) -> dict[str, Any]:
    """Arguments of `qprune.prune` as `qprune prune` has them for a language model.

    Args:
        rows: name of the row method of stage 1.
        steps: optimiser steps of the distillation; 0 = values stay.
        rounds: of block moves.
    """
    loss = qprune.DenseOutputs(fit_scale=False)
    across = qprune.Networkwise(
        start=None,
        rounds=rounds,
        final_rounds=rounds,
        num_blocks=16,
        samples_per_step=64,
        damping=300.0,
        accept_share=0.125,
    )
    return {
        "method": (qprune.Layerwise(rows, shares=_SENSITIVITY), across),
        "loss": loss,
        "augment": None,
        "compensate": qprune.Distillation(steps, final_steps=1, at_end=True) if steps else False,
    }


def _layerwise(
    model: nn.Module, windows: Tensor, short: bool, asked: Mapping[str, Any], *, rows: str
) -> dict[str, Any]:
    # Counts as published: Wanda's by row, the others' by matrix.
    budget = qprune.PerRow(alone=True) if rows == "wanda" else qprune.PerLayer(alone=True)
    method = qprune.Layerwise(rows, shares=None)
    report = qprune.prune(model, windows, method=method, budget=budget, **asked).report
    return {"sparsity": report.achieved_sparsity, "stage1_cpu_seconds": report.cpu_seconds}


def _stage_1(
    model: nn.Module,
    windows: Tensor,
    short: bool,
    asked: Mapping[str, Any],
    *,
    method: qprune.Layerwise,
    num_samples: int | None = None,
) -> dict[str, Any]:
    """Stage 1 alone, layer budgets by what the loss feels; maybe of the first windows only."""
    loss = qprune.DenseOutputs(fit_scale=False)
    report = qprune.prune(model, windows[:num_samples], method=method, loss=loss, **asked).report
    return {"sparsity": report.achieved_sparsity, "stage1_cpu_seconds": report.cpu_seconds}


def _across(
    model: nn.Module, windows: Tensor, short: bool, asked: Mapping[str, Any], **masks: int
) -> dict[str, Any]:
    written = None
    options = both_stages(**masks) if masks else both_stages(steps=16 if short else 96)
    if options["compensate"]:
        text = qprune.OwnText(model, copies=1) if short else qprune.OwnText(model)
        options["augment"] = written = WrittenOnce(text, asked["seed"])
    report = qprune.prune(model, windows, **asked, **options).report
    across = [step for step in report.steps if step.kind != "block"]
    return {
        "saved_cpu_seconds": written.saved_cpu_seconds() if written else 0.0,
        "sparsity": report.achieved_sparsity,
        "stage1_cpu_seconds": sum(s.cpu_seconds for s in report.steps if s.kind == "block"),
        "steps": [[s.kind, s.accepted, round(s.loss, 5), s.flips] for s in across],
        "layers": [round(layer.sparsity, 4) for layer in report.layers],
    }


#: What can be run: (model, windows, short, what is asked) -> what is noted.
METHODS: dict[str, Callable[..., dict[str, Any]]] = {
    "magnitude": partial(_layerwise, rows="magnitude"),
    "wanda": partial(_layerwise, rows="wanda"),
    "sparsegpt": partial(_layerwise, rows="sparsegpt"),
    "reconstruct": partial(_layerwise, rows="reconstruct"),
    "stage 1": partial(_stage_1, method=qprune.Layerwise(shares=_SENSITIVITY)),
    "stage 1, masks alone": partial(
        _stage_1, method=qprune.Layerwise(shares=_SENSITIVITY, compensate=False)
    ),
    "stage 1, fast": partial(_stage_1, method=fast(10), num_samples=24),
    "stage 1, 32 windows": partial(_stage_1, method=fast(15), num_samples=32),
    "qprune": _across,
    "qprune, mask only": partial(_across, steps=0, rounds=MASK_ROUNDS),
}


def measured(
    run: Run, model_path: str, windows: Tensor, test: Tensor, short: bool
) -> dict[str, Any]:
    """Prune and evaluate in this process, which should be a fresh one."""
    with limited_threads(1):
        model = load_pretrained(model_path)
        began = time.process_time()
        noted = run.pruned(model, windows, short)
        cpu_seconds = time.process_time() - began
        # Of loading and pruning; evaluation comes after.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        value = perplexity(model.eval(), test)
    return asdict(run) | {
        "perplexity": value,
        "cpu_seconds": cpu_seconds + noted.pop("saved_cpu_seconds", 0.0),
        "peak_memory": peak,
        **noted,
    }


def alone(run: Run, *rest: Any) -> dict[str, Any]:
    """`measured` in a process of its own: its memory is its own, and so is its heap."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["qprune", "transformers"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(measured, run, *rest).result()


def share_of_increase(value: float, column: str, dense: float, peer: str) -> float | None:
    """The increase over ``dense`` as a share of the increase that ``peer`` is quoted with."""
    theirs = QUOTED[peer][0][COLUMNS.index(column)]
    return None if theirs is None else (value - dense) / (theirs - DENSE)


def spread(values: Sequence[float]) -> str:
    """Mean and, from two values, their range."""
    text = f"{mean(values):.2f}" if values else "-"
    return text if len(values) < 2 else f"{text} ({min(values):.2f}-{max(values):.2f})"


def summarised(rows: Sequence[Mapping[str, Any]], method: str, column: str) -> str:
    """Mean over seeds and, from two seeds, their range; what it is of the peer's increase."""
    found = [r for r in rows if r["method"] == method and r["column"] == column]
    if not found:
        return "-"
    values = [r["perplexity"] for r in found]
    peer = "Wanda" if "mask" in method or method in ("magnitude", "wanda") else "ALPS"
    share = share_of_increase(mean(values), column, found[0]["dense"], peer)
    text = spread(values)
    return text if share is None else f"{text}, {share:.0%}"


def perplexities(rows: Sequence[Mapping[str, Any]], dense: float) -> Table:
    """Peers as quoted, our own as measured."""
    table = Table(
        title=f"Test perplexity, dense {dense:.3f}; share of ALPS's increase over dense "
        "(of Wanda's for magnitude, Wanda and masks alone)"
    )
    for column in ("method", *COLUMNS):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, (values, _) in QUOTED.items():
        table.add_row(f"{name}, quoted", *("-" if v is None else f"{v:.2f}" for v in values))
    table.add_section()
    for method in METHODS:
        if any(r["method"] == method for r in rows):
            table.add_row(method, *(summarised(rows, method, column) for column in COLUMNS))
    return table


def validated(rows: Sequence[Mapping[str, Any]], dense: float) -> Table:
    """Our own alone: peers are quoted on test text."""
    table = Table(title=f"Perplexity of validation text, dense {dense:.3f}")
    for column in ("method", *COLUMNS):
        table.add_column(column, justify="left" if column == "method" else "right")
    for method in sorted({r["method"] for r in rows}, key=list(METHODS).index):
        found = [r for r in rows if r["method"] == method]
        values = ([r["perplexity"] for r in found if r["column"] == c] for c in COLUMNS)
        table.add_row(method, *map(spread, values))
    return table


def costs(rows: Sequence[Mapping[str, Any]]) -> Table:
    """CPU seconds and peak memory of every method, means over its runs."""
    table = Table(title="Cost of a run, one thread, mean over columns and seeds")
    for column in ("method", "seeds", "CPU s", "of them stage 1", "peak memory, GiB"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, (_, seconds) in QUOTED.items():
        table.add_row(f"{name}, quoted", "-", f"{seconds:g}", "-", "-")
    table.add_section()
    for method in METHODS:
        found = [r for r in rows if r["method"] == method]
        if found:
            table.add_row(
                method,
                " ".join(map(str, sorted({r["seed"] for r in found}))),
                f"{mean(r['cpu_seconds'] for r in found):.0f}",
                f"{mean(r['stage1_cpu_seconds'] for r in found):.0f}",
                f"{max(r['peak_memory'] for r in found) / 2**30:.2f}",
            )
    return table


def completed(
    missing: Sequence[Run],
    model: str,
    data: str,
    output: Path,
    short: bool,
    validation: bool,
    rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Run what is missing, each a line of ``output`` as soon as it ends."""
    tokenizer = load_tokenizer(model)
    if validation:
        tokens = encode(read_text(data, "valid"), tokenizer)
        test = consecutive_windows(tokens, LENGTH)[::5]
    else:
        test = evaluation_windows(data, tokenizer, max_seq_length=LENGTH)
    test = test[:64] if short else test
    number = 16 if short else NUM_SAMPLES
    dense = rows[0]["dense"] if rows else perplexity(load_pretrained(model), test)
    windows = {
        seed: calibration_windows(
            data, tokenizer, num_samples=number, max_seq_length=LENGTH, seed=seed
        )
        for seed in {run.seed for run in missing}
    }
    console, made = Console(stderr=True), []
    for run in track(missing, "pruning", console=console, disable=not console.is_terminal):
        row = alone(run, model, windows[run.seed], test, short) | {"dense": dense}
        made.append(row)
        with output.open("a") as journal:
            journal.write(json.dumps(row) + "\n")
        console.print(run, f"perplexity {row['perplexity']:.3f}, {row['cpu_seconds']:.0f} CPU s")
    return made


def arguments_given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of tinyllama-wikitext2")
    parser.add_argument("--data", required=True, help="wikitext2:DIR")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--sparsities", nargs="*", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, help="default: runs/language.jsonl")
    parser.add_argument(
        "--short", action="store_true", help="16 sequences, 64 test windows, 16 steps of stage 2"
    )
    parser.add_argument(
        "--validation",
        action="store_true",
        help="score on every fifth window of DIR's validation split; no test text is read",
    )
    return parser.parse_args()


def main() -> None:
    arguments = arguments_given()
    short, validation = arguments.short, arguments.validation
    kind = "-validation" * validation + "-short" * short
    output = arguments.output or Path(f"runs/language{kind}.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.touch()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    done = {Run(r["method"], r["column"], r["seed"]) for r in rows}
    wanted = [
        Run(method, column, seed)
        for seed in arguments.seeds
        for method in arguments.methods
        for column in arguments.sparsities
    ]
    missing = [run for run in wanted if run not in done]
    if missing:
        asked = arguments.model, arguments.data, output, short, validation
        rows += completed(missing, *asked, rows)
    console = Console(width=140)
    console.print(f"{platform.machine()}, one thread; {output}")
    if rows:
        table = validated if validation else perplexities
        console.print(table(rows, rows[0]["dense"]))
        console.print(costs(rows))


if __name__ == "__main__":
    main()
