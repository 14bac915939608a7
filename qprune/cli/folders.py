"""`qprune resume`, `check`, `verify` and `report`: commands on a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qprune.cli.options import inside
from qprune.cli.prune import carry_out
from qprune.cli.terminal import say
from solvers.host.ranges import Gigabytes, Seconds

if TYPE_CHECKING:
    from qprune.jobs.audit import Audit

#: Exit code of an inconsistent folder.
CONTRADICTED = 1

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
    from qprune.jobs.settings import read_settings, trusted
    from qprune.record.folder import REPORT_HTML, RESUMABLE, read_checksums, stopped_by, tidy

    settings = read_settings(folder)
    trusted(settings, model, data)
    stopped = stopped_by(folder)
    if stopped not in RESUMABLE or (stopped == "max_seconds" and max_seconds is None):
        tidy(folder)
        if REPORT_HTML not in read_checksums(folder) or not (folder / REPORT_HTML).exists():
            _write_page(folder)
        more = "; --max-seconds gives it more time" if stopped == "max_seconds" else ""
        say(f"{folder} is finished ({stopped}): there is nothing to go on with{more}")
        return
    others = {"max_seconds": max_seconds, "max_memory": max_memory, "executor": executor}
    given = {name: value for name, value in others.items() if value is not None}
    carry_out(settings.model_validate(settings.model_dump() | given), folder, json, resume=True)


def check(folder: Folder) -> None:
    """Hold a run's files against each other: sparsity, structure, exact zeros, counts."""
    from qprune.jobs.audit import check_run

    audit = check_run(folder)
    _tell(folder, audit)
    say(
        f"{folder}: {audit.num_pruned} of {audit.num_weights} targeted weights are exactly "
        "zero, as the mask, the counts and the report say"
    )


def verify(folder: Folder, model: OwnModel = None, data: OwnData = None) -> None:
    """Check a run's files, then load its model and data again and compute its figures anew."""
    from qprune.jobs.audit import verify_run

    audit = verify_run(folder, model, data)
    _tell(folder, audit)
    say(
        f"{folder}: model, data, mask ({audit.num_pruned} of {audit.num_weights} zero) and scores "
        "are what the folder says"
    )


def report(
    folder: Annotated[Path, typer.Argument(help="a prune's --output, finished or not")],
) -> None:
    """Write a run's report.html again, from what its folder holds."""
    say(f"{_write_page(folder)}")


def _write_page(folder: Path) -> Path:
    """Write the report's page again, and return where it is."""
    from qprune.jobs.page import render_html
    from qprune.jobs.settings import read_run
    from qprune.record.folder import REPORT_HTML, RunFolder

    saved = read_run(folder)
    html = render_html(saved.report, title=saved.settings.title, scores=saved.scores)
    RunFolder(folder).write_page(html)
    return folder / REPORT_HTML


def _tell(folder: Path, audit: Audit) -> None:
    """Print what was found.

    Raises:
        typer.Exit: something contradicts.
    """
    for finding in audit.findings:
        say(f"{folder}: {finding.line}", err=True)
    if audit.contradictions:
        raise typer.Exit(CONTRADICTED)
