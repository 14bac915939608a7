"""The border: what goes in is checked, what comes out too."""

import multiprocessing
import time

import dimod
import numpy as np
import pytest
from interrupting import interrupt_after

from solvers import get_sampler
from solvers.errors import (
    InvalidOptionError,
    InvalidProblemError,
    ProblemTooLargeError,
    SamplerFailedError,
    UnknownOptionError,
)
from solvers.foreign.border import ForeignSampler, small_seed

BQM = dimod.BinaryQuadraticModel({"b": 1.0, "a": -1.0, "c": 0.5}, {}, 0.0, "BINARY")
BQM.add_quadratic("a", "b", 0.5)


class Answers:
    """Answers with whatever it was made with; keeps what it was asked."""

    parameters = {"seed": [], "num_reads": [], "initial_states": [], "time_limit": []}  # noqa: RUF012

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = None

    def sample(self, bqm, **options):
        self.asked = (bqm, options)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            return dimod.SampleSet.from_samples_bqm(dict.fromkeys(bqm.variables, 1), bqm)
        return self.answer


def of(states, labels=(0, 1, 2), vartype="BINARY"):
    energy = np.zeros(len(states))
    return dimod.SampleSet.from_samples((np.array(states), labels), vartype, energy=energy)


def test_variables_are_integers_in_the_models_order():
    child = Answers()
    answer = ForeignSampler(child).sample(BQM)
    assert list(child.asked[0].variables) == [0, 1, 2]
    assert child.asked[0].get_linear(0) == 1.0
    assert list(answer.variables) == ["b", "a", "c"]
    assert answer.first.energy == BQM.energy(answer.first.sample)


def test_columns_in_any_order_and_vartype_come_back_right():
    child = Answers(of([[1, -1, 1]], labels=(2, 0, 1), vartype="SPIN"))
    answer = ForeignSampler(child).sample(BQM)
    assert answer.first.sample == {"b": 0, "a": 1, "c": 1}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("nonsense", "returned str, not a dimod.SampleSet"),
        (of(np.zeros((0, 3))), "returned no samples"),
        (of([[0, 1]], labels=(0, 1)), "answered for 2 variables, asked for 3"),
        (of([[0, 1, 1]], labels=("x", 1, 2)), "they must be the model's own"),
        (of([[0, 3, 1]]), "values other than 0 and 1"),
        (OSError("disk\nfull"), "OSError: disk"),
    ],
)
def test_an_answer_that_is_none(answer, message):
    with pytest.raises(SamplerFailedError, match=message) as caught:
        ForeignSampler(Answers(answer), name="theirs").sample(BQM)
    assert "theirs" in str(caught.value)
    assert caught.value.problem is not None


def test_senseless_options_are_refused_before_the_call():
    child = Answers()
    sampler = ForeignSampler(child)
    for options, kind, message in (
        ({"beta": 1}, UnknownOptionError, "Answers has no option 'beta'; it has: init"),
        ({"num_reads": 0}, InvalidOptionError, "num_reads must be a whole number of at least 1"),
        (
            {"time_limit": -1},
            InvalidOptionError,
            "time_limit must be a finite number of at least 0",
        ),
        ({"seed": -1}, InvalidOptionError, "seed must be a whole number of at least 0"),
        ({"seed": 0.5}, InvalidOptionError, "seed must be"),
        ({"initial_states": [[0, 1]]}, InvalidOptionError, "have 2 variables, the problem 3"),
        ({"initial_states": [[0, 1, 7]]}, InvalidOptionError, "must hold 0 and 1 only"),
        ({"initial_states": {"a": 1, "b": 0}}, InvalidOptionError, "lack variable 'c'"),
    ):
        with pytest.raises(kind, match=message):
            sampler.sample(BQM, **options)
    assert child.asked is None


@pytest.mark.parametrize(
    ("bqm", "where"),
    [
        (dimod.BinaryQuadraticModel({"a": np.inf}, {}, 0.0, "BINARY"), "'a'"),
        (
            dimod.BinaryQuadraticModel({"a": 1.0}, {("a", "b"): np.nan}, 0.0, "SPIN"),
            "'[ab]' and '[ab]'",
        ),
        (dimod.BinaryQuadraticModel({"a": 1.0}, {}, -np.inf, "SPIN"), "offset"),
    ],
)
def test_non_finite_coefficients_are_named(bqm, where):
    with pytest.raises(InvalidProblemError, match=where):
        ForeignSampler(Answers()).sample(bqm)


def test_huge_coefficients_whose_sum_overflows_are_fine():
    bqm = dimod.BinaryQuadraticModel({0: 1.7e308, 1: 1.7e308}, {}, 0.0, "BINARY")
    states = ForeignSampler(Answers(of([[0, 0]], labels=(0, 1)))).sample(bqm).record.sample
    assert states.tolist() == [[0, 0]]


def test_initial_states_in_every_form():
    child = Answers()
    sampler = ForeignSampler(child)
    expected = [[0, 1, 1]]
    as_set = dimod.SampleSet.from_samples({"c": 1, "a": 1, "b": -1}, "SPIN", energy=0.0)
    for given in ([[0, 1, 1]], [0, 1, 1], {"a": 1, "b": 0, "c": 1}, as_set, [[-1, 1, 1]]):
        sampler.sample(BQM, initial_states=given)
        states, labels = child.asked[1]["initial_states"]
        assert np.asarray(states).tolist() == expected
        assert labels == [0, 1, 2]
    sampler.sample(BQM.change_vartype("SPIN", inplace=False), initial_states=[[0, 1, 1]])
    assert np.asarray(child.asked[1]["initial_states"][0]).tolist() == [[-1, 1, 1]]


def test_seeds_of_any_size():
    assert small_seed(5) == small_seed(np.int64(5)) == 5
    assert small_seed(2**63) != small_seed(2**63 + 1)
    assert 0 <= small_seed(2**200) < 2**31


def test_nothing_to_solve_is_not_asked():
    child = Answers(OSError())
    empty = dimod.BinaryQuadraticModel("SPIN")
    empty.offset = 3.0
    assert ForeignSampler(child).sample(empty, num_reads=2).record.energy.tolist() == [3.0, 3.0]
    flat = dimod.BinaryQuadraticModel({"a": 0.0, "b": 0.0}, {"ab": 0.0}, 1.0, "SPIN")
    assert ForeignSampler(child).sample(flat).first.sample == {"a": -1, "b": -1}


def test_an_object_without_sample_is_refused():
    with pytest.raises(InvalidOptionError, match="no method sample"):
        ForeignSampler(object())


def model(size, seed=0):
    rng = np.random.default_rng(seed)
    return dimod.BinaryQuadraticModel(
        rng.normal(size=size), np.triu(rng.normal(size=(size, size)), 1), 0.0, "BINARY"
    )


def test_tabu_is_bounded_by_moves_unless_a_clock_is_asked_for(monkeypatch):
    sampler = get_sampler("tabu")
    asked = {}
    monkeypatch.setattr(
        sampler.child, "sample", lambda bqm, **options: asked.update(options) or of([[0, 0, 0]])
    )
    sampler.sample(BQM, seed=1)
    assert asked["timeout"] >= 1e6
    assert asked["num_restarts"] == 1
    asked.clear()
    sampler.sample(BQM, seed=1, timeout=5)
    assert asked == {"seed": 1, "timeout": 5}


def test_tree_refuses_a_wide_model_at_once():
    with pytest.raises(ProblemTooLargeError, match=r"treewidth is at least 39.* limit is 25"):
        get_sampler("tree").sample(model(40))
    grid = dimod.BinaryQuadraticModel("SPIN")
    for i in range(32):
        for j in range(32):
            grid.add_quadratic((i, j), ((i + 1) % 32, j), 1.0)
            grid.add_quadratic((i, j), (i, (j + 1) % 32), 1.0)
    with pytest.raises(ProblemTooLargeError, match="exceeds the solver's limit of 25"):
        get_sampler("tree").sample(grid)


def test_openjij_makes_different_reads_and_leaves_the_global_generator_alone():
    pytest.importorskip("openjij")
    sampler = get_sampler("openjij-sa")
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    answer = sampler.sample(model(30), num_reads=8, num_sweeps=2, seed=4)
    assert len(np.unique(answer.record.sample, axis=0)) > 1
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    again = sampler.sample(model(30), num_reads=8, num_sweeps=2, seed=4)
    assert np.array_equal(answer.record.sample, again.record.sample)


# -- clocks and interrupts --------------------------------------------------------------------


class Slow:
    """Answers after a while, or never; seeds decide."""

    parameters = {"seed": [], "num_reads": []}  # noqa: RUF012

    def __init__(self, seconds):
        self.seconds = seconds

    def sample(self, bqm, seed=0, num_reads=1):
        time.sleep(self.seconds)
        states = np.random.default_rng(seed).integers(0, 2, (num_reads, bqm.num_variables))
        return dimod.SampleSet.from_samples_bqm((states, list(bqm.variables)), bqm.binary)


def children():
    return {process.pid for process in multiprocessing.active_children()}


def test_what_never_answers_is_killed_and_swap_descent_answers():
    before = children()
    sampler = ForeignSampler(Slow(3600.0))
    began = time.perf_counter()
    answer = sampler.sample(model(12), time_limit=0.3)
    took = time.perf_counter() - began - 1e-9 * answer.info["timing"]["preprocessing_ns"]
    assert took < 60
    assert answer.info["instead"] == "swap descent"
    assert "interrupted" not in answer.info
    lowest = dimod.ExactSolver().sample(model(12)).first.energy
    assert answer.first.energy <= lowest + 0.5 * abs(lowest)
    deadline = time.perf_counter() + 30
    while children() - before and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not children() - before


def test_what_was_found_before_the_limit_is_kept():
    answer = ForeignSampler(Slow(0.05)).sample(model(12), time_limit=1.5, seed=3)
    assert "instead" not in answer.info
    assert len(answer) >= 2
    first = Slow(0).sample(model(12), seed=3)
    assert answer.first.energy <= first.first.energy


def test_what_cannot_be_sent_runs_on_a_thread_that_is_not_waited_for():
    class Local(Slow):
        pass

    before = children()
    answer = ForeignSampler(Local(0.05)).sample(model(12), time_limit=0.5, seed=3)
    assert len(answer) >= 1
    assert not children() - before


@pytest.mark.parametrize("name", ["sa", "path-integral", "rotor", "steepest", "tabu", "neal"])
def test_an_interrupt_gives_what_was_found(name):
    sampler, bqm = get_sampler(name), model(60)
    one = sampler.sample(bqm, num_reads=1, seed=5).first.energy
    with interrupt_after(1.5) as sent:
        answer = sampler.sample(bqm, num_reads=10**7, seed=5)
    assert time.perf_counter() - sent[0] < 20
    assert answer.info["interrupted"] is True
    assert "instead" not in answer.info
    assert 10 < len(answer) < 10**7
    assert answer.first.energy <= one + 1e-9


def test_interrupted_before_anything_was_found():
    with interrupt_after(0.5) as sent:
        answer = ForeignSampler(Slow(3600.0)).sample(model(12))
    assert time.perf_counter() - sent[0] < 20
    assert answer.info["interrupted"] is True
    assert answer.info["instead"] == "swap descent"


@pytest.mark.parametrize("name", ["sa", "steepest", "tabu", "openjij-sa"])
def test_pieces_depend_on_the_seed_alone(name, monkeypatch):
    sampler = get_sampler(name)
    monkeypatch.setattr(type(sampler), "reads_at_once", lambda *args: 3)
    calls = []
    run = type(sampler).run
    monkeypatch.setattr(
        type(sampler),
        "run",
        lambda self, bqm, options: calls.append(options["seed"]) or run(self, bqm, options),
    )
    first, again = (sampler.sample(model(20), num_reads=8, seed=4, **{}) for _ in range(2))
    assert len(first) == 8
    assert len(set(calls[:3])) == 3
    assert calls[:3] == calls[3:]
    np.testing.assert_array_equal(first.record.sample, again.record.sample)


def test_a_process_answers_as_this_one_does(monkeypatch):
    sampler = get_sampler("sa")
    here = sampler.sample(model(30), num_reads=3, seed=2, num_sweeps=50)
    monkeypatch.setattr(type(sampler), "apart", lambda *args: True)
    there = sampler.sample(model(30), num_reads=3, seed=2, num_sweeps=50, time_limit=600)
    np.testing.assert_array_equal(here.record.sample, there.record.sample)
    assert sampler._processes is not None


def test_every_answer_has_its_timing():
    for name in ("sa", "tabu", "steepest", "tree"):
        for options in ({}, {"time_limit": 0.0}):
            timing = get_sampler(name).sample(model(12), **options).info["timing"]
            assert set(timing) >= {"preprocessing_ns", "sampling_ns", "postprocessing_ns"}


def test_work_that_does_not_fit_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr("solvers.host.machine.available_memory", lambda: 1e6)
    for name, options, message in (
        ("sa", {"num_reads": 10**9}, "an answer of 1000000000 reads"),
        ("sa", {"num_sweeps": 10**12}, "a schedule of 1e\\+12 sweeps"),
        ("tabu", {}, "the dense matrices of 200 variables"),
    ):
        with pytest.raises(ProblemTooLargeError, match=message):
            get_sampler(name).sample(model(200), **options)
