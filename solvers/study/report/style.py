"""Styles of figures: a colour, marker and line for each sampler, also for print and all eyes.

Colours are Okabe and Ito's (2008), which all kinds of colour vision tell apart; yellow, too
faint on paper, is left out. After seven samplers colours come again with another line and marker.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from solvers.host.legible import in_figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
LINES = ("-", "--", ":", "-.")

#: Inches: the text width of a page.
WIDTH = 7.2
#: Suffixes that a figure is written with.
FORMATS = ("svg", "pdf", "png")

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#000000",
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "hatch.linewidth": 0.6,
}

WITHOUT_GRID: dict[Any, Any] = STYLE | {"axes.grid": False}

#: Placeholder of the page's own text colour until the SVG is written.
INK = "#010203"
#: For figures that stand on the page itself, light or dark, and not on white paper.
ON_PAGE: dict[Any, Any] = STYLE | {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    "font.size": 10,
}


@dataclass(frozen=True)
class Look:
    """The style of one sampler in all figures."""

    color: str
    marker: str
    linestyle: str

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot``."""
        return {"color": self.color, "marker": self.marker, "linestyle": self.linestyle}

    @property
    def point(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` for marks without a line."""
        return self.line | {"linestyle": "none"}


Looks = Mapping[str, Look]
"""The look of every sampler."""


def looks_of(samplers: Iterable[str]) -> dict[str, Look]:
    """A look for each label, no two alike in the first 91; the same list gives the same looks."""
    return {
        label: Look(
            COLORS[i % len(COLORS)],
            MARKERS[i % len(MARKERS)],
            LINES[i // len(COLORS) % len(LINES)],
        )
        for i, label in enumerate(dict.fromkeys(samplers))
    }


@contextmanager
def any_script() -> Generator[None]:
    """Silence warnings that a font lacks a character; a PNG then shows a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, tied to no window and no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_grid(number: int, height: float = 2.3, **shared: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels of a height, at most three in a line; ``sharex``, ``sharey``."""
    columns = min(3, max(1, number))
    lines = max(1, -(-number // columns))
    figure = new_figure(WIDTH if columns > 1 else 5.0, height * lines + 0.5)
    panels = list(figure.subplots(lines, columns, squeeze=False, **shared).flat)
    for axes in panels[number:]:
        axes.set_visible(False)
    return figure, panels[:number]


def percent_above(floor: float) -> FuncFormatter:
    """Shares in percent on an axis whose end ``floor`` stands for all that is less."""
    return FuncFormatter(
        lambda share, _: ("\u2264 " if share <= floor else "") + f"{100 * share:.3g} %"
    )


def legend_below(figure: Figure, handles: Mapping[str, Any], columns: int = 5) -> None:
    """One legend for all panels, under them; handles by label. A tall one adds to the height."""
    labels = [in_figure(label) for label in handles]
    # Inches of a legend handle, and of a character in it, about.
    widest = 0.5 + 0.062 * max(map(len, labels), default=0)
    columns = max(1, min(columns, len(labels), int(figure.get_figwidth() / widest)))
    lines = -(-len(labels) // columns)
    if lines > 4:
        figure.set_figheight(figure.get_figheight() + 0.17 * (lines - 4))
    figure.legend(
        list(handles.values()),
        labels,
        loc="outside lower center",
        ncols=columns,
    )


def laid_out(figure: Figure) -> Figure:
    """The figure with its layout computed once: writing it in several formats keeps it."""
    if figure.get_layout_engine() is not None:
        with rc_context(STYLE), any_script():
            figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def as_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element, the same for the same data; ids start from ``name``.

    `INK` becomes ``currentColor``.
    """
    target = io.StringIO()
    with rc_context(_salted(name)), any_script():
        laid_out(figure).savefig(target, format="svg", metadata={"Date": None})
    text = target.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


def write_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``name.svg``, ``.pdf`` and ``.png`` (200 dots per inch); the paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in FORMATS]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    for path, suffix in zip(paths, FORMATS, strict=True):
        with rc_context(_salted(name)), any_script():
            laid_out(figure).savefig(path, dpi=200, metadata=undated[suffix])
    return paths


def _salted(name: str) -> dict[Any, Any]:
    """The style with ids in the SVG that depend on nothing but the figure's name."""
    return STYLE | {"svg.hashsalt": name}
