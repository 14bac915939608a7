"""Paid samplers, on mock processors and with the faults that real ones have shown."""

import concurrent.futures
import logging
import traceback

import dimod
import numpy as np
import pytest

pytest.importorskip("dwave.system")

from dwave.cloud.exceptions import (
    PollingTimeout,
    SolverAuthenticationError,
    SolverFailureError,
    SolverOfflineError,
)
from dwave.system.testing import MockDWaveSampler, MockLeapHybridSolver

from solvers import CardinalityPenalty, get_sampler
from solvers.ask import counting
from solvers.composites.decompose import Decompose
from solvers.errors import (
    ChargeRefusedError,
    InvalidOptionError,
    ProblemTooLargeError,
    SamplerFailedError,
)
from solvers.foreign.charges import Charge, Meter, Submission, Submitted, redacted
from solvers.foreign.dwave import HybridCqm
from solvers.testing import convex_problem, indefinite_problem

TOKEN = "DEV-0123456789abcdef0123456789abcdef01234567"


def chip(**_):
    return MockDWaveSampler(topology_type="pegasus", topology_shape=[2], parameter_warnings=False)


@pytest.fixture
def on_mock_chips(monkeypatch):
    monkeypatch.setattr("dwave.system.DWaveSampler", chip)
    monkeypatch.setattr("dwave.system.samplers.clique.DWaveSampler", chip)


def model(size, seed=0):
    return indefinite_problem(size, seed).to_bqm()


@pytest.mark.parametrize("name", ["qpu", "qpu-clique"])
def test_a_mock_processor_answers_and_says_what_it_cost(on_mock_chips, name):
    events = []
    sampler = get_sampler(name, observe=events.append)
    answer = sampler.sample(model(4), num_reads=7)
    assert answer.record.energy == pytest.approx(model(4).energies(answer))
    submission, submitted, charge = events
    assert isinstance(submission, Submission)
    assert submission.num_variables == 4
    assert submission.seconds > submission.minimum_seconds > 0
    assert isinstance(submitted, Submitted)
    assert isinstance(charge, Charge)
    assert charge.problem_id == submitted.problem_id == answer.info["problem_id"]
    # What the mock reports: qpu_access_time of 8550.28 microseconds.
    assert charge.seconds == pytest.approx(8550.28e-6)
    assert answer.info["charge_seconds"] == charge.seconds
    assert sampler.meter.spent_seconds == charge.seconds


def test_counts_by_a_penalty_on_a_mock_processor(on_mock_chips):
    problem = convex_problem(6, 3, counts=2)
    solution = counting(get_sampler("qpu-clique")).sample_problem(problem, num_reads=10)
    assert problem.feasible(solution.samples).all()
    assert solution.info["child"]["charge_seconds"] > 0


def test_a_block_past_the_largest_clique_names_both_sizes_and_the_way_out(on_mock_chips):
    sampler = get_sampler("qpu-clique")
    largest = sampler.largest_clique_size
    with pytest.raises(ProblemTooLargeError) as caught:
        sampler.sample(model(largest + 3))
    message = str(caught.value)
    assert f"{largest + 3} variables" in message
    assert f"largest clique {largest}" in message
    assert f"Decompose(sampler, size={largest})" in message
    assert sampler.meter.spent_seconds == 0

    problem = convex_problem(3 * largest, 5, counts=largest)
    way_out = Decompose(CardinalityPenalty(sampler))
    assert way_out.size == largest
    solution = way_out.sample_problem(problem, seed=1, max_passes=1)
    assert problem.feasible(solution.samples).all()


def test_a_model_past_the_chip_is_refused(on_mock_chips):
    sampler = get_sampler("qpu")
    with pytest.raises(ProblemTooLargeError, match=r"60 variables and 1770 couplings, the chip"):
        sampler.sample(model(60))


def test_no_embedding_is_said_as_such(on_mock_chips, monkeypatch):
    sampler = get_sampler("qpu", embedding_timeout=3)
    monkeypatch.setattr(sampler.child, "find_embedding", lambda *_, **__: {})
    with pytest.raises(ProblemTooLargeError, match=r"no embedding of 5 variables.* in 3 s; use"):
        sampler.sample(model(5))


# -- money ----------------------------------------------------------------------------------


def test_the_budget_stops_before_the_call_that_would_pass_it(on_mock_chips):
    sampler = get_sampler("qpu-clique", max_charge_seconds=0.03)
    sampler.sample(model(4))
    with pytest.raises(ChargeRefusedError, match=r"past max_charge_seconds=0.03") as caught:
        sampler.sample(model(4), num_reads=100)
    assert "0.00855 s are spent" in str(caught.value)
    assert sampler.meter.spent_seconds == pytest.approx(8550.28e-6)


def test_composites_end_with_the_best_so_far_when_the_budget_is_used_up(on_mock_chips):
    problem = convex_problem(8, 5, counts=3)
    sampler = Decompose(CardinalityPenalty(get_sampler("qpu-clique", max_charge_seconds=0.03)))
    sampler.size = 4
    solution = sampler.sample_problem(problem, seed=1)
    assert problem.feasible(solution.samples).all()
    assert "max_charge_seconds" in solution.info["decompose"]["stopped"]
    with pytest.raises(ChargeRefusedError):
        sampler.sample_problem(problem, seed=1)
    with pytest.raises(ChargeRefusedError):
        counting(get_sampler("qpu-clique", max_charge_seconds=0.0)).sample_problem(problem)


def test_a_call_can_be_declined(on_mock_chips):
    asked = []
    sampler = get_sampler("qpu-clique", confirm=lambda call: asked.append(call) or False)
    with pytest.raises(ChargeRefusedError, match="was declined"):
        sampler.sample(model(4))
    assert isinstance(asked[0], Submission)


def test_cost_is_logged_before_and_after(on_mock_chips, caplog):
    with caplog.at_level(logging.INFO, logger="solvers.foreign.charges"):
        get_sampler("qpu-clique").sample(model(4))
    before, identity, after = [record.getMessage() for record in caplog.records]
    assert "will be charged (at least" in before
    assert "submitted as problem" in identity
    assert "charged 0.00855 s" in after


def test_the_solvers_own_estimate_is_used_where_there_is_one(on_mock_chips):
    sampler = get_sampler("qpu-clique")

    class Solver:
        def estimate_qpu_access_time(self, num_qubits, num_reads, annealing_time=20.0):
            return 1000.0 * num_qubits + num_reads * annealing_time

    sampler.child.child.solver = Solver()
    seconds, minimum = sampler.cost(model(4), {"num_reads": 10, "annealing_time": 100.0})
    assert (seconds, minimum) == pytest.approx((5000e-6, 4100e-6))


def test_a_budget_must_make_sense():
    with pytest.raises(InvalidOptionError, match="max_charge_seconds must be at least 0"):
        Meter("x", max_charge_seconds=-1)


# -- hybrids --------------------------------------------------------------------------------


@pytest.fixture
def hybrid(monkeypatch):
    class Client:
        @classmethod
        def from_config(cls, **_):
            return cls()

        def get_solver(self):
            return MockLeapHybridSolver()

    monkeypatch.setattr("dwave.system.samplers.leap_hybrid_sampler.Client", Client)


def test_the_hybrid_bqm_solver_charges_its_time_limit(hybrid):
    events = []
    sampler = get_sampler("hybrid-bqm", max_charge_seconds=4.5, observe=events.append)
    answer = sampler.sample(model(10))
    assert events[0].minimum_seconds == events[0].seconds == 1.0
    assert answer.info["charge_seconds"] == 1.0
    sampler.sample(model(10), time_limit=3)
    assert sampler.meter.spent_seconds == 4.0
    with pytest.raises(ChargeRefusedError):
        sampler.sample(model(10))
    with pytest.raises(InvalidOptionError, match=r"at least 1 s on this problem; time_limit=0.5"):
        sampler.sample(model(10), time_limit=0.5)


class CqmSolver:
    """What `dwave.system.LeapHybridCQMSampler` answers with, for one CQM by enumeration."""

    properties = {"category": "hybrid"}  # noqa: RUF012
    parameters = {"time_limit": [], "label": []}  # noqa: RUF012

    def __init__(self, spoil=lambda answer: answer):
        self.spoil = spoil
        self.asked = {}

    def min_time_limit(self, cqm):
        return 5.0

    def sample_cqm(self, cqm, **options):
        self.asked = options
        answer = dimod.ExactCQMSolver().sample_cqm(cqm)
        answer = dimod.SampleSet(
            answer.record,
            answer.variables,
            {"charge_time": 5_000_000, "qpu_access_time": 32_000, "problem_id": "p-1"},
            answer.vartype,
        )
        return self.spoil(answer)


def test_the_hybrid_cqm_solver_gets_counts_as_constraints():
    problem = convex_problem(7, 2, counts=3)
    child = CqmSolver()
    sampler = HybridCqm(child, Meter("hybrid-cqm"))
    solution = sampler.sample_problem(problem, time_limit=6.0)
    from solvers.testing import all_states

    assert solution.energy == pytest.approx(problem.energies(all_states(problem)).min())
    assert problem.feasible(solution.samples).all()
    assert child.asked == {"time_limit": 6.0}
    assert solution.info["charge_seconds"] == 5.0
    assert solution.info["qpu_seconds"] == pytest.approx(0.032)
    assert solution.info["repaired"] > 0.5
    with pytest.raises(InvalidOptionError, match="at least 5 s"):
        sampler.sample_problem(problem, time_limit=2.0)


def test_the_hybrid_cqm_solver_answers_nonsense():
    problem = convex_problem(5, 2, counts=3)

    def without_first(answer):
        states, labels = answer.record.sample[:, 1:], list(answer.variables)[1:]
        return dimod.SampleSet.from_samples((states, labels), "BINARY", energy=0.0)

    for spoil, message in (
        (lambda answer: answer.slice(0, 0), "answered without samples"),
        (without_first, "answered without variable 0"),
    ):
        with pytest.raises(SamplerFailedError, match=message):
            HybridCqm(CqmSolver(spoil), Meter("hybrid-cqm")).sample_problem(problem)


# -- faults ---------------------------------------------------------------------------------

FAULTS = [
    SolverAuthenticationError(f"Invalid token: {TOKEN}"),
    SolverOfflineError("Solver is offline."),
    SolverFailureError("Insufficient remaining solver access time in project."),
    SolverFailureError("Problem not accepted because user has insufficient remaining solver "),
    ConnectionError(f"HTTPSConnectionPool: Max retries; headers {{'X-Auth-Token': '{TOKEN}'}}"),
    OSError("Temporary failure in name resolution"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_is_one_line_without_the_token(on_mock_chips, monkeypatch, caplog, fault):
    sampler = get_sampler("qpu-clique")

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(sampler.child, "sample", fail)
    with caplog.at_level(logging.DEBUG), pytest.raises(SamplerFailedError) as caught:
        sampler.sample(model(4))
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert TOKEN not in shown
    assert str(caught.value).startswith(f"qpu-clique failed: {type(fault).__name__}: ")
    assert sampler.meter.spent_seconds == 0


class Waiting(concurrent.futures.Future):
    """D-Wave's future: the problem id is there long before the answer."""

    def __init__(self, fault):
        super().__init__()
        self.set_exception(fault)

    def wait_id(self, timeout=None):
        return "7e2b-problem"


def test_the_problem_id_is_stored_before_waiting(on_mock_chips, monkeypatch, tmp_path):
    stored = tmp_path / "ids.txt"
    sampler = get_sampler("qpu-clique", problem_ids=stored)
    answer = dimod.SampleSet.from_future(Waiting(PollingTimeout("no answer in 60 s")))
    monkeypatch.setattr(sampler.child, "sample", lambda *_, **__: answer)
    with pytest.raises(SamplerFailedError, match="the answer may still come: problem 7e2b-problem"):
        sampler.sample(model(4))
    assert stored.read_text() == "qpu-clique 7e2b-problem\n"


def test_no_connection_is_explained(monkeypatch):
    def refuse(**_):
        raise ValueError(f"API token not defined; token='{TOKEN}'")

    monkeypatch.setattr("dwave.system.DWaveSampler", refuse)
    with pytest.raises(SamplerFailedError, match="`dwave ping` tests it") as caught:
        get_sampler("qpu")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "message", [f"x {TOKEN} y", f"token={TOKEN}", f"{{'token': '{TOKEN}'}}", "Token: secret-word"]
)
def test_tokens_are_redacted(message):
    shown = redacted(message)
    assert TOKEN not in shown
    assert "secret-word" not in shown
    assert "[token]" in shown


def test_a_wrong_answer_of_a_processor_is_refused(on_mock_chips, monkeypatch):
    sampler = get_sampler("qpu-clique")
    answer = dimod.SampleSet.from_samples((np.zeros((0, 4)), range(4)), "BINARY", energy=[])
    monkeypatch.setattr(sampler.child, "sample", lambda *_, **__: answer)
    with pytest.raises(SamplerFailedError, match="returned no samples"):
        sampler.sample(model(4))
