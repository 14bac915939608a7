"""Report of a run as one self-contained HTML page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from qprune.jobs import plots
from qprune.results import (
    BlockRecord,
    Promise,
    Report,
    Score,
    ScorePoint,
    Step,
    in_bytes,
    in_seconds,
)
from solvers.study.report.page import environment

NOTHING, TIMES = "\u2013", "\u00d7"


@dataclass(frozen=True)
class Figure:
    """Plot with its title, a one-sentence caption, and the SVG."""

    title: str
    caption: str
    svg: Markup
    wide: bool = False


def render_html(
    report: Report,
    *,
    title: str = "qprune",
    scores: Sequence[ScorePoint] = (),
    others: Mapping[str, Score] | None = None,
) -> str:
    """Return the page.

    Args:
        report: report of the run.
        title: heading of the page.
        scores: scores on test data along the way, for the curve of accuracy.
        others: scores of other methods at the same sparsity, for comparison.
    """
    page = environment("qprune.jobs")
    page.filters |= {"percent": percent, "number": number, "seconds": seconds}
    return page.get_template("report.html.j2").render(
        title=title,
        report=report,
        comparison=_comparison(report, others or {}),
        weights=sum(layer.num_weights for layer in report.layers),
        pruned=sum(layer.num_pruned for layer in report.layers),
        figures=_figures(report, scores),
        summary=_summary(report),
        rows=[_row(step) for step in report.steps],
        settings=dict(report.settings),
    )


def percent(share: float | None, digits: int = 2) -> str:
    """Format a share: 0.9 as ``90.00 %``; None as a dash."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Format a number with four significant digits; None as a dash."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.4g}"


def seconds(value: float) -> str:
    """Format seconds as ``0.31 s``, ``42 s`` or ``3 min 5 s``."""
    if value < 10:
        return f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _comparison(report: Report, others: Mapping[str, Score]) -> list[tuple[str, Score]]:
    """Return the table of scores, from the dense network to the outcome."""
    ours = {"dense": report.dense, "first pass": report.start, **others, "qprune": report.final}
    return [(name, score) for name, score in ours.items() if score is not None]


def _figures(report: Report, scores: Sequence[ScorePoint]) -> list[Figure]:
    return [*_curves(report, scores), *_step_figures(report.steps), *_layer_figures(report)]


def _figure(title: str, caption: str, svg: str, *, wide: bool = False) -> Figure:
    return Figure(title, caption, Markup(svg), wide)


def _curves(report: Report, scores: Sequence[ScorePoint]) -> Iterator[Figure]:
    """Loss, accuracy and sparsity along the run."""
    steps = report.steps
    dense = report.dense.accuracy if report.dense else None
    across = [step for step in steps if step.kind != "block"]
    if across:
        yield _figure(
            "Loss", "On the acceptance split. Bands are stages.", plots.loss_curve(across)
        )
    if sum(point.score.accuracy is not None for point in scores) > 1:
        yield _figure(
            "Accuracy", "On test data the run never used.", plots.accuracy_curve(scores, dense)
        )
    if steps:
        yield _figure(
            "Sparsity",
            "Share of targeted weights that are zero.",
            plots.sparsity_curve(steps, report.asked_sparsity),
        )


def _step_figures(steps: Sequence[Step]) -> Iterator[Figure]:
    """Promises, decisions and time, step by step."""
    if any(step.predicted is not None for step in steps):
        yield _figure(
            "Predicted and real change",
            "One mark a step. On the dashed line the quadratic model was right; "
            "above zero the loss rose.",
            plots.prediction_scatter(steps),
        )
    if any(step.kind == "blocks" for step in steps):
        yield _figure(
            "Decisions changed",
            "Weights restored or pruned in each step of blocks, and the trust region's price.",
            plots.flip_bars(steps),
        )
    if any(step.seconds for step in steps):
        yield _figure("Where the time went", "By kind of step and phase.", plots.phase_bars(steps))


def _layer_figures(report: Report) -> Iterator[Figure]:
    """Output error and sparsity, layer by layer."""
    if any(layer.error is not None for layer in report.layers):
        yield _figure(
            "Output error by layer",
            "Of layers pruned one by one: the change of their outputs, as a share of these.",
            plots.error_bars(report.layers),
            wide=True,
        )
    if report.layers:
        yield _figure(
            "Sparsity by layer",
            "Every targeted tensor.",
            plots.layer_bars(report.layers, report.asked_sparsity),
            wide=True,
        )


def _summary(report: Report) -> dict[str, str]:
    """Return key figures of the steps."""
    blocks = [block for step in report.steps for block in step.blocks]
    return (
        _cost(report)
        | {
            "blocks solved": f"{len(blocks):,}",
            "variables in all": f"{sum(block.num_variables for block in blocks):,}",
            "largest block": f"{max((block.num_variables for block in blocks), default=0):,}",
            "samplers": ", ".join(sorted({block.sampler for block in blocks})) or NOTHING,
            "decisions changed": f"{sum(step.flips for step in report.steps if step.accepted):,}",
        }
        | _promise(report.promise)
    )


def _promise(promise: Promise | None) -> dict[str, str]:
    """Return how far predictions came true."""
    if promise is None:
        return {}
    return {
        "real / predicted change, median": number(promise.ratio),
        "the same without correction": number(promise.uncorrected),
        "correlation of predicted and real change": number(promise.correlation),
    }


def _cost(report: Report) -> dict[str, str]:
    """Return the loss, and memory and time beside their estimates."""
    found: dict[str, str] = {}
    if report.loss:
        found["loss"] = report.loss
    if report.peak_memory:
        found["memory at its peak"] = in_bytes(report.peak_memory)
    if report.estimate is not None:
        needs = report.estimate
        memory, time = in_bytes(needs.peak_memory), in_seconds(needs.seconds)
        found["estimated before the start"] = f"{memory}, {time}"
    return found


def _row(step: Step) -> dict[str, object]:
    """Return one row of the table of steps."""
    gaps = [gap for gap in map(_gap, step.blocks) if gap is not None]
    return {
        "step": step,
        "num_variables": sum(block.num_variables for block in step.blocks),
        "blocks": " + ".join(
            f"{count} {TIMES} {size}" if count > 1 else str(size)
            for size, count in Counter(block.num_variables for block in step.blocks).items()
        ),
        "layers": ", ".join(sorted({name for block in step.blocks for name in block.layers})),
        "samplers": ", ".join(sorted({block.sampler for block in step.blocks})),
        "gap": max(gaps, default=None),
        "seconds": sum(step.seconds.values()),
        "phases": ", ".join(f"{name} {seconds(value)}" for name, value in step.seconds.items()),
    }


def _gap(block: BlockRecord) -> float | None:
    """Return the relative gap of a block's answer to its bound; None without a bound."""
    if block.lower_bound in (float("-inf"), None):
        return None
    scale = max(abs(block.predicted), abs(block.lower_bound))
    return max(0.0, block.predicted - block.lower_bound) / scale if scale else 0.0
