"""Figures of all samplers at once: the gap on every problem, and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from solvers.legible import in_figure
from solvers.study.looks import WIDTH, WITHOUT_GRID, Look, new_figure
from solvers.study.measures import SUCCESS_GAP, WORST_GAP
from solvers.study.ranking import Ranking


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
        for (i, j), value in np.ndenumerate(values):
            if not np.isfinite(value):
                box = {"fill": False, "hatch": "////", "edgecolor": "#8c8c8c", "linewidth": 0}
                axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, **box))
                continue
            dark = norm(known[i, j]) > 0.55
            text = {"ha": "center", "va": "center", "fontsize": 6.8}
            axes.text(j, i, _short(value), color="white" if dark else "black", **text)
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
