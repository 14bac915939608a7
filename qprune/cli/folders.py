"""`qprune resume`, `check` and `verify`: commands on a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qprune.cli.bars import interruptible
from qprune.cli.prune import tell
from qprune.cli.terminal import say, terminal
from qprune.distributed.ranks import joined
from qprune.jobs.options import inside
from solvers.host.ranges import Gigabytes, Seconds

#: Exit code of an inconsistent folder.
LIE = 1

Folder = Annotated[Path, typer.Argument(help="a prune's --output")]
OwnModel = Annotated[
    str | None, typer.Option(help="the run's package.module:factory again, if it has one")
]
OwnData = Annotated[str | None, typer.Option(help="the same for its data")]


def resume(
    folder: Folder,
    model: OwnModel = None,
    data: OwnData = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            callback=inside(Seconds),
            help="another limit for all of the run, time so far included",
        ),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            callback=inside(Gigabytes), help="GB that the process may hold, as with prune"
        ),
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="where blocks are solved from now on, as with prune")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON")] = False,
) -> None:
    """Go on with a run that was stopped or killed, to the mask it would have had."""
    from qprune.cli.bars import ProgressBar, logged
    from qprune.jobs.job import run_job
    from qprune.jobs.language.settings import LanguageSettings
    from qprune.jobs.verify import trusted
    from qprune.record.folder import RESUMABLE, read_settings, stopped_by, tidy

    settings = read_settings(folder)
    trusted(settings, model, data)
    stopped = stopped_by(folder)
    if stopped not in RESUMABLE or (stopped == "max_seconds" and max_seconds is None):
        tidy(folder)
        _page_again(folder)
        more = "; --max-seconds gives it more time" if stopped == "max_seconds" else ""
        say(f"{folder} is finished ({stopped}): there is nothing to go on with{more}")
        return
    others = {"max_seconds": max_seconds, "max_memory": max_memory, "executor": executor}
    given = {name: value for name, value in others.items() if value is not None}
    settings = type(settings).model_validate(settings.model_dump() | given)
    if isinstance(settings, LanguageSettings):
        from qprune.cli.prune import carry_out

        carry_out(settings, folder, json, resume=True)
        return
    with joined() as ranks, interruptible() as stop:
        first = ranks.rank == 0
        console = terminal(stderr=True, quiet=not first)
        with logged(console), ProgressBar(settings.asked_sparsity, console) as bar:
            pruned = run_job(
                settings, folder, resume=True, observe=[bar], should_stop=stop, ranks=ranks
            )
    if first:
        tell(pruned, folder, json)


def _page_again(folder: Path) -> None:
    """Write the report's page again where it is missing or half written."""
    from qprune.jobs.page import render_html
    from qprune.record.folder import REPORT_HTML, RunFolder, read_checksums, read_run

    if REPORT_HTML not in read_checksums(folder) or not (folder / REPORT_HTML).exists():
        saved = read_run(folder)
        html = render_html(saved.report, title=saved.settings.title, scores=saved.scores)
        RunFolder(folder).write_page(html)


def check(folder: Folder) -> None:
    """Hold a run's files against each other: sparsity, structure, exact zeros, counts."""
    from qprune.jobs.check import check_run

    finding = check_run(folder)
    for note in finding.notes:
        typer.echo(f"{folder}: {note}", err=True)
    _refuse(folder, finding.lies)
    say(
        f"{folder}: {finding.num_pruned} of {finding.num_weights} targeted weights are exactly "
        "zero, as the mask, the counts and the report say"
    )


def verify(folder: Folder, model: OwnModel = None, data: OwnData = None) -> None:
    """Check a run's files, then load its model and data again and compute its figures anew."""
    from qprune.jobs.verify import verify_run

    verdict = verify_run(folder, model, data)
    for note in verdict.notes:
        say(f"{folder}: {note}", err=True)
    _refuse(folder, verdict.finding.lies)
    say(
        f"{folder}: model, data, mask ({verdict.finding.num_pruned} of "
        f"{verdict.finding.num_weights} zero) and scores are what the folder says"
    )


def _refuse(folder: Path, lies: tuple[str, ...]) -> None:
    for lie in lies:
        say(f"{folder}: {lie}", err=True)
    if lies:
        raise typer.Exit(LIE)
