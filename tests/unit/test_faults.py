"""Samplers that fail: what a run makes of it, and that every failure is counted."""

import itertools
import os
import time
from collections import Counter
from typing import ClassVar

import dimod
import numpy as np
import pytest
import torch
from qprune.record.recording import ANSWERS
from torch import nn

import qprune
from benchmarks.reliability.faults import failures, run, ways_of
from benchmarks.reliability.workloads import Workload
from qprune.data.calibration import Calibration
from qprune.errors import ImpossibleRequestError, SamplerError
from qprune.results import Step
from qprune.steps.answers import AnswerStore
from qprune.steps.compensate import Compensation
from qprune.steps.distill import Distillation
from qprune.steps.faults import Ask, Care, CarefulBorder, KeepMask
from qprune.steps.solve import Border
from solvers import QuadraticProblem
from solvers.errors import InvalidOptionError, StudyError, UnknownSamplerError, WorkerDiedError
from solvers.foreign.isolation import Isolated, TimeLimited

INPUTS = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))
RUN = {
    "sparsity": 0.5,
    "stages": 2,
    "rounds": 2,
    "block_size": 32,
    "compensate": Compensation(iterations=(2,), final_steps=1),
}


def mlp():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(inplace=True), nn.Linear(12, 4))


class Bad(dimod.Sampler):
    """Misbehaves in every ``every``-th call, in the next of its ways; else it guesses."""

    properties: ClassVar = {}
    parameters: ClassVar = {"seed": []}

    def __init__(self, ways, every=3):
        self.ways, self.every, self.calls = tuple(ways), every, 0

    def sample(self, bqm, seed=None):
        self.calls += 1
        size = bqm.num_variables
        states = np.random.default_rng(seed).integers(0, 2, (20, size))
        if self.calls % self.every == 0:
            way = self.ways[self.calls // self.every % len(self.ways)]
            if way == "raise":
                raise RuntimeError("no luck")
            if way == "hang":
                time.sleep(3600)
            if way == "crash":
                os.abort()
            if way == "sizes":
                states = states[:, :-1]
                return dimod.SampleSet.from_samples((states, range(size - 1)), "BINARY", 0.0)
            if way == "nan":
                return dimod.SampleSet.from_samples(states, "BINARY", np.full(20, np.nan))
            if way == "infeasible":
                states[:] = 1
            if way == "nothing":
                return None
        return dimod.SampleSet.from_samples_bqm((states, range(size)), bqm)


def problem_of(size=6):
    rng = np.random.default_rng(0)
    half = rng.standard_normal((size, size))
    return QuadraticProblem(rng.standard_normal(size), half + half.T, counts=size // 2)


PRESENT = np.array([1, 1, 1, 0, 0, 0], dtype=np.int8)


def careful(sampler, answers=None, **care):
    return Care(**care).over(Border.to(sampler), answers)


def faults_of(report):
    return [fault for step in report.steps for fault in step.faults]


def test_without_care_a_failure_ends_the_run():
    with pytest.raises(SamplerError, match="no luck"):
        qprune.prune(mlp(), INPUTS, **RUN, sampler=Bad(["raise"]))


def test_every_way_to_fail_is_got_over_and_counted():
    sampler = Bad(["raise", "sizes", "nothing", "nan", "infeasible"], every=2)
    pruned = qprune.prune(mlp(), INPUTS, **RUN, sampler=sampler, care=Care(fallback="keep"))
    # Nobody asked this sampler to count, so that wrong counts are no fault of it.
    ways = Counter(i // 2 % 5 for i in range(2, sampler.calls + 1, 2))
    kinds = Counter(fault.kind for fault in faults_of(pruned.report))
    assert kinds == {"sampler": ways[0] + ways[1] + ways[2], "wrong energies": ways[3]}
    assert min(kinds.values()) > 0
    assert pruned.report.achieved_sparsity == 0.5
    for before, step in zip(pruned.report.steps, pruned.report.steps[1:], strict=False):
        assert step.kind == "start" or step.loss <= before.loss


def test_the_fault_drill_in_short(tmp_path):
    workload = Workload("mlp", mlp(), Calibration(INPUTS), RUN)
    report = run(workload, tmp_path / "noted", 2, 0, fallback="keep", time_limit=1.0)
    assert failures(report, tmp_path / "noted") == []
    assert len(ways_of(tmp_path / "noted")) > 3


def test_a_solve_whose_answer_changes_nothing_is_a_step_if_it_had_faults(tmp_path):
    """The last round is refused, and then fails when it is asked again at a higher price."""

    class Twice(Bad):
        def sample(self, bqm, seed=None):
            if seed in asked:
                raised.append(seed)
                raise RuntimeError("asked before")
            asked.append(seed)
            return super().sample(bqm, seed)

    asked, raised = [], []
    run = RUN | {"final_rounds": 1, "compensate": False}
    care = Care(fallback="keep")
    pruned = qprune.prune(mlp(), INPUTS, **run, sampler=Twice([], 10**9), care=care)
    assert len(faults_of(pruned.report)) == len(raised) > 0


def test_faults_survive_the_journal(tmp_path):
    from qprune.record.folder import read_steps

    care = Care(fallback="keep")
    sampler = Bad(["raise"], every=2)
    pruned = qprune.prune(mlp(), INPUTS, **RUN, sampler=sampler, care=care, output_dir=tmp_path)
    written = [fault for step in read_steps(tmp_path) for fault in step.faults]
    assert written == faults_of(pruned.report) != []


def test_another_sampler_answers_instead():
    border = careful(Bad(["raise"], every=1), fallback="greedy")
    answer = border.solve(problem_of(), PRESENT, 0)
    expected = Border.to("greedy").solve(problem_of(), PRESENT, 0)
    assert answer.energy == expected.energy
    assert answer.faults[0].remedy == "'greedy' was asked instead"


def test_a_failed_call_is_made_again():
    sampler = Bad(["raise"], every=2)
    sampler.calls = 1
    answer = careful(sampler, retries=2, wait=0.0).solve(problem_of(), PRESENT, 0)
    assert [fault.remedy for fault in answer.faults] == ["asked again"]
    sampler = Bad(["raise"], every=1)
    with pytest.raises(SamplerError, match="no luck"):
        careful(sampler, retries=2, wait=0.0).solve(problem_of(), PRESENT, 0)
    assert sampler.calls == 3


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    with pytest.raises(SamplerError):
        careful(Bad(["raise"], every=1), retries=4, wait=1.0).solve(problem_of(), PRESENT, 0)
    assert waits == [1, 2, 4, 8]


class Paid(Bad):
    """As if remote: it has a meter."""

    meter = object()


def test_remote_samplers_are_asked_again_by_themselves():
    sampler = Paid(["raise"], every=1)
    with pytest.raises(SamplerError):
        careful(sampler, wait=0.0).solve(problem_of(), PRESENT, 0)
    assert sampler.calls == 4


def test_what_is_paid_for_is_asked_once(tmp_path):
    sampler = Paid([], every=1000)
    first = careful(sampler, AnswerStore(tmp_path / ANSWERS)).solve(problem_of(), PRESENT, 7)
    again = careful(sampler, AnswerStore(tmp_path / ANSWERS)).solve(problem_of(), PRESENT, 7)
    assert sampler.calls == 1
    assert np.array_equal(first.sample, again.sample)
    assert (first.energy, first.lower_bound) == (again.energy, again.lower_bound)
    careful(sampler, AnswerStore(tmp_path / ANSWERS)).solve(problem_of(), PRESENT, 8)
    assert sampler.calls == 2


def test_a_damaged_answer_is_asked_for_again(tmp_path, caplog):
    sampler = Paid([], every=1000)
    store = AnswerStore(tmp_path / ANSWERS)
    first = careful(sampler, store).solve(problem_of(), PRESENT, 7)
    (path,) = (tmp_path / ANSWERS).iterdir()
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        again = careful(sampler, store).solve(problem_of(), PRESENT, 7)
        assert np.array_equal(first.sample, again.sample)
        assert first.lower_bound == again.lower_bound


def test_only_what_cannot_be_had_again_is_written_down(tmp_path):
    store = AnswerStore(tmp_path)
    assert careful("relax", store).answers is None
    assert careful(Bad([]), store).answers is None
    assert careful(dimod.ExactSolver(), store).answers is store
    assert careful(Paid([]), store).answers is store


def test_a_resumed_run_does_not_pay_twice(tmp_path):
    class KilledError(Exception):
        pass

    def observe(step: Step):
        if step.index == 4:
            raise KilledError

    run = RUN | {"care": Care(wait=0.0)}
    whole = Paid([], every=10**6)
    expected = qprune.prune(mlp(), INPUTS, **run, sampler=whole)
    sampler = Paid([], every=10**6)
    with pytest.raises(KilledError):
        qprune.prune(mlp(), INPUTS, **run, sampler=sampler, output_dir=tmp_path, observe=observe)
    pruned = qprune.prune(mlp(), INPUTS, **run, sampler=sampler, resume_from=tmp_path)
    assert sampler.calls == whole.calls
    assert all(torch.equal(expected.mask[name], pruned.mask[name]) for name in pruned.mask)


def test_a_call_that_hangs_is_no_longer_waited_for():
    border = careful(Bad(["hang"], every=1), time_limit=0.2, fallback="keep")
    began = time.perf_counter()
    answer = border.solve(problem_of(), PRESENT, 0)
    assert time.perf_counter() - began < 30
    assert answer.faults[0].kind == "timeout"
    assert np.array_equal(answer.sample, PRESENT)


def test_a_process_of_its_own_may_hang_and_crash():
    child = Border.to(Bad(["hang", "raise", "crash"], every=1)).sampler
    border = CarefulBorder(Border("bad", Isolated(child)), 0, 0.0, Ask("greedy"))
    faults = [border.solve(problem_of(), PRESENT, 0).faults[0] for _ in range(2)]
    assert [fault.kind for fault in faults] == ["sampler", "crash"]
    assert "SIGABRT" in faults[1].message


def test_a_process_that_does_not_start_is_a_fault(monkeypatch):
    def start(worker, deadline=None):
        raise StudyError("killed after 300 s")

    monkeypatch.setattr("solvers.host.worker.Worker._start", start)
    border = CarefulBorder(Border("bad", Isolated(Border.to("greedy").sampler)), 0, 0.0, KeepMask())
    answer = border.solve(problem_of(), PRESENT, 0)
    assert [fault.kind for fault in answer.faults] == ["crash"]
    assert np.array_equal(answer.sample, PRESENT)


def test_what_cannot_be_sent_is_refused_before_the_run():
    class Local(Bad):
        pass

    with pytest.raises(InvalidOptionError, match="cannot be sent to a process of its own"):
        careful(Local([]), isolate=True)


def test_limits_that_make_no_sense_are_refused():
    for care in ({"time_limit": 0}, {"retries": -1}, {"wait": -1.0}):
        with pytest.raises(ImpossibleRequestError):
            Care(**care)
    with pytest.raises(UnknownSamplerError, match="nonsense"):
        careful("relax", fallback="nonsense")
    with pytest.raises(InvalidOptionError):
        TimeLimited(Border.to("greedy").sampler, time_limit=-1)


def test_an_answer_in_time_passes_through():
    limited = TimeLimited(Border.to("greedy").sampler, time_limit=60)
    expected = Border.to("greedy").sampler.sample_problem(problem_of(), seed=1)
    assert limited.sample_problem(problem_of(), seed=1).energy == expected.energy
    with pytest.raises(WorkerDiedError, match="no answer within"):
        TimeLimited(Border.to(Bad(["hang"], every=1)).sampler, time_limit=0.05).sample_problem(
            problem_of()
        )


class Broken(nn.Module):
    """Says NaN once its second layer is moved far, as an overflow would."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
        self.bad_calls = set()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        outputs = self.body(x)
        return outputs * float("nan") if self.calls in self.bad_calls else outputs


def test_nan_in_one_expansion_undoes_the_change_before_it():
    counting = Broken()
    seen = []
    qprune.prune(
        counting, INPUTS, **RUN, augment=None, observe=lambda s: seen.append((s, counting.calls))
    )
    # The expansion is the first pass of the step after an accepted change.
    at = next(
        calls + 1
        for (step, calls), (after, _) in itertools.pairwise(seen)
        if step.kind == "compensate" and step.accepted and after.kind == "blocks"
    )
    model = Broken()
    model.bad_calls = {at}
    pruned = qprune.prune(model, INPUTS, **RUN, augment=None)
    kinds = [step.kind for step in pruned.report.steps]
    assert "rollback" in kinds
    step = pruned.report.steps[kinds.index("rollback")]
    assert step.faults[0].kind == "not finite"
    assert pruned.report.achieved_sparsity == 0.5
    assert all(torch.isfinite(p).all() for p in model.parameters())


class Hungry(nn.Module):
    """Runs out of memory on batches larger than 16."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.body = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 4))
        self.limit = 10**6

    def forward(self, x):
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("tried to allocate much")
        return self.body(x)


def test_out_of_memory_halves_the_batch():
    model = Hungry()
    expected = qprune.prune(Hungry(), INPUTS, **RUN, augment=None)

    def observe(step):
        model.limit = 16

    pruned = qprune.prune(model, INPUTS, **RUN, augment=None, observe=observe, batch_size=64)
    faults = faults_of(pruned.report)
    assert [fault.remedy for fault in faults] == ["batch size 32", "batch size 16"]
    assert {fault.kind for fault in faults} == {"out of memory"}
    assert all(torch.equal(expected.mask[name], pruned.mask[name]) for name in pruned.mask)


@pytest.mark.parametrize(
    ("where", "compensate"),
    [
        ("judging", False),
        ("expanding", False),
        ("compensating", Compensation(iterations=(2,), final_steps=1)),
        ("distilling", Distillation(steps=2, samples_per_step=20)),
    ],
)
def test_out_of_memory_is_got_over_in_every_phase(where, compensate):
    class Picky(Hungry):
        """Runs out of memory in one kind of pass alone."""

        def forward(self, x):
            kind = "expanding" if torch.is_grad_enabled() else "judging"
            if torch._C._functorch.peek_interpreter_stack() is not None:
                kind = "compensating"
            elif (
                kind == "expanding" and not torch._C._len_torch_function_stack()
            ):  # Nothing records.
                kind = "distilling"
            return super().forward(x) if kind == where else self.body(x)

    model = Picky()

    def observe(step):
        # Distillation cuts a batch into eight, so that threads can share it.
        model.limit = 1 if where == "distilling" else 8

    options = RUN | {"compensate": compensate}
    pruned = qprune.prune(model, INPUTS, **options, augment=None, observe=observe, batch_size=64)
    faults = faults_of(pruned.report)
    assert [fault.remedy for fault in faults][-1] == "batch size 8"
    assert {fault.kind for fault in faults} == {"out of memory"}
    assert pruned.report.stopped == "done"


def test_out_of_memory_before_the_first_step_halves_the_batch():
    expected = qprune.prune(Hungry(), INPUTS, **RUN, batch_size=16)
    model = Hungry()
    model.limit = 16
    pruned = qprune.prune(model, INPUTS, **RUN, batch_size=64)
    faults = pruned.report.steps[0].faults
    assert [fault.remedy for fault in faults] == ["batch size 32", "batch size 16"]
    assert {fault.kind for fault in faults} == {"out of memory"}
    assert not faults_of(pruned.report)[2:]
    assert all(torch.equal(expected.mask[name], pruned.mask[name]) for name in pruned.mask)


def test_out_of_memory_with_one_sample_is_an_error():
    model = Hungry()

    def observe(step):
        model.limit = 0

    with pytest.raises(torch.OutOfMemoryError):
        qprune.prune(model, INPUTS, **RUN, augment=None, observe=observe)
