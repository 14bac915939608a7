"""How long a call takes, measured so that the answer can be no.

Calls take turns, so that a machine that slows down slows all of them; the medians of many rounds
are compared. Two controls say how far the clock can be trusted: the same call under two names must
take the same time, and the call made twice must take twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.utils.benchmark import Measurement, Timer
from torch.utils.benchmark.utils.timer import timer as synchronized

from qprune.progress import Track, untracked

Call = Callable[[], object]
Clock = Callable[[], float]

#: A gain is claimed from this much on, and only above three times the machine's noise.
SMALLEST_GAIN, NOISES = 0.05, 3.0
#: A call made twice takes between so many times as long as once, or the clock is not trusted.
_TWICE = (1.5, 2.7)
#: Seconds that one timing of one call lasts at least.
_AT_LEAST = 0.02


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: the median over rounds, and the distance between the quartiles."""

    median: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """The dense and the pruned model at one kind of work.

    Attributes:
        work: what was run, in words.
        dense, pruned: the timings.
        noise: relative difference between two timings of the very same model.
        twice: how many times as long the pruned model's call takes when made twice.
    """

    work: str
    dense: Timing
    pruned: Timing
    noise: float
    twice: float

    @property
    def speedup(self) -> float:
        """Dense time over pruned time."""
        return self.dense.median / self.pruned.median

    @property
    def trusted(self) -> bool:
        """Whether both controls came out as they must."""
        return _TWICE[0] <= self.twice <= _TWICE[1] and self.noise < 0.25

    @property
    def gain(self) -> bool:
        """Whether the pruned model is faster by more than the machine's noise."""
        return self.trusted and self.speedup > 1 + max(SMALLEST_GAIN, NOISES * self.noise)

    def verdict(self) -> str:
        """The outcome in one sentence."""
        times = f"{1e3 * self.dense.median:.3g} ms dense, {1e3 * self.pruned.median:.3g} ms pruned"
        if not self.trusted:
            return (
                f"{self.work}: {times}; no verdict: the same call twice differs by "
                f"{100 * self.noise:.0f} %, and made twice takes {self.twice:.2f} times as long"
            )
        if self.gain:
            return f"{self.work}: {times}; {self.speedup:.2f} times as fast"
        return (
            f"{self.work}: {times}; no gain (ratio {self.speedup:.2f}, this machine's noise is "
            f"{100 * self.noise:.1f} %)"
        )


def compare(
    work: str,
    dense: Call,
    pruned: Call,
    *,
    rounds: int = 15,
    threads: int = 1,
    track: Track = untracked,
    clock: Clock = synchronized,
) -> Comparison:
    """Time two calls against each other, with both controls.

    Args:
        work: what they do, in words.
        dense: runs the dense model once.
        pruned: runs the pruned model once.
        rounds: timings of each.
        threads: of torch during the timing.
        track: wraps the rounds, for a progress bar.
        clock: seconds; by default one that waits for the GPU first.
    """

    def twice() -> None:
        pruned()
        pruned()

    calls = {"dense": dense, "pruned": pruned, "again": pruned, "twice": twice}
    timings = take_turns(calls, rounds=rounds, threads=threads, track=track, clock=clock)
    one, again = timings["pruned"].median, timings["again"].median
    return Comparison(
        work=work,
        dense=timings["dense"],
        pruned=timings["pruned"],
        noise=abs(one - again) / min(one, again),
        twice=timings["twice"].median / one,
    )


def take_turns(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    threads: int = 1,
    track: Track = untracked,
    clock: Clock = synchronized,
) -> dict[str, Timing]:
    """Time each call once a round, in an order that turns from round to round."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        for name, call in calls.items()
    }
    numbers = {}
    for name, timer in timers.items():
        timer.timeit(1)  # The first call sets things up.
        numbers[name] = max(1, math.ceil(_AT_LEAST / timer.timeit(1).median))
    taken: dict[str, list[Measurement]] = {name: [] for name in calls}
    names = list(calls)
    for turn in track(range(rounds), "timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(timers[name].timeit(numbers[name]))
    merged = {name: Measurement.merge(parts)[0] for name, parts in taken.items()}
    return {name: Timing(m.median, m.iqr, rounds) for name, m in merged.items()}
