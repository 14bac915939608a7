"""The actions of a run as one list, carried out in order, resumed by their index.

The next action of a run is a function of its `Progress` and of the random generator alone: a run
that has both, and the same settings, goes on to the same bytes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial, reduce
from typing import Any, Protocol, cast

from torch import nn

from qprune.cost import Needs
from qprune.errors import ImpossibleRequestError, NonFiniteError
from qprune.moving.compensate import Compensate
from qprune.network.patterns import Pattern
from qprune.network.weights import Weights
from qprune.objective.samples import Prepared
from qprune.objective.trace.recorder import halved
from qprune.results import Fault
from qprune.walk.journal import Limits
from qprune.walk.run import Run
from qprune.walk.state import Progress, State
from solvers import Ask
from solvers.host.secrets import without_secrets

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
        goes_on: whether it improves the mask that a method before it made; else it makes one.
    """

    @property
    def accept_share(self) -> float: ...
    @property
    def uses_loss(self) -> bool: ...
    @property
    def on_host(self) -> bool: ...
    @property
    def goes_on(self) -> bool: ...

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
    ) -> tuple[CompleteMethod, Compensate | None]:
        """With its own and the compensation's defaults filled in for this model.

        Raises:
            ImpossibleRequestError: what was asked does not suit the model.
        """
        ...

    def passing(self, model: nn.Module) -> AbstractContextManager[None]:
        """A context in which the model is passed as the method needs it."""
        ...


class CompleteMethod(Method, Protocol):
    """Protocol of methods with nothing left open."""

    def cost(
        self,
        prepared: Prepared,
        compensate: Compensate | None,
        ask: Ask,
        limits: Limits,
        executor: Any,
    ) -> Needs:
        """Memory and time, passes measured.

        Raises:
            QpruneError: the network, the data or the loss are not fit for each other.
        """
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
    run.put_back(before)
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


@dataclass(frozen=True)
class InOrder:
    """A method: several methods, one after the other.

    Args:
        methods: the first one finds the weights; the others improve what it made.
    """

    methods: tuple[Method, ...]
    goes_on = False

    @property
    def accept_share(self) -> float:
        """The largest of all."""
        return max(method.accept_share for method in self.methods)

    @property
    def uses_loss(self) -> bool:
        """True if one of them does."""
        return any(method.uses_loss for method in self.methods)

    @property
    def on_host(self) -> bool:
        """True if one of them has to be."""
        return any(method.on_host for method in self.methods)

    def find(
        self,
        model: nn.Module,
        targets: Sequence[Pattern] | Pattern | None,
        ignore: Sequence[Pattern] | Pattern,
    ) -> Weights:
        """Those of the first method."""
        weights = self.methods[0].find(model, targets, ignore)
        reason = reason_against(weights)
        if reason is not None and self.uses_loss:
            raise ImpossibleRequestError(
                f"{reason}; across the network, qprune moves only matrices that all tokens reach: "
                "use method=Layerwise() alone"
            )
        return weights

    @contextmanager
    def passing(self, model: nn.Module) -> Generator[None]:
        """As all of them need it."""
        with ExitStack() as stack:
            for method in self.methods:
                stack.enter_context(method.passing(model))
            yield

    def completed(
        self, prepared: Prepared, compensate: Compensate | None, threads: int
    ) -> tuple[CompleteInOrder, Compensate | None]:
        """See `Method`."""
        methods: list[CompleteMethod] = []
        for method in self.methods:
            done, compensate = method.completed(prepared, compensate, threads)
            methods.append(done)
        return CompleteInOrder(tuple(methods)), compensate


@dataclass(frozen=True)
class CompleteInOrder(InOrder):
    """An `InOrder` with nothing left open."""

    methods: tuple[CompleteMethod, ...]

    def cost(
        self,
        prepared: Prepared,
        compensate: Compensate | None,
        ask: Ask,
        limits: Limits,
        executor: Any,
    ) -> Needs:
        """The sum of all."""
        known = (prepared, compensate, ask, limits, executor)
        each = (method.cost(*known) for method in self.methods)
        return reduce(Needs.__add__, each)

    def schedule(self, run: Run) -> Schedule:
        """The actions of all in one list."""
        schedules = [method.schedule(run) for method in self.methods]

        def close() -> None:
            for schedule in schedules:
                schedule.close()

        return Schedule([action for one in schedules for action in one.actions], close)

    def first_pass(self, run: Run) -> State | None:
        """That of the first method."""
        return self.methods[0].first_pass(run)


def as_method(method: Method | Sequence[Method]) -> Method:
    """One method, or several in a row as one.

    Raises:
        ImpossibleRequestError: there is none, or one stands where it cannot.
    """
    methods: tuple[Method, ...]
    if isinstance(method, Sequence) and not isinstance(method, str):
        methods = tuple(method)
    else:
        methods = (cast(Method, method),)
    if not methods:
        raise ImpossibleRequestError("method is empty: pass Networkwise(), Layerwise(), or both")
    for one in methods:
        if not hasattr(one, "goes_on"):
            raise ImpossibleRequestError(
                "method must be Networkwise(...), Layerwise(...), or both in a row, not "
                f"{one!r:.60}"
            )
    if methods[0].goes_on:
        raise ImpossibleRequestError(
            f"{type(methods[0]).__name__} without a start improves the mask of a method before it, "
            "and there is none: pass method=(Layerwise(), Networkwise(start=None)), or a start"
        )
    for later in methods[1:]:
        if not later.goes_on:
            raise ImpossibleRequestError(
                f"a {type(later).__name__} that makes a mask of its own would undo the method "
                "before it: after the first method stands Networkwise(start=None)"
            )
    return methods[0] if len(methods) == 1 else InOrder(methods)


def reason_against(weights: Weights) -> str | None:
    """The reason why the loss at the network's end cannot move some weight; None where it can."""
    for weight in weights:
        if weight.expert is not None:
            return f"{weight.name!r} is one of the experts of a {type(weight.module).__name__}"
        if weight.routed:
            return f"only some tokens reach {weight.name!r}"
    return None


def described(value: Any) -> str:
    """A strategy or another argument as text; equal in another process where it is equal.

    A strategy is named by its class and its fields, a function by its module and its name.
    """
    if is_dataclass(value) and not isinstance(value, type):
        shown = [field.name for field in fields(value) if field.repr]
        inside = ", ".join(f"{name}={described(getattr(value, name))}" for name in shown)
        return f"{type(value).__qualname__}({inside})"
    if isinstance(value, partial):
        parts = [value.func, *value.args, value.keywords]
        return f"partial({', '.join(map(described, parts))})"
    if isinstance(value, Mapping):
        shown = without_secrets(value)
        return "{" + ", ".join(f"{name!r}: {described(item)}" for name, item in shown.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(described, cast(Sequence[object], value))) + "]"
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    return repr(value)
