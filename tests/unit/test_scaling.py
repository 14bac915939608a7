"""The simulator against closed forms, where nothing waits for anything else and where all does."""

import pytest

pytest.importorskip("simpy", reason="the simulator needs: pip install 'qprune[scaling]'")

from benchmarks.scaling.cluster import Cluster, Device, Link
from benchmarks.scaling.costs import Costs
from benchmarks.scaling.events import Host, Pass, Tasks, simulate
from benchmarks.scaling.language import SEVEN, SEVENTY, memory
from benchmarks.scaling.simulate import cases, summary

DEVICE = Device("unit", 1.0, 1.0, 1.0, 1e9, 1.0)


def cluster(nodes=1, devices=1, cores=1, bandwidth=1.0, latency=0.0, core_speed=1.0):
    link = Link(bandwidth, latency)
    return Cluster(
        "test", DEVICE, nodes, devices, link, link, cores, core_speed, 10.0, 1e9, 1.0
    )  # fmt: skip


def test_one_rank_passes_every_batch_and_sends_nothing():
    outcome = simulate([Pass("p", 7, 2.0, fetched=5, summed=5, gathered=5)], cluster())
    assert (outcome.total, outcome.network, outcome.busy) == (14.0, 0.0, 14.0)


@pytest.mark.parametrize(("ranks", "turns"), [(2, 4), (3, 3), (8, 1)])
def test_ranks_pass_in_turns_and_the_last_one_need_not_be_full(ranks, turns):
    outcome = simulate([Pass("p", 7, 2.0)], cluster(devices=ranks))
    assert outcome.total == pytest.approx(2.0 * turns)
    assert outcome.busy == pytest.approx(14.0)


def test_sums_are_exchanged_after_every_turn_and_joined_once():
    outcome = simulate([Pass("p", 4, 1.0, summed=8.0)], cluster(devices=2, bandwidth=4, latency=3))
    # Two turns of 1 s and a message; three exchanges of half the vector over each rank's own link.
    assert outcome.total == pytest.approx(2 * (1.0 + 3) + 3 * (3 + 4 / 4))
    assert outcome.network == pytest.approx(3 * 2 * 4.0)


def test_weights_come_while_others_are_used():
    hidden = simulate([Pass("p", 2, 5.0, fetched=4.0)], cluster(devices=2, bandwidth=1.0))
    bound = simulate([Pass("p", 2, 1.0, fetched=40.0)], cluster(devices=2, bandwidth=1.0))
    assert (hidden.total, bound.total) == (5.0, 20.0)


def test_the_ranks_of_a_node_share_its_memory():
    assert simulate([Host("h", bytes=20.0, seconds=3.0)], cluster(devices=4)).total == 3 + 8


@pytest.mark.parametrize(("cores", "rounds"), [(1, 6), (4, 2), (6, 1), (100, 1)])
def test_equal_tasks_take_as_many_rounds_as_the_workers_need(cores, rounds):
    outcome = simulate([Tasks("t", 6, 2.0)], cluster(cores=cores, core_speed=2.0))
    assert outcome.total == pytest.approx(rounds * 1.0)


def test_what_one_node_sends_goes_out_one_after_the_other():
    work = [Tasks("t", 4, 1.0, sent=10.0, returned=0.0)]
    outcome = simulate(work, cluster(nodes=4, bandwidth=10.0))
    # The last worker starts after four messages of 1 s each.
    assert outcome.total == pytest.approx(4 * 1.0 + 1.0)
    assert outcome.network == 40.0


def test_spread_tasks_have_the_mean_that_was_asked_and_a_seed_repeats():
    work = [Tasks("t", 4000, 1.0, spread=0.5)]
    one, again = (simulate(work, cluster(), seed=3).total for _ in range(2))
    assert one == again
    assert one == pytest.approx(4000, rel=0.05)


def test_work_that_is_repeated_takes_so_many_times_as_long():
    work = [Tasks("t", 5, 2.0, sent=3.0, on="devices"), Pass("p", 3, 1.0, summed=2.0)]
    two = cluster(nodes=2, bandwidth=1.0)
    once, thrice = simulate(work, two).repeated(3), simulate(work * 3, two)
    assert once.seconds == pytest.approx(thrice.seconds)
    assert (once.network, once.busy) == pytest.approx((thrice.network, thrice.busy))


def test_phases_add_up_by_name():
    work = [Host("a", seconds=1.0), Host("b", seconds=2.0), Host("a", seconds=4.0)]
    assert simulate(work, cluster()).seconds == {"a": 5.0, "b": 2.0}


def test_the_models_have_the_weights_they_are_named_for():
    assert pytest.approx(6.476e9, rel=1e-3) == SEVEN.weights
    assert pytest.approx(68.45e9, rel=1e-3) == SEVENTY.weights


def test_the_table_names_what_does_not_fit():
    found = cases(Costs.load())
    text = summary(found)
    assert text.count("too little") >= 1
    for case in found:
        needs = memory(case.model, case.cluster)
        assert needs.host_spread <= needs.host_2
        assert case.first.busy <= case.first.total * case.cluster.size * (1 + 1e-9)


def test_costs_reproduce_what_they_were_fitted_on():
    costs = Costs.load()
    (last,) = (r for r in costs.of("select") if r["sizes"]["weights"] == 1e7)
    assert costs.select * 1e7 == pytest.approx(last["seconds"], rel=0.2)
    for row in costs.of("solve"):
        assert costs.solve(*row["sizes"].values()) == pytest.approx(row["seconds"], rel=1.0)
