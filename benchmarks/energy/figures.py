"""Pictures: energy missed against its cost in quality, and promises against what they brought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.energy.plan import SAMPLERS
from benchmarks.energy.tables import Condition, Line, Point, condition_of, costs, titled
from solvers.study.report.style import COLORS, MARKERS, STYLE, new_figure

#: Ink of the page that a picture stands on.
INKS = {"light": "#1f2328", "dark": "#e6edf3"}
_MARKS = dict(zip(SAMPLERS, MARKERS, strict=False))
# Colours that are seen on both pages.
_COLORS = ("#0084d1", "#d55e00", "#009e73", "#cc79a7", COLORS[4], COLORS[5])
# Inches, of a picture that is read on a phone.
_WIDTH, _HEIGHT = 5.4, 4.6


def _style(ink: str) -> dict[Any, Any]:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return STYLE | {
        **dict.fromkeys(names, ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
        "grid.color": ink,
        "font.size": 11,
        "axes.titlesize": 11,
        "legend.fontsize": 10,
        "lines.markersize": 6.5,
        "svg.fonttype": "path",
    }


@dataclass(frozen=True)
class Axis:
    """The axis of losses.

    Attributes:
        title: what stands above it.
        smallest: below this value it is linear.
        relative: True for shares of the lowest-energy answer's loss, in percent.
    """

    title: str
    smallest: float
    relative: bool = False


AXES = {
    "rows": Axis("Error of the outputs on unseen text, above the best answer's", 0.01, True),
    "text": Axis("Loss on test text above the best answer's, nats a token", 0.002),
    "mlpnet": Axis("MLPNet: loss on test images above the best answer's, nats", 0.01),
    "resnet20": Axis("ResNet-20: loss on test images above the best answer's, nats", 0.1),
}


def energy_against_cost(found: Sequence[Point], axis: Axis, kept: str) -> Figure:
    """Energy missed against loss above the lowest-energy answer's; colour by condition.

    Args:
        found: points of one part.
        axis: of losses.
        kept: what the energy missed is measured from.
    """
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    paired = [(p, c) for p, c in costs(found, relative=axis.relative) if p.missed is not None]
    conditions = list(dict.fromkeys(p.condition for p, _ in paired))
    for point, cost in paired:
        axes.errorbar(
            point.missed or 0.0,
            cost.mean,
            yerr=cost.half,
            fmt=_MARKS[point.sampler],
            color=_COLORS[conditions.index(point.condition) % len(_COLORS)],
            elinewidth=0.8,
            alpha=0.85,
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=axis.smallest, linscale=0.6)
    lows, highs = ([getattr(cost, end) for _, cost in paired] for end in ("low", "high"))
    axes.set_ylim(1.3 * min(-axis.smallest, *lows), 1.6 * max(axis.smallest, *highs))
    axes.axhline(0, color=axes.xaxis.label.get_color(), linewidth=0.8, alpha=0.5)
    percent = FuncFormatter(lambda share, _: f"{100 * share:g} %")
    axes.xaxis.set_major_formatter(percent)
    axes.xaxis.set_minor_formatter(NullFormatter())
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(percent if axis.relative else plain)
    axes.set_xlabel(kept)
    figure.suptitle(axis.title, x=0.01, ha="left", fontsize=11)
    _legend(figure, [p for p, _ in paired], conditions)
    return figure


def _legend(figure: Figure, found: Sequence[Point], conditions: Sequence[Condition]) -> None:
    used = [name for name in SAMPLERS if any(p.sampler == name for p in found)]
    ink = figure.axes[0].xaxis.label.get_color()
    shapes = [
        Line2D([], [], color=ink, marker=_MARKS[name], linestyle="none", label=name)
        for name in used
    ]
    shades = [
        Line2D([], [], color=_COLORS[i % len(_COLORS)], linewidth=5, label=_short_title(one))
        for i, one in enumerate(conditions)
    ]
    columns = 4 if max(len(_short_title(one)) for one in conditions) < 8 else 3
    figure.legend(handles=[*shades, *shapes], loc="outside lower center", ncols=columns)


def _short_title(condition: Condition) -> str:
    part, sparsity, schedule, moves = condition
    share = sparsity if ":" in sparsity else f"{100 * float(sparsity):.0f} %"
    way = " moved" if moves else ""
    return share if part in ("rows", "text") else f"{share} {schedule}{way}"


def promises(lines: Sequence[Line], condition: Condition) -> Figure:
    """Predicted gains of blocks against real ones, of all samplers of a condition."""
    figure = new_figure(_WIDTH, _HEIGHT)
    axes = figure.subplots()
    own = [x for x in lines if condition_of(x) == condition and x.get("predicted")]
    for name in SAMPLERS:
        pairs = [(x["predicted"], x["real"]) for x in own if x["sampler"] == name]
        if pairs:
            predicted, real = (-np.concatenate(side) for side in zip(*pairs, strict=True))
            axes.plot(predicted, real, _MARKS[name], label=name, alpha=0.8)
    ends = np.array([0.0, max((-min(x["predicted"]) for x in own), default=1.0)])
    axes.plot(ends, ends, "-", color=axes.xaxis.label.get_color(), linewidth=0.8)
    axes.set_xlabel("gain promised, nats")
    title = f"{titled(condition)}\nGain on samples that were not fitted, nats"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def write_figures(lines: Sequence[Line], found: Sequence[Point], folder: Path) -> list[Path]:
    """Write every picture that there are runs for, light and dark, as SVG and PNG; the paths."""
    written: list[Path] = []
    for page, ink in INKS.items():
        with rc_context(_style(ink)):
            for part, axis in AXES.items():
                own = [p for p in found if p.condition[0] == part]
                if own:
                    layers = part in ("rows", "text")
                    kept = "energy above the certified bound" if layers else "energy missed"
                    figure = energy_against_cost(own, axis, kept)
                    written += _written(figure, folder, f"energy_{part}-{page}")
            for part in ("mlpnet", "resnet20"):
                first = next((p.condition for p in found if p.condition[0] == part), None)
                if first is not None:
                    figure = promises(lines, first)
                    written += _written(figure, folder, f"promises_{part}-{page}")
    return written


def _written(figure: Figure, folder: Path, name: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in ("svg", "png")]
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(paths[0], metadata={"Date": None})
        figure.savefig(paths[1], dpi=160, transparent=True)
    return paths
