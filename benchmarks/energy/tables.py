"""What the runs say: cells, correlations, promises and differences, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.energy.measures import (
    Interval,
    Rank,
    excess,
    interval,
    spearman,
    spearman_within,
)
from benchmarks.energy.plan import SAMPLERS

Line = Mapping[str, Any]
Condition = tuple[str, str, str, bool]

#: Titles of parts, and of what their losses are.
TITLES = {
    "rows": "LLaMA, sampled rows",
    "text": "LLaMA, all rows",
    "mlpnet": "MLPNet",
    "resnet20": "ResNet-20",
}
LOSSES = {
    "rows": "error of the outputs on unseen text, share of their energy",
    "text": "loss on test text, nats a token",
    "mlpnet": "loss on test images, nats",
    "resnet20": "loss on test images, nats",
}
#: The pair of samplers whose difference is told.
BETTER, WORSE = "relax", ("greedy", "random")


@dataclass(frozen=True, eq=False)
class Point:
    """One sampler at one effort under one condition, over its seeds.

    Attributes:
        condition: part, sparsity, schedule, whether kept weights move.
        sampler, level: the cell.
        missed: mean energy missed; None where there was none to find.
        parts: losses of parts of the test set, by seed.
        loss, score: means with intervals; the score is None of "rows".
        cpu_seconds: mean of a run.
        seeds: number of runs.
    """

    condition: Condition
    sampler: str
    level: int
    missed: float | None
    parts: Mapping[int, Sequence[float]]
    loss: Interval
    score: Interval | None
    cpu_seconds: float
    seeds: int


def condition_of(line: Line) -> Condition:
    """Return what two lines must share to be compared."""
    return line["part"], line["sparsity"], line["schedule"], line["moves"]


def titled(condition: Condition) -> str:
    """Return a condition in words."""
    part, sparsity, schedule, moves = condition
    share = sparsity if ":" in sparsity else f"{100 * float(sparsity):.0f} %"
    words = [TITLES[part], share, schedule, "kept weights move" if moves else "mask only"]
    return ", ".join(filter(None, words if part in ("mlpnet", "resnet20") else words[:2]))


def with_missed(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of the layer form with the energy missed: the mean over matrices.

    The bound of a matrix is the best that any line has for the same rows.
    """
    best: dict[tuple[Condition, Any], Any] = {}
    for line in lines:
        if "whole" in line:
            key = _rows_of(line)
            best[key] = np.maximum(best.get(key, 0.0), line["bounds"])
    told: list[Line] = []
    for line in lines:
        if "whole" not in line:
            told.append(line)
            continue
        pairs = zip(line["energies"], best[_rows_of(line)], strict=True)
        above = [excess([energy], [bound]) for energy, bound in pairs if bound > 0]
        told.append({**line, "missed": float(np.mean(above)) if above else None})
    return told


def _rows_of(line: Line) -> tuple[Condition, Any]:
    """Return what two lines share that have answered the same rows: with all rows, any seed."""
    return condition_of(line), line["seed"] if line["part"] == "rows" else None


def whole_seeds(lines: Sequence[Line]) -> list[Line]:
    """Return the lines of those seeds that most cells of their condition have.

    A seed that is not yet through would be compared with others: its rows, its samples differ.
    """
    numbers = Counter((condition_of(line), line["seed"]) for line in lines)
    most: dict[Condition, int] = {}
    for (condition, _), number in numbers.items():
        most[condition] = max(number, most.get(condition, 0))
    return [x for x in lines if numbers[condition_of(x), x["seed"]] == most[condition_of(x)]]


def points(lines: Sequence[Line]) -> list[Point]:
    """Return a point of every cell, conditions and samplers in the order of the plan."""
    cells: dict[tuple[Condition, str, int], list[Line]] = {}
    for line in lines:
        key = (condition_of(line), line["sampler"], line["level"])
        cells.setdefault(key, []).append(line)
    order = list(SAMPLERS)
    conditions = list(dict.fromkeys(condition for condition, _, _ in cells))
    found = [_point(*key, own) for key, own in cells.items()]
    return sorted(
        found, key=lambda p: (conditions.index(p.condition), order.index(p.sampler), p.level)
    )


def _point(condition: Condition, sampler: str, level: int, own: Sequence[Line]) -> Point:
    known = [line["missed"] for line in own if line["missed"] is not None]
    scores = [line["scores"] for line in own if "scores" in line]
    return Point(
        condition,
        sampler,
        level,
        float(np.mean(known)) if known else None,
        {line["seed"]: line["losses"] for line in own},
        interval([line["losses"] for line in own]),
        interval(scores) if scores else None,
        float(np.mean([line["cpu_seconds"] for line in own])),
        len(own),
    )


def costs(found: Sequence[Point], *, relative: bool = False) -> list[tuple[Point, Interval]]:
    """Return every point with its loss above that of the point of least energy, paired.

    Paired by seed and by parts of the test set, so that the interval is the difference's own.

    Args:
        found: points.
        relative: as a share of that point's loss.
    """
    least: dict[Condition, Point] = {}
    for point in found:
        best = least.setdefault(point.condition, point)
        if (point.missed or 1.0) < (best.missed or 1.0):
            least[point.condition] = point
    paired = []
    for point in found:
        base = least[point.condition]
        shared = [seed for seed in point.parts if seed in base.parts]
        if shared:
            above = [np.subtract(point.parts[seed], base.parts[seed]) for seed in shared]
            unit = base.loss.mean if relative else 1.0
            paired.append((point, interval(np.divide(above, unit))))
    return paired


def correlations(found: Sequence[Point], *, randoms: bool) -> dict[Condition, Rank | None]:
    """Return Spearman's correlation of energy missed and loss over the points of each condition.

    Args:
        found: points.
        randoms: whether those of `random` count.
    """
    used = [p for p in found if p.missed is not None and (randoms or p.sampler != "random")]
    groups = [p.condition for p in used]
    ranks = spearman_within(groups, [p.missed or 0.0 for p in used], [p.loss.mean for p in used])
    return {group: rank for group, rank in ranks.items() if isinstance(group, tuple)}


def differences(lines: Sequence[Line], name: str) -> Iterator[tuple[Condition, str, Interval]]:
    """Yield by how much ``name`` (losses or scores) of `WORSE` lies above that of `BETTER`.

    Runs are paired by seed, and by parts of the test set; each sampler at the most effort that
    both of its runs have.
    """
    runs = {(condition_of(x), x["sampler"], x["level"], x["seed"]): x.get(name) for x in lines}
    for condition in dict.fromkeys(key[0] for key in runs):
        for worse in WORSE:
            pairs: dict[tuple[int, int], list[Any]] = {}
            for (own, sampler, level, seed), parts in runs.items():
                if (own, sampler) == (condition, worse) and parts is not None:
                    for other in range(3):
                        better = runs.get((condition, BETTER, other, seed))
                        if better is not None:
                            pairs.setdefault((level, other), []).append(np.subtract(parts, better))
            if pairs:
                yield condition, worse, interval(pairs[max(pairs)])


def promised(lines: Sequence[Line]) -> pd.DataFrame:
    """Return, for each condition of the networks, what the blocks promised and what it was worth.

    Of the first proposal of every expansion, `random` left out: the median of real / predicted
    on the samples that judge, which nothing was fitted to, and Pearson's and Spearman's
    correlation of the two.
    """
    rows = []
    for condition in dict.fromkeys(condition_of(x) for x in lines if "predicted" in x):
        own = [x for x in lines if condition_of(x) == condition and x["sampler"] != "random"]
        predicted = np.concatenate([x["predicted"] for x in own] or [[]])
        real = np.concatenate([x["real"] for x in own] or [[]])
        if predicted.size < 3:
            continue
        rank = spearman(predicted, real)
        rows.append(
            {
                "runs": titled(condition),
                "steps": predicted.size,
                "taken, %": f"{100 * np.mean(np.concatenate([x['taken'] for x in own])):.0f}",
                "real / predicted, median": f"{np.median(real / predicted):.2f}",
                "correlation": f"{np.corrcoef(predicted, real)[0, 1]:.2f}",
                "Spearman": "-" if rank is None else f"{rank.rho:.2f}",
            }
        )
    return pd.DataFrame(rows)


def cells_table(found: Sequence[Point], condition: Condition) -> pd.DataFrame:
    """Return the points of one condition, a row each."""
    rows = []
    for p in found:
        if p.condition != condition:
            continue
        row = {
            "sampler": p.sampler,
            "effort": p.level + 1,
            "energy missed, %": "-" if p.missed is None else f"{100 * p.missed:.2f}",
            LOSSES[condition[0]]: f"{p.loss.mean:.4f} ± {p.loss.half:.4f}",
        }
        if p.score is not None:
            name = "perplexity" if condition[0] == "text" else "accuracy, %"
            shown = f"{p.score.mean:.2f}"
            if condition[0] != "text":
                shown += f" ± {p.score.half:.2f}"
            row[name] = shown
        rows.append(row | {"seeds": p.seeds, "CPU s": f"{p.cpu_seconds:.1f}"})
    return pd.DataFrame(rows)


def correlations_table(found: Sequence[Point]) -> pd.DataFrame:
    """Return the correlations of every condition, with and without random answers."""
    both, without = (correlations(found, randoms=one) for one in (True, False))
    rows = [
        {
            "runs": titled(condition),
            "with random": str(both[condition] or "-"),
            "without": str(without.get(condition) or "-"),
        }
        for condition in both
    ]
    return pd.DataFrame(rows)


def differences_table(lines: Sequence[Line]) -> pd.DataFrame:
    """Return what the better sample saves, in loss and in accuracy, paired."""
    rows: dict[tuple[Condition, str], dict[str, str]] = {}
    for name, title in (("losses", "loss saved"), ("scores", "accuracy gained, points")):
        for condition, worse, found in differences(lines, name):
            if name == "scores" and condition[0] in ("rows", "text"):
                continue
            row = rows.setdefault((condition, worse), {"runs": titled(condition)})
            row[f"{BETTER} against"] = worse
            mean = found.mean if name == "losses" else -found.mean
            row[title] = f"{mean:.4f} ± {found.half:.4f}" if name == "losses" else (
                f"{mean:.2f} ± {found.half:.2f}"
            )  # fmt: skip
    return pd.DataFrame(list(rows.values())).fillna("-")


def report(lines: Sequence[Line], left_out: Mapping[str, str], folder: Path) -> str:
    """Return all tables in Markdown, and write the pictures into ``folder``."""
    from benchmarks.energy.figures import write_figures

    lines = with_missed(whole_seeds(lines))
    found = points(lines)
    parts = [f"{len(lines)} runs, {sum(x['cpu_seconds'] for x in lines) / 60:.0f} CPU minutes."]
    parts += [f"Left out: {name}, {why}." for name, why in left_out.items()]
    tables = {
        "Spearman's correlation of energy missed and loss": correlations_table(found),
        "What a better sample saves": differences_table(lines),
        "What blocks promise": promised(lines),
    }
    tables |= {
        titled(condition): cells_table(found, condition)
        for condition in dict.fromkeys(p.condition for p in found)
    }
    for title, table in tables.items():
        if len(table):
            shown = table.to_markdown(index=False, disable_numparse=True)
            parts.append(f"## {title}\n\n{shown}")
    write_figures(lines, found, folder)
    return "\n\n".join(parts)
