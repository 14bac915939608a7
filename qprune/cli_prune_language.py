"""`qprune prune` where the model is a language model: its bars, its log, what it prints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from qprune.config import make_settings
from qprune.language.job import LanguageOutcome, run_language_job
from qprune.language.settings import LanguageSettings
from qprune.progress import LayerBar, tracked
from qprune.records import strict_json


def prune_language_model(
    given: Mapping[str, Any], config: Path | None, output: Path | None, json: bool
) -> None:
    """Prune, and print the outcome: one line of JSON, or a table.

    Raises:
        QpruneError: see `run_language_job`.
    """
    settings = make_settings(given, config, LanguageSettings)
    console = Console(stderr=True)
    handler = RichHandler(console=console, show_path=False, show_time=False, show_level=False)
    logger = logging.getLogger("qprune")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with LayerBar(console) as bar:
            outcome = run_language_job(settings, output, observe=bar, track=tracked(console))
    finally:
        logger.removeHandler(handler)
    if json:
        typer.echo(strict_json(outcome.summary()))
        return
    Console().print(_table(outcome))
    if output is not None:
        typer.echo(f"{output} holds the model, its tokenizer and its mask")


def _table(outcome: LanguageOutcome) -> Table:
    card, done = outcome.card, outcome.layerwise
    table = Table(
        title=f"{100 * done.achieved_sparsity:.2f} % of targeted weights are zero "
        f"({100 * done.asked_sparsity:.2f} % asked)"
    )
    table.add_column("layer")
    for name in ("shape", "zero", "output error", "CPU s"):
        table.add_column(name, justify="right")
    for layer in done.layers:
        shape = "x".join(map(str, layer.shape))
        cells = (f"{100 * layer.sparsity:.2f} %", f"{layer.error:.4f}", f"{layer.cpu_seconds:.1f}")
        table.add_row(layer.name, shape, *cells)
    figures = [f"{done.cpu_seconds:.1f} s of CPU time", f"seed {card.settings['seed']}"]
    if card.dense and card.pruned:
        figures.insert(
            0, f"test perplexity {card.dense.value:.3f} dense, {card.pruned.value:.3f} pruned"
        )
    table.caption = ", ".join(figures)
    return table
