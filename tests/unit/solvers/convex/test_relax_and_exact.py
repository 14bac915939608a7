"""Limits, interrupts and options of the samplers that bound what they answer."""

import os
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from solvers.convex.exact import Enumeration, Exact
from solvers.convex.relax import Relax
from solvers.errors import InvalidOptionError, ProblemTooLargeError, UnknownOptionError
from solvers.problem.problem import QuadraticProblem
from solvers.problem.quadratic import LowRank


def block(size=120, rank=40, seed=0, counts=None):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(rank, size)) * rng.exponential(size=size)
    return QuadraticProblem(
        0.1 * rng.normal(size=size), LowRank(factor), counts=size // 2 if counts is None else counts
    )


@pytest.mark.parametrize("sampler", [Relax(), Exact()])
def test_time_limit_ends_the_solve_with_an_honest_bound(sampler):
    problem = block(300, 60)
    sampler.sample_problem(block(40, 10))
    solution = sampler.sample_problem(problem, time_limit=0.0, seed=0)
    assert problem.feasible(solution.samples).all()
    assert solution.lower_bound <= Relax().sample_problem(problem, num_reads=8, seed=1).energy


def test_exact_stops_at_the_node_limit_unproved_and_proves_without():
    problem = block(40, 12)
    stopped = Exact().sample_problem(problem, max_nodes=3, seed=0)
    assert stopped.info["nodes"] == 3
    assert not stopped.info["proved"]
    assert stopped.gap > 1e-6
    proved = Exact().sample_problem(problem, seed=0)
    assert proved.info["proved"]
    assert proved.gap <= 1e-6
    assert stopped.lower_bound <= proved.energy <= stopped.energy


def test_a_wider_gap_is_enough_when_asked_for():
    problem = block(40, 12)
    wide = Exact().sample_problem(problem, gap=0.2, seed=0)
    tight = Exact().sample_problem(problem, seed=0)
    assert 1e-6 < wide.gap <= 0.2
    assert not wide.proved
    assert wide.info["nodes"] < tight.info["nodes"]
    assert wide.lower_bound <= tight.energy


@contextmanager
def interrupt_after(seconds):
    """A Ctrl-C of this process, as from a keyboard."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def spin_glass(size, seed=0):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return QuadraticProblem(np.zeros(size), matrix + matrix.T)


def test_an_interrupt_in_branch_and_bound_returns_the_best_so_far():
    problem = spin_glass(120)
    Exact().sample_problem(spin_glass(12))
    with interrupt_after(1.0):
        solution = Exact().sample_problem(problem, seed=0)
    assert solution.info["interrupted"]
    assert solution.info["nodes"] > 0
    assert not solution.proved
    assert solution.info["proved"] is False
    assert problem.feasible(solution.samples).all()
    assert solution.energy <= Relax().sample_problem(problem, num_reads=4, seed=0).energy
    assert np.isfinite(solution.lower_bound)


def test_an_interrupt_in_the_relaxation_returns_a_state_and_no_false_bound():
    problem = block(1500, 900, counts=700)
    Relax().sample_problem(block(500, 100))
    with interrupt_after(0.2):
        solution = Relax().sample_problem(problem, num_reads=10**9, seed=0)
    assert solution.info["interrupted"]
    assert problem.feasible(solution.samples).all()
    assert solution.lower_bound <= Relax().sample_problem(problem, seed=0).energy


def test_same_seed_same_answer_and_more_reads_are_never_worse():
    problem = block()
    one, again = (Relax().sample_problem(problem, seed=3) for _ in range(2))
    assert (one.samples == again.samples).all()
    assert one.lower_bound == again.lower_bound
    many = Relax().sample_problem(problem, num_reads=6, seed=3)
    assert len(many.samples) == 6
    assert many.energy <= one.energy


@pytest.mark.parametrize("sampler", [Relax(), Exact()])
def test_never_worse_than_the_initial_state(sampler):
    problem = block()
    good = Relax().sample_problem(problem, num_reads=20, num_sweeps=500, seed=9)
    options = {"time_limit": 2.0} if isinstance(sampler, Exact) else {}
    answer = sampler.sample_problem(problem, initial_states=good.sample, seed=0, **options)
    assert answer.energy <= good.energy


@pytest.mark.parametrize(
    ("sampler", "options", "says"),
    [
        (Relax(), {"num_sweeps": -1}, "num_sweeps"),
        (Relax(), {"tolerance": 0.0}, "tolerance"),
        (Relax(), {"time_limit": -1.0}, "time_limit"),
        (Exact(), {"gap": -1.0}, "gap"),
        (Exact(), {"gap": 1.0}, "below 1"),
        (Exact(), {"max_nodes": 0}, "max_nodes"),
    ],
)
def test_bad_options_are_refused_by_name(sampler, options, says):
    with pytest.raises(InvalidOptionError, match=says):
        sampler.sample_problem(block(10, 4), **options)


def test_enumeration_refuses_what_would_never_end():
    with pytest.raises(ProblemTooLargeError, match="exact"):
        Enumeration().sample_problem(block(25, 4))
    with pytest.raises(UnknownOptionError):
        Enumeration().sample(block(4, 2).to_bqm(), seed=1)


def test_fixing_everything_but_one_variable_never_breaks_a_count():
    """Reduced costs may decide all but the branching variable; both its values must be safe."""
    for seed in range(30):
        problem = block(30, 8, seed=seed, counts=3 + seed % 24)
        solution = Exact().sample_problem(problem, num_reads=1, seed=0)
        assert problem.feasible(solution.samples).all()
        assert solution.energy == pytest.approx(problem.energy(solution.sample))
        assert solution.info["proved"]
