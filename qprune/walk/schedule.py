"""The actions of a run as one list, carried out in order, resumed by their index.

The next action of a run is a function of its `Progress` and of the random generator alone: a run
that has both, and the same settings, goes on to the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import nn

from qprune.errors import NonFiniteError
from qprune.network.patterns import Pattern
from qprune.network.weights import Weights
from qprune.objective.samples import Prepared
from qprune.objective.trace.recorder import halved
from qprune.results import Fault
from qprune.steps.compensate import Compensate
from qprune.walk.run import Run
from qprune.walk.state import Progress, State

logger = logging.getLogger(__name__)


class Action(Protocol):
    """One step of a run: state in, state out; on return the model holds the state's values.

    Attributes:
        required: the asked counts are not met without it; carried out however late it is.
        ends_when_idle: where it changes nothing, the actions after it would not either.
    """

    @property
    def required(self) -> bool: ...
    @property
    def ends_when_idle(self) -> bool: ...

    def __call__(self, run: Run, state: State) -> State:
        """Carry it out."""
        ...

    def undone(self, run: Run, progress: Progress, error: NonFiniteError) -> State:
        """The state to go on from after NaN or Inf; or raise ``error``."""
        ...


class Method(Protocol):
    """A strategy: the weights that a run reaches, and the actions that it consists of.

    Attributes:
        accept_share: share of the samples on which steps are judged, and never fitted.
        uses_loss: whether it reads the loss at the network's end.
        on_host: whether the model has to be on the CPU.
    """

    @property
    def accept_share(self) -> float: ...
    @property
    def uses_loss(self) -> bool: ...
    @property
    def on_host(self) -> bool: ...

    def find(
        self,
        model: nn.Module,
        targets: Sequence[Pattern] | Pattern | None,
        ignore: Sequence[Pattern] | Pattern,
    ) -> Weights:
        """The targeted weights.

        Raises:
            QpruneError: there are none, or the method cannot prune them.
        """
        ...

    def completed(
        self, prepared: Prepared, compensate: Compensate | None, threads: int
    ) -> tuple[Method, Compensate | None]:
        """With its own and the compensation's defaults filled in for this model.

        Raises:
            ImpossibleRequestError: what was asked does not suit the model.
        """
        ...

    def passing(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the model is passed as the method needs it."""
        ...

    def schedule(self, run: Run) -> Schedule:
        """All actions to come."""
        ...

    def first_pass(self, run: Run) -> State | None:
        """The first pass alone, straight to the final counts, written into the model.

        None where it would have to do all of its work twice. Random choices are untouched.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """Every action of a run, in order.

    Attributes:
        actions: the actions.
        close: called when the run ends.
    """

    actions: Sequence[Action]
    close: Callable[[], None] = lambda: None


def carry_out(
    run: Run, schedule: Schedule, progress: Progress, keep: Callable[[Progress], None]
) -> State:
    """Every action from ``progress`` on; ``keep`` is called between any two.

    Once a limit is reached, only the actions are left that the counts need.

    Raises:
        NonFiniteError: NaN or Inf, and no change to undo.
    """
    for position in range(progress.position, len(schedule.actions)):
        action, progress = schedule.actions[position], replace(progress, position=position)
        keep(progress)
        if run.journal.exhausted and not action.required:
            continue
        following = attempted(run, action, progress)
        if action.ends_when_idle and following.state is progress.state:
            break
        progress = following
    keep(replace(progress, position=len(schedule.actions)))
    return progress.state


def attempted(run: Run, action: Action, progress: Progress) -> Progress:
    """One action: again with half the batch where memory ran out, undone where it met NaN.

    Raises:
        NonFiniteError: there is nothing to go back to.
    """
    random = run.generator.get_state()
    while True:
        try:
            return progress.after(action(run.batched(progress.batch_size), progress.state))
        except NonFiniteError as error:
            state = action.undone(run.batched(progress.batch_size), progress, error)
            return replace(progress, state=state, before=state)
        except (RuntimeError, MemoryError) as error:
            batch_size, fault = halved(progress.batch_size, error)
            progress = replace(progress, batch_size=batch_size)
            run.journal.fault(fault)
        run.generator.set_state(random)
        run.put_back(progress.state)


def gone_back(
    run: Run, state: State, before: State, error: NonFiniteError, stage: int, number: int
) -> State:
    """``before`` instead of ``state``, which met NaN or Inf; noted as a step.

    Raises:
        NonFiniteError: ``error``, where that undoes nothing, or would change the counts.
    """
    if before.values is None or before.values is state.values:
        raise error
    if int(before.mask.sum()) != int(state.mask.sum()):
        raise error
    logger.warning("%s: going back by one step", error)
    run.weights.write(before.values)
    # The move that led here promised well and was believed: believe less.
    restored = replace(before, trust=state.trust.raised(0.0, 1))
    run.journal.fault(Fault("not finite", str(error), "the last change was undone"))
    run.journal.begin("rollback", stage, number).note(
        sparsity=run.sparsity(restored),
        price=restored.trust.price,
        accepted=False,
        loss=run.judge.value(),
    )
    return restored


def described(value: Any) -> Any:
    """A strategy or other argument as JSON has it; equal in the next process where it is equal.

    A strategy is named by its class and its fields, a function by its module and name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): described(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [described(item) for item in value]
    return repr(value)
