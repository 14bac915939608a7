"""Figures of a pruning study, each a pure function from a table to a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
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

from solvers.host.legible import in_figure
from solvers.study.report.style import STYLE, WIDTH, Look, legend_below, new_figure

Looks = Mapping[str, Look]

#: Shares of missed energy below this are shown as zero.
LEAST_MISSED = 1e-5
# Nats below which changes are shown on a linear scale.
_LINEAR = 1e-3


def accuracy_by_sampler(rows: pd.DataFrame, cells: pd.DataFrame, looks: Looks) -> Figure:
    """Plot final test accuracy: a mark per seed, a bar at the mean; dense and first pass as lines.

    Args:
        rows: one per run.
        cells: from `qprune.study.measures.summary`.
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
    cells: pd.DataFrame, looks: Looks, measure: str, told: str, share: bool
) -> Figure:
    """Plot a measure of the network against the missed share of the blocks' energy.

    Budgets of one sampler are joined, the smallest first.

    Args:
        cells: from `qprune.study.measures.summary`.
        looks: style of every sampler.
        measure: a column of ``cells``.
        told: label of the axis.
        share: True for a share, shown in percent.
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
        axes.xaxis.set_major_formatter(FuncFormatter(_missed))
        axes.xaxis.set_minor_locator(NullLocator())
        if share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set(xlabel="share of the blocks' decrease of energy missed (mean)", ylabel=told)
        legend_below(figure, handles)
        return figure


def predicted_against_real(points: pd.DataFrame, looks: Looks) -> Figure:
    """Plot the predicted against the real change of the loss for every proposal.

    One panel per sampler; filled marks were accepted. On the line the two agree.

    Args:
        points: from `qprune.study.measures.proposals`, at one budget.
        looks: style of every sampler.
    """
    shown = [name for name in looks if (points.sampler == name).any()]
    with rc_context(STYLE):
        columns = min(3, max(1, len(shown)))
        lines = max(1, math.ceil(len(shown) / columns))
        figure = new_figure(WIDTH, 2.25 * lines + 0.3)
        grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes, name in zip(panels, shown, strict=False):
            _agreement(axes, points[points.sampler == name], looks[name])
            axes.set_title(in_figure(name))
        figure.supxlabel("predicted change of the loss, nats", fontsize=9)
        figure.supylabel("real change of the loss, nats", fontsize=9)
        return figure


def _agreement(axes: Axes, points: pd.DataFrame, look: Look) -> None:
    taken = points.accepted == 1
    marks = {"marker": look.marker, "s": 13, "linewidths": 0.8, "edgecolors": look.color}
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
        points: from `qprune.study.measures.proposals`, at one budget.
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


def _missed(share: float, _place: object = None) -> str:
    text = f"{100 * share:.3g} %"
    return f"\u2264 {text}" if share <= LEAST_MISSED else text
