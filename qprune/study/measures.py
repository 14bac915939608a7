"""Measures of a pruning study: pure functions from rows, one per run, to tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qprune.study.compare import PruningStudy

#: Columns of a cell: runs that differ only in their seed.
CELL = ["sampler", "budget_kind", "budget"]


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
    table = cells.agg(
        runs=("seed", "size"),
        failed=("failed", "sum"),
        missed=("missed_mean", "mean"),
        missed_median=("missed_median", "mean"),
        uncertain_median=("uncertain_median", "mean"),
        predicted=("predicted", "mean"),
        real=("real", "mean"),
        accepted_share=("accepted_share", "mean"),
        accept_loss=("accept_loss", "mean"),
        final_loss=("final_loss", "mean"),
        final_accuracy=("final_accuracy", "mean"),
        accuracy_low=("final_accuracy", "min"),
        accuracy_high=("final_accuracy", "max"),
        sampler_seconds=("sampler_seconds", "mean"),
        cpu_seconds=("cpu_seconds", "mean"),
    ).reset_index()
    with np.errstate(divide="ignore", invalid="ignore"):
        table.insert(10, "kept_promise", (table.real / table.predicted).replace(np.inf, np.nan))
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
    return [
        {
            "sampler": cell["label"],
            "runs": int(cell["runs"]),
            "failed": int(cell["failed"]),
            "test accuracy": _number(cell["final_accuracy"]),
            "from": _number(cell["accuracy_low"]),
            "to": _number(cell["accuracy_high"]),
            "accept loss": _number(cell["accept_loss"]),
            "energy missed": _number(cell["missed"]),
            "predicted": _number(cell["predicted"]),
            "real": _number(cell["real"]),
            "steps taken": _number(cell["accepted_share"]),
            "sampler s": _number(cell["sampler_seconds"]),
            "CPU s": _number(cell["cpu_seconds"]),
        }
        for cell in cells.to_dict("records")
    ]


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
