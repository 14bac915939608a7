"""What a run does, as work for the simulator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.scaling.costs import (
    EXPAND,
    GRADIENT,
    MOVE_BYTES,
    PRODUCT,
    Costs,
)
from benchmarks.scaling.events import Host, Pass, Tasks, Work

_FLOAT = 4


@dataclass(frozen=True)
class Subject:
    """A network that is pruned on cores.

    Attributes:
        forward: seconds of one sample's forward pass on the measured core.
        weights: targeted.
        layers: targeted.
        positions: whether a layer sees a sample at several positions (tokens, pixels).
        batch_size: samples of a micro-batch.
    """

    forward: float
    weights: int
    layers: int
    positions: bool
    batch_size: int


@dataclass(frozen=True)
class Counts:
    """How often a run did what; seen in its report.

    Attributes:
        samples: of one expansion.
        accepting: samples on which steps are judged.
        fitting: samples that the dense network was asked about.
        starts: stages.
        rounds: expansions for blocks.
        blocks: solved, with ``variables`` each.
        variables: of a block.
        judged: passes over the acceptance samples.
        compensations: moves of the kept weights.
        products: Gauss-Newton products in all.
        product_samples: samples of one.
    """

    samples: int
    accepting: int
    fitting: int
    starts: int
    rounds: int
    blocks: int
    variables: int
    judged: int
    compensations: int
    products: int
    product_samples: int


def walk(subject: Subject, counts: Counts, costs: Costs) -> list[Work]:
    """A run of `qprune.prune` on cores."""
    vectors = subject.weights * _FLOAT

    def passing(
        name: str, samples: int, forwards: float, times: int, *, beside: float = 0.0, **sent: Any
    ) -> list[Pass]:
        if not times or not samples:
            return []
        size = min(subject.batch_size, samples)
        batches = -(-samples // size)
        seconds = forwards * subject.forward * samples / batches + beside
        return [Pass(name, batches, seconds, **sent)] * times

    overhead = costs.per_layer * subject.layers
    beside = overhead + costs.per_weight * subject.weights
    if subject.positions:
        # Per-sample gradients of whole layers are written, squared and added up.
        beside += 3 * vectors * min(subject.batch_size, counts.samples) / costs.stream
    columns = counts.blocks * counts.variables / max(1, counts.rounds)
    size = min(subject.batch_size, counts.samples)
    return [
        *passing("dense outputs", counts.fitting + counts.accepting, 1, 1),
        *passing(
            "expand", counts.samples, EXPAND, counts.starts + counts.rounds,
            beside=beside, summed=2 * vectors,
        ),
        *passing(
            "columns", counts.samples, 0, counts.rounds,
            beside=costs.columns * size * columns, gathered=size * columns * _FLOAT,
        ),
        Host("select", seconds=costs.select * subject.weights * counts.rounds),
        Host("start", seconds=costs.prune * subject.weights * counts.starts),
        Tasks("solve", counts.blocks, costs.solve(counts.variables, counts.samples)),
        *passing("accept", counts.accepting, 1, counts.judged),
        *passing(
            "compensate: gradient", counts.samples, GRADIENT, counts.compensations,
            beside=overhead * GRADIENT / EXPAND, summed=vectors,
        ),
        *passing(
            "compensate: products", counts.product_samples, PRODUCT, counts.products,
            beside=overhead + costs.per_weight * subject.weights, summed=vectors,
        ),
        Host(
            "vectors",
            seconds=MOVE_BYTES * subject.weights * (counts.judged + counts.products) / costs.stream,
        ),
    ]  # fmt: skip
