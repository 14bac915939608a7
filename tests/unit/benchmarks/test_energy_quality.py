"""The arithmetic behind the study of energy against quality, and how it goes on."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.energy.measures import (
    excess,
    in_parts,
    interval,
    missed,
    spearman,
    spearman_within,
)
from benchmarks.energy.plan import SAMPLERS, SETTINGS, absent
from benchmarks.energy.tables import (
    correlations,
    costs,
    differences,
    points,
    promised,
    whole_seeds,
    with_missed,
)
from benchmarks.energy_quality import key_of, read_lines


def line(sampler, level, energy_missed, losses, seed=0, sparsity="0.8", **more):
    usual = {
        "setting": "short",
        "part": "mlpnet",
        "sparsity": sparsity,
        "schedule": "one shot",
        "moves": False,
        "sampler": sampler,
        "level": level,
        "seed": seed,
        "missed": energy_missed,
        "losses": losses,
        "scores": [100 - 10 * loss for loss in losses],
        "cpu_seconds": 1.0,
    }
    return usual | more


def test_energy_missed_is_summed_before_it_is_divided():
    assert excess([1.0, 30.0], [1.0, 20.0]) == pytest.approx(10 / 21)
    assert missed([-1.0, 0.0], [-1.0, -3.0]) == 0.75
    assert missed([0.0], [0.0]) is None


def test_an_interval_of_one_seed_is_the_test_sets_own_error():
    parts = [1.0, 2.0, 3.0, 6.0]
    found = interval([parts])
    assert found.mean == 3.0
    assert found.half == pytest.approx(stats.norm.ppf(0.975) * np.std(parts, ddof=1) / 2)


def test_more_seeds_do_not_make_the_test_sets_error_less():
    parts = np.random.default_rng(0).normal(size=40)
    one, many = interval([parts]), interval([parts] * 9)
    assert many.half == pytest.approx(one.half)


def test_the_spread_of_seeds_adds_to_it():
    seeds = np.array([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0]])
    expected = stats.t.ppf(0.975, 2) * 1.0 / math.sqrt(3)
    assert interval(seeds).half == pytest.approx(expected)


def test_parts_of_a_test_set_keep_its_mean_where_they_are_alike_in_size():
    values = np.arange(12.0)
    assert in_parts(values, 4) == [1.0, 4.0, 7.0, 10.0]
    assert in_parts([5.0], 50) == [5.0]


def test_correlation_is_within_groups_and_undefined_where_nothing_varies():
    groups = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    x = [1, 2, 3, 4, 1, 2, 3, 1, 2]
    y = [10, 30, 20, 40, 5, 5, 5, 1, 2]
    found = spearman_within(groups, x, y)
    assert found["a"].rho == pytest.approx(0.8)
    assert found["a"].number == 4
    assert found["b"] is None
    assert found["c"] is None
    # Pooled, the groups' levels would hide it.
    assert spearman(x, y).rho != pytest.approx(0.8)


def test_correlations_with_and_without_random_answers():
    lines = [
        line("relax", 0, 0.01, [0.12, 0.12]),
        line("greedy", 0, 0.02, [0.11, 0.11]),
        line("tabu", 0, 0.03, [0.10, 0.10]),
        line("random", 0, 1.0, [0.90, 0.90]),
    ]
    (both,) = correlations(points(lines), randoms=True).values()
    (without,) = correlations(points(lines), randoms=False).values()
    assert both.rho == pytest.approx(0.2)
    assert without.rho == pytest.approx(-1.0)


def test_costs_are_paired_with_the_answer_of_least_energy():
    lines = [line("greedy", 0, 0.5, [1.1, 5.1], seed=s) for s in (0, 1)]
    lines += [line("relax", 0, 0.1, [1.0, 5.0], seed=s) for s in (0, 1)]
    found = {point.sampler: cost for point, cost in costs(points(lines))}
    assert found["relax"].mean == 0
    assert found["greedy"].mean == pytest.approx(0.1)
    # The parts differ by four, their differences by nothing.
    assert found["greedy"].half == pytest.approx(0, abs=1e-12)


def test_differences_take_the_most_effort_that_both_have():
    lines = [line("greedy", 0, 0.5, [9.0]), line("greedy", 1, 0.4, [2.0])]
    lines += [line("relax", 0, 0.3, [7.0]), line("relax", 1, 0.1, [1.5])]
    ((_, worse, found),) = differences(lines, "losses")
    assert (worse, found.mean) == ("greedy", 0.5)


def test_a_seed_that_is_not_through_waits():
    lines = [line(name, 0, 0.1, [1.0], seed) for seed in (0, 1) for name in ("greedy", "relax")]
    assert whole_seeds(lines) == lines
    assert {x["seed"] for x in whole_seeds(lines[:-1])} == {0}


def test_rows_are_measured_from_the_best_bound_that_any_sampler_certified():
    rows = {"part": "text", "schedule": "", "whole": [9.0, 9.0]}
    found = with_missed(
        [
            line("random", 0, None, [1.0], energies=[4.0, 6.0], bounds=[0.0, 0.0], **rows),
            line("relax", 0, None, [1.0], energies=[2.0, 3.0], bounds=[2.0, 2.0], **rows),
        ]
    )
    assert [x["missed"] for x in found] == [1.5, 0.25]


def test_promises_leave_random_answers_out():
    lines = [
        line("relax", 0, 0.1, [1.0], predicted=[-1.0, -2.0, -4.0], real=[-0.5, -1.0, -2.0],
             taken=[1, 1, 0]),
        line("random", 0, 1.0, [1.0], predicted=[-1.0], real=[9.0], taken=[0]),
    ]  # fmt: skip
    table = promised(lines)
    assert table["steps"].tolist() == [3]
    assert table["real / predicted, median"].tolist() == ["0.50"]
    assert table["correlation"].tolist() == ["1.00"]


def test_a_cut_line_is_taken_away_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "runs.jsonl"
    whole = json.dumps(line("relax", 0, 0.1, [1.0])) + "\n"
    path.write_text(whole + whole[:20])
    (found,) = read_lines(path)
    assert key_of(found).sampler == "relax"
    assert path.read_text() == whole
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("name", SETTINGS)
def test_no_run_is_planned_twice_and_every_seed_has_rows_of_its_own(name):
    runs = list(SETTINGS[name].runs(name))
    assert len(set(runs)) == len(runs)
    assert SETTINGS[name].layers.row_seeds * SETTINGS[name].layers.rows <= 256
    assert {run.sampler for run in runs} == set(SAMPLERS)


def test_samplers_that_are_not_installed_are_named(monkeypatch):
    monkeypatch.setattr("solvers.registry._importable", lambda package: package != "openjij")
    assert list(absent()) == ["openjij-sa"]
