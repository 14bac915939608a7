"""Plots of the report: each a pure function from steps to one inline SVG.

Text and axes take the page's own colour (``currentColor``), so that a plot reads on light and
dark pages and on paper. Series colours are Okabe and Ito's, told apart by all kinds of colour
vision, and differ in marker or place as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from qprune.results import LayerRecord, ScorePoint, Step
from solvers.host.legible import in_figure
from solvers.study.report.style import COLORS, INK, ON_PAGE, as_svg, new_figure

BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, _ = COLORS
GREY = "#8c8c8c"
PHASES: Mapping[str, str] = {
    "select": SKY,
    "curvature": BLUE,
    "formulate": PURPLE,
    "solve": YELLOW,
    "accept": GREEN,
    "compensate": ORANGE,
}


def loss_curve(steps: Sequence[Step]) -> str:
    """Plot the loss on the acceptance split after each step, rejected proposals included."""
    with rc_context(ON_PAGE):
        axes = _axes()
        _shade_stages(axes, steps)
        index = [step.index for step in steps]
        axes.plot(index, [step.loss for step in steps], color=BLUE, label="after the step")
        rejected = [step for step in steps if not step.accepted]
        axes.plot(
            [step.index for step in rejected],
            [step.loss for step in rejected],
            "x",
            color=ORANGE,
            label="proposal rejected",
        )
        _steps_and(axes, "loss, nats")
        _logarithmic_if_wide(axes, [step.loss for step in steps])
        axes.legend()
        return _svg(axes, "loss")


def accuracy_curve(points: Sequence[ScorePoint], dense: float | None) -> str:
    """Plot the accuracy on test data along the run."""
    with rc_context(ON_PAGE):
        axes = _axes()
        known = [(p.step, p.score.accuracy) for p in points if p.score.accuracy is not None]
        axes.plot([x for x, _ in known], [y for _, y in known], "o-", color=GREEN, label="pruned")
        if dense is not None:
            axes.axhline(dense, color=GREY, linestyle="--", label="dense")
        _steps_and(axes, "test accuracy")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()
        return _svg(axes, "accuracy")


def sparsity_curve(steps: Sequence[Step], asked: float) -> str:
    """Plot the share of zeros among the targeted weights after each step."""
    with rc_context(ON_PAGE):
        axes = _axes()
        _shade_stages(axes, steps)
        values = [step.sparsity for step in steps]
        axes.step([s.index for s in steps], values, where="post", color=BLUE)
        axes.axhline(asked, color=GREY, linestyle="--", label=f"asked, {asked:.4g}")
        _steps_and(axes, "sparsity")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower right")
        return _svg(axes, "sparsity")


def prediction_scatter(steps: Sequence[Step]) -> str:
    """Plot predicted against real change of the loss, with the diagonal."""
    with rc_context(ON_PAGE):
        axes = _axes()
        told = [s for s in steps if s.at_once is not None and np.isfinite(s.at_once)]
        x = np.array([step.predicted for step in told], float)
        y = np.array([step.at_once for step in told], float)
        taken = np.array([step.accepted for step in told], bool)
        sizes = np.abs(np.concatenate([x, y]))
        scale = float(np.median(sizes[sizes > 0])) if (sizes > 0).any() else 1.0
        axes.set_xscale("symlog", linthresh=scale)
        axes.set_yscale("symlog", linthresh=scale)
        ends = np.array([x.min(initial=-scale), x.max(initial=0)])
        axes.plot(ends, ends, color=GREY, linestyle="--", label="as predicted")
        axes.axhline(0, color=INK, alpha=0.4, linewidth=0.8)
        axes.plot(x[taken], y[taken], "o", color=BLUE, alpha=0.7, label="accepted")
        axes.plot(x[~taken], y[~taken], "x", color=ORANGE, alpha=0.9, label="rejected")
        axes.set(xlabel="predicted change of the loss, nats", ylabel="real change, nats")
        axes.legend()
        return _svg(axes, "prediction")


def layer_bars(layers: Sequence[LayerRecord], asked: float) -> str:
    """Plot the sparsity of every targeted tensor, with its share of all weights."""
    with rc_context(ON_PAGE):
        axes = _axes(width=13.2, height=0.3 * len(layers) + 1.0)
        places = list(range(len(layers)))
        axes.barh(places, [layer.sparsity for layer in layers], color=BLUE, height=0.62)
        for place, layer in zip(places, layers, strict=True):
            kept = layer.num_weights - layer.num_pruned
            axes.text(
                1.005, place, f"{kept:,} of {layer.num_weights:,} kept", va="center", fontsize=8.5
            )
        axes.axvline(asked, color=ORANGE, linestyle="--", label=f"asked overall, {asked:.4g}")
        axes.set_yticks(places, [in_figure(layer.name) for layer in layers])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set(xlim=(0, 1), xlabel="sparsity")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0))
        return _svg(axes, "layers")


def error_bars(layers: Sequence[LayerRecord]) -> str:
    """Plot the output error of every layer that was pruned by itself."""
    told = [layer for layer in layers if layer.error is not None]
    with rc_context(ON_PAGE):
        axes = _axes(width=13.2, height=0.3 * len(told) + 1.0)
        axes.barh(range(len(told)), [layer.error or 0.0 for layer in told], color=BLUE, height=0.62)
        axes.set_yticks(range(len(told)), [in_figure(layer.name) for layer in told])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("output error")
        return _svg(axes, "errors")


def flip_bars(steps: Sequence[Step]) -> str:
    """Plot the decisions changed by each step of blocks, and the trust region's price."""
    with rc_context(ON_PAGE):
        figure = new_figure(6.4, 3.1)
        flips, price = figure.subplots(2, sharex=True, height_ratios=(2, 1))
        blocks = [step for step in steps if step.kind == "blocks"]
        index = [step.index for step in blocks]
        flips.bar(index, [step.flips for step in blocks], color=BLUE, width=0.9)
        flips.set_ylabel("changed")
        price.plot(index, [step.price for step in blocks], ".-", color=ORANGE, linewidth=0.8)
        _steps_and(price, "price")
        _logarithmic_if_wide(price, [step.price for step in blocks])
        return as_svg(figure, "flips")


def phase_bars(steps: Sequence[Step]) -> str:
    """Plot the wall time of every phase, by kind of step."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for step in steps:
        for phase, seconds in step.seconds.items():
            spent[step.kind][phase] += seconds
    phases = list(dict.fromkeys([*PHASES, *(p for kind in spent.values() for p in kind)]))
    with rc_context(ON_PAGE):
        axes = _axes()
        left, places = np.zeros(len(spent)), range(len(spent))
        for phase in phases:
            width = np.array([kind.get(phase, 0.0) for kind in spent.values()])
            if width.any():
                color = PHASES.get(phase, GREY)
                axes.barh(places, width, left=left, color=color, label=in_figure(phase), height=0.6)
                left += width
        axes.set_yticks(places, [in_figure(kind) for kind in spent])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("seconds of wall time")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3)
        return _svg(axes, "phases")


def _axes(width: float = 6.4, height: float = 3.1) -> Axes:
    return new_figure(width, height).subplots()


def _steps_and(axes: Axes, label: str) -> None:
    axes.set(xlabel="step", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _shade_stages(axes: Axes, steps: Sequence[Step]) -> None:
    """Shade every second stage."""
    for stage in sorted({step.stage for step in steps})[1::2]:
        inside = [step.index for step in steps if step.stage == stage]
        axes.axvspan(min(inside) - 0.5, max(inside) + 0.5, color=INK, alpha=0.05, linewidth=0)


def _logarithmic_if_wide(axes: Axes, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(values) > 20 * min(values):
        axes.set_yscale("log")


def _svg(axes: Axes, name: str) -> str:
    assert isinstance(axes.figure, Figure)
    return as_svg(axes.figure, name)
