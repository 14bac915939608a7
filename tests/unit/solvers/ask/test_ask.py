"""One question to one sampler: limited, retried, checked once, remembered."""

import json
import os
import pickle
import time

import dimod
import numpy as np
import pytest
from odd_samplers import Bad

import solvers.ask.ask
from solvers import (
    AnswerStore,
    Ask,
    CountingSampler,
    Fault,
    FaultPolicy,
    QuadraticProblem,
    Solution,
    solve,
)
from solvers.errors import (
    ChargeRefusedError,
    InvalidOptionError,
    SamplerFailedError,
    StorageError,
    StudyError,
    UnknownOptionError,
    UnknownSamplerError,
)
from solvers.host.disk import hex_of

PRESENT = np.array([1, 1, 1, 0, 0, 0], dtype=np.int8)
BEST = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)


def problem_of(size=6):
    rng = np.random.default_rng(0)
    half = rng.standard_normal((size, size))
    return QuadraticProblem(rng.standard_normal(size), half + half.T, counts=size // 2)


def linear_problem():
    """Six variables, three of them 1; state i has the energy of the sum of its indices."""
    return QuadraticProblem(-np.arange(6.0), np.zeros((6, 6)), counts=3)


class Given(CountingSampler):
    """Hand-made: returns what it was made with, and keeps what it was asked."""

    def __init__(self, samples, energies=0.0, **more):
        self.samples, self.energies, self.more, self.asked = samples, energies, more, []

    @property
    def parameters(self):
        return {"seed": [], "initial_states": []}

    def sample_problem(self, problem, **options):
        self.asked.append(options)
        samples = np.array(self.samples)
        energies = np.broadcast_to(np.asarray(self.energies, float), len(samples))
        return Solution(samples, energies, **self.more)


class Paid(Bad):
    """As if remote."""

    paid = True


def asked(sampler, store=None, **policy):
    return Ask.to(sampler, None, FaultPolicy(**policy), store)


# --- the answer


def test_every_state_is_returned_and_the_best_is_first():
    states = [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1]]
    answer = Ask.to(Given(states, 7.0))(linear_problem(), seed=3)
    assert answer.states.tolist() == [states[1], states[3], states[2], states[0]]
    assert answer.states.dtype == np.int8
    assert answer.energies.tolist() == [-12, -12, -9, -3]
    assert (answer.sample.tolist(), answer.energy) == (states[1], -12)


def test_the_present_state_leads_where_none_is_better_and_is_left_out_where_one_is():
    worse, better = [[1, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 0]], [BEST.tolist()]
    present = np.array([0, 0, 1, 1, 0, 1], dtype=np.int8)
    answer = Ask.to(Given(worse))(linear_problem(), present)
    assert answer.states.tolist() == [present.tolist(), *worse]
    assert answer.energies.tolist() == [-10, -6, -4]
    assert Ask.to(Given(better))(linear_problem(), present).states.tolist() == better


def test_the_present_state_wins_a_tie_and_is_not_there_twice():
    flat = QuadraticProblem(np.zeros(6), np.zeros((6, 6)), counts=3)
    answer = Ask.to(Given([BEST]))(flat, PRESENT)
    assert answer.states.tolist() == [PRESENT.tolist(), BEST.tolist()]
    assert Ask.to(Given([PRESENT]))(flat, PRESENT).states.tolist() == [PRESENT.tolist()]


def test_the_sampler_gets_the_seed_and_the_present_state():
    sampler = Given([BEST])
    Ask.to(sampler, {"seed": 5})(linear_problem(), PRESENT, 4)
    Ask.to(sampler)(linear_problem(), seed=4)
    first, second = sampler.asked
    assert (first["seed"], first["initial_states"].tolist()) == (5, [PRESENT.tolist()])
    assert second == {"seed": 4}


@pytest.mark.parametrize(
    "present", [PRESENT[:5], np.ones(6, np.int8), 2 * PRESENT, np.array([PRESENT])]
)
def test_a_present_state_that_is_none_is_refused(present):
    with pytest.raises(InvalidOptionError, match="one state of 6 values 0 and 1 with the problem"):
        Ask.to("greedy")(linear_problem(), present)


def test_an_answer_is_checked_exactly_once(monkeypatch):
    calls = []
    check, energies = solvers.ask.ask.checked, QuadraticProblem.energies

    def counted(self, samples):
        calls.append("energies")
        return energies(self, samples)

    monkeypatch.setattr(
        solvers.ask.ask, "checked", lambda *given: calls.append("checked") or check(*given)
    )
    monkeypatch.setattr(QuadraticProblem, "energies", counted)
    Ask.to(Given([BEST]))(linear_problem(), PRESENT)
    assert calls == ["checked", "energies"]
    calls.clear()
    asked(Given([BEST]), time_limit=60, retries=3)(linear_problem())
    assert calls == ["checked", "energies"]


def test_a_bound_is_the_samplers_but_never_above_the_answer():
    for told, bound in ((-20.0, -20.0), (np.nan, -np.inf), (-11.0, -12.0)):
        answer = Ask.to(Given([BEST], lower_bound=told))(linear_problem())
        assert (answer.lower_bound, answer.proved) == (bound, bound == -12)


def test_a_bound_is_of_the_state_that_is_returned():
    found = Solution.of(linear_problem(), [BEST], lower_bound=-12.0)
    assert found.proved
    answer = Ask.to(Given(found.samples, found.energies, lower_bound=-12.0))(linear_problem())
    assert (answer.proved, answer.gap) == (True, 0.0)
    worse = Given([PRESENT], lower_bound=-12.0, certified=found.certified)
    first = QuadraticProblem(-np.arange(6.0), np.zeros((6, 6)), counts=3)
    better = np.array([0, 0, 1, 1, 0, 1], dtype=np.int8)
    assert not Ask.to(worse)(first, better).proved


def test_times_are_no_part_of_the_information():
    answer = solve(linear_problem(), "greedy", seed=0)
    assert "timing" not in answer.info
    assert answer.timing["sampling_ns"] > 0
    assert answer.seconds > 0


# --- faults


def test_wrong_counts_are_repaired_and_told():
    answer = solve(linear_problem(), Given([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]))
    assert answer.states.tolist() == [BEST.tolist(), BEST.tolist()]
    assert answer.info["repaired"] == 1.0
    assert answer.faults == (
        Fault("wrong counts", "no sample of 'Given' has the counts", "repaired"),
    )


def test_wrong_counts_of_some_are_repaired_without_a_fault():
    answer = solve(linear_problem(), Given([[1, 1, 1, 1, 1, 1], PRESENT]))
    assert answer.info["repaired"] == 0.5
    assert answer.faults == ()
    assert answer.states.tolist() == [BEST.tolist(), PRESENT.tolist()]


def test_energies_are_computed_again():
    answer = solve(linear_problem(), Given([PRESENT, BEST], np.nan))
    assert answer.energies.tolist() == [-12, -3]
    message = "energies of sampler 'Given' are NaN or infinite"
    assert answer.faults == (Fault("wrong energies", message, "computed again"),)
    assert solve(linear_problem(), Given([PRESENT], -99.0)).energies.tolist() == [-3]


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        (np.zeros((0, 6)), r"returned samples of shape \(0, 6\) for 6 variables"),
        (np.zeros((2, 5)), r"returned samples of shape \(2, 5\) for 6 variables"),
        (np.zeros(6), r"returned samples of shape \(6,\) for 6 variables"),
        (np.full((1, 6), np.nan), "returned values other than 0 and 1"),
        (np.full((1, 6), -1), "returned values other than 0 and 1"),
    ],
)
def test_what_is_no_answer_is_refused(samples, told):
    sampler = Given(samples, np.zeros(0) if samples.ndim == 2 and not len(samples) else 0.0)
    with pytest.raises(SamplerFailedError, match=f"sampler 'Given' {told}") as failed:
        solve(linear_problem(), sampler)
    assert failed.value.problem.num_variables == 6
    answer = solve(
        linear_problem(), sampler, present=PRESENT, on_fault=FaultPolicy(fallback="keep")
    )
    assert np.array_equal(answer.sample, PRESENT)
    assert [fault.kind for fault in answer.faults] == ["sampler"]


def test_a_sampler_that_returns_nothing_is_refused():
    class Nothing(Given):
        def sample_problem(self, problem, **options):
            return None

    with pytest.raises(SamplerFailedError, match=r"returned samples of shape \(\)"):
        solve(linear_problem(), Nothing([]))
    with pytest.raises(SamplerFailedError, match="returned NoneType, not a dimod"):
        solve(linear_problem(), Bad(["nothing"], every=1))


def test_an_error_of_ours_is_no_fault_of_the_sampler():
    class Dear(Given):
        def sample_problem(self, problem, **options):
            self.asked.append(options)
            raise ChargeRefusedError("too dear")

    sampler = Dear([])
    with pytest.raises(ChargeRefusedError, match="too dear"):
        asked(sampler, retries=3, wait=0.0, fallback="keep")(linear_problem(), PRESENT)
    assert len(sampler.asked) == 1


def test_another_sampler_answers_instead():
    answer = asked(Bad(["raise"], every=1), fallback="greedy")(problem_of(), PRESENT, 0)
    expected = Ask.to("greedy")(problem_of(), PRESENT, 0)
    assert answer.energy == expected.energy
    assert answer.faults[0].remedy == "'greedy' was asked instead"


def test_without_a_present_state_none_can_be_kept():
    with pytest.raises(SamplerFailedError, match="no luck"):
        asked(Bad(["raise"], every=1), fallback="keep")(problem_of())


def test_a_failed_call_is_made_again():
    sampler = Bad(["raise"], every=2)
    sampler.calls = 1
    answer = asked(sampler, retries=2, wait=0.0)(problem_of(), PRESENT, 0)
    assert [fault.remedy for fault in answer.faults] == ["asked again"]
    sampler = Bad(["raise"], every=1)
    with pytest.raises(SamplerFailedError, match="no luck"):
        asked(sampler, retries=2, wait=0.0)(problem_of(), PRESENT, 0)
    assert sampler.calls == 3


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with pytest.raises(SamplerFailedError):
        asked(Bad(["raise"], every=1), retries=4, wait=1.0)(problem_of(), PRESENT, 0)
    assert waits == [1, 2, 4, 8]


def test_limits_that_make_no_sense_are_refused():
    for policy in ({"time_limit": 0}, {"retries": -1}, {"wait": -1.0}):
        with pytest.raises(InvalidOptionError, match=r"must be (more than|at least) 0"):
            FaultPolicy(**policy)
    with pytest.raises(UnknownSamplerError, match="nonsense"):
        asked("relax", fallback="nonsense")
    with pytest.raises(UnknownOptionError, match="Given has no option 'reads'; it has: "):
        Ask.to(Given([]), {"reads": 1})


# --- limits and processes


def test_a_call_that_hangs_is_no_longer_waited_for():
    began = time.perf_counter()
    answer = asked(Bad(["hang"], every=1), time_limit=0.2, fallback="keep")(
        problem_of(), PRESENT, 0
    )
    assert time.perf_counter() - began < 30
    assert answer.faults[0].kind == "timeout"
    assert answer.faults[0].message == "sampler 'Bad' on 6 variables: no answer within 0.2 s"
    assert np.array_equal(answer.sample, PRESENT)


def test_an_answer_in_time_passes_through():
    expected = Ask.to("greedy")(problem_of(), seed=1)
    assert asked("greedy", time_limit=60)(problem_of(), seed=1).energy == expected.energy


def test_a_process_of_its_own_may_hang_and_crash():
    sampler = Bad(["hang", "raise", "crash"], every=1)
    ask = asked(sampler, isolate=True, fallback="greedy")
    faults = [ask(problem_of(), PRESENT, 0).faults[0] for _ in range(2)]
    assert [fault.kind for fault in faults] == ["sampler", "crash"]
    assert "SIGABRT" in faults[1].message
    assert sampler.calls == 0


def test_a_question_can_be_sent_to_another_process():
    ask = pickle.loads(pickle.dumps(asked("greedy", isolate=True)))
    assert ask(problem_of(), seed=1).energy == Ask.to("greedy")(problem_of(), seed=1).energy


def test_a_process_that_does_not_start_is_a_fault(monkeypatch):
    def start(worker, deadline=None):
        raise StudyError("killed after 300 s")

    monkeypatch.setattr("solvers.host.worker.Worker._start", start)
    answer = asked("greedy", isolate=True, fallback="keep")(problem_of(), PRESENT, 0)
    assert [fault.kind for fault in answer.faults] == ["crash"]
    assert np.array_equal(answer.sample, PRESENT)


def test_what_cannot_be_sent_is_refused_before_the_run():
    class Local(Bad):
        pass

    with pytest.raises(InvalidOptionError, match="cannot be sent to a process of its own"):
        asked(Local([]), isolate=True)


def test_a_time_limit_is_filled_with_reads_only_for_solve():
    class Timed(Given):
        default_reads = 3

        @property
        def parameters(self):
            return {"time_limit": [], "num_reads": []}

    sampler = Timed([BEST])
    Ask.to(sampler, {"time_limit": 1.0})(linear_problem())
    solve(linear_problem(), sampler, time_limit=1.0)
    assert sampler.asked == [{"time_limit": 1.0, "num_reads": 3}, {"time_limit": 1.0}]


# --- what cannot be had again


def test_paid_samplers_are_asked_again_by_themselves():
    sampler = Paid(["raise"], every=1)
    with pytest.raises(SamplerFailedError):
        asked(sampler, wait=0.0)(problem_of(), PRESENT, 0)
    assert sampler.calls == 4


def test_what_is_paid_for_is_asked_once(tmp_path):
    sampler = Paid([], every=1000)
    first = asked(sampler, AnswerStore(tmp_path / "answers"))(problem_of(), PRESENT, 7)
    again = asked(sampler, AnswerStore(f"{tmp_path}/answers"))(problem_of(), PRESENT, 7)
    assert sampler.calls == 1
    assert len(first.states) > 1
    assert np.array_equal(first.states, again.states)
    assert np.allclose(first.energies, again.energies, rtol=1e-14)
    assert (first.lower_bound, first.seconds) == (again.lower_bound, again.seconds)
    asked(sampler, AnswerStore(tmp_path / "answers"))(problem_of(), PRESENT, 8)
    assert sampler.calls == 2


def test_a_damaged_answer_is_asked_for_again(tmp_path):
    sampler = Paid([], every=1000)
    store = AnswerStore(tmp_path)
    first = asked(sampler, store)(problem_of(), PRESENT, 7)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        again = asked(sampler, store)(problem_of(), PRESENT, 7)
        assert np.array_equal(first.states, again.states)
        assert first.lower_bound == again.lower_bound


def digest_of(record):
    import hashlib

    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def placed(folder, record):
    (folder / "key.json").write_text(json.dumps(record | {"sha256": digest_of(record)}))
    return AnswerStore(folder).find("key", linear_problem())


OLD = {
    "sample": hex_of(BEST),
    "lower_bound": None,
    "seconds": 2.5,
    "info": {"reads": 3},
    "faults": [{"kind": "sampler", "message": "m", "remedy": "asked again", "block": None}],
}


def test_a_file_of_before_there_were_several_states_is_read(tmp_path):
    answer = placed(tmp_path, OLD)
    assert answer.states.tolist() == [BEST.tolist()]
    assert (answer.energy, answer.lower_bound, answer.seconds) == (-12, -np.inf, 2.5)
    assert (answer.info, answer.faults) == ({"reads": 3}, (Fault("sampler", "m", "asked again"),))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3, "states": [hex_of(BEST)]},
        {"version": 2, "states": []},
        {"version": 2, "states": [hex_of(BEST), hex_of(np.ones(6))]},
        {"version": 2, "states": [hex_of(np.ones(9))]},
    ],
)
def test_a_file_that_holds_no_answer_is_not_used(tmp_path, caplog, change):
    assert placed(tmp_path, OLD | change) is None
    assert "cannot be used" in caplog.text


def test_what_a_fallback_answered_is_not_kept(tmp_path):
    sampler = Paid(["raise"], every=1)
    asked(sampler, AnswerStore(tmp_path), retries=0, fallback="keep")(problem_of(), PRESENT, 7)
    assert list(tmp_path.iterdir()) == []


def test_only_what_cannot_be_had_again_is_written_down(tmp_path):
    store = AnswerStore(tmp_path)
    assert asked("relax", store).store is None
    assert asked("enumerate", store).store is None
    assert asked(Bad([]), store).store is None
    assert asked(dimod.ExactSolver(), store).store is store
    assert asked(Paid([]), store).store is store
    assert Ask.to("relax", {"time_limit": 1.0}, store=store).store is store


def test_a_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "answers").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*answers"):
        asked(Paid([], every=1000), AnswerStore(tmp_path / "answers"))(problem_of(), PRESENT)
    with pytest.raises(StorageError, match="is no folder; move it away"):
        AnswerStore(tmp_path / "answers").sweep()
    assert os.listdir(tmp_path) == ["answers"]  # noqa: PTH208
