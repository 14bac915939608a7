"""The command line: commands, and one line on standard error for every mistake."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from qprune.cli_compare import compare
from qprune.cli_language import evaluate, hold, measure
from qprune.cli_prune import prune
from qprune.cli_run import check, resume, verify
from qprune.cli_solvers import samplers, solve
from qprune.errors import QpruneError
from qprune.interrupt import INTERRUPTED
from solvers.errors import SolverError

#: Exit code where what was asked cannot be done.
MISTAKE = 2

app = typer.Typer(
    name="qprune",
    help="Prune neural networks by solving restore-or-prune choices as binary quadratic models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (prune, resume, check, verify, evaluate, measure, hold, samplers, solve, compare):
    app.command()(command)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="a prune's --output, finished or not")],
) -> None:
    """Write a run's report.html again, from what its folder holds."""
    from qprune.report import render_html
    from qprune.run import REPORT_HTML, RunFolder, read_run

    saved = read_run(folder)
    html = render_html(saved.report, title=saved.settings.title, scores=saved.scores)
    RunFolder(folder).write_page(html)
    typer.echo(f"{folder / REPORT_HTML}")


def main() -> None:
    """Run the command line; mistakes of the user end in one line, never in a traceback."""
    # Factories of the user's own are imported from where the command runs.
    sys.path.append("")
    # UsageError: older typer takes click's, newer has its own.
    usage_error = cast("type[typer.BadParameter]", typer.BadParameter.__base__)
    try:
        sys.exit(app(standalone_mode=False))
    except (QpruneError, SolverError) as error:
        _fail(str(error), MISTAKE)
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped", INTERRUPTED)
    except usage_error as error:
        _fail(error.format_message(), MISTAKE)


def _fail(message: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    who = "qprune" if rank == "0" else f"qprune (rank {rank})"
    typer.echo(f"{who}: " + " ".join(message.split()), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
