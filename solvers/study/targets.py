"""Time to target and TTS, with bootstrap confidence intervals.

A sampler that reaches its target with probability p in a trial of t seconds, started afresh again
and again, needs

    TTS_c = t max(1, ln(1 - c) / ln(1 - p))

to reach it with probability c: 0.99 for TTS99 (Ronnow et al., Science 345, 420 (2014);
the number of trials is not rounded up but is at least one). On the average it needs t / p. A
sampler's TTS is the least over its budgets, as theirs is over annealing times.

The intervals resample trials with replacement (`scipy.stats.bootstrap`, percentiles). What is
resampled is 1 / TTS: it stays finite where a sample has no success, and percentiles do not care.
Trials that all succeed leave only their times to vary; `solvers.study.measures.share_interval` says
how little few trials prove.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from solvers.study.measures import CELL, gap, with_gaps

Floats = NDArray[np.float64]

RESAMPLES = 1000


def runs_as_trials(rows: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Every run is a trial: the only fair unit where a sampler's reads share work.

    Returns:
        Columns `CELL`, ``n``, ``kind``, ``gap``, ``seconds``. Runs that crashed or ran out of
        time are misses of the time they took, or where that is unknown of the mean of the
        others; incompatible pairs are no trials.
    """
    tried = rows[rows.status != "incompatible"]
    trials = with_gaps(tried, references)
    known = trials.groupby(CELL, observed=True).seconds.transform("mean")
    trials = trials.assign(
        seconds=trials.seconds.astype(float).fillna(known),
        kind=references.kind.reindex(trials.problem).to_numpy(),
    )
    return trials[[*CELL, "n", "kind", "gap", "seconds"]].dropna(subset="seconds")


def reads_as_trials(rows: pd.DataFrame, references: pd.DataFrame) -> pd.DataFrame:
    """Every read is a trial of an equal share of its run's time.

    Only for samplers whose reads are independent restarts without a common start; a run's set-up
    is then spread over its reads. Same columns as `runs_as_trials`.
    """
    runs = rows[rows.status == "ok"].reset_index(drop=True)
    counts = runs.energies.map(len).to_numpy()
    reads = runs.loc[runs.index.repeat(counts)]
    energies = np.concatenate([np.asarray(e, float) for e in runs.energies] or [np.zeros(0)])
    against = references.reindex(reads.problem)
    return pd.DataFrame(
        {
            **{name: reads[name].to_numpy() for name in (*CELL, "n")},
            "kind": against.kind.to_numpy(),
            "gap": gap(energies, against.best.to_numpy()),
            "seconds": reads.seconds.to_numpy(float) / np.repeat(counts, counts),
        }
    )


def rate(hits: Floats, seconds: Floats, axis: int = -1, *, confidence: float = 0.99) -> Floats:
    """1 / TTS of trials along ``axis``: their hits (0 or 1) and seconds; 0 without a hit."""
    probability = np.mean(hits, axis=axis)
    each = np.mean(seconds, axis=axis)
    unsure = np.clip(probability, 0.0, 1.0 - 1e-15)
    per_trial = np.minimum(1.0, np.log1p(-unsure) / np.log1p(-confidence))
    return per_trial / np.maximum(each, 1e-12)


def resampled_rates(
    hits: Floats, seconds: Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """`rate` of ``resamples`` bootstrap samples of the trials, shape (resamples,).

    A single trial has nothing to resample: NaN.
    """
    from scipy.stats import bootstrap

    if len(hits) < 2:
        return np.full(resamples, np.nan)
    drawn: Any = bootstrap(
        (hits, seconds),
        rate,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.bootstrap_distribution


def time_to_target(
    trials: pd.DataFrame,
    *,
    target: float,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Time to a gap of ``target`` from the best known, for each problem, sampler and budget.

    Args:
        trials: from `runs_as_trials` or `reads_as_trials`.
        target: a gap; 0.01 is one percent above the best known.
        level: of the confidence intervals.
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Columns `CELL`, ``n``, ``kind``, ``trials``, ``hits``, ``seconds`` (mean of a trial),
        ``expected`` (seconds to the target on the average), ``tts`` (TTS99), ``tts_low``,
        ``tts_high``. Infinite where it was never reached; an interval of a single trial is NaN.
    """
    lines = []
    for cell, group in trials.groupby(CELL, sort=False, observed=True):
        hits, seconds = _arrays(group, target)
        rates = resampled_rates(hits, seconds, resamples=resamples, seed=seed)
        low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
        lines.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                "n": group.n.iloc[0],
                "kind": group.kind.iloc[0],
                "trials": len(group),
                "hits": int(hits.sum()),
                "seconds": seconds.mean(),
                "expected": seconds.sum() / hits.sum() if hits.any() else np.inf,
                "tts": _inverse(float(rate(hits, seconds))),
                "tts_low": _inverse(high),
                "tts_high": _inverse(low),
            }
        )
    columns = [*CELL, "n", "kind", "trials", "hits", "seconds"]
    columns += ["expected", "tts", "tts_low", "tts_high"]
    return pd.DataFrame(lines, columns=columns)


def fastest(times: pd.DataFrame) -> pd.DataFrame:
    """Of every problem and sampler the budget with the least TTS; ties go to the smaller.

    Choosing it by the same runs flatters it a little, everyone alike.
    """
    ordered = times.sort_values(["tts", "budget"], kind="stable")
    best = ordered.groupby(["problem", "sampler"], sort=False, observed=True).head(1)
    return best.sort_index()


def tts_by_size(
    trials: pd.DataFrame,
    *,
    target: float,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Median TTS99 over the problems of one kind and size, at the budget where it is least.

    The problems are taken as given: the interval says how it would vary with other seeds, not with
    other problems.

    Returns:
        Columns ``kind``, ``n``, ``sampler``, ``budget_kind``, ``budget``, ``problems``,
        ``reached`` (problems whose target was reached), ``tts``, ``tts_low``, ``tts_high``.
    """
    lines = []
    streams = np.random.SeedSequence(seed)
    keys = ["kind", "n", "sampler", "budget_kind", "budget"]
    for key, group in trials.groupby(keys, sort=False, observed=True):
        of_problems = [_arrays(part, target) for _, part in group.groupby("problem", sort=False)]
        rates = np.array([float(rate(*arrays)) for arrays in of_problems])
        draws = [
            resampled_rates(*arrays, resamples=resamples, seed=int(child.generate_state(1)[0]))
            for arrays, child in zip(of_problems, streams.spawn(len(of_problems)), strict=True)
        ]
        low, high = np.quantile(np.median(draws, axis=0), [(1 - level) / 2, (1 + level) / 2])
        lines.append(
            {
                **dict(zip(keys, key, strict=True)),
                "problems": len(rates),
                "reached": int((rates > 0).sum()),
                "tts": _inverse(float(np.median(rates))),
                "tts_low": _inverse(high),
                "tts_high": _inverse(low),
            }
        )
    columns = [*keys, "problems", "reached", "tts", "tts_low", "tts_high"]
    table = pd.DataFrame(lines, columns=columns).sort_values("tts", kind="stable")
    best = table.groupby(["kind", "n", "sampler"], sort=False, observed=True).head(1)
    return best.sort_values(["kind", "n", "sampler"], kind="stable").reset_index(drop=True)


def _arrays(trials: pd.DataFrame, target: float) -> tuple[Floats, Floats]:
    hits = (trials.gap.to_numpy() <= target).astype(np.float64)
    return hits, trials.seconds.to_numpy(np.float64)


def _inverse(value: float) -> float:
    """1 / value, infinity for 0; NaN stays."""
    return float("inf") if value == 0 else 1.0 / value
