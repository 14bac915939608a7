"""Measures against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from synthetic_study import failed, problems, row, study_rows

from solvers.study.measures import (
    anytime,
    at_budget,
    failures,
    fastest,
    gap,
    gap_profile,
    in_order,
    largest_budget,
    median_gaps,
    performance_profile,
    rank,
    rate,
    reaching,
    references,
    resampled_rates,
    share_interval,
    summary,
    time_to_target,
    tts_by_size,
    with_gaps,
)


def test_gaps_are_those_of_solution():
    assert gap([-9.0, -10.0, 5.0, 1.0], [-10.0, -10.0, 4.0, -1.0]).tolist() == [0.1, 0, 0.2, 2]
    assert gap([-10.0000000001, 0.0], [-10.0, 0.0]).tolist() == [0, 0]
    assert gap([np.nan, np.inf], -1.0).tolist() == [math.inf, math.inf]
    assert np.isnan(gap(3.0, np.nan))


def test_a_bound_that_meets_the_best_energy_proves_it():
    rows = pd.DataFrame(
        [
            row("block-256", energy=-40.9, lower_bound=-40.95),
            row("block-1024", energy=12.5, lower_bound=12.4999),
            row("gka-a", energy=-2000.0, lower_bound=-np.inf),
        ]
    )
    against = references(rows, problems())
    assert against.lower_bound["block-256"] == -40.95
    assert math.isnan(against.optimum["block-256"])
    assert against.optimum["block-1024"] == 12.5
    assert against.optimum["block-64"] == -10.0  # by the file
    assert math.isnan(against.lower_bound["gka-a"])
    assert against.best["gka-a"] == -3000.0


def test_a_summary_counts_failures_and_loses_no_pair():
    rows = pd.DataFrame(
        [
            row(energy=-10.0, feasible_share=0.5, seconds=1.0),
            row(energy=-9.0, repeat=1, feasible_share=1.0, seconds=3.0),
            failed("crashed", "boom", repeat=2),
            failed("incompatible", "no", sampler="tabu"),
        ]
    )
    relax, tabu = summary(rows, references(rows, problems())).to_dict("records")
    assert (relax["runs"], relax["failed"], relax["best"], relax["median"]) == (3, 1, -10, -9.5)
    assert (relax["gap_best"], relax["gap_median"]) == (0, pytest.approx(0.1))
    assert relax["gap_optimum"] == 0
    assert (relax["feasible_share"], relax["seconds"]) == (0.75, 2.0)
    assert relax["success"] == pytest.approx(1 / 3)
    assert 0 < relax["success_low"] < 1 / 3 < relax["success_high"] < 1
    assert (tabu["failed"], tabu["gap_median"]) == (1, math.inf)
    assert math.isnan(tabu["best"])


def test_intervals_of_shares_are_honest_about_few_trials():
    assert share_interval(3, 3)[0] == pytest.approx(0.4385, abs=1e-3)
    assert share_interval(0, 3)[1] == pytest.approx(1 - 0.4385, abs=1e-3)


def test_the_largest_budget_of_the_kind_most_samplers_take():
    rows = study_rows(repeats=1)
    assert largest_budget(rows) == ("seconds", 1.6)
    reads = rows[rows.sampler != "random"].assign(budget_kind="reads", budget=500)
    assert largest_budget(pd.concat([rows, reads])) == ("seconds", 1.6)


def test_median_gaps_have_a_cell_for_every_pair():
    rows = study_rows()
    table = median_gaps(at_budget(rows, "seconds", 1.6), references(rows, problems()))
    assert table.shape == (4, 5)
    assert table.loc["block-1024", "tabu"] == math.inf
    assert table.loc["block-64", "relax"] == 0
    assert table.loc["block-64", "random"] > 0.1


def test_rows_come_in_the_order_of_the_study():
    rows = study_rows().sample(frac=1.0, random_state=1)
    ordered = in_order(rows, list(problems().problem), ["tabu", "relax", "sa", "random"])
    assert ordered.problem.unique().tolist() == problems().problem.tolist()
    one = ordered[ordered.problem == "gka-a"]
    assert one.sampler.unique().tolist()[:4] == ["tabu", "relax", "sa", "random"]
    assert one[one.sampler == "sa"].budget.is_monotonic_increasing
    assert len(ordered) == len(rows)


def test_failures_are_listed_with_their_reasons():
    listed = failures(study_rows()).set_index("sampler")
    assert listed.reason["tabu"] == "takes no counts"
    assert (listed.runs["tabu"], listed.problems["tabu"]) == (9, "block-1024")
    assert listed.runs["random"] == 3


def test_ranks_tell_samplers_apart_and_put_failures_last():
    gaps = pd.DataFrame(
        {
            "good": [0.0] * 12,
            "close": [5e-5] * 12,  # the best known, to its decimals
            "bad": np.linspace(0.2, 0.4, 12),
            "broken": [np.inf] * 12,
        }
    )
    ranking = rank(gaps)
    assert ranking.mean_ranks.to_dict() == {"good": 1.5, "close": 1.5, "bad": 3, "broken": 4}
    assert ranking.p_value < 1e-6
    assert ranking.pairwise.loc["good", "broken"] < 0.001
    assert ranking.pairwise.loc["good", "close"] > 0.9
    assert ranking.num_problems == 12


def test_no_test_is_made_where_none_can_be():
    two = pd.DataFrame({"a": [0.1, 0.2], "b": [0.3, 0.4]})
    assert "three samplers" in rank(two).reason
    tied = pd.DataFrame({name: [0.0, 0.0] for name in "abc"})
    assert (rank(tied).p_value, "tie" in rank(tied).reason) == (1.0, True)


def test_performance_profiles_are_dolan_and_mores():
    costs = pd.DataFrame({"a": [1.0, 2.0, np.inf, np.inf], "b": [2.0, 1.0, 3.0, np.inf]})
    profile = performance_profile(costs)
    assert profile.index.tolist() == [1, 2]
    assert profile.a.tolist() == [0.25, 0.5]
    assert profile.b.tolist() == [0.5, 0.75]


def test_gap_profiles_count_problems_within_a_gap():
    profile = gap_profile(pd.DataFrame({"a": [0.0, 0.1, np.inf], "b": [0.1, 0.1, 0.2]}))
    assert profile.index.tolist() == [1e-4, 0.1, 0.2]
    assert profile.a.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert profile.b.tolist() == pytest.approx([0, 2 / 3, 1])


def test_hits_are_within_the_tables_decimals():
    rows = pd.DataFrame([row(energy=-9.9995), row(energy=-9.99, repeat=1)])
    assert with_gaps(rows, references(rows, problems())).hit.tolist() == [True, False]


def test_a_best_known_value_that_was_beaten_is_replaced_and_proves_nothing():
    rows = pd.DataFrame([row(energy=-10.5), row(repeat=1, energy=-9.0)])
    beaten = problems().assign(beaten=[True, False, False, False])
    against = references(rows, beaten).loc["block-64"]
    assert (against.known, against.best_seen, against.best) == (-10.0, -10.5, -10.5)
    assert math.isnan(against.optimum)  # what was claimed as proved cannot be


def test_anytime_knows_only_what_a_run_had_by_then():
    slow = {"sampler": "sa", "seconds": 8.0, "trace": [[1.0, -5.0], [4.0, -10.0]]}
    rows = pd.DataFrame(
        [
            row(seconds=8.0, trace=[[0.5, -9.0]], budget=8.0),
            row(seconds=1.0, trace=[[0.1, -1.0]], budget=1.0),  # a smaller budget
            row(budget=8.0, **slow),
            failed("crashed", "boom", sampler="tabu", budget=8.0),
        ]
    )
    curve = anytime(rows, references(rows, problems()), points=5)
    by = curve.pivot(index="seconds", columns="sampler", values="gap")
    assert by.index.tolist() == pytest.approx([0.5, 1, 2, 4, 8])
    assert by.relax.tolist() == pytest.approx([0.1] * 5)
    assert by.sa.tolist() == pytest.approx([math.inf, 0.5, 0.5, 0, 0])
    assert np.isinf(by.tabu).all()


def test_tts_is_ronnows_formula_at_the_best_time():
    assert 1 / rate(np.array([2.0, np.inf])) == pytest.approx(2 * math.log(0.01) / math.log(0.5))
    # At least one whole run, also where all of them succeed or nearly.
    assert 1 / rate(np.full(4, 2.0)) == pytest.approx(2)
    assert 1 / rate(np.array([2.0] * 999 + [np.inf])) == pytest.approx(2)
    assert rate(np.full(3, np.inf)) == 0
    # Half succeed within 1 s: better to stop there than to wait 100 s for the others.
    early = np.array([1.0, 1.0, 100.0, 100.0])
    assert 1 / rate(early) == pytest.approx(math.log(0.01) / math.log(0.5))
    assert rate(np.stack([early, np.full(4, 2.0)]), axis=1).tolist() == pytest.approx(
        [math.log(0.5) / math.log(0.01), 0.5]
    )


def test_runs_reach_the_target_when_their_trace_says():
    rows = pd.DataFrame(
        [
            row(seconds=9.0, trace=[[1.0, -9.0], [4.0, -9.95], [8.0, -10.0]]),
            row(repeat=1, seconds=9.0, trace=[[1.0, -5.0]]),
            failed("timeout", "over 20 s", repeat=2) | {"seconds": 20.0},
            failed("crashed", "boom", repeat=3),
            failed("incompatible", "no", sampler="tabu"),
        ]
    )
    against = references(rows, problems())
    times = reaching(rows, against, 0.01)
    assert times.reached.tolist() == [4, math.inf, math.inf, math.inf]
    # Without a time of its own, a crash has taken as long as the others do.
    assert times.spent.tolist() == pytest.approx([4, 9, 20, 38 / 3])
    assert reaching(rows, against, 0.0).reached[0] == 8
    (line,) = time_to_target(times).to_dict("records")
    assert (line["runs"], line["hits"], line["median"]) == (4, 1, math.inf)
    assert line["expected"] == pytest.approx(33 + 38 / 3)
    assert line["tts"] == pytest.approx(4 * math.log(0.01) / math.log(0.75))
    assert line["tts_low"] < line["tts"] < line["tts_high"] == math.inf
    (never,) = time_to_target(times[1:]).to_dict("records")
    assert never["tts"] == never["tts_low"] == never["expected"] == math.inf


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        reached = np.where(rng.random(60) < 2 / 3, 1.0, np.inf)
        drawn = resampled_rates(reached, resamples=200, seed=seed)
        low, high = np.quantile(drawn, [0.025, 0.975])
        covered += low <= math.log(1 / 3) / math.log(0.01) <= high
    assert 52 <= covered <= 60


def test_the_same_seed_gives_the_same_interval():
    reached = np.array([1.0, np.inf, 3.0, 4.0])
    draws = [resampled_rates(reached, seed=seed) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()
    assert np.isnan(resampled_rates(reached[:1])).all()


def test_the_fastest_budget_is_kept_and_sizes_take_the_median_problem():
    rows = study_rows()
    reached = reaching(rows, references(rows, problems()), 0.01)
    times = time_to_target(reached, resamples=100)
    best = fastest(times)
    assert len(best) == times.groupby(["problem", "sampler"]).ngroups
    relax = best[(best.problem == "block-64") & (best.sampler == "relax")]
    assert relax.budget.item() == 0.1
    sizes = tts_by_size(reached, resamples=100)
    one = sizes[(sizes.kind == "fisher") & (sizes.n == 256) & (sizes.sampler == "relax")]
    alone = best[(best.problem == "block-256") & (best.sampler == "relax")]
    assert one.tts.item() == pytest.approx(alone.tts.item())
    assert one.tts_low.item() <= one.tts.item() <= one.tts_high.item()
    assert not sizes.duplicated(["kind", "n", "sampler"]).any()


def test_a_target_missed_on_half_of_the_problems_has_no_time():
    times = pd.DataFrame(
        {
            "problem": ["a", "a", "b", "b"],
            "sampler": "s",
            "budget_kind": "seconds",
            "budget": 1.0,
            "kind": "fisher",
            "n": 64,
            "reached": [0.1, 0.1, math.inf, math.inf],
            "spent": [0.1, 0.1, 1.0, 1.0],
        }
    )
    (half,) = tts_by_size(times, resamples=50).itertuples()
    assert (half.problems, half.reached) == (2, 1)
    assert half.tts == half.tts_low == half.tts_high == math.inf
    third = times[times.problem == "a"].assign(problem="c")
    (most,) = tts_by_size(pd.concat([times, third]), resamples=50).itertuples()
    assert most.tts == pytest.approx(0.1)
