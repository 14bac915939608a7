"""One step of a run at a time: state in, state out. Every proposal is put to unseen samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qprune.network.groups import prune_lowest
from qprune.objective import Expansion
from qprune.objective.losses import Loss
from qprune.objective.trace.recorder import mean_loss
from qprune.results import BlockRecord, Fault
from qprune.steps.formulate import Block, formulate, repriced, with_terms
from qprune.steps.select import Offer
from qprune.steps.solve import Question, SolvedBlock, answers
from qprune.steps.start import Pruner
from qprune.walk.setting import Setting, State
from solvers import Answer, QuadraticProblem

# How often a refused proposal is halved, or solved again at a higher price.
_ATTEMPTS = 4
# Samples on which the loss before a compensation is noted; it decides nothing.
_NOTED = 256
# Rounds for which weights rest that were offered and not changed.
_REST = 2


@dataclass
class Stopwatch:
    """Wall time by phase and process time in all, of one step."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.process_time)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def record(self) -> dict[str, object]:
        """What a `Step` notes; counting starts anew."""
        noted = {"seconds": dict(self.seconds), "cpu_seconds": time.process_time() - self.began}
        self.seconds.clear()
        self.began = time.process_time()
        return noted


def first_pass(setting: Setting, state: State, stage: int) -> State:
    """Prune to the stage's counts by the start; always taken."""
    watch = Stopwatch()
    share = 1 - (1 - (stage + 1) / setting.effort.stages) ** 3
    total = round(share * setting.groups.total)
    samples = setting.draw()
    loss = setting.refitted_loss(samples)
    before = setting.judge(loss)
    if not math.isfinite(before):
        setting.require_finite(loss)
    if isinstance(setting.start, Pruner):
        with watch.phase("solve"):
            pruned, fit_loss = setting.pruned_by(setting.start), before
    else:
        with watch.phase("curvature"):
            expansion = setting.expand(samples, loss)
        with watch.phase("select"):
            scores = setting.scores(setting.start, state.values, samples, expansion)
            mask = prune_lowest(scores, state.mask, setting.groups, total)
        pruned, fit_loss = replace(state, values=state.values * mask, mask=mask), expansion.loss
        setting.layers.write(pruned.values)
    with watch.phase("accept"):
        after = setting.judge(loss)
    flips = int((state.mask & ~pruned.mask).sum())
    note(
        setting,
        pruned,
        watch,
        stage=stage,
        round=0,
        kind="start",
        accepted=True,
        predicted=None,
        real=after - before,
        loss=after,
        fit_loss=fit_loss,
        flips=flips,
    )
    return pruned


def compensate_once(setting: Setting, state: State, stage: int) -> State:
    """Move the kept weights by the best of the candidate steps, if one lowers the loss."""
    if setting.compensation is None or setting.journal.exhausted:
        return state
    watch = Stopwatch()
    samples = setting.draw(setting.compensation.num_samples)
    loss = setting.refitted_loss(samples)
    fit_loss = mean_loss(setting.model, samples.spread(_NOTED), loss, setting.batch_size)
    present = setting.judge(loss)
    best, values = present, state.values
    with watch.phase("compensate"):
        moves = setting.compensation.moves(
            setting.model,
            setting.layers,
            state.mask,
            samples,
            loss,
            setting.batch_size,
            setting.generator,
        )
        for move in moves:
            setting.layers.write(state.values + move)
            judged = setting.judge(loss)
            if judged < best:
                best, values = judged, state.values + move
            if setting.journal.exhausted:
                break
        setting.layers.write(values)
    moved = state if values is state.values else replace(state, values=values)
    note(
        setting,
        moved,
        watch,
        stage=stage,
        round=0,
        kind="compensate",
        accepted=moved is not state,
        predicted=None,
        real=best - present,
        loss=best,
        fit_loss=fit_loss,
        flips=0,
    )
    return moved


def block_round(setting: Setting, state: State, stage: int, number: int) -> tuple[State, bool]:
    """Expand, select, formulate, solve, accept; (state, whether any decision changed)."""
    watch = Stopwatch()
    samples = setting.draw()
    loss = setting.refitted_loss(samples)
    with watch.phase("curvature"):
        expansion = setting.expand(samples, loss)
    clock = stage * (setting.effort.rounds + 1) + number
    with watch.phase("select"):
        keep_value = _keep_values(setting, state, expansion)
        chosen = _selected(setting, state, expansion, keep_value, clock)
    proposals = []
    with watch.phase("curvature"):
        curvatures = expansion.curvature.blocks(chosen) if chosen else []
    for indices, curvature in zip(chosen, curvatures, strict=True):
        with watch.phase("formulate"):
            block = _block(setting, state, expansion, keep_value, indices)
            model = formulate(block, curvature, ridge=expansion.damping / 2)
            terms = setting.request.terms
            proposals.append(
                Proposal(block, model, with_terms(model, block, terms) if terms else model)
            )
    rest = state.resting.clone()
    for indices in chosen:
        rest[indices] = clock + 1 + _REST
    attempt = _Attempt(setting, loss, expansion.loss, watch, stage, number)
    return attempt.settle(replace(state, resting=rest), proposals)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A block, its model of the loss, the problem (the user's terms added), and an answer."""

    block: Block
    model: QuadraticProblem
    problem: QuadraticProblem
    answer: Answer | None = None

    @property
    def flips(self) -> int:
        """Decisions that the answer changes."""
        return 0 if self.answer is None else int((self.answer.sample != self.block.pruned).sum())

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What went wrong on the way to the answer."""
        return () if self.answer is None else self.answer.faults

    @property
    def predicted(self) -> float:
        """Change of the loss that the answer promises, nats."""
        return 0.0 if self.answer is None else self.model.energy(self.answer.sample)

    @property
    def extra(self) -> float:
        """Change of the user's terms, nats."""
        if self.answer is None or self.problem is self.model:
            return 0.0
        return self.problem.energy(self.answer.sample) - self.predicted

    def record(self, setting: Setting) -> BlockRecord:
        """What a `Step` notes of it."""
        assert self.answer is not None
        kept = self.block.pruned == 0
        return BlockRecord(
            num_variables=self.model.num_variables,
            num_candidates_kept=int(kept.sum()),
            layers=setting.layers.count_by_layer(torch.from_numpy(self.block.indices)),
            sampler=setting.border.name,
            predicted=self.predicted,
            lower_bound=self.answer.lower_bound,
            flips=self.flips,
            seconds=self.answer.seconds,
            info=dict(self.answer.info) | {"energy": self.answer.energy},
        )


@dataclass(frozen=True, eq=False)
class _Attempt:
    """Putting one expansion's proposals to the acceptance split."""

    setting: Setting
    loss: Loss
    fit_loss: float
    watch: Stopwatch
    stage: int
    number: int

    def settle(self, state: State, proposals: Sequence[Proposal]) -> tuple[State, bool]:
        """Take all proposals, else the better half, ..., else the best at a higher price."""
        with self.watch.phase("accept"):
            present = self.setting.judge(self.loss)
        solved = self._solve(state, proposals)
        trying = sorted((p for p in solved if p.flips), key=lambda p: p.predicted)
        if not trying:
            self._note(state, solved, False, 0.0, present)
            return replace(state, trust=state.trust.lowered()), False
        for attempt in range(1, _ATTEMPTS + 1):
            predicted, flips = sum(p.predicted for p in trying), sum(p.flips for p in trying)
            moved = _applied(state, trying)
            judged = self._judge(moved, trying)
            real = judged - present
            if real + sum(p.extra for p in trying) < 0:
                self._note(moved, trying, True, real, judged)
                return replace(moved, trust=state.trust.taken(predicted, real, flips)), True
            self._write(state, trying)
            self._note(state, trying, False, real, present)
            if self.setting.journal.exhausted:
                break
            if len(trying) > 1:
                trying = trying[: len(trying) // 2]
                continue
            state = replace(state, trust=state.trust.raised(predicted, flips))
            if attempt == _ATTEMPTS:
                break
            solved = self._solve(state, trying)
            trying = [p for p in solved if p.flips]
            if not trying:
                # A step of its own, where there are faults to tell: none may follow.
                if any(p.faults for p in solved):
                    self._note(state, solved, False, 0.0, present)
                break
        return state, False

    def _judge(self, state: State, proposals: Sequence[Proposal]) -> float:
        with self.watch.phase("accept"):
            self._write(state, proposals)
            return self.setting.judge(self.loss)

    def _write(self, state: State, proposals: Sequence[Proposal]) -> None:
        for proposal in proposals:
            indices = torch.from_numpy(proposal.block.indices)
            self.setting.layers.write_at(indices, state.values[indices])

    def _solve(self, state: State, proposals: Sequence[Proposal]) -> list[Proposal]:
        key = (self.stage, self.number)
        with self.watch.phase("solve"):
            jobs = [
                (
                    repriced(p.problem, p.block, state.trust.price),
                    p.block.pruned,
                    _seed(self.setting.request.seed, *key, b),
                )
                for b, p in enumerate(proposals)
            ]
            found = answers(self.setting.border, jobs, self.setting.executor)
        for number, answer in enumerate(found):
            for fault in answer.faults:
                self.setting.journal.fault(replace(fault, block=number))
        solved = [replace(p, answer=a) for p, a in zip(proposals, found, strict=True)]
        self._tell(state, solved, jobs)
        return solved

    def _tell(self, state: State, solved: Sequence[Proposal], jobs: Sequence[Question]) -> None:
        """Show the observers of blocks what was asked, and what came back."""
        setting = self.setting
        if not setting.observe_blocks:
            return
        sparsity = 1 - int(state.mask.sum()) / setting.layers.size
        for number, (proposal, (problem, present, seed)) in enumerate(
            zip(solved, jobs, strict=True)
        ):
            assert proposal.answer is not None
            block = SolvedBlock(
                step=len(setting.journal.steps),
                stage=self.stage,
                round=self.number,
                block=number,
                sampler=setting.border.name,
                layers=setting.layers.count_by_layer(torch.from_numpy(proposal.block.indices)),
                sparsity=sparsity,
                problem=problem,
                present=present,
                seed=seed,
                answer=proposal.answer,
                predicted=proposal.predicted,
            )
            for observe in setting.observe_blocks:
                observe(block)

    def _note(
        self, state: State, proposals: Sequence[Proposal], taken: bool, real: float, judged: float
    ) -> None:
        note(
            self.setting,
            state,
            self.watch,
            stage=self.stage,
            round=self.number,
            kind="blocks",
            accepted=taken,
            predicted=sum(p.predicted for p in proposals),
            real=real,
            loss=judged,
            fit_loss=self.fit_loss,
            flips=sum(p.flips for p in proposals) if taken else 0,
            blocks=tuple(p.record(self.setting) for p in proposals),
        )


def note(setting: Setting, state: State, watch: Stopwatch, **record: Any) -> None:
    """Add a step to the journal."""
    sparsity = 1 - int(state.mask.sum()) / setting.layers.size
    setting.journal.add(sparsity=sparsity, price=state.trust.price, **record, **watch.record())


def note_rollback(setting: Setting, state: State, stage: int, number: int) -> None:
    """Add to the journal that the run went back to ``state``."""
    note(
        setting,
        state,
        Stopwatch(),
        stage=stage,
        round=number,
        kind="rollback",
        accepted=False,
        predicted=None,
        real=math.nan,
        loss=setting.judge(setting.request.loss),
        fit_loss=math.nan,
        flips=0,
    )


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(1)[0])


def _applied(state: State, proposals: Sequence[Proposal]) -> State:
    """The state with every proposal's answer carried out; only what was changed rests."""
    values, mask, resting = state.values.clone(), state.mask.clone(), state.resting.clone()
    for proposal in proposals:
        assert proposal.answer is not None
        block, kept = proposal.block, proposal.answer.sample == 0
        indices = torch.from_numpy(block.indices)
        values[indices] = torch.from_numpy(np.where(kept, block.keep_value, 0.0)).to(values)
        mask[indices] = torch.from_numpy(kept)
        resting[indices[torch.from_numpy(kept == block.pruned.astype(bool))]] = 0
    return replace(state, values=values, mask=mask, resting=resting)


def _keep_values(setting: Setting, state: State, expansion: Expansion) -> Tensor:
    """Every weight's value if kept: as it is, or what a pruned one would come back with.

    That is the original value, or with compensation the minimum of the loss along the weight
    alone, -g / (H_ii + damping), no larger than the original.
    """
    if setting.compensation is None:
        return setting.dense.values
    limit = setting.dense.values.abs()
    # Where nothing is known of a weight, 0 / 0, nothing is proposed for it.
    alone = -expansion.gradient / (expansion.diagonal + expansion.damping)
    return torch.where(state.mask, state.values, alone.nan_to_num().clamp(-limit, limit))


def _selected(
    setting: Setting, state: State, expansion: Expansion, keep_value: Tensor, clock: int
) -> list[Tensor]:
    # Pruning takes a value away, restoring brings one back.
    move = keep_value * (1 - 2 * state.mask.to(keep_value))
    curvature = expansion.diagonal + expansion.damping
    cost = move * (expansion.gradient + 0.5 * curvature * move)
    offer = Offer(
        setting.layers, setting.groups, state.mask, cost, state.resting > clock, setting.generator
    )
    request = setting.request
    return request.select.blocks(offer, setting.block_size, request.num_blocks)


def _block(
    setting: Setting, state: State, expansion: Expansion, keep_value: Tensor, indices: Tensor
) -> Block:
    pruned = (~state.mask[indices]).numpy()
    ids = setting.groups.of(indices).numpy()
    _, groups = np.unique(ids, return_inverse=True)
    return Block(
        indices=indices.numpy(),
        current=state.values[indices].double().numpy(),
        keep_value=keep_value[indices].double().numpy(),
        pruned=pruned.astype(np.int8),
        gradient=expansion.gradient[indices].double().numpy(),
        groups=groups.astype(np.int64),
        counts=np.bincount(groups, weights=pruned).astype(np.int64),
    )
