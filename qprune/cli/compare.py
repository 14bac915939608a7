"""`qprune compare`: samplers side by side, on the same problems or in a pruning run."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from solvers.host.disk import strict_json
from solvers.host.legible import legible
from solvers.host.ranges import Count, Repeats, Seconds, Seed, Threads
from solvers.host.secrets import without_secrets

if TYPE_CHECKING:
    from qprune.jobs.settings import Settings
    from qprune.study.trial import Loaded
    from solvers.study import Instance, Study

Tracker = Callable[[Mapping[str, Any], int, int], None]


@contextmanager
def tracker(project: str | None) -> Generator[list[Tracker]]:
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


Setting = tuple[str, str, dict[str, OptionValue]]


class StudyBar(Progress):
    """Progress bar on standard error: number of runs done, and the last one."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.add_task("starting", total=None)

    def __call__(self, row: Mapping[str, Any], done: int, total: int) -> None:
        """Show a finished row."""
        what = legible(f"{row['sampler']} on {row['problem']}", 120)
        self.update(self._task, completed=done, total=total, description=what)


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
    from solvers.study.report.page import PACKAGES, require_packages

    settings = [parse_sampler(text) for text in sampler or ()]
    # Refused here, not after the last run.
    require_packages(("pandas",) if output is None else PACKAGES)
    shared: dict[str, Any] = {"folder": output, "threads": threads, "clock": clock}
    shared |= {} if time_limit is None else {"time_limit": time_limit}
    kind: Any
    if prune is None:
        from solvers.study import compare as run_study
        from solvers.study.report.page import write_report

        if model or data:
            raise ImpossibleRequestError("--model and --data go with --prune; leave them out")
        reading = {"counts": count or (), "maximize": maximize, "format": format}
        asked: Any = _instances(problems or (), generate or (), known, reading)
        shared["prepare_limit"] = prepare_limit
        kind = run_study, problem_summary, write_report
    else:
        from qprune.study import compare_pruning
        from qprune.study.report import summary_records, write_pruning_report

        given = {"a problem": problems, "--generate": generate, "--count": count}
        given |= {"--known": known, "--maximize": maximize is not None, "--format": format}
        asked = _asked_run(prune, model, data, given)
        kind = compare_pruning, summary_records, write_pruning_report
    run, summary, write = kind
    with StudyBar(terminal(stderr=True)) as bar, tracker(track) as trackers:
        shared["observe"] = [bar, *trackers]
        study = run(asked, settings, budget or (), repeats, seed, **shared)
    page, told = None if output is None else write(output), summary(study)
    if json:
        typer.echo(strict_json({"runs": len(study.row_list), "samplers": told}))
        return
    terminal().print(summary_table(told))
    if page is not None:
        say(f"{page} shows the study; {output} holds its rows")


def _asked_run(
    config: Path, model: str | None, data: str | None, given: Mapping[str, Any]
) -> SettingsTrial:
    """Return the run that ``--prune`` names; only code named on the command line is imported."""
    from qprune.jobs.settings import make_settings, merged, trusted
    from qprune.models.pretrained import is_pretrained

    for name in [name for name, value in given.items() if value][:1]:
        raise ImpossibleRequestError(
            f"--prune takes its problems from the pruning run; leave {name} out, or --prune"
        )
    if is_pretrained(str(merged({}, config).get("model"))):
        raise ImpossibleRequestError(
            f"{config} is of a language model, which is pruned layer by layer, without a sampler; "
            "--prune takes the config.yaml of a network that is pruned block by block"
        )
    settings = make_settings({}, config)
    trusted(settings, model, data)
    return SettingsTrial(settings)


@dataclass(frozen=True)
class SettingsTrial:
    """Run of ``qprune prune --config`` with the study's seed and sampler.

    Raises:
        ImpossibleRequestError: it has a time limit, under which a run's steps depend on the
            machine's other work.
    """

    settings: Settings

    def __post_init__(self) -> None:
        if self.settings.max_seconds is not None:
            raise ImpossibleRequestError(
                "max_seconds limits the whole run, so that samplers would not get the same time; "
                "leave it out, and give the study a budget"
            )

    @property
    def title(self) -> str:
        """Model and sparsity."""
        return self.settings.title

    def to_json(self) -> dict[str, Any]:
        """Return the settings, and a digest of the weight file."""
        free = {"sampler", "sampler_options", "seed", "max_seconds", "threads"}
        told = self.settings.model_dump(mode="json", exclude=free)
        weights = self.settings.weights
        if weights is not None:
            try:
                told["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            except OSError as error:
                raise ImpossibleRequestError(
                    f"cannot read the weights {weights}: {error.strerror}"
                ) from error
        return told

    def load(self) -> Loaded:
        """Load as `qprune prune` does."""
        from qprune.jobs.kinds import Images
        from qprune.study.trial import RESERVED, Loaded

        job = Images.load(Images.completed(self.settings))
        number = job.settings.num_calibration_samples or 1
        options = job.arguments()
        return Loaded(
            job.model,
            lambda seed: job.data.calibration(number, seed),
            job.data.score,
            {name: value for name, value in options.items() if name not in RESERVED},
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
) -> list[Instance]:
    from solvers.study import generate, read_instances, read_known

    values = {} if known is None else read_known(known)
    found = [generate(spec) for spec in generators]
    with notes_on_files():
        for path in paths:
            found += read_instances(path, known=values, **reading)
    return found
