"""The arithmetic behind the language tables: shares of a peer's increase, and projections."""

import pytest

pytest.importorskip("transformers")

from benchmarks.language import QUOTED, share_of_increase, summarised, validated
from benchmarks.language_scale import LAYERS, SHAPES, TOKENS, Cost, projected


def row(value, seed, method="qprune", column="0.8"):
    return {
        "method": method,
        "column": column,
        "seed": seed,
        "perplexity": value,
        "dense": 41.229,
    }


def test_a_peer_has_all_of_its_own_increase_and_no_share_where_it_was_not_run():
    for values, _ in QUOTED.values():
        assert len(values) == 6
    assert share_of_increase(49.51, "0.8", 41.229, "ALPS") == pytest.approx(1.0)
    assert share_of_increase(46.20, "0.8", 41.229, "ALPS") == pytest.approx(0.6, abs=2e-3)
    assert share_of_increase(41.229, "0.8", 41.229, "ALPS") == 0
    assert share_of_increase(99.0, "0.9", 41.229, "Wanda") is None


def test_a_cell_is_the_mean_over_its_seeds_against_the_peer_that_moves_as_much():
    rows = [row(46.0, 0), row(46.4, 1), row(60.0, 0, column="0.9")]
    assert summarised(rows, "qprune", "0.8") == "46.20 (46.00-46.40), 60%"
    assert summarised(rows, "qprune", "0.7") == "-"
    alone = [row(181.8, 0, "qprune, mask only")]
    assert summarised(alone, "qprune, mask only", "0.8") == "181.80, 60%"


def test_validation_is_set_beside_no_figures_of_test_text():
    table = validated([row(46.0, 0, "stage 1"), row(46.4, 1, "stage 1")], 42.09)
    assert [column.header for column in table.columns][4] == "0.8"
    assert list(table.columns[0].cells) == ["stage 1"]
    assert list(table.columns[4].cells) == ["46.20 (46.00-46.40)"]


def test_projections_add_up_what_two_sizes_showed():
    cost = Cost.between(4096, 16, 48, less=10.0 + 16 * 0.5, more=10.0 + 48 * 0.5)
    assert (cost.matrix, cost.row) == pytest.approx((10.0, 0.5))
    assert cost.of(100, 8192) == pytest.approx(8 * 10.0 + 100 * 4 * 0.5)
    weights = sum(rows * inputs * number for rows, inputs, number, _ in SHAPES)
    assert LAYERS * weights == pytest.approx(6.48e9, rel=0.01)
    only_sums = projected(Cost(4096, 0.0, 0.0), 1e-3)
    assert only_sums == pytest.approx(LAYERS * TOKENS * 1e-3 * (3 + (11008 / 4096) ** 2))
