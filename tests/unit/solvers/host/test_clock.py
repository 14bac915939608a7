"""The deadline of a call: limits, compiling, interrupts, calls inside calls."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from interrupting import interrupt_after

from solvers import QuadraticProblem, get_sampler
from solvers.errors import InvalidOptionError
from solvers.host.clock import COMPILING, Deadline, running


def test_no_limit_never_passes_and_none_is_over_at_once():
    assert Deadline().remaining == float("inf")
    assert not Deadline().passed
    assert Deadline(0).passed
    with pytest.raises(InvalidOptionError, match="time_limit"):
        Deadline(float("nan"))


def test_the_clock_stands_still_while_numba_compiles():
    deadline = Deadline(0.2)
    COMPILING.began()
    time.sleep(0.3)
    assert not deadline.passed  # still compiling
    COMPILING.began()  # a second thread waits for the compiler
    COMPILING.ended()
    COMPILING.ended()
    assert not deadline.passed
    assert 0.3 <= deadline.compiled < 0.3 + deadline.elapsed + 0.2
    time.sleep(0.25)
    assert deadline.passed


def test_what_is_kept_back_is_no_time_to_search():
    deadline = Deadline(100.0)
    deadline.kept_back = 40.0
    assert 59.0 < deadline.remaining <= 60.0


def test_a_part_ends_by_its_share_and_with_the_whole():
    whole = Deadline(100.0)
    part = whole.part(0.25)
    assert 24.0 < part.remaining <= 25.0
    assert whole.part(1.0) is whole
    assert Deadline().part(0.5).remaining == float("inf")
    whole.interrupt()
    assert part.passed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_call_and_the_one_around_it(number):
    with interrupt_after(0.2, number) as sent, running() as outer:
        with running() as inner:
            while not inner.passed:
                time.sleep(0.01)
        assert outer.passed
        assert sent
    assert signal.getsignal(number) is not None


def test_a_second_signal_is_an_interrupt_as_ever():
    with interrupt_after(0.1), running() as deadline:
        while not deadline.passed:
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_handler_of_somebody_else_is_left_alone():
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    try:
        with running() as deadline:
            signal.raise_signal(signal.SIGINT)
            assert not deadline.passed
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, before)


def hard(n=300):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n, n))
    return QuadraticProblem(rng.normal(size=n), matrix + matrix.T)


@pytest.mark.parametrize(
    "name", ["auto", "relax", "exact", "swap-anneal", "swap-tabu", "greedy", "random"]
)
@pytest.mark.parametrize("num_reads", [None, 100_000])
def test_limits_are_kept_and_greedy_is_reached(name, num_reads):
    sampler, problem = get_sampler(name), hard()
    if name == "random" and num_reads is None:
        num_reads = 1
    options = {"num_reads": num_reads, "time_limit": 0.3, "seed": 1}
    sampler.sample_problem(problem, **options)
    began, cpu = time.perf_counter(), time.process_time()
    solution = sampler.sample_problem(problem, **options)
    # A machine that is shared is excused, work that is not stopped is not.
    assert time.perf_counter() - began < 10.0
    assert time.process_time() - cpu < 0.6
    assert problem.feasible(solution.samples).all()
    greedy = get_sampler("greedy").sample_problem(problem, seed=1)
    # Random states are the floor that others are held against.
    assert (solution.energy <= greedy.energy) is (name != "random")
    timing = solution.info["timing"]
    assert all(timing[part] >= 0 for part in timing)
    assert set(timing) == {"preprocessing_ns", "sampling_ns", "postprocessing_ns"}


def test_kernels_compile_where_nothing_can_be_cached():
    code = """
import numba.core.caching as caching
for kind in list(vars(caching).values()):
    if isinstance(kind, type) and hasattr(kind, "_locator_classes"):
        kind._locator_classes = []
import solvers
print(solvers.solve(solvers.QuadraticProblem([1.0, -1.0], [[0, 1], [1, 0]]), "greedy").energy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "-1.0\n"
