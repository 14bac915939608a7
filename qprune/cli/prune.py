"""`qprune prune`: options made from the settings, a progress bar and a printed outcome."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from rich.table import Table

from qprune.cli.bars import INTERRUPTED, ProgressBar, interruptible, logged
from qprune.cli.options import parse_options
from qprune.cli.terminal import say, terminal
from qprune.distributed.ranks import joined
from qprune.errors import ImpossibleRequestError
from qprune.jobs.settings import Settings, make_settings, trusted

if TYPE_CHECKING:
    from qprune.jobs.job import Outcome
    from qprune.results import Report, Score
    from qprune.steps.solve import BlockObserver
from solvers.host.disk import strict_json

#: Options of the command that are no settings of a run.
_OTHERS = {
    "output": Annotated[
        Path | None, typer.Option(help="new folder for weights, mask, settings, steps, report")
    ],
    "record_blocks": Annotated[
        Path | None,
        typer.Option(help="new folder for every problem put to the sampler, for `qprune compare`"),
    ],
    "config": Annotated[
        Path | None, typer.Option(help="YAML file of these options; the command line wins")
    ],
    "json": Annotated[bool, typer.Option("--json", help="print the outcome as JSON")],
    "target": Annotated[str | None, typer.Option(hidden=True)],
}


def prune(context: typer.Context, **options: Any) -> None:
    """Prune a network, and say how good it is before and after."""
    if options["target"] is not None:
        raise ImpossibleRequestError(
            f"--target is now --loss; for --target {options['target']} pass --loss "
            f"{'dense' if options['target'] == 'dense' else 'cross-entropy, mse or bce'}"
        )
    given = {name: value for name, value in options.items() if name in Settings.model_fields}
    given["sampler_options"] = parse_options(options["sampler_option"] or ())
    given = {name: None if value in ((), [], {}) else value for name, value in given.items()}
    settings = make_settings(given, options["config"])
    trusted(settings, given["model"], given["data"])
    blocks = None
    if options["record_blocks"] is not None:
        from qprune.record.blocks import BlockFolder

        if settings.method not in (None, "qprune"):
            raise ImpossibleRequestError(
                f"--record-blocks keeps what stage 2 puts to its sampler, and --method "
                f"{settings.method} has none; use --method qprune, or leave it out"
            )
        blocks = BlockFolder(options["record_blocks"], settings.provenance)
    carry_out(settings, options["output"], options["json"], blocks=blocks)


def carry_out(
    settings: Settings,
    output: Path | None,
    json: bool,
    *,
    resume: bool = False,
    blocks: BlockObserver | None = None,
) -> None:
    """Run the job with a bar and a log, and print the outcome: one line of JSON, or a table.

    Raises:
        QpruneError, SolverError: see `qprune.jobs.job.run_job`.
        typer.Exit: the run was stopped by hand and can be resumed.
    """
    from qprune.jobs.job import run_job
    from qprune.jobs.kinds import kind_of

    # Without a folder nothing can be resumed, so Ctrl-C ends the run at once.
    in_order = output is not None and kind_of(settings).ends_in_order(settings)
    with joined() as ranks, interruptible() if in_order else nullcontext(None) as stop:
        first = ranks.rank == 0
        console = terminal(stderr=True, quiet=not first)
        with logged(console), ProgressBar(settings.asked_sparsity, console) as bar:
            outcome = run_job(
                settings,
                output,
                resume=resume,
                observe=[bar],
                observe_blocks=[blocks] if blocks and first else (),
                tell=bar.tell,
                should_stop=stop,
                ranks=ranks,
            )
    if not first:
        return
    if blocks is not None:
        say(str(blocks), err=True)
    if json:
        typer.echo(strict_json(outcome.summary()))
    else:
        terminal().print(outcome_table(outcome))
        if output is not None:
            say(f"{output / 'report.html'} shows the run; {output} holds the network and its mask")
    if outcome.report.stopped == "interrupted":
        say(f"stopped by hand; `qprune resume {output}` goes on", err=True)
        raise typer.Exit(INTERRUPTED)


def outcome_table(outcome: Outcome) -> Table:
    """Return a table of a run: its layers where they were pruned one by one, its scores, its cost.

    Scores are on test data: dense, after the first pass, pruned.
    """
    report = outcome.report
    by_layer = [record for record in report.layers if record.error is not None]
    table = Table(title=f"{100 * report.achieved_sparsity:.2f} % of targeted weights are zero")
    if by_layer:
        table.add_column("layer")
        for name in ("shape", "zero", "output error"):
            table.add_column(name, justify="right")
        for record in by_layer:
            shape = "x".join(map(str, record.shape))
            zero = f"{100 * record.sparsity:.2f} %"
            table.add_row(record.name, shape, zero, f"{record.error:.4f}")
    else:
        table.add_column("network")
        table.add_column("test accuracy", justify="right")
        table.add_column(outcome.figure, justify="right")
        for name, score in _scores(report):
            accuracy = "-" if score.accuracy is None else f"{100 * score.accuracy:.2f} %"
            table.add_row(name, accuracy, f"{score.loss:.4f}")
    table.caption = ", ".join(_caption(outcome, scored=not by_layer))
    return table


def _caption(outcome: Outcome, *, scored: bool) -> Iterator[str]:
    """Yield the figures below the table; ``scored``: the scores are in it."""
    report = outcome.report
    if not scored:
        for name, score in _scores(report):
            figure = f"{score.loss:.4g}" if score.perplexity is None else f"{score.perplexity:.3f}"
            accuracy = "" if score.accuracy is None else f", {100 * score.accuracy:.2f} %"
            yield f"{outcome.figure} {figure}{accuracy} {name}"
    steps = [step for step in report.steps if step.kind != "block"]
    if steps:
        yield f"{sum(step.accepted for step in steps)} of {len(steps)} steps taken{_gain(report)}"
    yield f"{report.cpu_seconds:.1f} s of CPU time"
    yield f"at most {report.peak_memory / 1e9:.2f} GB of memory"
    yield f"seed {report.seed}"
    yield report.stopped


def _gain(report: Report) -> str:
    """Return the change of the loss on samples held back, and how it was predicted, in words."""
    taken = [step for step in report.steps if step.accepted and step.kind != "start"]
    if not taken:
        return ""
    said = f"; {report.promise}" if report.promise else ""
    return f", loss on samples held back {sum(step.real for step in taken):+.3g}{said}"


def _scores(report: Report) -> list[tuple[str, Score]]:
    scores = {"dense": report.dense, "first pass alone": report.start, "pruned": report.final}
    return [(name, score) for name, score in scores.items() if score is not None]


def _options() -> Iterator[tuple[str, Any, Any]]:
    """Yield the options of `prune`: name, annotation, default."""
    for name, field in Settings.model_fields.items():
        if name == "sampler_options":
            help_ = "name=value for the sampler; may be repeated"
            yield "sampler_option", Annotated[list[str] | None, typer.Option(help=help_)], None
            continue
        yield name, Annotated[_option_type(field) | None, _declared(field)], None
    for name, annotation in _OTHERS.items():
        yield name, annotation, False if name == "json" else None


def _declared(field: FieldInfo) -> Any:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    names = [str(extra["option"])] if "option" in extra else []
    return typer.Option(*names, help=field.description)


def _option_type(field: FieldInfo) -> Any:
    """Return the type that the command line reads; ranges are checked with all settings."""
    found = set(_plain_types(field.annotation))
    return next(one for one in (list[str], bool, int, float, Path, str) if one in found)


def _plain_types(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is tuple:
        yield list[str]
    elif origin is Literal:
        yield str
    elif origin is None:
        yield annotation
    elif origin is Annotated:
        yield from _plain_types(get_args(annotation)[0])
    else:
        for part in get_args(annotation):
            if part is not NoneType:
                yield from _plain_types(part)


def _with_options(command: Callable[..., None]) -> None:
    """Give ``command`` the signature that typer reads its options from."""
    given = [*_options()]
    context = next(iter(inspect.signature(command).parameters.values()))
    parameters = [context.replace(annotation=typer.Context)] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in given
    ]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]


_with_options(prune)
