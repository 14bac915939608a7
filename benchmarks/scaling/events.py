"""A run on a cluster as events in time (simpy): passes in turns, host work, blocks for workers."""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.scaling.cluster import Cluster


@dataclass(frozen=True)
class Pass:
    """Micro-batches, shared out among the ranks turn by turn.

    Attributes:
        name: of the phase, for the table.
        batches: how many.
        seconds: of one batch on one device.
        fetched: bytes of weights that a rank fetches for one batch, while it computes.
        summed: bytes of the vectors that all ranks add up after every turn.
        gathered: bytes of results that every rank sends to all others, per batch.
        joined: whether every rank needs the whole sums at the end, not its slice of them.
    """

    name: str
    batches: int
    seconds: float
    fetched: float = 0.0
    summed: float = 0.0
    gathered: float = 0.0
    joined: bool = True


@dataclass(frozen=True)
class Host:
    """Work over vectors in the host's memory, done by every rank.

    Attributes:
        name: of the phase.
        bytes: that each rank reads or writes.
        seconds: of one core, beside it.
    """

    name: str
    bytes: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Tasks:
    """Independent problems, handed out one after the other by one node.

    Attributes:
        name: of the phase.
        number: how many.
        seconds: of one, on one core or one device, on average.
        sent: bytes out, for one.
        returned: bytes back.
        on: "cores" or "devices".
        spread: standard deviation of the logarithm of the seconds.
    """

    name: str
    number: int
    seconds: float
    sent: float = 0.0
    returned: float = 0.0
    on: str = "cores"
    spread: float = 0.0


Work = Pass | Host | Tasks


@dataclass
class Outcome:
    """What a simulated run took.

    Attributes:
        seconds: by phase.
        network: bytes sent by all nodes or devices together.
        busy: seconds of all devices together.
        processor: core seconds of rank 0, waiting left out.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    network: float = 0.0
    busy: float = 0.0
    processor: float = 0.0

    @property
    def total(self) -> float:
        """Wall seconds."""
        return sum(self.seconds.values())

    def repeated(self, times: int) -> Outcome:
        """Of the same work, so many times one after the other."""
        seconds = {name: times * value for name, value in self.seconds.items()}
        amounts = (times * value for value in (self.network, self.busy, self.processor))
        return Outcome(seconds, *amounts)


def simulate(work: Sequence[Work], cluster: Cluster, seed: int = 0) -> Outcome:
    """Play ``work``, one item after the other, on ``cluster``."""
    env = simpy.Environment()
    outcome = Outcome()
    rng = random.Random(seed)

    def run() -> Generator[Any, Any, None]:
        for item in work:
            began = env.now
            if isinstance(item, Pass):
                yield from _pass(env, item, cluster, outcome)
            elif isinstance(item, Host):
                yield from _host(env, item, cluster, outcome)
            else:
                yield from _tasks(env, item, cluster, outcome, rng)
            spent = env.now - began
            outcome.seconds[item.name] = outcome.seconds.get(item.name, 0.0) + spent

    env.process(run())
    env.run()
    return outcome


def _pass(env: Any, work: Pass, cluster: Cluster, outcome: Outcome) -> Generator[Any, Any, None]:
    size, link = cluster.size, cluster.exchange

    def batch() -> Generator[Any, Any, None]:
        fetching = 0.0
        if size > 1 and work.fetched:
            fetching = link.latency + work.fetched * (size - 1) / size / link.bandwidth
            outcome.network += work.fetched * (size - 1) / size
        # The next layer's weights come while this one's are used.
        yield env.timeout(max(work.seconds, fetching))
        outcome.busy += work.seconds

    for first in range(0, work.batches, size):
        number = min(size, work.batches - first)
        yield env.all_of([env.process(batch()) for _ in range(number)])
        outcome.processor += work.seconds
        if size > 1:
            # Every turn the ranks tell one another that all went well.
            yield env.timeout(link.latency)
            outcome.processor += link.latency
        yield from _exchange(env, work.summed, 1, cluster, outcome)
        yield from _exchange(env, work.gathered, size - 1, cluster, outcome)
    if work.joined:
        yield from _exchange(env, work.summed, 1, cluster, outcome)


def _exchange(
    env: Any, amount: float, times: float, cluster: Cluster, outcome: Outcome
) -> Generator[Any, Any, None]:
    """All ranks at once, each over its own link: ``amount`` but its own share, or to each other."""
    size, link = cluster.size, cluster.exchange
    if size == 1 or not amount:
        return
    sent = amount * (size - 1) / size if times == 1 else amount * times
    yield env.timeout(link.latency * (size - 1) + sent / link.bandwidth)
    outcome.network += sent * size
    outcome.processor += link.latency * (size - 1) + sent / link.bandwidth


def _host(env: Any, work: Host, cluster: Cluster, outcome: Outcome) -> Generator[Any, Any, None]:
    # The ranks of a node share its memory.
    seconds = work.seconds / cluster.core_speed
    seconds += work.bytes * cluster.devices / cluster.host_bandwidth
    yield env.timeout(seconds)
    outcome.processor += seconds


def _tasks(
    env: Any, work: Tasks, cluster: Cluster, outcome: Outcome, rng: random.Random
) -> Generator[Any, Any, None]:
    speed = cluster.core_speed if work.on == "cores" else 1.0
    per_node = cluster.cores if work.on == "cores" else cluster.devices
    workers = simpy.Resource(env, capacity=per_node * cluster.nodes)
    head = simpy.Resource(env, capacity=1)
    link = cluster.between
    remote = cluster.nodes > 1

    def send(amount: float) -> Generator[Any, Any, None]:
        if not remote:
            return
        with head.request() as turn:
            yield turn
            yield env.timeout(amount / link.bandwidth)
        yield env.timeout(link.latency)
        outcome.network += amount

    def task(seconds: float) -> Generator[Any, Any, None]:
        with workers.request() as turn:
            yield turn
            yield from send(work.sent)
            yield env.timeout(seconds)
            if work.on == "devices":
                outcome.busy += seconds
        yield from send(work.returned)

    # Lognormal with the mean that is asked.
    lengths = [
        work.seconds / speed * rng.lognormvariate(-(work.spread**2) / 2, work.spread)
        for _ in range(work.number)
    ]
    outcome.processor += sum(lengths)
    yield env.all_of([env.process(task(seconds)) for seconds in lengths])
