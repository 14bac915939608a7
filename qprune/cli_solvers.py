"""`qprune samplers` and `qprune solve`: the optimisation side from the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from qprune.cli_options import parse_options
from qprune.interrupt import INTERRUPTED, terminable
from qprune.progress import Waiting, logged

if TYPE_CHECKING:
    from solvers import QuadraticProblem, SamplerEntry, Solution


def samplers(
    json: Annotated[bool, typer.Option("--json", help="print the list as JSON")] = False,
) -> None:
    """List every sampler by name: where it runs, what it can do, whether it is installed."""
    from qprune.records import strict_json
    from solvers import list_samplers

    entries = list_samplers()
    if json:
        typer.echo(strict_json({"samplers": [entry.to_json() for entry in entries]}))
        return
    Console().print(samplers_table(entries))


def samplers_table(entries: tuple[SamplerEntry, ...]) -> Table:
    """One row per name."""
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


def solve(
    instance: Annotated[
        Path,
        typer.Argument(help=".npz, .qubo, .coo, OR-Library or G-set .txt(.gz), .bqm, .cqm, .json"),
    ],
    count: Annotated[int | None, typer.Option(help="how many variables are 1, exactly")] = None,
    sampler: Annotated[
        str, typer.Option(help="a name that `qprune samplers` lists; auto: what suits the problem")
    ] = "auto",
    sampler_option: Annotated[
        list[str] | None, typer.Option(help="name=value for the sampler; may be repeated")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="seconds")] = None,
    seed: Annotated[int, typer.Option(help="decides everything random")] = 0,
    maximize: Annotated[
        bool,
        typer.Option("--maximize", help="the file's objective is maximised: energy is minus it"),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="print the outcome as JSON")] = False,
    output: Annotated[Path | None, typer.Option(help="file for the sample, as JSON")] = None,
) -> None:
    """Solve a problem in a file: energy, lower bound, gap, whether proved."""
    from qprune.records import strict_json
    from solvers.counting import configured
    from solvers.files import read_problem

    chosen, options = configured(
        sampler, parse_options(sampler_option or []), seed=seed, time_limit=time_limit
    )
    problem = read_problem(instance, count=count, maximize=maximize)
    console = Console(stderr=True)
    began = time.process_time()
    with terminable(), logged(console), Waiting(f"solving with {sampler}", console):
        try:
            solution = chosen.sample_problem(problem, **options)
        except KeyboardInterrupt:
            typer.echo("qprune: interrupted before anything was found", err=True)
            raise typer.Exit(INTERRUPTED) from None
    seconds = time.process_time() - began
    interrupted = bool(solution.info.get("interrupted", False))
    found = outcome(problem, solution) | {
        "instance": str(instance),
        "sampler": sampler,
        "seed": seed,
        "cpu_seconds": seconds,
        "interrupted": interrupted,
    }
    if output is not None:
        output.write_text(strict_json(found | sample_record(problem, solution)) + "\n")
    if json:
        typer.echo(strict_json(found))
    else:
        Console().print(outcome_table(found))
    if interrupted:
        typer.echo("qprune: interrupted; this is the best found so far", err=True)
        raise typer.Exit(INTERRUPTED)


def outcome(problem: QuadraticProblem, solution: Solution) -> dict[str, Any]:
    """What was found and what is proved about it."""
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
    """The best sample, and the label of each of its entries."""
    labels = [name if isinstance(name, int | str) else str(name) for name in problem.variables]
    return {"variables": labels, "sample": solution.sample.tolist()}


def outcome_table(found: dict[str, Any]) -> Table:
    """The outcome, one line each."""
    table = Table(show_header=False)
    for name in ("instance", "sampler", "num_variables", "counts", "energy", "lower_bound", "gap"):
        table.add_row(name, str(found[name]))
    for name in ("proved", "feasible"):
        table.add_row(name, "yes" if found[name] else "no")
    table.add_row("cpu_seconds", f"{found['cpu_seconds']:.3f}")
    return table
