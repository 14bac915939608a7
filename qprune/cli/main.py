"""The command line: commands, and one line on standard error for every mistake."""

from __future__ import annotations

import os
import re
import sys
from typing import cast

import typer

from qprune.cli.bars import INTERRUPTED
from qprune.cli.compare import compare
from qprune.cli.folders import check, report, resume, verify
from qprune.cli.models import evaluate, hold, measure
from qprune.cli.prune import prune
from qprune.cli.samplers import formats, samplers, solve
from qprune.cli.terminal import say, take_any_text
from qprune.errors import QpruneError
from solvers.errors import SolverError
from solvers.host.legible import legible
from solvers.host.ranges import quoted

#: Exit code of a refused request.
MISTAKE = 2
# "" and --output= are empty values, which pathlib would read as the current folder.
_EMPTY = re.compile(r"(--[\w-]+=)?\s*")
# Longest line in characters; longer given values are cut.
_LONGEST_MISTAKE = 1000

app = typer.Typer(
    name="qprune",
    help="Prune neural networks by solving restore-or-prune choices as binary quadratic models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
SOLVING = (samplers, formats, solve, compare)
FOLDERS = (prune, resume, check, verify, report)
for command in (*FOLDERS, evaluate, measure, hold, *SOLVING):
    app.command()(command)


def main() -> None:
    """Run the command line; mistakes of the user end in one line, never in a traceback."""
    # User factories are imported from the current folder.
    sys.path.append("")
    take_any_text()
    empty = next((n for n, part in enumerate(sys.argv) if n and _EMPTY.fullmatch(part)), None)
    if empty is not None:
        _fail(f"argument {empty} ({quoted(sys.argv[empty])}) is empty; give a value", MISTAKE)
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
    except OSError as error:
        # File errors that no command handles: a name too long, a full disk.
        place = "" if error.filename is None else f"{legible(error.filename, 200)}: "
        _fail(f"{place}{error.strerror or error}", MISTAKE)


def _fail(message: str, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    who = "qprune" if rank == "0" else f"qprune (rank {rank})"
    say(f"{who}: " + legible(" ".join(message.split()), _LONGEST_MISTAKE), err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
