"""Rankings of samplers: ranks, tests of significance, performance profiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from solvers.study.measures import SUCCESS_GAP


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
