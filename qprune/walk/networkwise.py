"""Pruning across the network: the loss at its end expanded to second order, blocks across layers.

stage -> first pass -> [ expand the loss -> select blocks -> formulate -> solve -> accept ->
compensate ]
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qprune.cost import Needs, effort_for
from qprune.distributed.sharding import refuse_other_shardings
from qprune.errors import ImpossibleRequestError, NonFiniteError
from qprune.moving.compensate import Compensate, Compensation
from qprune.network.groups import named, prune_lowest
from qprune.network.patterns import Pattern
from qprune.network.statistics import statistics_of
from qprune.network.weights import Weights, find_weights
from qprune.objective import CURVATURES, EmpiricalFisher, SampledFisher, SketchedFisher
from qprune.objective.curvature import Curvature, Expansion
from qprune.objective.fisher import PerSampleFisher
from qprune.objective.samples import Objective, Prepared
from qprune.results import BlockRecord, Fault
from qprune.steps.accept import Proposal, Verdict, accept
from qprune.steps.formulate import Terms, repriced
from qprune.steps.propose import Present, Propose
from qprune.steps.select import SELECTORS, Boundary, Select
from qprune.steps.solve import Question, SolvedBlock, answers
from qprune.steps.start import STARTS, DiagonalFisher, Start
from qprune.walk.journal import Attempt, Limits
from qprune.walk.network_cost import network_cost
from qprune.walk.run import Run
from qprune.walk.schedule import Action, Schedule, gone_back
from qprune.walk.state import FullState, Progress, State
from solvers import Ask
from solvers.host.ranges import MAX_STEPS, FurtherSteps, Number, Pair, Steps, checked

logger = logging.getLogger(__name__)

# Variables per block where the model has as many weights.
_BLOCK_SIZE = 1024
# Rounds for which weights rest that were offered and not changed.
_REST = 2
# Samples on which the loss before a compensation is noted; it decides nothing.
_NOTED = 256
_WHOLE_NUMBERS = {
    "num_blocks": Number,
    "block_size": Pair,
    "samples_per_step": Number,
    "stages": Steps,
    "rounds": FurtherSteps,
    "final_rounds": FurtherSteps,
}


@dataclass(frozen=True)
class Networkwise:
    """A method: the loss at the network's end, expanded to second order; blocks across all layers.

    Args:
        start: the first pass of every stage, a strategy or its name in
            `qprune.steps.start.STARTS`; None takes the mask that the method before it left.
        curvature: `SketchedFisher` (default), `SampledFisher`, `EmpiricalFisher`, `ExactHessian`,
            or a name.
        select: how blocks are chosen, a strategy or its name in `qprune.steps.select.SELECTORS`.
        terms: extra energy over a block's variables; see `qprune.steps.formulate.Terms`.
        block_size: variables per block; None = 1024, or all weights where there are fewer.
        num_blocks: disjoint blocks per expansion of the loss.
        stages: steps of the cubic way to the sparsity; 1 = one shot. None = 20, or 10 for a
            network whose passes are dear.
        rounds: expansions per stage; 0 = first pass alone. None = 4, or 1.
        final_rounds: expansions at the last stage; None = 5 x rounds.
        samples_per_step: at most this many samples per expansion; None = 2400, or 400.
        damping: added to the curvature's diagonal, as a multiple of its mean.
        corrected: whether a block's model is corrected for the optimism of its own minimum
            (`qprune.steps.crossfit`).
        anticipates: whether a block's model lets the kept weights around it move along
            (`qprune.steps.anticipate`), and is judged once they have, where kept weights move at
            all. Slow at low sparsity, where many move along.
        accept_share: share of the samples on which steps are judged, and never fitted.

    Raises:
        ImpossibleRequestError: a number makes no sense.

    Example:
        >>> Networkwise(stages=2, rounds=1).num_blocks
        1
    """

    start: Start | str | None = DiagonalFisher()
    curvature: Curvature | str = SketchedFisher()
    select: Select | str = Boundary()
    terms: Terms | None = None
    block_size: int | None = None
    num_blocks: int = 1
    stages: int | None = None
    rounds: int | None = None
    final_rounds: int | None = None
    samples_per_step: int | None = None
    damping: float = 0.1
    corrected: bool = True
    anticipates: bool = False
    accept_share: float = 0.2
    uses_loss = True
    on_host = True

    def __post_init__(self) -> None:
        for name, kind in _WHOLE_NUMBERS.items():
            value = getattr(self, name)
            if value is None and name != "num_blocks":
                continue
            try:
                checked(kind, value, name)
            except ValueError as error:
                raise ImpossibleRequestError(str(error)) from error
        if not 0 < self.accept_share < 1:
            raise ImpossibleRequestError(
                f"accept_share must lie between 0 and 1, not {self.accept_share!r}"
            )
        if self.start is None and (self.stages or 1) != 1:
            raise ImpossibleRequestError(
                f"without a start of its own Networkwise has one stage, not {self.stages}; leave "
                "stages out"
            )
        named("curvature", self.curvature, CURVATURES)
        named("select", self.select, SELECTORS)
        if self.start is not None:
            named("start", self.start, STARTS)

    @property
    def goes_on(self) -> bool:
        """True if it improves the mask of a method before it."""
        return self.start is None

    def find(
        self,
        model: nn.Module,
        targets: Sequence[Pattern] | Pattern | None,
        ignore: Sequence[Pattern] | Pattern,
    ) -> Weights:
        """See `qprune.walk.schedule.Method`."""
        weights = find_weights(model, targets, ignore)
        self._fitting_block(weights)
        return weights

    def passing(self, model: nn.Module) -> AbstractContextManager[None]:
        """As it is."""
        return nullcontext()

    def completed(
        self, prepared: Prepared, compensate: Compensate | None, threads: int
    ) -> tuple[CompleteNetworkwise, Compensate | None]:
        """See `qprune.walk.schedule.Method`."""
        effort = effort_for(prepared.sample.multiplications)
        rounds = effort.rounds if self.rounds is None else self.rounds
        usual = effort.final_rounds if self.rounds is None else 5 * self.rounds
        method = CompleteNetworkwise(
            start=None if self.start is None else named("start", self.start, STARTS),
            curvature=self._suited_curvature(prepared),
            select=named("select", self.select, SELECTORS),
            terms=self.terms,
            block_size=self._fitting_block(prepared.weights),
            num_blocks=self.num_blocks,
            stages=1 if self.start is None else self.stages or effort.stages,
            rounds=rounds,
            final_rounds=usual if self.final_rounds is None else self.final_rounds,
            samples_per_step=self.samples_per_step or effort.samples_per_step,
            damping=self.damping,
            corrected=self.corrected,
            anticipates=self.anticipates,
            accept_share=self.accept_share,
        )
        method.refuse_endless()
        completed = None if compensate is None else compensate.completed(effort)
        if prepared.weights.sharded:
            method.refuse_sharded(prepared, completed)
        ranks, size = prepared.ranks, prepared.batch_size
        if min(len(prepared.fit), method.samples_per_step) <= (ranks.size - 1) * size:
            logger.warning(
                "%d ranks share batches of %d samples and some get none; pass a smaller batch_size",
                ranks.size,
                size,
            )
        return method, completed

    def _suited_curvature(self, prepared: Prepared) -> Curvature:
        curvature = named("curvature", self.curvature, CURVATURES)
        if prepared.loss.has_distribution or not isinstance(
            curvature, SketchedFisher | SampledFisher
        ):
            return curvature
        logger.info("a loss of one's own has no distribution: the curvature is EmpiricalFisher()")
        return EmpiricalFisher()

    def _fitting_block(self, weights: Weights) -> int:
        if self.block_size is None:
            return min(_BLOCK_SIZE, weights.size)
        if self.block_size > weights.size:
            raise ImpossibleRequestError(
                f"block_size {self.block_size} is more than the model's {weights.size} targeted "
                "weights; choose a smaller block"
            )
        return self.block_size


@dataclass(frozen=True)
class CompleteNetworkwise(Networkwise):
    """A `Networkwise` with nothing left open."""

    start: Start | None = None
    curvature: Curvature = SketchedFisher()
    select: Select = Boundary()
    block_size: int = _BLOCK_SIZE
    stages: int = 1
    rounds: int = 0
    final_rounds: int = 0
    samples_per_step: int = 1

    def refuse_endless(self) -> None:
        """Refuse more expansions than can end."""
        expansions = (self.stages - 1) * self.rounds + self.final_rounds
        if expansions > MAX_STEPS:
            raise ImpossibleRequestError(
                f"{self.stages:,} stages of {self.rounds:,} rounds, {self.final_rounds:,} in "
                f"the last one, are {expansions:,} expansions; a run has at most {MAX_STEPS:,}"
            )

    def refuse_sharded(self, prepared: Prepared, compensate: Compensate | None) -> None:
        """Refuse what reads weights that a sharded model does not hold while it runs."""
        for weight in prepared.weights:
            if not isinstance(weight.module, nn.Linear | nn.Conv2d):
                raise ImpossibleRequestError(
                    f"{weight.name!r} belongs to a {type(weight.module).__name__}; of a sharded "
                    "model, qprune prunes Linear and Conv2d: add it to ignore, or shard nothing"
                )
            refuse_other_shardings(weight.name, weight.parameter, prepared.ranks.size)
        for what, given, supported in (
            ("curvature", isinstance(self.curvature, PerSampleFisher), "a Fisher matrix"),
            ("compensate", isinstance(compensate, Compensation | None), "Compensation(), or False"),
        ):
            if not given:
                raise ImpossibleRequestError(
                    f"{what} does not suit a sharded model; it takes {supported}, or shard nothing "
                    "and let every rank hold the model"
                )

    def cost(
        self,
        prepared: Prepared,
        compensate: Compensate | None,
        ask: Ask,
        limits: Limits,
        executor: Any,
    ) -> Needs:
        """See `qprune.walk.schedule.Method`."""
        return network_cost(self, prepared, compensate, ask, limits, executor)

    def schedule(self, run: Run) -> Schedule:
        """See `qprune.walk.schedule.Method`; the method is completed."""
        actions: list[Action] = []
        for stage in range(self.stages):
            last = stage == self.stages - 1
            rounds = self.final_rounds if last else self.rounds
            actions.append(Prune(self, stage, required=last))
            if run.compensate is not None and not run.compensate.at_end:
                actions.append(Settle(self, stage, 0, ends_when_idle=False))
            actions += [Improve(self, stage, number) for number in range(rounds)]
        steps = run.compensate.final_steps if run.compensate else 0
        return Schedule([*actions, *(Settle(self, self.stages - 1, n) for n in range(steps))])

    def first_pass(self, run: Run) -> State | None:
        """See `qprune.walk.schedule.Method`."""
        if self.start is None:
            return None
        random = run.generator.get_state()
        objective = self.drawn(run)
        expansion = self.expanded(objective, run)
        scores = self._scores(objective, expansion, run.dense.values, run.generator)
        run.generator.set_state(random)
        dense = State.dense(run.weights)
        mask = prune_lowest(scores, dense.mask, run.groups, run.groups.total)
        values = run.dense.values * mask
        run.weights.write(values)
        return replace(dense, mask=mask, values=values)

    def drawn(self, run: Run) -> Objective:
        """The objective of one expansion."""
        return run.objective.drawn(self.samples_per_step, run.generator)

    def expanded(self, objective: Objective, run: Run) -> Expansion:
        """The damped second-order expansion of ``objective`` at the current weights.

        Raises:
            NonFiniteError: it holds NaN or Inf; names the layer.
        """
        expansion = self.curvature.expand(objective, run.generator)
        for what, vector in (("gradient", expansion.gradient), ("curvature", expansion.diagonal)):
            if not torch.isfinite(vector).all():
                at = int(torch.nonzero(~torch.isfinite(vector))[0])
                weight, _, _ = run.weights.locate(torch.tensor([at]))[0]
                raise NonFiniteError(
                    f"the {what} of layer {weight.name!r} holds NaN or Inf; look at the loss"
                )
        return expansion.damped(self.damping)

    def propose(self, run: Run) -> Propose:
        """The strategy that chooses blocks and models them."""
        return Propose(
            select=self.select,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            terms=self.terms,
            corrected=self.corrected,
            anticipates=self.anticipates and run.compensate is not None,
        )

    def _scores(
        self, objective: Objective, expansion: Expansion, values: Tensor, random: torch.Generator
    ) -> Tensor:
        assert self.start is not None
        return self.start.scores(objective, expansion, values, random)

    def pruned(self, run: Run, state: FullState, stage: int, step: Attempt) -> FullState:
        """The state pruned to a stage's counts by the start, and noted; always taken."""
        if state.statistics is None:
            state = replace(state, statistics=statistics_of(run.objective.model))
        objective = self.drawn(run).refitted(run.compensate is not None)
        judge = replace(run.judge, loss=objective.loss)
        before = judge.value()
        if not math.isfinite(before):
            judge.require_finite()
        fit_loss, pruned = before, state
        if self.start is not None:
            with step.phase("curvature"):
                expansion = self.expanded(objective, run)
            with step.phase("select"):
                scores = self._scores(objective, expansion, state.values, run.generator)
                total = round((1 - (1 - (stage + 1) / self.stages) ** 3) * run.groups.total)
                mask = prune_lowest(scores, state.mask, run.groups, total)
            pruned = replace(state, values=state.values * mask, mask=mask)
            fit_loss = expansion.loss
            run.put_back(pruned)
        with step.phase("accept"):
            after = judge.value()
        step.note(
            sparsity=run.sparsity(pruned),
            price=pruned.trust.price,
            real=after - before,
            loss=after,
            fit_loss=fit_loss,
            flips=int((state.mask & ~pruned.mask).sum()),
        )
        return pruned


@dataclass(frozen=True)
class Prune:
    """The first pass of one stage, to the stage's counts."""

    method: CompleteNetworkwise
    stage: int
    required: bool
    ends_when_idle = False

    def __call__(self, run: Run, state: State) -> State:
        stage = self.stage
        if run.journal.exhausted:
            stage = self.method.stages - 1
        step = run.journal.begin("start", stage)
        return self.method.pruned(run, state.full(run.weights), stage, step)

    def undone(self, run: Run, progress: Progress, error: NonFiniteError) -> State:
        """The counts need it: it cannot be left out."""
        raise error


@dataclass(frozen=True)
class Improve:
    """One round: restore-or-prune decisions on blocks, then the kept weights move."""

    method: CompleteNetworkwise
    stage: int
    number: int
    required = False
    ends_when_idle = False

    def __call__(self, run: Run, state: State) -> State:
        method, state = self.method, state.full(run.weights)
        step = run.journal.begin("blocks", self.stage, self.number)
        objective = method.drawn(run).refitted(run.compensate is not None)
        with step.phase("curvature"):
            expansion = method.expanded(objective, run)
        with step.phase("formulate"):
            proposals = method.propose(run).proposals(self._present(run, state), expansion)
        state = self._rested(state, [torch.from_numpy(p.block.indices) for p in proposals])
        trial = _Trial(run, step, self, state, objective, expansion.loss)
        with step.phase("accept"):
            present = trial.judged.value()
        trust, taken = accept(trial, proposals, state.trust, present)
        if not taken:
            return replace(state, trust=trust)
        after = replace(carried_out(state, taken), trust=trust)
        if trial.settles:
            model = run.objective.model
            return replace(after, values=run.weights.read(), statistics=statistics_of(model))
        if not trial.compensates:
            return after
        try:
            return compensated(run, after, self.stage, method)
        except NonFiniteError as error:
            return gone_back(run, after, state, error, self.stage, self.number)

    def undone(self, run: Run, progress: Progress, error: NonFiniteError) -> State:
        """Back to before the last action that changed something."""
        return gone_back(run, progress.state, progress.before, error, self.stage, self.number)

    @property
    def _clock(self) -> int:
        """Number of the round in the run, for rests."""
        return self.stage * (self.method.rounds + 1) + self.number

    def _present(self, run: Run, state: FullState) -> Present:
        """The weights as they are."""
        return Present(
            weights=run.weights,
            groups=run.groups,
            mask=state.mask,
            values=state.values,
            dense=run.dense.values,
            resting=state.resting > self._clock,
            moving=run.compensate is not None,
            random=run.generator,
        )

    def _rested(self, state: FullState, chosen: Sequence[Tensor]) -> FullState:
        """The state in which all that is offered now rests in the next rounds."""
        resting = state.resting.clone()
        for indices in chosen:
            resting[indices] = self._clock + 1 + _REST
        return replace(state, resting=resting)


@dataclass(frozen=True)
class Settle:
    """The kept weights move once more: after a first pass, or after the last block.

    Attributes:
        method, stage, number: of the call.
        ends_when_idle: whether it follows the last block.
    """

    method: CompleteNetworkwise
    stage: int
    number: int
    ends_when_idle: bool = True
    required = False

    def __call__(self, run: Run, state: State) -> State:
        if run.compensate is not None and not self.ends_when_idle:
            run = replace(run, compensate=run.compensate.at(self.stage, self.method.stages))
        return compensated(run, state.full(run.weights), self.stage, self.method)

    def undone(self, run: Run, progress: Progress, error: NonFiniteError) -> State:
        """Back to before the last action that changed something."""
        return gone_back(run, progress.state, progress.before, error, self.stage, self.number)


@dataclass(frozen=True, eq=False)
class Moved:
    """The outcome of a compensation.

    Attributes:
        state: the one that the model holds.
        real: change of the loss on the samples that judge, nats.
        loss: the loss there afterwards, nats.
        fit_loss: the loss on fitted samples before, nats.
    """

    state: FullState
    real: float
    loss: float
    fit_loss: float


def moved(run: Run, state: FullState, method: CompleteNetworkwise) -> Moved:
    """Move the kept weights by the best of the candidate moves, if one lowers the loss."""
    assert run.compensate is not None
    number = run.compensate.num_samples or method.samples_per_step
    objective = run.objective.drawn(number, run.generator).refitted(True)
    judge = replace(run.judge, loss=objective.loss)
    fit_loss = replace(objective, samples=objective.samples.spread(_NOTED)).value()
    present = judge.value()
    best, after = present, state
    for move in run.compensate.moves(objective, state.mask, run.generator):
        statistics = statistics_of(run.objective.model)
        run.weights.write(state.values + move)
        judged = judge.value()
        if judged < best:
            best = judged
            after = replace(state, values=state.values + move, statistics=statistics)
        if run.journal.exhausted:
            break
    run.put_back(after)
    return Moved(after, best - present, best, fit_loss)


def compensated(run: Run, state: FullState, stage: int, method: CompleteNetworkwise) -> FullState:
    """The state with its kept weights moved, and noted."""
    if run.compensate is None or run.journal.exhausted:
        return state
    step = run.journal.begin("compensate", stage)
    with step.phase("compensate"):
        done = moved(run, state, method)
    step.note(
        sparsity=run.sparsity(done.state),
        price=done.state.trust.price,
        accepted=done.state is not state,
        real=done.real,
        loss=done.loss,
        fit_loss=done.fit_loss,
    )
    return done.state


def carried_out(state: FullState, proposals: Sequence[Proposal]) -> FullState:
    """The state with every proposal's answer carried out; only what was changed rests."""
    values, mask, resting = state.values.clone(), state.mask.clone(), state.resting.clone()
    for proposal in proposals:
        assert proposal.answer is not None
        block, kept = proposal.block, proposal.answer.sample == 0
        indices = torch.from_numpy(block.indices)
        values[indices] = torch.from_numpy(np.where(kept, block.keep_value, 0.0)).to(values)
        mask[indices] = torch.from_numpy(kept)
        if proposal.response is not None and proposal.around is not None:
            moved = proposal.response @ (np.where(kept, block.keep_value, 0.0) - block.current)
            values[proposal.around] += torch.from_numpy(moved).to(values)
        resting[indices[torch.from_numpy(kept == block.pruned.astype(bool))]] = 0
    return replace(state, values=values, mask=mask, resting=resting)


@dataclass(frozen=True, eq=False)
class _Trial:
    """One round's proposals put to the acceptance split (`qprune.steps.accept.Trial`)."""

    run: Run
    step: Attempt
    action: Improve
    state: FullState
    objective: Objective
    fit_loss: float

    @property
    def exhausted(self) -> bool:
        return self.run.journal.exhausted

    @property
    def judged(self) -> Objective:
        """The objective that judges, with the loss as it is fitted to this round."""
        return replace(self.run.judge, loss=self.objective.loss)

    @property
    def compensates(self) -> bool:
        """True if kept weights move between blocks."""
        compensate = self.run.compensate
        return compensate is not None and not compensate.at_end

    @property
    def settles(self) -> bool:
        """True if proposals are judged after kept weights have moved."""
        return self.action.method.anticipates and self.compensates

    def judge(self, proposals: Sequence[Proposal], present: float) -> Verdict:
        state = carried_out(self.state, proposals)
        with self.step.phase("accept"):
            self._write(state, proposals)
            at_once = self.judged.value() - present
        if not self.settles or self.exhausted:
            return Verdict(at_once, at_once)
        try:
            with self.step.phase("compensate"):
                moved(self.run, state, self.action.method)
        except NonFiniteError as error:
            self.run.journal.fault(Fault("not finite", str(error), "the blocks were refused"))
            return Verdict(at_once, math.inf)
        with self.step.phase("accept"):
            return Verdict(at_once, self.judged.value() - present)

    def undo(self, proposals: Sequence[Proposal]) -> None:
        if self.settles:
            self.run.put_back(self.state)
        else:
            self._write(self.state, proposals)

    def _write(self, state: FullState, proposals: Sequence[Proposal]) -> None:
        for proposal in proposals:
            indices = torch.from_numpy(proposal.block.indices)
            if proposal.around is not None:
                indices = torch.cat([indices, proposal.around]).sort().values
            self.run.weights.write_at(indices, state.values[indices])

    def solve(self, proposals: Sequence[Proposal], price: float) -> list[Proposal]:
        run, place = self.run, (self.action.stage, self.action.number)
        with self.step.phase("solve"):
            jobs = [
                (
                    repriced(p.problem, p.block, price),
                    p.block.pruned,
                    _seed(run.seed, *place, number),
                )
                for number, p in enumerate(proposals)
            ]
            found = answers(run.ask, jobs, run.executor)
        for number, answer in enumerate(found):
            for fault in answer.faults:
                run.journal.fault(replace(fault, block=number))
        solved = [replace(p, answer=a) for p, a in zip(proposals, found, strict=True)]
        self._show(solved, jobs)
        return solved

    def _show(self, solved: Sequence[Proposal], jobs: Sequence[Question]) -> None:
        """Call the observers of blocks with what was asked, and what came back."""
        run = self.run
        if not run.observe_blocks:
            return
        for number, (proposal, (problem, present, seed)) in enumerate(
            zip(solved, jobs, strict=True)
        ):
            assert proposal.answer is not None
            block = SolvedBlock(
                step=len(run.journal.steps),
                stage=self.action.stage,
                round=self.action.number,
                block=number,
                sampler=run.ask.name,
                layers=run.weights.count_by_layer(torch.from_numpy(proposal.block.indices)),
                sparsity=run.sparsity(self.state),
                problem=problem,
                present=present,
                seed=seed,
                answer=proposal.answer,
                predicted=proposal.predicted,
            )
            for observe in run.observe_blocks:
                observe(block)

    def note(
        self,
        proposals: Sequence[Proposal],
        accepted: bool,
        verdict: Verdict,
        loss: float,
        price: float,
    ) -> None:
        self.step.note(
            sparsity=self.run.sparsity(self.state),
            price=price,
            accepted=accepted,
            predicted=sum(p.predicted for p in proposals),
            uncorrected=sum(p.uncorrected for p in proposals),
            at_once=verdict.at_once,
            real=verdict.settled,
            loss=loss,
            fit_loss=self.fit_loss,
            flips=sum(p.flips for p in proposals) if accepted else 0,
            blocks=tuple(self._record(proposal) for proposal in proposals),
        )

    def _record(self, proposal: Proposal) -> BlockRecord:
        assert proposal.answer is not None
        weights = self.run.weights
        return BlockRecord(
            num_variables=proposal.model.num_variables,
            num_candidates_kept=int((proposal.block.pruned == 0).sum()),
            layers=weights.count_by_layer(torch.from_numpy(proposal.block.indices)),
            sampler=self.run.ask.name,
            predicted=proposal.predicted,
            lower_bound=proposal.answer.lower_bound,
            flips=proposal.flips,
            seconds=proposal.answer.seconds,
            info=dict(proposal.answer.info) | {"energy": proposal.answer.energy},
        )


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(1)[0])
