"""The list of actions: carried out in order, repeated where memory ran out, undone at NaN."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from small_networks import layer
from small_runs import run_of

import qprune
from qprune.errors import ImpossibleRequestError, NonFiniteError
from qprune.walk.journal import Limits
from qprune.walk.networkwise import CompleteNetworkwise, Improve, Prune, Settle
from qprune.walk.schedule import Schedule, as_method, attempted, carry_out, gone_back
from qprune.walk.state import Progress, State


@dataclass
class Scripted:
    """An action that does what a test says, and notes a step."""

    does: object = lambda run, state: state
    required: bool = False
    ends_when_idle: bool = False
    seen: list = field(default_factory=list)

    def __call__(self, run, state):
        self.seen.append(run.objective.batch_size)
        state = self.does(run, state)
        run.journal.begin("scripted").note(sparsity=0.0)
        return state

    def undone(self, run, progress, error):
        return gone_back(run, progress.state, progress.before, error, 2, 5)


def full(run):
    return State.dense(run.weights).full(run.weights)


def moved(run, state):
    """All values one larger, in the model too."""
    state = replace(state, values=state.values + 1)
    run.weights.write(state.values)
    return state


def carried_out(run, actions, progress=None):
    """(the state at the end, the positions between actions)."""
    kept = []
    progress = progress or Progress.beginning(full(run), 16)
    state = carry_out(run, Schedule(actions), progress, kept.append)
    return state, [(progress.position, progress.batch_size) for progress in kept]


def test_every_action_is_carried_out_in_order_and_kept_between():
    run = run_of(layer())
    dense = run.weights.read()
    state, kept = carried_out(run, [Scripted(moved), Scripted(), Scripted(moved)])
    assert torch.equal(state.values, dense + 1 + 1)
    assert [position for position, _ in kept] == [0, 1, 2, 3]


def test_a_run_goes_on_at_its_position():
    run = run_of(layer())
    actions = [Scripted(moved) for _ in range(3)]
    progress = replace(Progress.beginning(full(run), 16), position=2)
    carried_out(run, actions, progress)
    assert [len(action.seen) for action in actions] == [0, 0, 1]


def test_an_action_that_runs_out_of_memory_is_repeated_with_half_the_batch_and_the_same_numbers():
    run = run_of(layer())
    dense, drawn = run.weights.read(), []

    def hungry(run, state):
        assert torch.equal(run.weights.read(), state.values)
        drawn.append(torch.rand(3, generator=run.generator).tolist())
        run.weights.write(torch.zeros_like(state.values))  # It is interrupted in the middle.
        if run.objective.batch_size > 4:
            raise torch.OutOfMemoryError("tried to allocate much")
        assert run.judge.batch_size == run.objective.batch_size
        return moved(run, state)

    first, after = Scripted(hungry), Scripted()
    state, kept = carried_out(run, [first, after])
    assert first.seen == [16, 8, 4]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0] != torch.rand(3, generator=run.generator).tolist()
    assert torch.equal(state.values, dense + 1)
    # What did not fit once is not tried again.
    assert after.seen == [4]
    assert kept == [(0, 16), (1, 4), (2, 4)]
    (step, _) = run.journal.steps
    assert [fault.remedy for fault in step.faults] == ["batch size 8", "batch size 4"]
    assert {fault.kind for fault in step.faults} == {"out of memory"}


def test_out_of_memory_puts_back_what_only_the_model_holds():
    run = run_of(layer())
    dense = run.weights.read()

    def hungry(run, state):
        if run.objective.batch_size > 8:
            run.weights.write(torch.zeros(12))
            raise MemoryError
        assert torch.equal(run.weights.read(), dense)
        return state

    attempted(run, Scripted(hungry), Progress.beginning(State.dense(run.weights), 16))


def test_other_errors_are_not_repeated():
    run = run_of(layer())

    def broken(run, state):
        raise RuntimeError("shapes differ")

    action = Scripted(broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        carried_out(run, [action])
    assert action.seen == [16]


def not_finite(run, state):
    raise NonFiniteError("the loss is NaN")


def test_nan_in_a_round_goes_back_to_before_the_last_change():
    run = run_of(layer())
    dense = run.weights.read()
    state, _ = carried_out(
        run, [Scripted(moved), Scripted(moved), Scripted(not_finite), Scripted()]
    )
    assert torch.equal(state.values, dense + 1)
    assert torch.equal(run.weights.read(), dense + 1)
    assert state.trust.price == 0
    step = run.journal.steps[2]
    assert (step.kind, step.stage, step.round, step.accepted) == ("rollback", 2, 5, False)
    assert [fault.kind for fault in step.faults] == ["not finite"]


def test_the_step_that_is_undone_is_believed_less():
    run = run_of(layer())
    run_state = full(run)
    priced = replace(run_state, trust=replace(run_state.trust, price=0.5))
    state, _ = carried_out(
        run, [Scripted(moved), Scripted(not_finite)], Progress.beginning(priced, 16)
    )
    assert state.trust.price == 0.5 * state.trust.factor


@pytest.mark.parametrize(
    "actions",
    [[not_finite], [moved, not_finite, not_finite]],
    ids=["nothing changed", "already undone"],
)
def test_nan_with_nothing_to_go_back_to_ends_the_run(actions):
    run = run_of(layer())
    with pytest.raises(NonFiniteError, match="the loss is NaN"):
        carried_out(run, [Scripted(action) for action in actions])


def test_nan_after_the_counts_have_changed_ends_the_run():
    run = run_of(layer())

    def pruned(run, state):
        return replace(state, mask=torch.arange(12) > 5, values=state.values + 1)

    with pytest.raises(NonFiniteError):
        carried_out(run, [Scripted(moved), Scripted(pruned), Scripted(not_finite)])


def test_what_the_counts_need_is_not_left_out_for_nan():
    run = run_of(layer())
    method = CompleteNetworkwise()
    state = full(run)
    changed = Progress(0, replace(state, values=state.values + 1), state, 16)
    error = NonFiniteError("the loss is NaN")
    with pytest.raises(NonFiniteError):
        Prune(method, 0, required=True).undone(run, changed, error)
    for action in (Improve(method, 0, 1), Settle(method, 0, 1)):
        assert torch.equal(action.undone(run, changed, error).values, state.values)


def test_a_limit_leaves_only_what_the_counts_need():
    run = run_of(layer(), limits=Limits(max_steps=2))
    needed = [False, False, False, True, False, True]
    actions = [Scripted(required=required) for required in needed]
    _, kept = carried_out(run, actions)
    assert [len(action.seen) for action in actions] == [1, 1, 0, 1, 0, 1]
    assert kept[-1] == (6, 16)
    assert run.journal.stopped == "max_steps"


def test_an_action_that_changes_nothing_may_end_the_run():
    run = run_of(layer())
    actions = [
        Scripted(ends_when_idle=False),
        Scripted(moved, ends_when_idle=True),
        Scripted(ends_when_idle=True),
        Scripted(ends_when_idle=True),
    ]
    _, kept = carried_out(run, actions)
    assert [len(action.seen) for action in actions] == [1, 1, 1, 0]
    assert kept[-1][0] == 4


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ((), "method is empty"),
        ("layerwise", "method must be Networkwise"),
        (None, "method must be Networkwise"),
        (qprune.Networkwise(start=None), "improves the mask of a method before it"),
        (
            (qprune.Networkwise(start=None), qprune.Layerwise()),
            "improves the mask of a method before it",
        ),
        ((qprune.Layerwise(), qprune.Networkwise()), "a Networkwise .* would undo"),
        ((qprune.Networkwise(), qprune.Layerwise()), "a Layerwise .* would undo"),
    ],
)
def test_methods_that_cannot_stand_where_they_stand_are_refused(methods, words):
    with pytest.raises(ImpossibleRequestError, match=words):
        as_method(methods)
