"""Report of a pruning study: energy, loss and accuracy side by side on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from qprune.study.compare import PruningStudy, read_pruning_study
from solvers.errors import StudyError
from solvers.host.legible import in_figure
from solvers.study.measures import at_budget, largest_budget
from solvers.study.report.page import require_packages, settings_shown, write_sections
from solvers.study.report.sections import Drawing, Section
from solvers.study.report.style import (
    STYLE,
    WIDTH,
    Look,
    Looks,
    legend_below,
    looks_of,
    new_figure,
    new_grid,
    percent_above,
)
from solvers.study.report.tables import Table, finite, number, percent, seconds, share


def write_pruning_report(folder: str | Path, *, title: str = "") -> Path:
    """Write the report of a pruning study, finished or not, into its folder.

    Args:
        folder: folder of the study.
        title: heading of the page; the trial's own if not given.

    Returns:
        The page, ``report.html``; ``figures`` and ``tables`` lie beside it.

    Raises:
        StudyFolderError: the folder holds no study, or it cannot be read.
        StudyError: it is another kind of study, or no run has ended yet.
        MissingPackageError: the extra ``study`` is not installed.
    """
    require_packages()
    study = read_pruning_study(folder)
    if not study.row_list:
        raise StudyError(f"{folder}: no run of the study has ended yet; there is nothing to report")
    told = dict(study.record["problems"][0])
    heading = title or f"{told.pop('problem')}, by sampler"
    settings = settings_shown(study.record) | {f"pruning: {n}": str(v) for n, v in told.items()}
    return write_sections(
        Path(folder), sections(study), title=heading, settings=settings, cards=_cards(study.rows)
    )


def sections(study: PruningStudy) -> list[Section]:
    """Return the sections of a pruning study's report."""
    rows = study.rows
    rows = rows.assign(label=labels(rows))
    cells = summary(rows)
    looks = looks_of(one["label"] for one in study.record["samplers"])
    kind, budget = largest_budget(rows)
    points = proposals(at_budget(rows, kind, budget))
    at = f"At a budget of {budget:g} {kind} a block. "
    return [
        _networks(rows, cells, looks),
        _energies(cells, looks),
        _promises(points, looks, at),
        _failures(rows),
        _every_run(rows),
    ]


def _networks(rows: pd.DataFrame, cells: pd.DataFrame, looks: Looks) -> Section:
    # Without a score: the loss on the acceptance split, which all runs of a seed share.
    scored = rows.final_accuracy.notna().any()
    better = rows.assign(goodness=rows.final_accuracy if scored else -rows.accept_loss)
    gaps = paired(better, "goodness")
    table = _summary_table(cells.merge(gaps, on=CELL, how="left", sort=False))
    unit = "accuracy" if scored else "loss on the acceptance split, nats"
    text = (
        "All runs have the same seed's samples, splits and first pass, the same rounds, and the "
        "same time in the sampler for every block. ``Behind`` is how much less "
        f"{unit} a sampler reaches than the best one, seed by seed, with its standard error: a "
        "difference below two of them is no difference."
    ).replace("``", "")
    drawings = ()
    if scored:
        caption = "A mark for each seed, a bar at the mean."
        figure = accuracy_by_sampler(rows, cells, looks)
        drawings = (Drawing("accuracy", "Test accuracy by sampler", caption, figure),)
    return Section("Networks", text, drawings, (table,))


def _energies(cells: pd.DataFrame, looks: Looks) -> Section:
    shown = {
        "accept_loss": ("loss on the acceptance split, nats", False),
        "final_accuracy": ("test accuracy", True),
    }
    drawings, told = [], []
    for measure, (words, in_percent) in shown.items():
        if cells[measure].isna().all():
            continue
        figure = energy_and_network(cells, looks, measure, words, in_percent)
        caption = "Means over seeds and blocks; budgets of one sampler are joined."
        drawings.append(
            Drawing(f"energy_and_{measure}", f"Missed energy and {words}", caption, figure)
        )
        found = link(cells, "missed", measure)
        if found.cells >= 3 and found.correlation == found.correlation:
            told.append(
                f"{words}: Spearman's rank correlation {found.correlation:.2f} "
                f"(p = {found.p_value:.3f}, {found.cells} pairs of sampler and budget)"
            )
    text = (
        "A block's decrease of energy is what the sampler can win over leaving it as it is; "
        "what it missed is measured against the better of its own answer and that of relax to the "
        "same problem. Runs part ways with their first answers, so that each is judged by "
        "its own blocks. "
    )
    text += "Missed energy and " + "; ".join(told) + "." if told else ""
    return Section("Does a better answer give a better network?", text, tuple(drawings))


def _promises(points: pd.DataFrame, looks: Looks, at: str) -> Section:
    if points.empty:
        return Section("Predicted and real", at + "No run made a proposal.")
    drawings = (
        Drawing(
            "predicted_against_real",
            "Predicted against real change of the loss",
            at + "Every proposal of every seed; filled marks were taken, on the line both agree. "
            "Linear within a thousandth of a nat, logarithmic beyond.",
            predicted_against_real(points, looks),
        ),
        Drawing(
            "loss_along_the_way",
            "Loss by stage",
            at + "After the last proposal of every stage, mean over seeds.",
            loss_along_the_way(points, looks),
        ),
    )
    return Section("Predicted and real", drawings=drawings)


#: Columns of the summary, and their headings.
_HEADINGS = {
    "label": "sampler",
    "runs": "runs",
    "failed": "failed",
    "final_accuracy": "test accuracy",
    "accuracy_low": "lowest",
    "accuracy_high": "highest",
    "difference": "behind",
    "error": "+-",
    "final_loss": "test loss",
    "accept_loss": "acceptance loss",
    "missed": "energy missed",
    "missed_median": "median block",
    "uncertain_median": "at most",
    "predicted": "predicted",
    "real": "real",
    "kept_promise": "real / predicted",
    "accepted_share": "proposals taken",
    "sampler_seconds": "sampler s",
    "cpu_seconds": "CPU s",
}


def _summary_table(cells: pd.DataFrame) -> Table:
    order = cells.sort_values(["final_accuracy", "accept_loss"], ascending=[False, True])
    scored = cells.final_accuracy.notna().any()
    behind = _points if scored else number
    return Table(
        "summary",
        "Means over seeds. Energy missed: share of the blocks' decrease of energy that was not "
        "found, mean over blocks; for the median block; and the most that can be by a certified "
        "bound. Predicted and real: change "
        "of the loss over all steps taken, nats.",
        order[list(_HEADINGS)],
        {
            **dict.fromkeys(("final_accuracy", "accuracy_low", "accuracy_high"), _accuracy),
            **dict.fromkeys(("difference", "error"), behind),
            **dict.fromkeys(("final_loss", "accept_loss", "predicted", "real"), _nats),
            **dict.fromkeys(("missed", "missed_median", "uncertain_median"), percent),
            **dict.fromkeys(("kept_promise", "accepted_share"), share),
            **dict.fromkeys(("sampler_seconds", "cpu_seconds"), seconds),
        },
        _HEADINGS,
    )


def _failures(rows: pd.DataFrame) -> Section:
    failed = rows[rows.status != "ok"]
    if failed.empty:
        return Section("Runs that failed", "None.")
    listed = failed[["label", "seed", "status", "reason"]].rename(columns={"label": "sampler"})
    return Section("Runs that failed", tables=(Table("failures", "Every one.", listed),))


def _every_run(rows: pd.DataFrame) -> Section:
    frame = rows.drop(columns=["problem", "options", "trace", "name", "label"])
    plain = frame.select_dtypes("number").columns.difference(["seed", "repeat", "order"])
    table = Table("runs", "Every run.", frame, dict.fromkeys(map(str, plain), number))
    return Section("Every run", tables=(table,), folded=True)


def _cards(rows: pd.DataFrame) -> dict[str, Any]:
    return {
        "samplers": rows.sampler.nunique(),
        "runs": f"{len(rows):,}",
        "runs that failed": f"{int((rows.status != 'ok').sum()):,}",
        "blocks answered": f"{rows.blocks.sum():,.0f}",
        "seconds in samplers": f"{rows.sampler_seconds.sum():,.0f}",
        "CPU seconds in all": f"{rows.cpu_seconds.sum():,.0f}",
    }


def _accuracy(value: object) -> str:
    return finite(value, lambda share: f"{100 * share:.2f} %")


def _points(value: object) -> str:
    return finite(value, lambda share: f"{100 * share:.2f}")


def _nats(value: object) -> str:
    return finite(value, lambda nats: f"{nats:.4f}")


# -- measures: pure functions from rows, one per run, to tables -------------------------------

#: Columns of a cell: runs that differ only in their seed.
CELL = ["sampler", "budget_kind", "budget"]


#: Measures of a run whose means over the runs of a cell are shown.
_MEANS = (
    *("missed_median", "uncertain_median", "predicted", "real", "accepted_share", "accept_loss"),
    *("final_loss", "final_accuracy", "sampler_seconds", "cpu_seconds"),
)


@dataclass(frozen=True)
class Link:
    """Spearman's rank test of two measures over samplers and budgets.

    Attributes:
        correlation: between -1 and 1; NaN with fewer than three cells, or a constant measure.
        p_value: p-value of independence; NaN likewise.
        cells: number of pairs.
    """

    correlation: float
    p_value: float
    cells: int


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line per sampler and budget, in the order of ``rows``.

    Returns:
        Columns `CELL`, ``label`` (sampler, with its budget where there are several), ``runs``,
        ``failed``, then means over the runs that ended of ``missed`` (share of the blocks'
        decrease of energy that was not found, mean over blocks), ``missed_median`` (of the
        median block), ``uncertain_median`` (its upper limit), ``predicted`` and ``real``
        (change of loss summed over the steps taken, nats), ``kept_promise`` (real by predicted),
        ``accepted_share``, ``accept_loss``, ``final_loss``, ``final_accuracy``, and its
        ``accuracy_low`` and ``accuracy_high`` over the seeds, ``sampler_seconds``,
        ``cpu_seconds``.
    """
    done = rows.assign(failed=rows.status != "ok")
    cells = done.groupby(CELL, sort=False, dropna=False)
    means = {"missed": "missed_mean"} | {name: name for name in _MEANS}
    table = cells.agg(
        runs=("seed", "size"),
        failed=("failed", "sum"),
        accuracy_low=("final_accuracy", "min"),
        accuracy_high=("final_accuracy", "max"),
        **{name: (column, "mean") for name, column in means.items()},
    ).reset_index()
    with np.errstate(divide="ignore", invalid="ignore"):
        table["kept_promise"] = (table.real / table.predicted).replace(np.inf, np.nan)
    table.insert(3, "label", labels(table))
    return table


def labels(cells: pd.DataFrame) -> list[str]:
    """Return the sampler of each cell, with its budget where the study has several."""
    several = cells[["budget_kind", "budget"]].drop_duplicates().shape[0] > 1
    units = {"seconds": " s"}
    return [
        f"{cell.sampler}, {cell.budget:g}{units.get(str(cell.budget_kind), f' {cell.budget_kind}')}"
        if several
        else str(cell.sampler)
        for cell in cells.itertuples()
    ]


def link(cells: pd.DataFrame, one: str, other: str) -> Link:
    """Return Spearman's rank correlation of two measures over samplers and budgets."""
    from scipy.stats import spearmanr

    pairs = cells[[one, other]].dropna()
    if len(pairs) < 3 or pairs.nunique().min() < 2:
        return Link(np.nan, np.nan, len(pairs))
    found: Any = spearmanr(pairs[one], pairs[other])
    return Link(float(found.statistic), float(found.pvalue), len(pairs))


def paired(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Return the difference of each cell to the best one, paired by seed, which shares the start.

    Returns:
        One line a cell: `CELL`, ``difference`` (mean of the best cell's measure minus the
        cell's), ``error`` (its standard error over seeds; NaN with one), ``pairs``. The best
        cell has 0.
    """
    done = rows[(rows.status == "ok") & rows[measure].notna()]
    wide = done.pivot_table(index="seed", columns=CELL, values=measure)
    if wide.empty:
        return pd.DataFrame(columns=[*CELL, "difference", "error", "pairs"])
    # In an unfinished study cells have different seeds: the best is chosen on common seeds.
    common = wide.dropna()
    best = wide[(wide if common.empty else common).mean().idxmax()]
    gaps = wide.rsub(best, axis=0)
    table = pd.DataFrame(
        {
            "difference": gaps.mean(),
            "error": gaps.std() / np.sqrt(gaps.count()),
            "pairs": gaps.count(),
        }
    )
    return table.reset_index()


def proposals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return every proposal of every run.

    Returns:
        Columns `CELL`, ``seed``, ``stage``, ``round``, ``accepted`` (1 or 0), ``predicted`` and
        ``real`` change of the loss, ``loss`` after it, nats.
    """
    names = ("stage", "round", "accepted", "predicted", "real", "loss")
    found = [
        dict(zip(names, point, strict=True)) | {name: row[name] for name in (*CELL, "seed")}
        for row in rows.to_dict("records")
        if isinstance(row["trace"], list)
        for point in row["trace"]
    ]
    return pd.DataFrame(found, columns=[*CELL, "seed", *names])


def summary_records(study: PruningStudy) -> list[dict[str, Any]]:
    """Return the summary for the command line, best network first."""
    cells = summary(study.rows).sort_values(
        ["final_accuracy", "accept_loss"], ascending=[False, True], na_position="last"
    )
    shown = {
        "test accuracy": "final_accuracy",
        "from": "accuracy_low",
        "to": "accuracy_high",
        "accept loss": "accept_loss",
        "energy missed": "missed",
        "predicted": "predicted",
        "real": "real",
        "steps taken": "accepted_share",
        "sampler s": "sampler_seconds",
        "CPU s": "cpu_seconds",
    }
    return [
        {"sampler": cell["label"], "runs": int(cell["runs"]), "failed": int(cell["failed"])}
        | {name: None if pd.isna(cell[of]) else float(cell[of]) for name, of in shown.items()}
        for cell in cells.to_dict("records")
    ]


# -- figures: pure functions from a table to a figure ------------------------------------------

#: Shares of missed energy below this are shown as zero.
LEAST_MISSED = 1e-5
# Nats below which changes are shown on a linear scale.
_LINEAR = 1e-3


def accuracy_by_sampler(rows: pd.DataFrame, cells: pd.DataFrame, looks: Looks) -> Figure:
    """Plot final test accuracy: a mark per seed, a bar at the mean; dense and first pass as lines.

    Args:
        rows: one per run.
        cells: from `qprune.study.report.summary`.
        looks: style of every sampler.
    """
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 1.3 + 0.27 * len(cells))
        axes = figure.subplots()
        for place, cell in enumerate(cells.to_dict("records")):
            mine = _of(rows, cell).final_accuracy.dropna()
            look = looks[cell["sampler"]]
            axes.plot(mine, np.full(len(mine), place), **look.point, alpha=0.75)
            if len(mine):
                axes.plot([mine.mean()] * 2, [place - 0.32, place + 0.32], color=look.color, lw=2.2)
            else:
                axes.text(0.01, place, "no run ended", transform=axes.get_yaxis_transform())
        lines = {"dense": "-", "start": ":"}
        for name, style in lines.items():
            values = rows[f"{name}_accuracy"].dropna()
            if len(values):
                told = "dense" if name == "dense" else "first pass alone"
                axes.axvline(values.mean(), color="#4d4d4d", lw=1.0, ls=style, label=told)
        axes.set_yticks(range(len(cells)), [in_figure(label) for label in cells.label])
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=False, axis="y")
        handles, told = axes.get_legend_handles_labels()
        if handles:
            legend_below(figure, dict(zip(told, handles, strict=True)))
        return figure


def energy_and_network(
    cells: pd.DataFrame, looks: Looks, measure: str, told: str, in_percent: bool
) -> Figure:
    """Plot a measure of the network against the missed share of the blocks' energy.

    Budgets of one sampler are joined, the smallest first.

    Args:
        cells: from `qprune.study.report.summary`.
        looks: style of every sampler.
        measure: a column of ``cells``.
        told: label of the axis.
        in_percent: True for a share.
    """
    with rc_context(STYLE):
        figure = new_figure(5.4, 3.6)
        axes = figure.subplots()
        handles = {}
        for sampler, look in looks.items():
            mine = cells[(cells.sampler == sampler) & cells[measure].notna()].sort_values("budget")
            if mine.empty:
                continue
            x = mine.missed.clip(lower=LEAST_MISSED)
            (handles[sampler],) = axes.plot(x, mine[measure], **look.line)
            if measure == "final_accuracy":
                low, high = mine.final_accuracy - mine.accuracy_low, mine.accuracy_high
                spread = [low, high - mine.final_accuracy]
                axes.errorbar(
                    x, mine[measure], yerr=spread, fmt="none", ecolor=look.color, elinewidth=0.8
                )
        axes.set_xscale("log")
        axes.set_xlim(LEAST_MISSED / 1.5, 1.6)
        axes.xaxis.set_major_formatter(percent_above(LEAST_MISSED))
        axes.xaxis.set_minor_locator(NullLocator())
        if in_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="share of the blocks' decrease of energy missed (mean)", ylabel=told)
        legend_below(figure, handles)
        return figure


def predicted_against_real(points: pd.DataFrame, looks: Looks) -> Figure:
    """Plot the predicted against the real change of the loss for every proposal.

    One panel per sampler; filled marks were accepted. On the line the two agree.

    Args:
        points: from `qprune.study.report.proposals`, at one budget.
        looks: style of every sampler.
    """
    shown = [name for name in looks if (points.sampler == name).any()]
    with rc_context(STYLE):
        figure, panels = new_grid(len(shown), 2.25, sharex=True)
        for axes, name in zip(panels, shown, strict=True):
            _agreement(axes, points[points.sampler == name], looks[name])
            axes.set_title(in_figure(name))
        figure.supxlabel("predicted change of the loss, nats", fontsize=9)
        figure.supylabel("real change of the loss, nats", fontsize=9)
        return figure


def _agreement(axes: Axes, points: pd.DataFrame, look: Look) -> None:
    taken = points.accepted == 1
    marks: dict[str, Any] = {
        "marker": look.marker,
        "s": 13,
        "linewidths": 0.8,
        "edgecolors": look.color,
    }
    axes.scatter(points.predicted[~taken], points.real[~taken], facecolors="none", **marks)
    axes.scatter(points.predicted[taken], points.real[taken], facecolors=look.color, **marks)
    axes.set_xscale("symlog", linthresh=_LINEAR)
    axes.set_yscale("symlog", linthresh=_LINEAR)
    least = np.nanmin([0.0, *points.predicted, *points.real])
    axes.plot([least, 0], [least, 0], color="#4d4d4d", lw=0.8, zorder=0)
    axes.axhline(0, color="#4d4d4d", lw=0.8, ls=":", zorder=0)
    axes.xaxis.set_major_locator(FixedLocator([-10, -1, -0.1, -0.01, 0]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))


def loss_along_the_way(points: pd.DataFrame, looks: Looks) -> Figure:
    """Plot the acceptance loss after the last proposal of every stage, mean over seeds.

    Args:
        points: from `qprune.study.report.proposals`, at one budget.
        looks: style of every sampler.
    """
    last = points.groupby(["sampler", "seed", "stage"], sort=False).loss.last()
    means = last.groupby(["sampler", "stage"]).mean().reset_index()
    with rc_context(STYLE):
        figure = new_figure(5.4, 3.2)
        axes = figure.subplots()
        handles = {}
        for name, look in looks.items():
            mine = means[means.sampler == name]
            if not mine.empty:
                (handles[name],) = axes.plot(mine.stage + 1, mine.loss, **look.line)
        axes.set_yscale("log")
        axes.set(xlabel="stage", ylabel="loss on the acceptance split, nats")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend_below(figure, handles)
        return figure


def _of(rows: pd.DataFrame, cell: Mapping[Any, Any]) -> pd.DataFrame:
    names = ("sampler", "budget_kind", "budget")
    return rows[np.logical_and.reduce([rows[name] == cell[name] for name in names])]
