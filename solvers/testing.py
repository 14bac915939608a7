"""The conformance suite: checks of the guarantees of this package's samplers, for any sampler.

Third parties run it in their own tests::

    from solvers.testing import check_sampler

    def test_my_sampler():
        check_sampler(MySampler())

A sampler that cannot count is checked inside `CardinalityPenalty`, as `qprune` would use it.
Checks of a capability run only where the sampler declares it: ``seed``, ``initial_states``,
``num_reads`` and ``time_limit`` by listing the option in ``parameters``, a lower bound by
``properties["bound"]``; `Conformance.skipped` lists the others, with the reason.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import dimod
import dimod.testing
import numpy as np
from numpy.typing import ArrayLike, NDArray

from solvers.ask.counting import ProblemSampler, counting
from solvers.foreign.border import option_names
from solvers.problem.problem import QuadraticProblem
from solvers.problem.solution import Solution
from solvers.registry import get_sampler

# Seconds that a call may take beyond its limit, or an interrupt, on a busy machine.
_GENEROUS = 10.0


@dataclass(frozen=True)
class Conformance:
    """The result of `check_sampler`.

    Attributes:
        passed: names of the checks that ran.
        skipped: name -> why it did not run.
    """

    passed: tuple[str, ...]
    skipped: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """The sampler under test.

    Attributes:
        given: as passed to `check_sampler`.
        sampler: the same, wrapped to take problems with counts.
        options: passed with every call where the sampler has them.
    """

    given: Any
    sampler: ProblemSampler
    options: Mapping[str, Any]

    def has(self, option: str) -> bool:
        """True if the sampler lists ``option``."""
        return option in self.sampler.parameters

    def solve(self, problem: QuadraticProblem, **more: Any) -> Solution:
        """``problem`` with the usual options and ``more``."""
        return self.sampler.sample_problem(problem, **self._known(more))

    def sample(self, bqm: dimod.BinaryQuadraticModel, **more: Any) -> dimod.SampleSet:
        """``bqm`` by dimod's interface."""
        return self.sampler.sample(bqm, **self._known(more))  # pyright: ignore[reportAttributeAccessIssue]

    def _known(self, more: Mapping[str, Any]) -> dict[str, Any]:
        usual = {"num_reads": 10, "seed": 7, **self.options}
        return {name: value for name, value in usual.items() if self.has(name)} | dict(more)


def check_sampler(sampler: Any, **options: object) -> Conformance:
    """Run every check that applies to ``sampler``.

    Args:
        sampler: a registered name, a class or an object with ``sample(bqm, ...)``.
        **options: for every call, for instance fewer sweeps; by default a seed and 10 reads
            (50 where the optimum must be found), where the sampler has them.

    Raises:
        AssertionError: a check failed; the message lists all that did, and how.
    """
    given = get_sampler(sampler)
    subject = Subject(given, counting(given), options)
    passed, failed, skipped = [], [], {}
    for check, needs in CHECKS:
        name = check.__name__.removeprefix("check_")
        if needs and not _able(subject, needs):
            skipped[name] = f"the sampler does not declare {needs}"
            continue
        try:
            check(subject)
            passed.append(name)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    assert not failed, f"{type(given).__name__} fails {len(failed)} checks:\n" + "\n".join(failed)
    return Conformance(tuple(passed), skipped)


def _able(subject: Subject, ability: str) -> bool:
    if ability == "bound":
        return bool(getattr(subject.sampler, "properties", {}).get("bound"))
    return subject.has(ability)


# -- problems -------------------------------------------------------------------------------


def convex_problem(size: int, seed: int, counts: ArrayLike | None = None) -> QuadraticProblem:
    """A small pruning-like block: Q = U'U with fewer rows than columns, and a linear part."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(max(1, size // 2), size))
    return QuadraticProblem(rng.normal(size=size), factor.T @ factor, 0.25, counts=counts)


def indefinite_problem(size: int, seed: int, counts: ArrayLike | None = None) -> QuadraticProblem:
    """Couplings of both signs, not convex."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(size, size))
    return QuadraticProblem(rng.normal(size=size), matrix + matrix.T, -1.5, counts=counts)


def grouped_problem(seed: int) -> QuadraticProblem:
    """Twelve variables in groups of 3, 4 and 5, of both kinds of ids mixed."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat([0, 1, 2], [3, 4, 5]))
    plain = indefinite_problem(12, seed)
    return QuadraticProblem(plain.linear, plain.quadratic, 0.0, groups, [1, 2, 5])


def all_states(problem: QuadraticProblem) -> NDArray[np.int8]:
    """Every state with exact counts, shape (m, n), for n <= 20."""
    size = problem.num_variables
    codes = np.arange(2**size)[:, None] >> np.arange(size)
    states = (codes & 1).astype(np.int8)
    return states[problem.feasible(states)]


def small_problems() -> list[QuadraticProblem]:
    """Problems of at most 12 variables, with and without counts."""
    return [
        convex_problem(12, 1, counts=6),
        convex_problem(10, 2, counts=2),
        convex_problem(11, 3),
        indefinite_problem(12, 4, counts=5),
        indefinite_problem(9, 5),
        grouped_problem(6),
    ]


def _close(a: Any, b: Any) -> bool:
    return bool(np.allclose(a, b, rtol=1e-9, atol=1e-9))


# -- checks ---------------------------------------------------------------------------------


def check_dimod_api(subject: Subject) -> None:
    """Dimod's own assertions on the interface, and on the energies that are reported."""
    given, sampler = subject.given, subject.sampler
    for candidate in (given, sampler):
        if isinstance(candidate, dimod.Sampler):
            dimod.testing.assert_sampler_api(candidate)
        if isinstance(candidate, dimod.Composite):
            dimod.testing.assert_composite_api(candidate)
    if callable(getattr(given, "sample", None)):
        bqm = indefinite_problem(8, 11).to_bqm()
        takes = option_names(given)
        known = {name: value for name, value in subject.options.items() if name in takes}
        dimod.testing.assert_sampleset_energies(given.sample(bqm, **known), bqm, precision=5)


def check_counts_exact(subject: Subject) -> None:
    """Every row of every answer has the counts, without repair if the sampler counts."""
    for problem in (convex_problem(12, 21, counts=7), grouped_problem(22)):
        solution = subject.solve(problem)
        assert len(solution.samples), "no samples"
        assert problem.feasible(solution.samples).all(), "a sample has wrong counts"
        penalised = "penalty" in solution.info
        assert penalised or not solution.info.get("repaired"), "counts had to be repaired"


def check_energies(subject: Subject) -> None:
    """Energies are those of the problem, in ascending order."""
    for problem in (convex_problem(12, 23, counts=9), indefinite_problem(11, 24)):
        solution = subject.solve(problem)
        assert _close(solution.energies, problem.energies(solution.samples)), "energies differ"
        assert (np.diff(solution.energies) >= 0).all(), "not in ascending order"


def check_same_seed(subject: Subject) -> None:
    """The same seed gives the same answer."""
    for problem in (convex_problem(14, 25, counts=7), indefinite_problem(13, 26)):
        first, second = subject.solve(problem, seed=5), subject.solve(problem, seed=5)
        assert np.array_equal(first.samples, second.samples), "same seed, another answer"


def check_initial_states(subject: Subject) -> None:
    """The answer is never worse than the best initial state."""
    for seed in range(3):
        problem = indefinite_problem(12, 30 + seed, counts=6)
        states = all_states(problem)
        best = states[[int(np.argmin(problem.energies(states)))]]
        once = {"num_reads": 1} if subject.has("num_reads") else {}
        solution = subject.solve(problem, initial_states=best, **once)
        assert solution.energy <= problem.energy(best[0]) + 1e-9, "worse than its start"


def check_optimal_when_small(subject: Subject) -> None:
    """The optimum on n <= 12, by enumeration."""
    for index, problem in enumerate(small_problems()):
        optimum = problem.energies(all_states(problem)).min()
        many = subject.has("num_reads") and "num_reads" not in subject.options
        found = subject.solve(problem, **({"num_reads": 50} if many else {})).energy
        assert _close(found, optimum), f"small problem {index}: {found:g}, optimum {optimum:g}"


def check_bound(subject: Subject) -> None:
    """A declared lower bound is finite on convex problems and never above the optimum."""
    for problem in (*small_problems(), convex_problem(12, 41, counts=3)):
        optimum = problem.energies(all_states(problem)).min()
        bound = subject.solve(problem).lower_bound
        assert bound <= optimum + 1e-9 * (1.0 + abs(optimum)), f"{bound} is above {optimum}"
    convex = convex_problem(12, 42, counts=6)
    assert np.isfinite(subject.solve(convex).lower_bound), "no bound on a convex problem"


def check_edges(subject: Subject) -> None:
    """No variables, one variable, counts of 0 and n."""
    nothing = subject.solve(QuadraticProblem([], np.zeros((0, 0)), 2.5, counts=0))
    assert nothing.energy == 2.5, "no variables: the offset is the energy"
    for value, count in ((-1.0, 0), (1.0, 1), (1.0, None), (-1.0, None)):
        solution = subject.solve(QuadraticProblem([value], [[0.0]], counts=count))
        expected = (value < 0) if count is None else count
        assert solution.sample.tolist() == [int(expected)], f"one variable, count {count}"
    for count in (0, 9):
        solution = subject.solve(convex_problem(9, 43, counts=count))
        assert (solution.samples.sum(axis=1) == count).all(), f"count {count} of 9"


def check_all_zero(subject: Subject) -> None:
    """A problem with all coefficients 0 still has counts."""
    problem = QuadraticProblem(np.zeros(8), np.zeros((8, 8)), counts=3)
    solution = subject.solve(problem)
    assert problem.feasible(solution.samples).all(), "wrong counts"
    assert (solution.energies == 0).all(), "energy of an all-zero problem"


def check_coefficients(subject: Subject) -> None:
    """Repeated terms add up; huge and tiny coefficients stay finite and exact."""
    bqm = dimod.BinaryQuadraticModel(dimod.BINARY)
    for _ in range(2):
        bqm.add_linear_from({0: -1.0, 1: 1.0, 2: 0.5})
        bqm.add_quadratic_from([(0, 1, 0.25), (1, 2, -2.0), (1, 0, 0.25)])
    found = subject.sample(bqm, cardinality=2).record.energy.min()
    states = np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    assert _close(found, bqm.energies((states, [0, 1, 2])).min()), "repeated terms"
    for scale in (1e12, 1e-12, 1e120):
        problem = convex_problem(10, 44, counts=4)
        matrix = scale * problem.quadratic.dense()
        scaled = QuadraticProblem(scale * problem.linear, matrix, counts=4)
        solution = subject.solve(scaled)
        assert np.isfinite(solution.energies).all(), f"coefficients of {scale:g}"
        assert scaled.feasible(solution.samples).all(), f"counts at coefficients of {scale:g}"


def check_labels_and_spins(subject: Subject) -> None:
    """Labels of any kind, in the model's order; spins where the model has spins."""
    problem = indefinite_problem(9, 45)
    bqm = problem.to_bqm()
    bqm.relabel_variables(dict(enumerate("zyxwvabcd")))
    copy = bqm.copy()
    for model in (bqm, bqm.change_vartype(dimod.SPIN, inplace=False)):
        answer = subject.sample(model, cardinality=4)
        low, high = (0, 1) if model.vartype is dimod.BINARY else (-1, 1)
        assert answer.vartype is model.vartype, "another vartype"
        assert list(answer.variables) == list("zyxwvabcd"), "variables are not in their order"
        states = answer.record.sample
        assert np.isin(states, (low, high)).all(), "values outside the vartype"
        assert ((states == high).sum(axis=1) == 4).all(), "wrong number of ones"
        assert _close(answer.record.energy, model.energies(answer)), "energies differ"
    assert bool(bqm == copy), "the model was changed"


def check_unknown_option(subject: Subject) -> None:
    """An option that the sampler does not have is refused by name."""
    bqm = convex_problem(5, 46).to_bqm()
    message = _refused(TypeError, lambda: subject.sample(bqm, no_such_option=1))
    assert "no_such_option" in message, f"the message does not name it: {message}"


def check_bad_problem(subject: Subject) -> None:
    """NaN coefficients, and counts that do not fit, are refused."""
    bad = dimod.BinaryQuadraticModel({"a": np.nan, "b": 1.0}, {}, 0.0, dimod.BINARY)
    _refused(ValueError, lambda: subject.sample(bad))
    bqm = convex_problem(5, 47).to_bqm()
    _refused(ValueError, lambda: subject.sample(bqm, cardinality=6))
    _refused(ValueError, lambda: subject.sample(bqm, cardinality=[1, 1], groups={0: 0, 9: 1}))


def check_num_reads(subject: Subject) -> None:
    """Zero reads are refused."""
    _refused(ValueError, lambda: subject.solve(convex_problem(5, 48, counts=2), num_reads=0))


def check_time_limit(subject: Subject) -> None:
    """A negative limit is refused; a limit of zero, or a very short one, gives exact counts."""
    problem = convex_problem(12, 49, counts=5)
    _refused(ValueError, lambda: subject.solve(problem, time_limit=-1.0))
    for limit in (0.0, 0.05):
        solution = subject.solve(problem, time_limit=limit)
        assert problem.feasible(solution.samples).all(), f"wrong counts at a limit of {limit} s"


def check_time_is_kept(subject: Subject) -> None:
    """A time limit ends the call at any number of reads; the start of a process does not count."""
    problem = indefinite_problem(16, 50, counts=6)
    more = {"num_reads": 10**5} if subject.has("num_reads") else {}
    began = time.perf_counter()
    solution = subject.solve(problem, time_limit=0.5, **more)
    took = time.perf_counter() - began
    timing = solution.info.get("timing", {})
    took -= 1e-9 * timing.get("preprocessing_ns", 0)
    assert took < _GENEROUS, f"{took:.1f} s for 0.5"
    assert problem.feasible(solution.samples).all(), "wrong counts"


def check_interrupt(subject: Subject) -> None:
    """Ctrl-C gives the best so far, counts exact; asked of the main thread only."""
    if not hasattr(signal, "pthread_kill"):
        return
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    problem = indefinite_problem(16, 51, counts=6)
    options = {"num_reads": 10**5, "time_limit": 10 * _GENEROUS}
    timer = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
    began = time.perf_counter()
    timer.start()
    try:
        solution = subject.solve(problem, **{n: v for n, v in options.items() if subject.has(n)})
    finally:
        timer.cancel()
        timer.join()
    took = time.perf_counter() - began
    assert took < 5 * _GENEROUS, f"{took:.1f} s for an interrupt after 0.3"
    assert problem.feasible(solution.samples).all(), "wrong counts"


def check_initial_states_forms(subject: Subject) -> None:
    """Initial states in every form that dimod has for samples, binary and as spins."""
    problem = indefinite_problem(6, 52, counts=2)
    labels = list("zyxwvu")
    bqm = problem.to_bqm()
    bqm.relabel_variables(dict(enumerate(labels)))
    bits = np.array([1, 0, 0, 1, 0, 0])
    state = dict(zip(labels, bits.tolist(), strict=True))
    as_spins = {label: 2 * value - 1 for label, value in state.items()}
    turned = (bits[None, ::-1].copy(), labels[::-1])
    forms = {
        "a dict": state,
        "a list of dicts": [state, state],
        "(array, labels)": turned,
        "a SampleSet": dimod.SampleSet.from_samples([as_spins], "SPIN", energy=[0.0]),
        "an array": bits,
        "lists": [bits.tolist()],
        "spins": 2 * bits - 1,
    }
    for model in (bqm, bqm.change_vartype(dimod.SPIN, inplace=False)):
        for name, given in forms.items():
            try:
                answer = subject.sample(model, cardinality=2, initial_states=given)
            except Exception as error:
                raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
            assert (
                answer.record.energy.min()
                <= model.energy(state if model.vartype is dimod.BINARY else as_spins) + 1e-9
            ), f"{name}: worse than its start"


def check_timing(subject: Subject) -> None:
    """``info["timing"]`` has the nanoseconds of three parts; asked of samplers with a clock."""
    timing = subject.solve(convex_problem(8, 53, counts=3)).info.get("timing", {})
    for part in ("preprocessing_ns", "sampling_ns", "postprocessing_ns"):
        assert timing.get(part, -1) >= 0, f"info['timing'] has no {part}"


def check_negative_seed(subject: Subject) -> None:
    """A negative seed is refused in one line."""
    problem = convex_problem(5, 54, counts=2)
    message = _refused(ValueError, lambda: subject.solve(problem, seed=-1))
    assert "\n" not in message, "the message has more than one line"


def check_offset(subject: Subject) -> None:
    """A constant, however large, changes no sample."""
    plain = indefinite_problem(12, 55, counts=5)
    moved = QuadraticProblem(plain.linear, plain.quadratic, 1e9, counts=5)
    here, there = (subject.solve(problem).samples for problem in (plain, moved))
    assert np.array_equal(here, there), "another answer with a constant added"


def _refused(kind: type[Exception], call: Callable[[], Any]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


CHECKS: tuple[tuple[Callable[[Subject], None], str], ...] = (
    (check_dimod_api, ""),
    (check_counts_exact, ""),
    (check_energies, ""),
    (check_same_seed, "seed"),
    (check_initial_states, "initial_states"),
    (check_optimal_when_small, ""),
    (check_bound, "bound"),
    (check_edges, ""),
    (check_all_zero, ""),
    (check_coefficients, ""),
    (check_labels_and_spins, ""),
    (check_unknown_option, ""),
    (check_bad_problem, ""),
    (check_num_reads, "num_reads"),
    (check_time_limit, "time_limit"),
    (check_time_is_kept, "time_limit"),
    (check_interrupt, "time_limit"),
    (check_initial_states_forms, "initial_states"),
    (check_timing, "time_limit"),
    (check_negative_seed, "seed"),
    (check_offset, "seed"),
)
