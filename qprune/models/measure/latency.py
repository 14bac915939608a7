"""Latency comparison of two calls, with controls for noise.

Calls take turns, so that a machine that slows down slows all of them; the medians of many rounds
are compared. Two controls check the clock: the same call under two names must take the same
time, and the call made twice must take twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.utils.benchmark import Measurement, Timer
from torch.utils.benchmark.utils.timer import timer as synchronized

from qprune.models.evaluate import Track, untracked

Call = Callable[[], object]
Clock = Callable[[], float]

#: Smallest gain that is reported, if also above three times the machine's noise.
SMALLEST_GAIN, NOISES = 0.05, 3.0
#: Allowed range of the time of two calls over that of one; outside, the clock is not trusted.
_TWICE = (1.5, 2.7)
#: Shortest time of one timing of one call, seconds.
_AT_LEAST = 0.02


@dataclass(frozen=True)
class Timing:
    """Time of one call in seconds: the median over rounds, and the interquartile range."""

    median: float
    spread: float
    rounds: int


@dataclass(frozen=True)
class Comparison:
    """Comparison of the dense and the pruned model at one kind of work.

    Attributes:
        work: short description of the work.
        dense, pruned: the timings.
        noise: relative difference between two timings of the same model.
        twice: time of two calls of the pruned model over that of one.
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
        """True if both controls passed."""
        return _TWICE[0] <= self.twice <= _TWICE[1] and self.noise < 0.25

    @property
    def gain(self) -> bool:
        """True if the pruned model is faster by more than the machine's noise."""
        return self.trusted and self.speedup > 1 + max(SMALLEST_GAIN, NOISES * self.noise)

    def verdict(self) -> str:
        """Outcome in one sentence."""
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
        work: short description of the work.
        dense: runs the dense model once.
        pruned: runs the pruned model once.
        rounds: timings of each.
        threads: torch's threads during the timing.
        track: wraps the rounds, for a progress bar.
        clock: returns seconds; by default one that waits for the GPU first.
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
    """Time each call once per round, in an order that rotates from round to round."""
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads, timer=clock)
        for name, call in calls.items()
    }
    numbers = {}
    for name, timer in timers.items():
        timer.timeit(1)  # Warm-up.
        numbers[name] = max(1, math.ceil(_AT_LEAST / timer.timeit(1).median))
    taken: dict[str, list[Measurement]] = {name: [] for name in calls}
    names = list(calls)
    for turn in track(range(rounds), "timing"):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(timers[name].timeit(numbers[name]))
    merged = {name: Measurement.merge(parts)[0] for name, parts in taken.items()}
    return {name: Timing(m.median, m.iqr, rounds) for name, m in merged.items()}
