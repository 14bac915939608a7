"""Measures of a study: pure functions from rows, one per run, to tables.

A gap here is (E - reference) / max(|E|, |reference|), the reference being the best known energy:
it is that of a study, and not the gap to a proved bound of `solvers.problem.gap`. It is 0 where
they are equal, between 1 and 2 where they differ in sign, and independent of the scale of energies.
A run that crashed, ran out of time or could not be made has no energy; its gap is infinite and it
has not succeeded, so that no measure is better for a run that is missing.

Rankings of samplers: ranks, tests of significance, performance profiles.

Time to target and TTS, with bootstrap confidence intervals.

A sampler that within t seconds reaches its target with probability p, and is restarted
every t seconds, needs

    TTS_c(t) = t max(1, ln(1 - c) / ln(1 - p(t)))

to reach it with probability c: 0.99 for TTS99 (Ronnow et al., Science 345, 420 (2014); the number
of repetitions is not rounded up but is at least one). Like them we take the best t, here of the
times at which runs reached the target, by their ``trace``. Chosen on the same runs, it
is slightly optimistic, for all samplers alike.

The intervals resample runs with replacement (`scipy.stats.bootstrap`, percentiles). What is
resampled is 1 / TTS: it stays finite where a sample has no success, and has the same percentiles.
Where all runs succeed only their times vary; `solvers.study.measures.share_interval` has
the uncertainty of the probability.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    return held(times, energies, grid)


def held(
    times: NDArray[np.float64], values: NDArray[np.float64], grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The last value at or before each time of ``grid``; infinite before the first.

    Example:
        >>> held(np.array([1.0, 2.0]), np.array([5.0, 3.0]), np.array([0.5, 1.0, 9.0])).tolist()
        [inf, 5.0, 3.0]
    """
    # Rounding must not move the first time of the grid.
    place = np.searchsorted(times, grid * (1 + 1e-9), side="right") - 1
    return np.where(place >= 0, values[np.maximum(place, 0)], np.inf)


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


@dataclass(frozen=True, eq=False)
class Ranking:
    """Ranks of samplers over problems, and tests of their differences.

    Attributes:
        mean_ranks: by sampler, 1 is best, the best first; ties share their mean rank.
        num_problems: number of problems ranked.
        p_value: of Friedman's test that all samplers are alike; NaN where it cannot be made.
        pairwise: p-values of Nemenyi's test for every two samplers, which accounts for their
            number; empty where it cannot be made.
        reason: reason why there is no test, "" if there is one.
    """

    mean_ranks: pd.Series
    num_problems: int
    p_value: float
    pairwise: pd.DataFrame
    reason: str = ""


def rank(gaps: pd.DataFrame) -> Ranking:
    """Rank samplers by their gap on every problem; test as Demsar (JMLR 7, 2006) does.

    Friedman's test is for any difference of samplers, Nemenyi's for each pair. Gaps below
    `SUCCESS_GAP` are one gap: all of these have found the best known. A sampler that failed on
    a problem (infinite gap) is last there.

    Args:
        gaps: problems by samplers, see `solvers.study.measures.median_gaps`.

    Example:
        >>> gaps = pd.DataFrame({"a": [0.0, 0.1, 0.2], "b": [0.5, 0.6, 0.7]})
        >>> rank(gaps).mean_ranks.to_dict()
        {'a': 1.0, 'b': 2.0}
    """
    leveled = gaps.where(gaps > SUCCESS_GAP, 0.0)
    ranks = leveled.rank(axis=1)
    mean_ranks = ranks.mean().sort_values(kind="stable")
    problems, samplers = gaps.shape
    nothing = pd.DataFrame()
    if samplers < 3 or problems < 2:
        needs = "the test needs at least three samplers and two problems"
        return Ranking(mean_ranks, problems, float("nan"), nothing, needs)
    if (ranks.nunique(axis=1) == 1).all():
        return Ranking(mean_ranks, problems, 1.0, nothing, "all samplers tie on every problem")
    from scikit_posthocs import posthoc_nemenyi_friedman
    from scipy.stats import friedmanchisquare

    p_value = friedmanchisquare(*(leveled[name] for name in leveled)).pvalue
    # Nemenyi's test uses ranks alone, which replace gaps that may be infinite.
    pairwise = posthoc_nemenyi_friedman(ranks.reset_index(drop=True))
    return Ranking(mean_ranks, problems, float(p_value), pairwise)


def performance_profile(costs: pd.DataFrame) -> pd.DataFrame:
    """Dolan and More's (Math. Program. 91, 2002) performance profile.

    rho_s(tau) is the share of problems on which sampler s costs at most tau times what the
    cheapest costs. An infinite or NaN cost never counts as solved; problems
    that no sampler solved stay in the denominator.

    Args:
        costs: problems by samplers, above 0.

    Returns:
        Indexed by tau (every value at which some rho steps, and 1), one column a sampler.

    Example:
        >>> costs = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, np.inf]})
        >>> performance_profile(costs)["b"].to_dict()
        {1.0: 0.0, 2.0: 0.5}
    """
    best = costs.min(axis=1)
    ratios = costs.div(best, axis=0).replace(np.inf, np.nan)
    taus = np.unique(np.concatenate([[1.0], ratios.to_numpy()[ratios.notna().to_numpy()]]))
    shares = {name: [(ratios[name] <= tau).mean() for tau in taus] for name in costs}
    return pd.DataFrame(shares, index=pd.Index(taus, name="tau"))


def gap_profile(gaps: pd.DataFrame) -> pd.DataFrame:
    """The share of problems on which each sampler's gap is at most g, indexed by every g.

    Example:
        >>> gap_profile(pd.DataFrame({"a": [0.0, 0.5]}))["a"].tolist()
        [0.5, 1.0]
    """
    values = gaps.to_numpy()
    levels = np.unique(np.concatenate([[SUCCESS_GAP], values[np.isfinite(values)]]))
    levels = levels[levels >= SUCCESS_GAP]
    shares = {name: [(gaps[name] <= level).mean() for level in levels] for name in gaps}
    return pd.DataFrame(shares, index=pd.Index(levels, name="gap"))


Floats = NDArray[np.float64]

RESAMPLES = 1000
_CERTAINTY = np.log1p(-0.99)
_SIZE = ["kind", "n", "sampler", "budget_kind", "budget"]


def reaching(rows: pd.DataFrame, references: pd.DataFrame, target: float) -> pd.DataFrame:
    """The time at which each run came within a gap of ``target`` of the best known energy.

    Args:
        rows: one row per run.
        references: from `solvers.study.measures.references`.
        target: a gap; 0.01 is one percent above the best known.

    Returns:
        Columns `CELL`, ``n``, ``kind``, ``reached`` (seconds in the sampler; infinite where it
        never did, as of runs that crashed or ran out of time) and ``spent`` (seconds until then,
        or in the whole run). Incompatible pairs are left out.
    """
    tried = rows[rows.status != "incompatible"].reset_index(drop=True)
    against = references.reindex(tried.problem)
    reached = [
        _first(trace, best, target) if status == "ok" else np.inf
        for trace, best, status in zip(tried.trace, against.best, tried.status, strict=True)
    ]
    whole = tried.groupby(CELL, observed=True, dropna=False).seconds.transform("mean")
    spent = tried.seconds.astype(float).fillna(whole).to_numpy()
    times = np.array(reached, np.float64)
    return tried[[*CELL, "n"]].assign(
        kind=against.kind.to_numpy(),
        reached=times,
        spent=np.where(np.isfinite(times), times, spent),
    )


def _first(trace: Sequence[Sequence[float]], best: float, target: float) -> float:
    for seconds, energy in trace:
        if gap(energy, best) <= target:
            return float(seconds)
    return np.inf


def rate(reached: Floats, axis: int = -1) -> Floats:
    """1 / TTS99 of runs along ``axis`` that reached their target then; 0 where none did."""
    times = np.sort(np.moveaxis(np.asarray(reached, np.float64), axis, -1), axis=-1)
    runs = times.shape[-1]
    probability = np.minimum(np.arange(1, runs + 1) / runs, 1.0 - 1e-15)
    once = np.minimum(1.0, np.log1p(-probability) / _CERTAINTY)
    with np.errstate(divide="ignore"):  # A time of 0 is an infinite rate.
        return (once / times).max(axis=-1)


def resampled_rates(reached: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """`rate` of ``resamples`` bootstrap samples of the runs, shape (resamples,).

    NaN for a single run.
    """
    from scipy.stats import bootstrap

    if len(reached) < 2:
        return np.full(resamples, np.nan)
    drawn: Any = bootstrap(
        (reached,),
        rate,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.bootstrap_distribution


def time_to_target(
    times: pd.DataFrame, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """TTS99 for each problem, sampler and budget.

    Args:
        times: from `reaching`.
        level: of the confidence intervals.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Columns `CELL`, ``n``, ``kind``, ``runs``, ``hits``, ``median`` (seconds in which half
        the runs reached the target), ``expected`` (seconds spent per hit: the mean time of runs to
        their end, repeated until one hits), ``tts``, ``tts_low``,
        ``tts_high``. Infinite where it was not reached; the interval of a single run is NaN.
    """
    lines = []
    for cell, group in times.groupby(CELL, sort=False, observed=True):
        reached = group.reached.to_numpy(np.float64)
        hits = int(np.isfinite(reached).sum())
        lines.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                "n": group.n.iloc[0],
                "kind": group.kind.iloc[0],
                "runs": len(group),
                "hits": hits,
                "median": float(np.sort(reached)[len(reached) // 2]),
                "expected": group.spent.sum() / hits if hits else np.inf,
                **_tts(
                    rate(reached), resampled_rates(reached, resamples=resamples, seed=seed), level
                ),
            }
        )
    columns = [*CELL, "n", "kind", "runs", "hits", "median", "expected"]
    return pd.DataFrame(lines, columns=[*columns, "tts", "tts_low", "tts_high"])


def fastest(times: pd.DataFrame) -> pd.DataFrame:
    """The budget with the least TTS of every problem and sampler; ties go to the smaller one."""
    ordered = times.sort_values(["tts", "budget"], kind="stable")
    best = ordered.groupby(["problem", "sampler"], sort=False, observed=True).head(1)
    return best.sort_index()


def tts_by_size(
    times: pd.DataFrame, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Median TTS99 over the problems of one kind and size, at the budget where it is least.

    Infinite where the target was not reached on half of the problems. The problems are taken as
    given: the interval is over other seeds, not
    over other problems.

    Args:
        times: from `reaching`.
        level: of the confidence intervals.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Columns ``kind``, ``n``, ``sampler``, ``budget_kind``, ``budget``, ``problems``,
        ``reached`` (problems whose target was reached), ``tts``, ``tts_low``, ``tts_high``.
    """
    lines = []
    for key, group in times.groupby(_SIZE, sort=False, observed=True):
        of_problems = [part.reached.to_numpy() for _, part in group.groupby("problem", sort=False)]
        rates = np.array([float(rate(reached)) for reached in of_problems])
        draws = [
            resampled_rates(reached, resamples=resamples, seed=seed + place)
            for place, reached in enumerate(of_problems)
        ]
        lines.append(
            {
                **dict(zip(_SIZE, key, strict=True)),
                "problems": len(rates),
                "reached": int((rates > 0).sum()),
                **_tts(_median_rate(rates), _median_rate(np.array(draws)), level),
            }
        )
    columns = [*_SIZE, "problems", "reached", "tts", "tts_low", "tts_high"]
    table = pd.DataFrame(lines, columns=columns).sort_values("tts", kind="stable")
    best = table.groupby(["kind", "n", "sampler"], sort=False, observed=True).head(1)
    return best.sort_values(["kind", "n", "sampler"], kind="stable").reset_index(drop=True)


def _median_rate(rates: Floats) -> Floats:
    """The median rate over problems (first axis); 0 where one of the two in the middle is 0.

    A mean of a rate and 0 would be positive although half never reached the target.
    """
    lower = np.sort(rates, axis=0)[(len(rates) - 1) // 2]
    return np.where(lower > 0, np.median(rates, axis=0), lower)


def _tts(found: Any, drawn: Floats, level: float) -> Mapping[str, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return {"tts": _inverse(found), "tts_low": _inverse(high), "tts_high": _inverse(low)}


def _inverse(value: Any) -> float:
    """1 / value, infinity for 0; NaN stays."""
    return float("inf") if value == 0 else 1.0 / float(value)
