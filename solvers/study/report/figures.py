"""The curves of a study, each a pure function from a table of measures to a figure.

Figures of all samplers at once: the gap on every problem, and ranks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, NullFormatter

from solvers.host.legible import in_figure
from solvers.study.measures import SUCCESS_GAP, WORST_GAP, Ranking, held, median_with_infinity
from solvers.study.report.style import (
    STYLE,
    WIDTH,
    WITHOUT_GRID,
    Look,
    Looks,
    legend_below,
    new_figure,
    new_grid,
    percent_above,
)

#: Least number of problems for which quartiles are drawn.
FEWEST_FOR_BAND = 4


def energy_against_time(curve: pd.DataFrame, looks: Looks) -> Figure:
    """Gap to the best known against seconds; a panel for each kind and size.

    Lines are medians over the panel's problems, bands their quartiles; of fewer than
    `FEWEST_FOR_BAND` problems there are none worth a band.

    Args:
        curve: from `solvers.study.measures.anytime`.
        looks: of every sampler.
    """
    panels = list(curve.groupby(["kind", "n"], sort=True))
    with rc_context(STYLE):
        figure, grid = new_grid(len(panels), sharey=True)
        handles = {}
        for axes, ((kind, size), part) in zip(grid, panels, strict=True):
            for sampler, look in looks.items():
                mine = part[part.sampler == sampler]
                if not mine.empty:
                    handles[sampler] = _gap_line(axes, mine, look)
            number = part.problem.nunique()
            axes.set_title(f"{in_figure(kind)}, n = {size}\n{_problems(number)}")
            axes.set_xscale("log")
            axes.set_xlim(0.7 * curve.seconds.min(), 1.4 * curve.seconds.max())
            axes.xaxis.set_minor_formatter(NullFormatter())
            _gap_axis(axes)
        _label_outer(grid, "seconds in the sampler", "gap to best known")
        legend_below(figure, handles)
        return figure


def _gap_line(axes: Axes, mine: pd.DataFrame, look: Look) -> object:
    # Each problem has its own time grid; all are put on one.
    grid = np.geomspace(mine.seconds.min(), mine.seconds.max(), 64)
    curves = np.array(
        [
            held(part.seconds.to_numpy(), part.gap.to_numpy(float), grid)
            for _, part in mine.groupby("problem", sort=False)
        ]
    )
    middle = np.array([median_with_infinity(column) for column in curves.T])
    seen = np.isfinite(middle)
    if len(curves) >= FEWEST_FOR_BAND:
        ordered = np.sort(curves, axis=0)
        low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
        band: dict[str, Any] = {"color": look.color, "alpha": 0.13, "linewidth": 0}
        axes.fill_between(grid[seen], _shown(low[seen]), _shown(high[seen]), **band)
    marks: dict[str, Any] = {"markevery": 12}
    (line,) = axes.plot(grid[seen], _shown(middle[seen]), **look.line, **marks)
    return line


def performance_profiles(times: pd.DataFrame, gaps: pd.DataFrame, looks: Looks) -> Figure:
    """Left: share of problems solved within tau times the fastest sampler's time; right: within g.

    Args:
        times: from `solvers.study.measures.performance_profile`.
        gaps: from `solvers.study.measures.gap_profile`.
        looks: of every sampler.
    """
    with rc_context(STYLE):
        figure = new_figure(WIDTH, 3.2)
        left, right = figure.subplots(1, 2, sharey=True)
        handles = {}
        for sampler, look in looks.items():
            for axes, table in ((left, times), (right, gaps)):
                if sampler in table:
                    handles[sampler] = _stair(axes, table[sampler], look)
        left.set(
            xlabel="time to target, times that of the fastest",
            ylabel="share of problems",
            title="Reached the target",
        )
        right.set(xlabel="gap to best known", title="Within a gap, at the largest budget")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_ylim(-0.03, 1.03)
        left.xaxis.set_major_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))
        right.xaxis.set_major_formatter(percent_above(-np.inf))
        if len(times) and times.index[-1] > 10:
            left.xaxis.set_minor_formatter(NullFormatter())
        else:
            left.xaxis.set_minor_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))
        right.xaxis.set_minor_formatter(NullFormatter())
        legend_below(figure, handles)
        return figure


def _stair(axes: Axes, shares: pd.Series, look: Look) -> object:
    x, y = shares.index.to_numpy(float), shares.to_numpy(float)
    end = x[-1] * 1.3 if len(x) else 1.0
    marks: dict[str, Any] = {"markevery": max(1, len(x) // 6)}
    (line,) = axes.plot([*x, end], [*y, y[-1]], drawstyle="steps-post", **look.line, **marks)
    return line


def tts_against_size(sizes: pd.DataFrame, looks: Looks, target: float) -> Figure:
    """TTS99 against the number of variables with its confidence bands; a panel for each kind.

    Marks on the upper edge are sizes at which the target was not reached on half the problems.

    Args:
        sizes: from `solvers.study.measures.tts_by_size`.
        looks: of every sampler.
        target: the gap that had to be reached.
    """
    kinds = list(dict.fromkeys(sizes.kind))
    finite = sizes.tts[np.isfinite(sizes.tts)]
    top = 10 ** math.ceil(math.log10(finite.max()) + 0.3) if len(finite) else 1.0
    with rc_context(STYLE):
        figure, grid = new_grid(len(kinds), 3.1, sharey=True)
        handles = {}
        for axes, kind in zip(grid, kinds, strict=True):
            for place, (sampler, look) in enumerate(looks.items()):
                mine = sizes[(sizes.kind == kind) & (sizes.sampler == sampler)].sort_values("n")
                if mine.empty:
                    continue
                shift = 1.025 ** (place - (len(looks) - 1) / 2)
                handles[sampler] = _tts_line(axes, mine, look, top, shift)
            axes.set(title=in_figure(kind), xscale="log", yscale="log")
            axes.axhline(top, color="#4d4d4d", linewidth=0.7, zorder=0)
            axes.text(
                0.01, top * 1.12, "not reached", transform=axes.get_yaxis_transform(), fontsize=7.5
            )
            shown = sorted(sizes[sizes.kind == kind].n.unique())
            axes.set_xticks(shown, [str(size) for size in shown])
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlim(shown[0] / 1.35, shown[-1] * 1.35)
        goal = "best known" if target <= SUCCESS_GAP else f"{100 * target:.3g} % of best known"
        _label_outer(grid, "variables", f"TTS99 to {goal}, s")
        legend_below(figure, handles)
        return figure


def _tts_line(axes: Axes, mine: pd.DataFrame, look: Look, top: float, shift: float) -> object:
    x, y = mine.n.to_numpy(float) * shift, mine.tts.to_numpy(float)
    reached = np.isfinite(y)
    low = mine.tts_low.fillna(mine.tts).to_numpy(float)
    high = mine.tts_high.fillna(mine.tts).to_numpy(float)
    high = np.where(np.isfinite(high), high, top)
    (line,) = axes.plot(x, np.where(reached, y, np.nan), **look.line)
    band: dict[str, Any] = {"color": look.color, "linewidth": 0}
    axes.fill_between(x, low, high, where=reached.tolist(), alpha=0.12, **band)
    known = y[reached]
    spread = np.maximum([known - low[reached], high[reached] - known], 0)
    bars: dict[str, Any] = {"fmt": "none", "ecolor": look.color, "elinewidth": 0.9, "capsize": 1.8}
    axes.errorbar(x[reached], known, yerr=spread, **bars)
    axes.plot(x[~reached], np.full((~reached).sum(), top), **look.point, fillstyle="none")
    return line


# -- shared ----------------------------------------------------------------------------------


def _label_outer(grid: list[Axes], x: str, y: str) -> None:
    """Labels on the left of each line of `new_grid`, and below each column."""
    number, columns = len(grid), min(3, len(grid))
    for place, axes in enumerate(grid):
        if place % columns == 0:
            axes.set_ylabel(y)
        if place + columns >= number:
            axes.set_xlabel(x)


def _shown(gaps: np.ndarray) -> np.ndarray:
    """Gaps on the scale of the axis: its ends stand for all that is beyond."""
    return np.clip(gaps, SUCCESS_GAP, WORST_GAP)


def _gap_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(SUCCESS_GAP / 1.5, WORST_GAP * 1.2)
    axes.yaxis.set_major_formatter(percent_above(SUCCESS_GAP))


def _problems(number: int) -> str:
    return "1 problem" if number == 1 else f"{number} problems"


def gap_map(gaps: pd.DataFrame, sizes: pd.Series) -> Figure:
    """Median gap of every sampler on every problem; hatched where it gave no answer.

    Args:
        gaps: from `solvers.study.measures.median_gaps`.
        sizes: the number of variables by problem.
    """
    values = gaps.to_numpy(float)
    with rc_context(WITHOUT_GRID):
        problems = [f"{in_figure(name)}  ({sizes[name]})" for name in gaps.index]
        longest = max((len(name) for name in problems), default=0)
        width = 1.2 + 0.075 * longest + 0.56 * gaps.shape[1]
        samplers = [in_figure(name) for name in gaps]
        # Height of the samplers' slanted names.
        below = 0.045 * max(0, max(map(len, samplers), default=0) - 16)
        figure = new_figure(max(4.5, width), 1.3 + max(1.6, 0.22 * len(gaps)) + below)
        axes = figure.subplots()
        norm = LogNorm(SUCCESS_GAP, WORST_GAP)
        known = np.clip(np.where(np.isfinite(values), values, np.nan), SUCCESS_GAP, WORST_GAP)
        columns, lines = np.arange(gaps.shape[1]), np.arange(len(gaps))
        # A mesh, since an image would be embedded in the SVG as pixels.
        mesh = axes.pcolormesh(
            columns,
            lines,
            np.ma.masked_invalid(known),
            cmap="cividis_r",
            norm=norm,
            shading="nearest",
            edgecolors="white",
            linewidth=0.6,
        )
        axes.invert_yaxis()
        for place, value in np.ndenumerate(values):
            _fill(axes, place, value, dark=bool(norm(known[place]) > 0.55))
        axes.set_xticks(columns, samplers, rotation=40, ha="right")
        axes.set_yticks(lines, problems, fontsize=7.5)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        bar = figure.colorbar(mesh, ax=axes, shrink=min(1.0, 14 / max(14, len(gaps))))
        if bar.solids is not None:
            bar.solids.set(rasterized=False, edgecolor="face")
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}"))
        bar.set_label("median gap, %")
        axes.set_title("Gap to best known, %; hatched: no answer")
        return figure


def _fill(axes: Axes, place: tuple[int, ...], value: float, *, dark: bool) -> None:
    """The text of one cell; hatching where there is no answer."""
    i, j = place
    if np.isfinite(value):
        text: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 6.8}
        axes.text(j, i, _short(value), color="white" if dark else "black", **text)
        return
    box: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": "#8c8c8c", "linewidth": 0}
    axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **box))


def rank_diagram(ranking: Ranking, looks: Mapping[str, Look]) -> Figure:
    """Mean ranks on a line, bars joining samplers that Nemenyi's test does not tell apart.

    The diagram is Demsar's (2006). Where no test could be made, the ranks alone.
    """
    with rc_context(WITHOUT_GRID):
        ranks = ranking.mean_ranks
        figure = new_figure(WIDTH, 0.9 + 0.17 * len(ranks))
        axes = figure.subplots()
        axes.spines[:].set_visible(False)
        if ranking.pairwise.empty:
            marks = [looks[name].color for name in ranks.index]
            axes.barh(range(len(ranks)), ranks.to_numpy(), color=marks, height=0.6)
            axes.set_yticks(range(len(ranks)), [in_figure(name) for name in ranks.index])
            axes.invert_yaxis()
            axes.set_xlabel("mean rank, 1 is best")
            return figure
        from scikit_posthocs import critical_difference_diagram

        shown = _apart([str(name) for name in ranks.index])
        critical_difference_diagram(
            ranks.rename(shown),
            ranking.pairwise.rename(index=shown, columns=shown),
            ax=axes,
            color_palette={shown[name]: looks[name].color for name in ranks.index},
            label_props={"fontsize": 8.5, "fontweight": "bold"},
            crossbar_props={"color": "#1d2327", "linewidth": 2.6},
            text_h_margin=0.02,
        )
        axes.set_xlabel("mean rank, 1 is best", labelpad=8)
        axes.xaxis.set_label_position("top")
        return figure


def _apart(names: Sequence[str]) -> dict[str, str]:
    """The names as a figure shows them, a number added where two would look alike."""
    # Names are on both sides.
    shown = {name: in_figure(name, 24) for name in names}
    alike = Counter(shown.values())
    return {
        name: f"{text} ({place})" if alike[text] > 1 else text
        for place, (name, text) in enumerate(shown.items(), start=1)
    }


def _short(value: float) -> str:
    """A gap in percent in four characters at most."""
    percent = 100 * value
    if value <= SUCCESS_GAP:
        return "0"
    return (
        f"{percent:.2f}" if percent < 1 else f"{percent:.1f}" if percent < 10 else f"{percent:.0f}"
    )
