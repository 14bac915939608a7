"""Time to target and TTS, with bootstrap confidence intervals.

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

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solvers.study.measures import CELL, gap

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
