"""`qprune prune` and `resume` of a language model: progress bars, log, printed outcome.

`qprune prune`: its options, its progress bar and its printed outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from qprune.cli.bars import INTERRUPTED, StagesBar, interruptible, logged
from qprune.cli.terminal import say, terminal
from qprune.distributed.ranks import joined, started_ranks
from qprune.errors import ImpossibleRequestError
from qprune.jobs.language.job import run_language_job
from qprune.jobs.language.outcome import LanguageOutcome
from qprune.jobs.language.settings import LanguageSettings
from qprune.jobs.language.stages import Watch
from qprune.jobs.options import parse_options
from qprune.jobs.settings import make_settings, merged
from qprune.jobs.verify import trusted
from qprune.steps.solve import BlockObserver
from solvers.host.disk import strict_json


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
    from qprune.record.blocks import BlockFolder

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


if TYPE_CHECKING:
    from qprune.prune import Pruned
    from qprune.results import Report

#: Options of the command that are no settings of a run.
_NOT_SETTINGS = ("output", "config", "json", "sampler_option", "record_blocks", "target")


def prune(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(
            help="a transformers checkpoint: folder, or hf:ID; or digits-mlp, mlpnet, "
            "resnet20, torchvision:NAME or package.module:factory"
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="safetensors file for the model")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="text: wikitext2:DIR, text:FILE or hf:NAME; or digits, mnist:PATH.npz, "
            "cifar10:PATH.npz or package.module:factory"
        ),
    ] = None,
    normalization: Annotated[
        str | None,
        typer.Option(help="none, half, digits, mnist or cifar10; the data's own if not given"),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="share of targeted weights to set to zero, in [0, 1)")
    ] = None,
    density: Annotated[float | None, typer.Option(help="1 - sparsity, instead of it")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="classes, modules, parameters or re:PATTERN; by default every Linear and "
            "convolution, and the matrices of attention, LSTM and GRU"
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="like --targets: what to leave dense")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="first pass: random, magnitude, wanda, gradient or fisher (fisher)"),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="a name that `qprune samplers` lists (relax); with --method reconstruct, of rows"
        ),
    ] = None,
    sampler_option: Annotated[
        list[str] | None, typer.Option(help="name=value for the sampler; may be repeated")
    ] = None,
    curvature: Annotated[
        str | None, typer.Option(help="fisher, empirical or hessian (fisher)")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="keep to the dense network's outputs (dense), or to the labels: cross-entropy, "
            "mse or bce"
        ),
    ] = None,
    target: Annotated[str | None, typer.Option(hidden=True)] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="count zeros globally (global), by layer or by row; layer by layer, by layer (the "
            "method's own) or row"
        ),
    ] = None,
    mask_structure: Annotated[
        str | None, typer.Option(help="N:M, at most N non-zero in every M consecutive inputs")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="variables in a block (1024)")] = None,
    num_blocks: Annotated[
        int | None, typer.Option(help="disjoint blocks for one expansion (1)")
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(help="stages up to the asked sparsity (20; 10 for a large network)"),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="expansions in each stage (4; 1 for a large network)")
    ] = None,
    final_rounds: Annotated[
        int | None, typer.Option(help="expansions in the last stage (5 x rounds)")
    ] = None,
    compensate: Annotated[
        bool | None,
        typer.Option("--compensate/--mask-only", help="whether kept weights may move"),
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(help="whether to fit on shifted or blended copies of the samples too"),
    ] = None,
    samples_per_step: Annotated[
        int | None, typer.Option(help="samples in one expansion (2400; 400 for a large network)")
    ] = None,
    num_calibration_samples: Annotated[
        int | None, typer.Option(help="number of calibration samples (1000)")
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="end after so long")] = None,
    max_steps: Annotated[int | None, typer.Option(help="end after so many steps")] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(help="memory limit of the process, GB (what is available)"),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="where blocks are solved: threads[:N], ray or ray://HOST:PORT"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="language models: magnitude, wanda, sparsegpt, reconstruct or qprune (qprune)"
        ),
    ] = None,
    stage2_steps: Annotated[
        int | None,
        typer.Option(
            help="language models: optimiser steps across the network; 0 = layer by layer alone, "
            "at layer budgets by sensitivity"
        ),
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(help="language models: tokens in a sample (the model's, to 2048)")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="language models: float32, bfloat16, float16, auto (float32)"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="language models: device, as torch names it (cpu)")
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(
            help="language models: where activations are stored: cpu, device or a folder (cpu)"
        ),
    ] = None,
    evaluate: Annotated[
        bool | None,
        typer.Option(
            help="checkpoints: whether to measure perplexity or divergence on held-out data"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="seed of all random choices (0)")] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="batches passed and blocks solved at once (1); no effect on the mask"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="new folder for weights, mask, settings, steps, report")
    ] = None,
    record_blocks: Annotated[
        Path | None,
        typer.Option(help="new folder for every problem put to the sampler, for `qprune compare`"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of these options; the command line wins")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON")] = False,
) -> None:
    """Prune a network, and say how good it is before and after."""
    from qprune.cli.bars import ProgressBar, logged
    from qprune.jobs.job import run_job
    from qprune.jobs.verify import trusted
    from qprune.models.pretrained import is_pretrained

    if target is not None:
        raise ImpossibleRequestError(
            f"--target is now --loss; for --target {target} pass --loss "
            f"{'dense' if target == 'dense' else 'cross-entropy, mse or bce'}"
        )
    given = _given(context.params)
    if is_pretrained(str(merged(given, config).get("model"))):
        pass

        if started_ranks() > 1:
            raise ImpossibleRequestError(
                "language models are pruned by one process from the command line; start without "
                "torchrun, or call qprune.prune(..., ranks=qprune.distributed.ranks.DataParallel())"
            )
        prune_language_model(given, config, output, json, record_blocks)
        return
    settings = make_settings(given, config)
    trusted(settings, given["model"], given["data"])
    blocks = None
    if record_blocks is not None:
        from qprune.record.blocks import BlockFolder

        blocks = BlockFolder(record_blocks, settings.provenance)
    # Without a folder nothing can be resumed, so Ctrl-C ends the run at once.
    stopping = interruptible() if output else nullcontext(None)
    with joined() as ranks, stopping as stop:
        first = ranks.rank == 0
        console = terminal(stderr=True, quiet=not first)
        with logged(console), ProgressBar(settings.asked_sparsity, console) as bar:
            pruned = run_job(
                settings,
                output,
                observe=[bar],
                observe_blocks=[blocks] if blocks and first else (),
                should_stop=stop,
                ranks=ranks,
            )
    if not first:
        return
    if blocks is not None:
        say(str(blocks), err=True)
    tell(pruned, output, json)


def tell(pruned: Pruned, output: Path | None, json: bool) -> None:
    """Print the outcome of a run.

    Raises:
        typer.Exit: the run was stopped by hand and can be resumed.
    """
    from qprune.jobs.job import summary
    from solvers.host.disk import strict_json

    if json:
        typer.echo(strict_json(summary(pruned)))
    else:
        terminal().print(outcome_table(pruned.report))
        if output is not None:
            say(f"{output / 'report.html'} shows the run; {output} holds the network")
    if pruned.report.stopped == "interrupted":
        say(f"stopped by hand; `qprune resume {output}` goes on", err=True)
        raise typer.Exit(INTERRUPTED)


def outcome_table(report: Report) -> Table:
    """Return a table of accuracy and loss on test data: dense, after the first pass, pruned."""
    table = Table(title=f"{100 * report.achieved_sparsity:.2f} % of targeted weights are zero")
    table.add_column("network")
    table.add_column("test accuracy", justify="right")
    table.add_column("test loss, nats", justify="right")
    scores = {"dense": report.dense, "first pass alone": report.start, "pruned": report.final}
    for name, score in scores.items():
        if score is not None:
            accuracy = "-" if score.accuracy is None else f"{100 * score.accuracy:.2f} %"
            table.add_row(name, accuracy, f"{score.loss:.4f}")
    table.caption = (
        f"{report.num_accepted} of {len(report.steps)} steps taken, "
        f"{report.cpu_seconds:.1f} s of CPU time, seed {report.seed}, {report.stopped}"
    )
    return table


def _given(params: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the command line by name; None where not given."""
    given = {name: value for name, value in params.items() if name not in _NOT_SETTINGS}
    given["sampler_options"] = parse_options(params["sampler_option"] or ())
    return {name: None if value in ((), [], {}) else value for name, value in given.items()}
