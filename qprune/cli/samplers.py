"""`qprune samplers`, `formats` and `solve`: the optimisation side from the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from qprune.cli.bars import INTERRUPTED, Waiting, logged, terminable
from qprune.cli.options import (
    FormatOption,
    SenseOption,
    inside,
    not_a_pipe,
    parse_options,
    require_place,
    show_note,
    write_file,
)
from qprune.cli.terminal import say, terminal
from solvers.host.ranges import Count, Limit, Seed

if TYPE_CHECKING:
    from solvers import Answer, Ask, QuadraticProblem, SamplerEntry, Solution
    from solvers.formats.files import Reading


def samplers(
    json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
) -> None:
    """List every sampler by name: where it runs, what it can do, whether it is installed."""
    from solvers import list_samplers
    from solvers.host.disk import strict_json

    entries = list_samplers()
    if json:
        typer.echo(strict_json({"samplers": [entry.to_json() for entry in entries]}))
        return
    terminal().print(samplers_table(entries))


def samplers_table(entries: tuple[SamplerEntry, ...]) -> Table:
    """Return a table of the samplers, one row per name."""
    table = Table(caption="counts: keeps exact counts itself; others do by a penalty and repair")
    for column in ("name", "where", "counts", "warm start", "seed", "bound"):
        table.add_column(column, no_wrap=True)
    table.add_column("installed", overflow="fold")
    for entry in entries:
        abilities = (entry.counts, entry.warm_start, entry.seed, entry.bound)
        table.add_row(
            entry.name,
            entry.where,
            *("yes" if able else "-" for able in abilities),
            f"no: {entry.missing}" if entry.missing else "yes",
        )
    return table


def formats(
    json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
) -> None:
    """List every format of problem files by name: suffixes, contents, which way it goes."""
    from solvers.formats.table import FORMATS
    from solvers.host.disk import strict_json

    if json:
        typer.echo(strict_json({"formats": [one.to_json() for one in FORMATS]}))
        return
    table = Table(caption="read as they are or packed: .gz, .bz2, .xz, .zip; see docs/formats.md")
    table.add_column("name", no_wrap=True)
    for column in ("suffixes", "contents", "objective", "counts", "written"):
        table.add_column(column, overflow="fold")
    for one in FORMATS:
        able = ("yes" if has else "-" for has in (one.counts, one.write is not None))
        table.add_row(one.name, " ".join(one.suffixes), Text(one.contents), one.sense, *able)
    terminal().print(table)


def solve(
    instance: Annotated[
        Path,
        typer.Argument(
            callback=not_a_pipe, help="a problem in any format that `qprune formats` lists"
        ),
    ],
    count: Annotated[
        int | None,
        typer.Option(callback=inside(Count), help="exact number of variables that are 1"),
    ] = None,
    sampler: Annotated[
        str, typer.Option(help="a name that `qprune samplers` lists; auto: what suits the problem")
    ] = "auto",
    sampler_option: Annotated[
        list[str] | None, typer.Option(help="name=value for the sampler; may be repeated")
    ] = None,
    time_limit: Annotated[
        float | None, typer.Option(callback=inside(Limit), help="seconds")
    ] = None,
    seed: Annotated[int, typer.Option(callback=inside(Seed), help="decides everything random")] = 0,
    maximize: SenseOption = None,
    format: FormatOption = None,
    json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON")] = False,
    output: Annotated[Path | None, typer.Option(help="file for the sample, as JSON")] = None,
) -> None:
    """Solve a problem in a file: energy, lower bound, gap, whether proved."""
    from solvers.ask import Ask
    from solvers.formats.files import read_file
    from solvers.host.disk import strict_json

    if output is not None:
        require_place(output)
    options = parse_options(sampler_option or [])
    if time_limit is not None:
        options["time_limit"] = time_limit
    ask = Ask.to(sampler, options, fills_time=True)
    reading, answer, seconds = _solved(
        ask, lambda: read_file(instance, count, maximize, format), seed
    )
    problem = reading.problem
    interrupted = bool(answer.info.get("interrupted", False))
    found = outcome(problem, answer) | {
        "instance": str(instance),
        "format": reading.format.name,
        "sense": reading.sense.value,
        "sampler": sampler,
        "seed": seed,
        "cpu_seconds": seconds,
        "interrupted": interrupted,
    }
    for note in reading.notes:
        show_note(note)
    if output is not None:
        write_file(output, strict_json(found | sample_record(problem, answer)) + "\n")
    if json:
        typer.echo(strict_json(found))
    else:
        terminal().print(outcome_table(found))
    if interrupted:
        say("qprune: interrupted; this is the best found so far", err=True)
        raise typer.Exit(INTERRUPTED)


def _solved(ask: Ask, read: Callable[[], Reading], seed: int) -> tuple[Reading, Answer, float]:
    """(the file as read, the answer, CPU seconds); a signal ends it with what was found."""
    console = terminal(stderr=True)
    with terminable(), logged(console):
        try:
            reading, began = read(), time.process_time()
            with Waiting(f"solving with {ask.name}", console):
                answer = ask(reading.problem, seed=seed)
        except KeyboardInterrupt:
            typer.echo("qprune: interrupted before anything was found", err=True)
            raise typer.Exit(INTERRUPTED) from None
    return reading, answer, time.process_time() - began


def outcome(problem: QuadraticProblem, solution: Solution) -> dict[str, Any]:
    """Return the outcome: energy, bound, gap, whether proved."""
    return {
        "num_variables": problem.num_variables,
        "counts": None if problem.counts is None else problem.counts.tolist(),
        "energy": solution.energy,
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "proved": solution.proved,
        "feasible": bool(problem.feasible(solution.sample)[0]),
    }


def sample_record(problem: QuadraticProblem, solution: Solution) -> dict[str, Any]:
    """Return the best sample, and the label of each of its entries."""
    labels = [name if isinstance(name, int | str) else str(name) for name in problem.variables]
    return {"variables": labels, "sample": solution.sample.tolist()}


def outcome_table(found: dict[str, Any]) -> Table:
    """Return a table of the outcome, one line per entry."""
    table = Table(show_header=False)
    names = ("instance", "format", "sense", "sampler", "num_variables", "counts")
    for name in (*names, "energy", "lower_bound", "gap"):
        table.add_row(name, str(found[name]))
    for name in ("proved", "feasible"):
        table.add_row(name, "yes" if found[name] else "no")
    table.add_row("cpu_seconds", f"{found['cpu_seconds']:.3f}")
    return table
