"""`qprune prune` and `resume` of a language model: progress bars, log, printed outcome."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from qprune.config import make_settings
from qprune.errors import ImpossibleRequestError
from qprune.interrupt import INTERRUPTED, interruptible
from qprune.language.job import run_language_job
from qprune.language.outcome import LanguageOutcome
from qprune.language.settings import LanguageSettings
from qprune.language.stages import Watch
from qprune.progress import StagesBar, logged
from qprune.records import strict_json
from qprune.solve import BlockObserver
from qprune.terminal import say, terminal
from qprune.verify import trusted


def prune_language_model(
    given: Mapping[str, Any],
    config: Path | None,
    output: Path | None,
    json: bool,
    record_blocks: Path | None = None,
) -> None:
    """Prune, and print the outcome: one line of JSON, or a table.

    Raises:
        QpruneError: see `run_language_job`.
        typer.Exit: the run was stopped by hand and can be resumed.
    """
    settings = make_settings(given, config, LanguageSettings)
    trusted(settings, given["model"], given["data"])
    if record_blocks is None:
        carry_out(settings, output, json)
        return
    from qprune.block_folder import BlockFolder

    if settings.method != "qprune":
        raise ImpossibleRequestError(
            f"--record-blocks keeps what stage 2 puts to its sampler, and --method "
            f"{settings.method} has none; use --method qprune, or leave it out"
        )
    blocks = BlockFolder(record_blocks, settings.provenance)
    carry_out(settings, output, json, blocks=blocks)
    say(str(blocks), err=True)


def carry_out(
    settings: LanguageSettings,
    output: Path | None,
    json: bool,
    *,
    resume: bool = False,
    blocks: BlockObserver | None = None,
) -> None:
    """Run the job with a bar and a log, and print the outcome.

    Raises:
        QpruneError: see `run_language_job`.
        typer.Exit: the run was stopped by hand and can be resumed.
    """
    console = terminal(stderr=True)
    # Without a folder, or without a second stage, nothing can be resumed: Ctrl-C ends at once.
    ends_in_order = output is not None and settings.method == "qprune"
    with logged(console), interruptible() if ends_in_order else nullcontext(None) as stop:
        bar = StagesBar(console)
        with bar:
            outcome = run_language_job(
                settings,
                output,
                resume=resume,
                watch=Watch(bar.layer, bar.step, blocks, bar.text, bar.moves, stop),
                track=bar.track,
            )
    if json:
        typer.echo(strict_json(outcome.summary()))
    else:
        terminal().print(_table(outcome))
        if output is not None:
            say(f"{output} holds the model, its tokenizer and its mask")
    if outcome.report.stopped == "interrupted":
        say(f"stopped by hand; `qprune resume {output}` goes on", err=True)
        raise typer.Exit(INTERRUPTED)


def _table(outcome: LanguageOutcome) -> Table:
    card, report = outcome.card, outcome.report
    table = Table(
        title=f"{100 * card.achieved_sparsity:.2f} % of targeted weights are zero "
        f"({100 * card.asked_sparsity:.2f} % asked)"
    )
    table.add_column("layer")
    for name in ("shape", "zero", "output error", "CPU s"):
        table.add_column(name, justify="right")
    for matrix in outcome.matrices:
        error = "-" if matrix.error is None else f"{matrix.error:.4f}"
        taken = "-" if matrix.cpu_seconds is None else f"{matrix.cpu_seconds:.1f}"
        shape = "x".join(map(str, matrix.shape))
        table.add_row(matrix.name, shape, f"{100 * matrix.sparsity:.2f} %", error, taken)
    figures = [
        *_qualities(outcome),
        *_stage_2(outcome),
        f"{outcome.cpu_seconds:.1f} s of CPU time",
        f"at most {outcome.peak_memory / 1e9:.2f} GB of memory",
        f"seed {report.seed}",
        *([] if report.stopped == "done" else [report.stopped]),
    ]
    table.caption = ", ".join(figures)
    return table


def _qualities(outcome: LanguageOutcome) -> list[str]:
    dense, pruned = outcome.card.dense, outcome.card.pruned
    if dense is None or pruned is None:
        return []
    return [f"{pruned.named} {dense.shown} dense, {pruned.shown} pruned"]


def _stage_2(outcome: LanguageOutcome) -> list[str]:
    steps = [step for step in outcome.report.steps if step.kind != "start"]
    if not steps:
        return []
    real = sum(step.real for step in steps if step.accepted)
    foretold = [s.predicted for s in steps if s.accepted and s.predicted is not None]
    said = f" ({sum(foretold):+.3g} predicted of block moves)" if foretold else ""
    taken = sum(step.accepted for step in steps)
    return [
        f"stage 2: {taken} of {len(steps)} steps taken, loss on held-out text {real:+.3g} "
        f"nats{said}"
    ]
