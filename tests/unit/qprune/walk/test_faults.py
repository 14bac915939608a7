"""Samplers that fail: what a run makes of it, and that every failure is counted."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from odd_samplers import Bad
from small_networks import mlp
from torch import nn

import qprune
from qprune import FaultPolicy
from qprune.errors import QpruneError, SamplerError
from qprune.moving.compensate import Compensation
from qprune.moving.distill import Distillation
from qprune.results import Step

INPUTS = torch.randn(64, 10, generator=torch.Generator().manual_seed(5))
RUN = {
    "sparsity": 0.5,
    "method": qprune.Networkwise(stages=2, rounds=2, block_size=32),
    "compensate": Compensation(iterations=(2,), final_steps=1),
}


def faults_of(report):
    return [fault for step in report.steps for fault in step.faults]


def test_without_a_policy_a_failure_ends_the_run():
    with pytest.raises(SamplerError, match="no luck") as failed:
        qprune.prune(mlp(), INPUTS, **RUN, sampler=Bad(["raise"]))
    assert isinstance(failed.value, QpruneError)
    assert failed.value.problem.num_variables == 32


def test_every_way_to_fail_is_got_over_and_counted():
    sampler = Bad(["raise", "sizes", "nothing", "nan", "infeasible"], every=2)
    pruned = qprune.prune(
        mlp(), INPUTS, **RUN, sampler=sampler, on_fault=FaultPolicy(fallback="keep")
    )
    # Nobody asked this sampler to count, so that wrong counts are no fault of it.
    ways = Counter(i // 2 % 5 for i in range(2, sampler.calls + 1, 2))
    kinds = Counter(fault.kind for fault in faults_of(pruned.report))
    assert kinds == {"sampler": ways[0] + ways[1] + ways[2], "wrong energies": ways[3]}
    assert min(kinds.values()) > 0
    assert pruned.report.achieved_sparsity == 0.5
    for before, step in zip(pruned.report.steps, pruned.report.steps[1:], strict=False):
        assert step.kind == "start" or step.loss <= before.loss


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
    run = RUN | {"method": replace(RUN["method"], final_rounds=1), "compensate": False}
    policy = FaultPolicy(fallback="keep")
    pruned = qprune.prune(mlp(), INPUTS, **run, sampler=Twice([], 10**9), on_fault=policy)
    assert len(faults_of(pruned.report)) == len(raised) > 0


def test_faults_survive_the_journal(tmp_path):
    from qprune.record.folder import read_steps

    policy = FaultPolicy(fallback="keep")
    sampler = Bad(["raise"], every=2)
    pruned = qprune.prune(
        mlp(), INPUTS, **RUN, sampler=sampler, on_fault=policy, output_dir=tmp_path
    )
    written = [fault for step in read_steps(tmp_path) for fault in step.faults]
    assert written == faults_of(pruned.report) != []


class Paid(Bad):
    """As if remote."""

    paid = True


def test_a_resumed_run_does_not_pay_twice(tmp_path):
    class KilledError(Exception):
        pass

    def observe(step: Step):
        if step.index == 4:
            raise KilledError

    run = RUN | {"on_fault": FaultPolicy(wait=0.0)}
    whole = Paid([], every=10**6)
    expected = qprune.prune(mlp(), INPUTS, **run, sampler=whole)
    sampler = Paid([], every=10**6)
    with pytest.raises(KilledError):
        qprune.prune(mlp(), INPUTS, **run, sampler=sampler, output_dir=tmp_path, observe=observe)
    pruned = qprune.prune(mlp(), INPUTS, **run, sampler=sampler, resume_from=tmp_path)
    assert sampler.calls == whole.calls
    assert all(torch.equal(expected.mask[name], pruned.mask[name]) for name in pruned.mask)


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
