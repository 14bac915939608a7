"""Optional logging of a study's rows to the experiment tracker trackio.

`qprune compare`: samplers side by side on the same problems.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qprune.cli.options import (
    FormatOption,
    OptionValue,
    SenseOption,
    inside,
    not_a_pipe,
    notes_on_files,
    parse_options,
)
from qprune.cli.terminal import say, terminal
from qprune.errors import ImpossibleRequestError
from solvers.host.legible import legible
from solvers.host.ranges import Count, Repeats, Seconds, Seed, Threads
from solvers.host.secrets import without_secrets

Tracker = Callable[[Mapping[str, Any], int, int], None]


@contextmanager
def tracker(project: str | None) -> Iterator[list[Tracker]]:
    """Return observers that log each row's plain values to ``project``; none for None.

    Nothing leaves the machine unless trackio's own settings say so.

    Raises:
        ImpossibleRequestError: trackio is not installed.
    """
    if project is None:
        yield []
        return
    try:
        import trackio  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImpossibleRequestError(
            "--track needs trackio: pip install 'qprune[track]'"
        ) from error
    # Standard output belongs to the command; a monitoring thread would disturb the clock.
    with redirect_stdout(sys.stderr):
        run = trackio.init(project=project, embed=False, auto_log_cpu=False, auto_log_gpu=False)

    def log(row: Mapping[str, Any], done: int, total: int) -> None:
        plain = {n: v for n, v in without_secrets(row).items() if isinstance(v, int | float | str)}
        run.log({**plain, "done": done, "total": total})

    try:
        yield [log]
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()


if TYPE_CHECKING:
    from qprune.jobs.settings import Settings
    from solvers.study import Study

Setting = tuple[str, str, dict[str, OptionValue]]


class StudyBar:
    """Progress bar on standard error: number of runs done, and the last one."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, row: Mapping[str, Any], done: int, total: int) -> None:
        """Show a finished row."""
        what = f"{row['sampler']} on {row.get('problem', row.get('model'))}"
        self._progress.update(
            self._task, completed=done, total=total, description=legible(what, 120)
        )


def compare(
    problems: Annotated[
        list[Path] | None,
        typer.Argument(
            callback=not_a_pipe, help="files as for `qprune solve`, or folders of recorded blocks"
        ),
    ] = None,
    sampler: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:option=value,option=value or LABEL=NAME:...; repeat"),
    ] = None,
    budget: Annotated[
        list[str] | None, typer.Option(help="like 0.5s, 100reads or 1000sweeps; repeat")
    ] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(help="fisher:n=256,samples=64,count=128,seed=0; uniform:...; ran:...; repeat"),
    ] = None,
    count: Annotated[
        list[int] | None,
        typer.Option(callback=inside(Count), help="number of variables that are 1; repeat"),
    ] = None,
    prune: Annotated[
        Path | None,
        typer.Option(
            help="a pruning run's config.yaml: prune with each sampler instead, the budget for "
            "every block"
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="--prune: the run's package.module:factory, if it has one")
    ] = None,
    data: Annotated[str | None, typer.Option(help="--prune: the same for its data")] = None,
    known: Annotated[
        Path | None,
        typer.Option(
            callback=not_a_pipe, help="CSV of best-known values: problem, energy, proved, bound"
        ),
    ] = None,
    maximize: SenseOption = None,
    format: FormatOption = None,
    repeats: Annotated[
        int, typer.Option(callback=inside(Repeats), help="runs that differ only in their seed")
    ] = 3,
    seed: Annotated[int, typer.Option(callback=inside(Seed), help="decides order and seeds")] = 0,
    time_limit: Annotated[
        float | None,
        typer.Option(callback=inside(Seconds), help="seconds after which a run is killed"),
    ] = None,
    prepare_limit: Annotated[
        float,
        typer.Option(callback=inside(Seconds), help="seconds to prepare a sampler and a problem"),
    ] = 600.0,
    threads: Annotated[
        int, typer.Option(callback=inside(Threads), help="threads of each sampler")
    ] = 1,
    clock: Annotated[
        str, typer.Option(help="clock for seconds: wall; or cpu, on a shared machine")
    ] = "wall",
    output: Annotated[
        Path | None, typer.Option(help="folder for rows and report; the same study goes on there")
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="project to log rows to, through trackio")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Compare samplers with equal budgets, on problems or in a pruning run; failures are rows."""
    from solvers.host.disk import strict_json

    pass
    from solvers.study.report.page import require_packages

    settings = [parse_sampler(text) for text in sampler or ()]
    if output is not None:
        require_packages()  # Refused here, not after the last run.
    shared: dict[str, Any] = {
        "repeats": repeats,
        "seed": seed,
        "folder": output,
        "threads": threads,
        "clock": clock,
    }
    if time_limit is not None:
        shared["time_limit"] = time_limit
    given = {
        "a problem": problems,
        "--generate": generate,
        "--count": count,
        "--known": known,
        "--maximize": maximize is not None,
        "--format": format,
    }
    with StudyBar(terminal(stderr=True)) as bar, tracker(track) as trackers:
        shared["observe"] = [bar, *trackers]
        if prune is None:
            if model or data:
                raise ImpossibleRequestError("--model and --data go with --prune; leave them out")
            reading = {"counts": count or (), "maximize": maximize, "format": format}
            instances = _instances(problems or (), generate or (), known, reading)
            shared["prepare_limit"] = prepare_limit
            outcome = _on_problems(instances, settings, budget or (), shared)
        else:
            _refuse_problems([name for name, value in given.items() if value])
            asked = _asked_run(prune, model, data)
            outcome = _in_pruning(asked, settings, budget or (), shared)
    if json:
        typer.echo(strict_json({"runs": outcome.runs, "samplers": outcome.summary}))
        return
    terminal().print(summary_table(outcome.summary))
    if outcome.page is not None:
        say(f"{outcome.page} shows the study; {output} holds its rows")


@dataclass(frozen=True)
class Outcome:
    """Printed outcome: number of runs, one record per sampler, path of the report."""

    runs: int
    summary: list[dict[str, Any]]
    page: Path | None


def _on_problems(
    instances: Sequence[Any],
    settings: Sequence[Setting],
    budgets: Sequence[str],
    shared: Mapping[str, Any],
) -> Outcome:
    from solvers.study import compare as run_study

    study = run_study(instances, settings, budgets, **shared)
    page = None if study.folder is None else _write_report(study.folder)
    return Outcome(len(study.row_list), problem_summary(study), page)


def _asked_run(config: Path, model: str | None, data: str | None) -> Settings:
    """Return the run that ``--prune`` names; only code named on the command line is imported."""
    from qprune.jobs.settings import make_settings, merged, trusted
    from qprune.models.pretrained import is_pretrained

    if is_pretrained(str(merged({}, config).get("model"))):
        raise ImpossibleRequestError(
            f"{config} is of a language model, which is pruned layer by layer, without a sampler; "
            "--prune takes the config.yaml of a network that is pruned block by block"
        )
    settings = make_settings({}, config)
    trusted(settings, model, data)
    return settings


def _in_pruning(
    asked: Settings,
    settings: Sequence[Setting],
    budgets: Sequence[str],
    shared: Mapping[str, Any],
) -> Outcome:
    from qprune.study import compare_pruning
    from qprune.study.measures import summary_records
    from qprune.study.report import write_pruning_report

    study = compare_pruning(asked, settings, budgets, **shared)
    page = None if study.folder is None else write_pruning_report(study.folder)
    return Outcome(len(study.row_list), summary_records(study), page)


def _refuse_problems(given: Sequence[str]) -> None:
    if given:
        raise ImpossibleRequestError(
            f"--prune takes its problems from the pruning run; leave {given[0]} out, or --prune"
        )


def parse_sampler(text: str) -> Setting:
    """Parse ``"fast=relax:num_sweeps=50"`` into (label, name, options); the label is optional.

    Raises:
        ImpossibleRequestError: there is no name, or an option without a value.
    """
    head, _, rest = text.partition(":")
    label, equals, name = head.partition("=")
    name = name if equals else label
    if not name or not label:
        raise ImpossibleRequestError(
            f"--sampler takes NAME:option=value,... or LABEL=NAME:..., not {text!r}"
        )
    return (label if equals else text, name, parse_options(filter(None, rest.split(","))))


def problem_summary(study: Study) -> list[dict[str, Any]]:
    """Return one record per sampler and budget: runs, failures, gaps to the best known, time."""
    from solvers.study.measures import gap

    rows = study.rows.merge(study.problems[["problem", "best_known"]], on="problem")
    rows["gap"] = gap(rows["energy"].to_numpy(), rows["best_known"].to_numpy())
    records = []
    for (label, kind, amount), cell in rows.groupby(["sampler", "budget_kind", "budget"]):
        done = cell[cell["status"] == "ok"]
        best = done.groupby("problem")["gap"].min()
        median = float(done["gap"].median()) if len(done) else None
        records.append(
            {
                "sampler": label,
                "budget": f"{amount:g} {kind}",
                "runs": len(cell),
                "without answer": int((cell["status"] != "ok").sum()),
                "problems solved to the best known": int((best <= 1e-6).sum()),
                "median gap": median,
                "seconds": float(done["seconds"].sum()),
            }
        )
    return sorted(records, key=lambda r: inf if r["median gap"] is None else r["median gap"])


def summary_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the records, one row each."""
    table = Table()
    for name in records[0] if records else ():
        table.add_column(name, justify="left" if name in ("sampler", "budget") else "right")
    for record in records:
        table.add_row(*(_cell(value) for value in record.values()))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _instances(
    paths: Sequence[Path],
    generators: Sequence[str],
    known: Path | None,
    reading: Mapping[str, Any],
) -> list[Any]:
    from solvers.study import generate, read_instances, read_known

    values = {} if known is None else read_known(known)
    found = [generate(spec) for spec in generators]
    with notes_on_files():
        for path in paths:
            found += read_instances(path, known=values, **reading)
    return found


def _write_report(folder: Path) -> Path:
    from solvers.study.report.page import write_report

    return write_report(folder)
