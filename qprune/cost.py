"""Estimate of a run's memory and time before it starts, with the largest part of each.

Pure: the numbers come from elsewhere (`gauged` measures, `qprune.walk.network_cost` counts). A run
goes through phases. Memory held in all of them is added up; of the memory held in one phase alone,
the largest phase counts.

Short measurements at the start of a run: what one pass over some samples holds and takes.

Default stages, rounds and samples of a run, by the cost of one pass.

The cost is counted, not timed, so that equal requests give equal masks on any machine.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qprune.errors import ImpossibleRequestError
from qprune.results import Estimate, Part, in_bytes, in_seconds

# Seconds. Estimates are rough, and a shorter run may be intended.
_YEAR = 365 * 86400.0


@dataclass(frozen=True)
class Phase:
    """Phase of a run: its own memory and its time.

    Attributes:
        name: one word.
        memory: parts held at once, bytes.
        time: parts one after the other, seconds, over the whole run.
    """

    name: str
    memory: tuple[Part, ...] = ()
    time: tuple[Part, ...] = ()

    @property
    def num_bytes(self) -> float:
        """Bytes held at once."""
        return sum(part.amount for part in self.memory)


@dataclass(frozen=True)
class Needs:
    """Memory and time of a method.

    Attributes:
        always: in memory from the start to the end of the run.
        phases: of the run.
        unknown: what takes time that nobody can foresee; empty where there is none.
    """

    always: tuple[Part, ...] = ()
    phases: tuple[Phase, ...] = ()
    unknown: str = ""

    def __add__(self, other: Needs) -> Needs:
        """Of two methods in a row."""
        unknown = self.unknown or other.unknown
        return Needs(self.always + other.always, self.phases + other.phases, unknown)


def estimate(
    present: float,
    before: float,
    always: Sequence[Part],
    phases: Sequence[Phase],
    *,
    limit: float | None = None,
    unknown: str = "",
) -> Estimate:
    """Return the estimate of a run from its phases.

    Args:
        present: bytes that the process holds now.
        before: peak bytes of the process so far.
        always: parts held from the start to the end of the run.
        phases: phases of the run.
        limit: seconds after which the run ends anyway.
        unknown: see `Estimate`.
    """
    worst = max(phases, key=lambda phase: phase.num_bytes, default=Phase(""))
    memory = _largest_first([*always, *worst.memory])
    time = _largest_first([part for phase in phases for part in phase.time])
    total = sum(part.amount for part in time)
    if limit is not None and total > limit:
        time = tuple(Part(part.what, part.amount * limit / total, part.remedy) for part in time)
    return Estimate(present, before, memory, time, unknown)


def require_fit(needs: Estimate, available: float, asked: float | None = None) -> None:
    """Refuse a run that cannot fit.

    Args:
        needs: estimate of the run.
        available: free bytes.
        asked: the caller's limit of the process in bytes; replaces ``available``.

    Raises:
        ImpossibleRequestError: says how much is needed, how much there is, what dominates, and
            what to do.
    """
    room = available + needs.present if asked is None else asked
    if needs.present + needs.more <= room:
        return
    process = Part("the process as it is, with model and data", needs.present)
    worst = max((process, *needs.memory[:1]), key=lambda part: part.amount)
    remedies = [part.remedy for part in needs.memory if part.remedy][:2]
    ways = f"take {' or '.join(remedies)}, or " if remedies else ""
    whose = "are available" if asked is None else "may be taken (max_memory)"
    raise ImpossibleRequestError(
        f"the run needs about {in_bytes(needs.present + needs.more)} of memory, most of it "
        f"{worst.what} ({in_bytes(worst.amount)}), and {in_bytes(room)} {whose}; {ways}"
        "raise max_memory (--max-memory) to run all the same"
    )


def require_end(needs: Estimate) -> None:
    """Refuse a run of more than a year.

    Raises:
        ImpossibleRequestError: names the largest part of the time, and the remedy.
    """
    if needs.seconds > _YEAR:
        remedies = [part.remedy for part in needs.time if part.remedy][:2]
        ways = f"take {' or '.join(remedies)}, or " if remedies else ""
        raise ImpossibleRequestError(
            f"the run would take about {in_seconds(needs.seconds)}, most of it "
            f"{needs.time[0].what}; {ways}fewer stages (--stages) or rounds (--rounds), or end it "
            "by max_seconds (--max-seconds)"
        )


def _largest_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return the parts summed by name, the largest first, without zeros."""
    amounts: dict[str, Part] = {}
    for part in parts:
        before = amounts.get(part.what)
        amount = part.amount + (before.amount if before else 0.0)
        amounts[part.what] = Part(part.what, amount, part.remedy)
    found = [part for part in amounts.values() if part.amount > 0]
    return tuple(sorted(found, key=lambda part: -part.amount))


class Tally(TorchDispatchMode):
    """Counts, inside, the bytes of tensors that are alive at once, backward passes included.

    What was there before is not counted, nor what an operation needs for itself.

    Attributes:
        live: bytes alive now.
        peak: the most that were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.live = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):
            self._see(tensor, counts=False)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            self._see(tensor, counts=True)
        return out

    def _see(self, tensor: Any, counts: bool) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.live -= size


@dataclass(frozen=True)
class Pass:
    """Memory and time of a pass over samples: a constant, and so much for each sample.

    Attributes:
        fixed_bytes, sample_bytes: alive at once.
        fixed_seconds, sample_seconds: wall time.
    """

    fixed_bytes: float = 0.0
    sample_bytes: float = 0.0
    fixed_seconds: float = 0.0
    sample_seconds: float = 0.0

    def num_bytes(self, batch: int) -> float:
        """Of a pass over ``batch`` samples at once."""
        return self.fixed_bytes + batch * self.sample_bytes

    def seconds(self, samples: float, batch: int) -> float:
        """Of passes over ``samples`` in all, ``batch`` at once."""
        return samples * self.sample_seconds + samples / max(1, batch) * self.fixed_seconds


def gauged(run: Callable[[int], object], sizes: Sequence[int]) -> Pass:
    """A `Pass` from runs over some numbers of samples.

    Args:
        run: makes the pass over so many samples.
        sizes: a small and a large number; the same one twice where there is but one sample.
    """
    small, large = sizes
    first, _ = _counted(run, small)
    if small == large:
        seconds = _timed(run, small)
        return Pass(0.0, first / small, 0.0, seconds / small)
    second, _ = _counted(run, large)
    each = max(0.0, (second - first) / (large - small))
    few, many = _timed(run, small), _timed(run, large)
    slope = max(many - few, 0.1 * many) / (large - small)
    return Pass(max(0.0, first - small * each), each, max(0.0, few - small * slope), slope)


def _counted(run: Callable[[int], object], size: int) -> tuple[int, object]:
    with Tally() as tally:
        kept = run(size)
    return tally.peak, kept


def _timed(run: Callable[[int], object], size: int) -> float:
    began = time.perf_counter()
    run(size)
    return time.perf_counter() - began


@dataclass(frozen=True)
class Effort:
    """Defaults of `qprune.prune`.

    Attributes:
        stages: steps up to the requested sparsity.
        rounds: expansions per stage.
        final_rounds: expansions at the last stage.
        samples_per_step: samples of one expansion.
        iterations: those of conjugate gradients at which compensation tries a step.
        curvature_share: share of the samples that compensation uses for the curvature.
        moves: steps of distillation after the first pass of a stage.
        samples_per_move: samples of one of them.
    """

    stages: int
    rounds: int
    final_rounds: int
    samples_per_step: int
    iterations: tuple[int, ...]
    curvature_share: float
    moves: int
    samples_per_move: int


THOROUGH = Effort(20, 4, 20, 2400, (2, 4, 8, 16, 32), 1.0, 160, 128)
FRUGAL = Effort(10, 1, 5, 400, (2, 4), 0.5, 160, 64)

# Multiplications per sample from which a network counts as large: a pass over 2,400 samples
# then takes about a second on one core.
_LARGE = 4_000_000
# Multiplications of all first-order passes of a stage: together with a last call of 1.5 times
# as many as all stages take, some minutes of one core.
_PASSED = 8e11
# From so many on, a sample counts as a sequence of many tokens: a few make a step.
_SEQUENCE = 500_000_000


def effort_for(multiplications: int) -> Effort:
    """Return the defaults for a network with this number of multiplications per sample."""
    effort = THOROUGH if multiplications < _LARGE else FRUGAL
    samples = 8 if multiplications >= _SEQUENCE else effort.samples_per_move
    # Forward and twice as much backward.
    affordable = round(_PASSED / (3 * max(1, multiplications) * samples))
    return replace(effort, moves=max(16, min(effort.moves, affordable)), samples_per_move=samples)
