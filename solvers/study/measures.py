"""Measures of a study: pure functions from rows, one per run, to tables.

A gap here is (E - reference) / max(|E|, |reference|), the reference being the best known energy:
it is that of a study, and not the gap to a proved bound of `solvers.gap`. It is 0 where they are
equal, between 1 and 2 where they differ in sign, and independent of the scale of energies. A run
that crashed, ran out of time or could not be made has no energy; its gap is infinite and it has
not succeeded, so that no measure is better for a run that is missing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

#: Columns that are equal for runs that differ only in their seed.
CELL = ["problem", "sampler", "budget_kind", "budget"]
#: Gap up to which a run has found the best known energy: tables give six decimals.
SUCCESS_GAP = 1e-4
#: The largest gap: energies of opposite sign and equal size.
WORST_GAP = 2.0
#: Relative difference up to which two energies are equal but for rounding.
ROUNDING = 1e-9


def gap(energies: ArrayLike, references: ArrayLike) -> NDArray[np.float64]:
    """The relative distance of energies above their references; see the module's docstring.

    Args:
        energies: any shape; infinite or NaN where there is none.
        references: the same shape, or one number; NaN or infinite where nothing is known.

    Returns:
        Never below 0; infinite where there is no energy, NaN where there is no reference.

    Example:
        >>> gap([-9.0, -10.0, np.inf], -10.0).tolist()
        [0.1, 0.0, inf]
    """
    energy, reference = np.broadcast_arrays(
        np.asarray(energies, np.float64), np.asarray(references, np.float64)
    )
    known, found = np.isfinite(reference), np.isfinite(energy)
    both = known & found
    e, r = np.where(both, energy, 0.0), np.where(both, reference, 0.0)
    scale = np.maximum(np.abs(e), np.abs(r))
    relative = np.divide(e - r, scale, out=np.zeros_like(e), where=scale > 0)
    relative = np.where(relative < ROUNDING, 0.0, relative)
    return np.where(both, relative, np.where(known, np.inf, np.nan))


def references(rows: pd.DataFrame, problems: pd.DataFrame) -> pd.DataFrame:
    """The reference values of each problem.

    Args:
        rows: one row per run.
        problems: columns ``problem``, ``n``, ``kind``, ``known`` (best energy known before the
            study, NaN if none), ``proved`` (True if that is the optimum), ``bound`` (a lower
            bound known before, NaN if none), ``beaten`` (True if the study has verified a lower
            energy than was known); see `solvers.study.Study.problems`.

    Returns:
        Indexed by problem, in the order of ``problems``: ``n``, ``kind``, ``known``,
        ``beaten``, ``best_seen`` (in the study), ``best`` (the lower of both), ``lower_bound``
        (the highest certified),
        ``optimum`` (best, where that is proved or equals the bound; else NaN).
    """
    table = problems.set_index("problem")[["n", "kind", "known", "proved", "bound", "beaten"]]
    done = rows[rows.status == "ok"]
    table["best_seen"] = done.groupby("problem").energy.min().reindex(table.index)
    table["best"] = table[["known", "best_seen"]].min(axis=1)
    certified = done.assign(
        lower_bound=done.lower_bound.astype(float).replace([-np.inf, np.inf], np.nan)
    ).groupby("problem")
    bounds = pd.concat(
        [table.bound.astype(float), certified.lower_bound.max().reindex(table.index)], axis=1
    )
    table["lower_bound"] = bounds.max(axis=1)
    proved = table.proved.fillna(False).astype(bool) & ~table.beaten
    closed = gap(table.best, table.lower_bound) <= SUCCESS_GAP
    table["optimum"] = table.best.where(proved | closed)
    return table.drop(columns=["proved", "bound"])


def in_order(
    rows: pd.DataFrame, problems: Iterable[object], samplers: Iterable[object]
) -> pd.DataFrame:
    """The rows in the study's order of problems and samplers, not in the order of the runs."""
    places = pd.DataFrame(
        {
            "problem": rows.problem.map({name: i for i, name in enumerate(problems)}),
            "sampler": rows.sampler.map({name: i for i, name in enumerate(samplers)}),
            "kind": rows.budget_kind,
            "budget": rows.budget,
            "repeat": rows.repeat,
        }
    )
    order = ["problem", "sampler", "kind", "budget", "repeat"]
    return rows.loc[places.sort_values(order, kind="stable").index].reset_index(drop=True)


def with_gaps(rows: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """The rows with ``gap`` (to the best known), ``gap_optimum``, ``gap_bound`` and ``hit``.

    ``gap_bound`` is to the highest bound that any sampler certified in the study.
    """
    against = references.reindex(rows.problem)
    energies = rows.energy.astype(float).where(rows.status == "ok", np.inf).to_numpy()
    gaps = gap(energies, against.best.to_numpy())
    return rows.assign(
        gap=gaps,
        gap_optimum=gap(energies, against.optimum.to_numpy()),
        gap_bound=gap(energies, against.lower_bound.to_numpy()),
        hit=gaps <= SUCCESS_GAP,
    )


def summary(rows: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """One line for each problem, sampler and budget.

    Returns:
        Columns `CELL`, then ``n``, ``kind``, ``runs``, ``failed``, ``best`` and ``median``
        energy, ``gap_best``, ``gap_median`` (to the best known), ``gap_optimum``, ``gap_bound``
        (of the best energy), ``feasible_share`` (mean share of reads with exact counts before
        repair), ``success`` (share of runs that found the best known), ``success_low``,
        ``success_high`` (Wilson 1927, 95 %), ``seconds``, ``cpu_seconds`` (medians).
    """
    runs = with_gaps(rows, references)
    runs = runs.assign(
        energy=runs.energy.astype(float).where(runs.status == "ok"), failed=runs.status != "ok"
    )
    cells = runs.groupby(CELL, sort=False, observed=True, dropna=False)
    table = cells.agg(
        n=("n", "first"),
        runs=("seed", "size"),
        failed=("failed", "sum"),
        best=("energy", "min"),
        median=("energy", "median"),
        gap_best=("gap", "min"),
        gap_median=("gap", median_with_infinity),
        gap_optimum=("gap_optimum", "min"),
        gap_bound=("gap_bound", "min"),
        feasible_share=("feasible_share", "mean"),
        hits=("hit", "sum"),
        seconds=("seconds", "median"),
        cpu_seconds=("cpu_seconds", "median"),
    ).reset_index()
    table.insert(5, "kind", references.kind.reindex(table.problem).to_numpy())
    intervals = [share_interval(h, r) for h, r in zip(table.hits, table.runs, strict=True)]
    table.insert(14, "success", table.hits / table.runs)
    table.insert(15, "success_low", [low for low, _ in intervals])
    table.insert(16, "success_high", [high for _, high in intervals])
    return table.drop(columns="hits")


def share_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's (1927) confidence interval of a probability.

    Example:
        >>> low, high = share_interval(9, 10)
        >>> round(float(low), 2), round(float(high), 2)
        (0.6, 0.98)
    """
    from scipy.stats import binomtest

    interval = binomtest(int(successes), int(trials)).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def median_with_infinity(values: ArrayLike) -> float:
    """The median; of an even number with an infinite middle value, infinity.

    Example:
        >>> median_with_infinity([1.0, 2.0, np.inf, np.inf])
        inf
    """
    ordered = np.sort(np.asarray(values, np.float64))
    if not ordered.size:
        return float("nan")
    low, high = ordered[(ordered.size - 1) // 2], ordered[ordered.size // 2]
    return float(high) if np.isinf(high) else float(low + high) / 2


def largest_budget(rows: pd.DataFrame) -> tuple[str, float]:
    """The budget at which samplers are ranked: the largest of the kind most samplers can take.

    Of kinds that equally many can take, seconds before sweeps before reads.
    """
    done = rows[rows.status != "incompatible"]
    if done.empty:
        done = rows
    order = {"seconds": 0, "sweeps": 1, "reads": 2}
    able = done.groupby("budget_kind").sampler.nunique()
    kind = min(able.index, key=lambda name: (-able[name], order.get(name, len(order))))
    return str(kind), float(done[done.budget_kind == kind].budget.max())


def at_budget(rows: pd.DataFrame, kind: str, budget: float) -> pd.DataFrame:
    """The runs with one budget."""
    return rows[(rows.budget_kind == kind) & (rows.budget == budget)]


def median_gaps(rows: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Median gap to the best known, problems by samplers, both in order of appearance.

    Infinite where most runs failed or the pair is incompatible.
    """
    runs = with_gaps(rows, references)
    cells = runs.groupby(["problem", "sampler"], observed=True).gap.agg(median_with_infinity)
    problems = [name for name in references.index if name in set(rows.problem)]
    return cells.unstack().reindex(index=problems, columns=rows.sampler.unique()).fillna(np.inf)


def anytime(rows: pd.DataFrame, references: pd.DataFrame, points: int = 48) -> pd.DataFrame:
    """Gap against time spent in the sampler, of the runs with the largest budget of their kind.

    Times are a geometric grid per problem and kind of budget, from the first answer of any
    sampler to the end of the longest run. A run that had no answer yet has an infinite gap, and
    so has one that failed; one that ended early keeps its last.

    Returns:
        Columns `CELL`, ``n``, ``kind``, ``seconds``, ``gap``: the median over runs.
    """
    largest = rows.groupby(["sampler", "budget_kind"], observed=True).budget.transform("max")
    runs = rows[(rows.budget == largest) & (rows.status != "incompatible")]
    tables = []
    for (problem, budget_kind), group in runs.groupby(["problem", "budget_kind"], sort=False):
        firsts = [trace[0][0] for trace in group.trace if isinstance(trace, list)]
        if not firsts:
            continue
        grid = np.geomspace(max(min(firsts), 1e-6), max(group.seconds.max(), *firsts, 1e-6), points)
        against = references.loc[str(problem)]
        for (sampler, budget), part in group.groupby(["sampler", "budget"], sort=False):
            energies = np.array([_best_by(trace, grid) for trace in part.trace])
            medians = [median_with_infinity(at) for at in gap(energies, against.best).T]
            told = {"problem": problem, "sampler": sampler, "budget_kind": budget_kind}
            told |= {"budget": budget, "n": against.n, "kind": against.kind}
            tables.append(pd.DataFrame({**told, "seconds": grid, "gap": medians}))
    empty = pd.DataFrame(columns=[*CELL, "n", "kind", "seconds", "gap"])
    return pd.concat(tables, ignore_index=True) if tables else empty


def _best_by(trace: object, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best energy that a run had by each time; infinite before its first answer."""
    if not isinstance(trace, list):
        return np.full(grid.size, np.inf)
    times, energies = np.array(trace, np.float64).T
    # Rounding must not move the first time of the grid.
    place = np.searchsorted(times, grid * (1 + 1e-9), side="right") - 1
    return np.where(place >= 0, energies[np.maximum(place, 0)], np.inf)


def failures(rows: pd.DataFrame) -> pd.DataFrame:
    """Runs without an energy, grouped: sampler, status, reason, number of runs, problems.

    Incompatible pairs and crashes are included, with their reasons.
    """
    failed = rows[rows.status != "ok"]
    table = failed.assign(reason=failed.reason.fillna("")).groupby(
        ["sampler", "status", "reason"], sort=False
    )
    return table.agg(
        runs=("seed", "size"),
        problems=("problem", lambda names: ", ".join(dict.fromkeys(names))),
    ).reset_index()
